use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Answer, Command, Outcome, Request, VERSION};

/// The versions of the CNI specification whose results this plugin writes.
const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

const TIMEOUT: Duration = Duration::from_secs(10);
const CONFIGURATION_LIMIT: u64 = 1 << 20;

// The error codes of the CNI specification.
const INCOMPATIBLE_VERSION: u32 = 1;
const INVALID_ENVIRONMENT: u32 = 4;
const NO_DECODE: u32 = 6;
const INVALID_CONFIGURATION: u32 = 7;
const TRY_AGAIN_LATER: u32 = 11;
/// The first one that the specification leaves to plugins: the node refused.
const REFUSED: u32 = 100;

/// What containerd passes, of it what matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    cni_version: String,
    ipam: Option<Ipam>,
}

#[derive(Deserialize)]
struct Ipam {
    socket: PathBuf,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AddResult<'a> {
    cni_version: &'a str,
    ips: [Ip<'a>; 1],
    routes: [Route<'a>; 1],
    dns: Dns,
}

#[derive(Serialize)]
struct Ip<'a> {
    /// Only before 1.0.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    address: String,
    gateway: String,
}

#[derive(Serialize)]
struct Route<'a> {
    dst: &'a str,
}

#[derive(Serialize)]
struct Dns {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VersionResult<'a> {
    cni_version: &'a str,
    supported_versions: [&'a str; 5],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorResult<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: u32,
    message: String,
}

fn failure(code: u32, message: impl ToString) -> Failure {
    Failure { code, message: message.to_string() }
}

/// The program `tandem-ipam`: one CNI operation, from the environment and stdin to stdout.
pub fn plugin_main() -> ExitCode {
    let mut input = Vec::new();
    let read = io::stdin().take(CONFIGURATION_LIMIT).read_to_end(&mut input);
    let command = std::env::var("CNI_COMMAND").unwrap_or_default();
    let container = std::env::var("CNI_CONTAINERID").unwrap_or_default();
    let outcome = match read {
        Ok(_) => operate(&command, &container, &input, ask),
        Err(error) => Err(failure(NO_DECODE, error)),
    };
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(Failure { code, message }) => {
            let result = ErrorResult { cni_version: "1.0.0", code, msg: &message };
            (serde_json::to_vec(&result).unwrap_or_default(), ExitCode::FAILURE)
        }
    };
    match io::stdout().write_all(&text) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn operate(
    command: &str,
    container: &str,
    input: &[u8],
    ask: impl Fn(&Ipam, &Request) -> Result<Answer, Failure>,
) -> Result<Vec<u8>, Failure> {
    let encode = |result: serde_json::Result<Vec<u8>>| result.map_err(|error| failure(NO_DECODE, error));
    if command == "VERSION" {
        return encode(serde_json::to_vec(&VersionResult { cni_version: "1.0.0", supported_versions: SUPPORTED }));
    }
    let configuration: Configuration =
        serde_json::from_slice(input).map_err(|error| failure(NO_DECODE, format!("configuration: {error}")))?;
    let version = configuration.cni_version.as_str();
    if !SUPPORTED.contains(&version) {
        return Err(failure(INCOMPATIBLE_VERSION, format!("CNI version {version} is not supported")));
    }
    let ipam = configuration.ipam.ok_or_else(|| failure(INVALID_CONFIGURATION, "ipam.socket is missing"))?;
    let command = match command {
        "ADD" => Command::Add,
        "DEL" => Command::Delete,
        "CHECK" => Command::Check,
        "STATUS" => Command::Status,
        // Garbage of sandboxes that are gone is the node's to find.
        "GC" => return Ok(Vec::new()),
        other => return Err(failure(INVALID_ENVIRONMENT, format!("CNI_COMMAND {other:?} is not known"))),
    };
    if container.is_empty() && command != Command::Status {
        return Err(failure(INVALID_ENVIRONMENT, "CNI_CONTAINERID is missing"));
    }
    let answer = ask(&ipam, &Request { version: VERSION, command, owner: container.to_owned() })?;
    match (answer.outcome, command) {
        (Outcome::Given { address, gateway }, Command::Add) => encode(serde_json::to_vec(&AddResult {
            cni_version: version,
            ips: [Ip {
                version: version.starts_with("0.").then_some("4"),
                address: address.to_string(),
                gateway: gateway.to_string(),
            }],
            routes: [Route { dst: "0.0.0.0/0" }],
            dns: Dns {},
        })),
        (Outcome::Done {}, Command::Add) => Err(failure(NO_DECODE, "the node gave no address")),
        (Outcome::Given { .. } | Outcome::Done {}, _) => Ok(Vec::new()),
        (Outcome::Failed { message }, _) => Err(failure(REFUSED, message)),
    }
}

fn ask(ipam: &Ipam, request: &Request) -> Result<Answer, Failure> {
    let unreachable =
        |error: io::Error| failure(TRY_AGAIN_LATER, format!("ask the node on {}: {error}", ipam.socket.display()));
    let mut line = serde_json::to_vec(request).map_err(|error| failure(NO_DECODE, error))?;
    line.push(b'\n');
    let mut stream = UnixStream::connect(&ipam.socket).map_err(unreachable)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(unreachable)?;
    stream.write_all(&line).map_err(unreachable)?;
    let mut answer = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut answer).map_err(unreachable)?;
    serde_json::from_slice(&answer).map_err(|error| failure(NO_DECODE, format!("the node's answer: {error}")))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use expect_test::{Expect, expect};

