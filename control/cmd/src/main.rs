//! The binary: parses the command line, builds the parts and wires them. It decides nothing.

mod address;
mod addresses;
mod certificates;
mod cli;
mod control;
mod data;
mod down;
mod elsewhere;
mod enrol;
mod inspect;
mod join;
mod kubeconfig;
mod leading;
mod member;
mod members;
mod node;
mod program;
mod push;
mod recovery;
mod settings;
mod signer;
mod status;
mod terminal;
mod token;
mod up;
mod way;

use std::{path::Path, process::ExitCode};

use clap::Parser as _;
use cli::{Cli, Command, MemberCommand, Registry, TokenCommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The name under which containerd's network plugin finds us.
const IPAM_PLUGIN: &str = "tandem-ipam";

fn main() -> ExitCode {
    let called_as = std::env::args_os().next().unwrap_or_default();
    if Path::new(&called_as).file_name().is_some_and(|name| name == IPAM_PLUGIN) {
        return tandem_net::ipam::plugin_main();
    }
    let cli = Cli::parse();
    if let Command::WasmHost { arguments } = &cli.command {
        return tandem_wasm::host_main(arguments.iter().map(Into::into));
    }
    let serves = matches!(cli.command, Command::Up(_) | Command::Control(_) | Command::Node(_));
    terminal::start_logging(cli.log_format, !serves || matches!(cli.command, Command::Up(_)));
    // Two TLS crates choose their own provider otherwise; a second installation cannot happen here.
    let _first = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("cannot start threads")),
    };
    let result = runtime.block_on(run(cli.command));
    // Tasks that wait for somebody who never answers must not delay the end.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    terminal::remark(&format!("tandem: {}", told(error)));
    ExitCode::FAILURE
}

/// The error with its causes. Many errors end with the text of their source already, and nobody wants to read it twice.
fn told(error: &anyhow::Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let first = causes.next().unwrap_or_default();
    causes.fold(first, |text, cause| if text.ends_with(&cause) { text } else { format!("{text}: {cause}") })
}

fn kubeconfig_of(cluster: &Registry) -> std::path::PathBuf {
    kubeconfig::path(cluster.kubeconfig.as_deref(), cluster.data.data_dir.as_deref())
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(up) => up::up(&up).await,
        Command::Control(control) => up::control(&control).await,
        Command::Node(node) => up::node(&node).await,
        Command::Down(data) => down::down(&data::chosen(data.data_dir.as_deref())).await,
        Command::Token { command: TokenCommand::Create { data, role, ttl, kubeconfig } } => {
            let kubeconfig = kubeconfig::path(kubeconfig.as_deref(), data.data_dir.as_deref());
            token::create(role, ttl, &kubeconfig).await
        }
        Command::Member { command: MemberCommand::List { cluster, output } } => {
            status::members(&kubeconfig_of(&cluster), output).await
        }
        Command::Member { command: MemberCommand::Promote { id, cluster } } => {
            status::promote(id, &kubeconfig_of(&cluster)).await
        }
        Command::Member { command: MemberCommand::Remove { id, cluster } } => {
            status::remove(id, &kubeconfig_of(&cluster)).await
        }
        Command::Status(asked) => status::show(&kubeconfig_of(&asked.cluster), asked.output).await,
        Command::Push(push) => {
            let kubeconfig = kubeconfig_of(&push.registry);
            push::push(&push.file, &push.reference, &kubeconfig).await
        }
        Command::Inspect(inspect) => {
            let file = Path::new(&inspect.target);
            if file.exists() {
                return inspect::show(&inspect.target, &inspect::read(file)?);
            }
            push::show(&inspect.target, &kubeconfig_of(&inspect.registry)).await
        }
        Command::WasmHost { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let source = tandem_client::Error::File { path: "/x/config".to_owned(), source: missing() };
        assert_eq!(told(&anyhow::Error::new(source)), "/x/config: no such file");
        let context = Err::<(), _>(missing()).context("cannot read /x/config").context("the cluster is not known");
        assert_eq!(told(&context.unwrap_err()), "the cluster is not known: cannot read /x/config: no such file");
    }
}