    use super::*;

    const INPUT: &str =
        r#"{"cniVersion":"1.0.0","name":"pod","type":"ptp","ipam":{"type":"tandem-ipam","socket":"/d/ipam.sock"}}"#;

    fn node(_: &Ipam, request: &Request) -> Result<Answer, Failure> {
        let outcome = match (request.command, request.owner.as_str()) {
            (_, "full") => Outcome::Failed { message: "all 6 addresses are in use".into() },
            (Command::Add | Command::Check, _) => {
                Outcome::Given { address: "10.1.2.3/24".parse().unwrap(), gateway: Ipv4Addr::new(10, 1, 2, 1) }
            }
            (Command::Delete | Command::Status, _) => Outcome::Done {},
        };
        Ok(Answer { version: VERSION, outcome })
    }

    fn check(command: &str, container: &str, input: &str, expected: Expect) {
        expected.assert_eq(&match operate(command, container, input.as_bytes(), node) {
            Ok(text) => String::from_utf8(text).unwrap(),
            Err(Failure { code, message }) => format!("{code}: {message}"),
        });
    }

    #[test]
    fn results_are_those_of_the_specification() {
        check(
            "ADD",
            "s1",
            INPUT,
            expect![[
                r#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24","gateway":"10.1.2.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#
            ]],
        );
        check(
            "ADD",
            "s1",
            &INPUT.replace("1.0.0", "0.4.0"),
            expect![[
                r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.2.3/24","gateway":"10.1.2.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#
            ]],
        );
        check("DEL", "s1", INPUT, expect![""]);
        check("CHECK", "s1", INPUT, expect![""]);
        check(
            "VERSION",
            "",
            "",
            expect![[r#"{"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#]],
        );
    }

    #[test]
    fn failures_have_the_codes_of_the_specification() {
        check("ADD", "full", INPUT, expect!["100: all 6 addresses are in use"]);
        check("ADD", "", INPUT, expect!["4: CNI_CONTAINERID is missing"]);
        check("RUN", "s1", INPUT, expect![[r#"4: CNI_COMMAND "RUN" is not known"#]]);
        check("ADD", "s1", "", expect!["6: configuration: EOF while parsing a value at line 1 column 0"]);
        check("ADD", "s1", r#"{"cniVersion":"1.0.0"}"#, expect!["7: ipam.socket is missing"]);
        check("ADD", "s1", r#"{"cniVersion":"9.0.0"}"#, expect!["1: CNI version 9.0.0 is not supported"]);
    }

    #[test]
    fn a_node_that_is_away_is_worth_another_try() {
        let ipam = Ipam { socket: "/nonexistent/ipam.sock".into() };
        let request = Request { version: VERSION, command: Command::Add, owner: "s1".into() };
        assert_eq!(ask(&ipam, &request).unwrap_err().code, TRY_AGAIN_LATER);
    }
}
