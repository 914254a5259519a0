//! Fails in every way that a test wants to see contained.
//!
//! `/` and `/healthz` answer · `/trap` · `/panic` · `/loop` never ends · `/hog?mib=N` takes memory · `/sleep?ms=N`
//! `/exit?code=N` ends the instance · `/sick?seconds=N` makes `/healthz` fail for a while · `/fill?mib=N` a large answer

use std::{
    env, fs,
    hint::black_box,
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use wasip2::{
    exports::http::incoming_handler::Guest,
    http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam},
};

struct Faults;

wasip2::http::proxy::export!(Faults);

/// Until when the component says that it is sick, in seconds since 1970. Instances are new for each request, so it is
/// kept in a volume; the pod mounts one there.
const SICK_UNTIL: &str = "/data/sick-until";
const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

impl Guest for Faults {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let number: usize = query.split_once('=').and_then(|(_, value)| value.parse().ok()).unwrap_or(1);
        let (status, text) = act(path, number);
        respond(out, status, &text);
    }
}

fn act(path: &str, number: usize) -> (u16, String) {
    match path {
        "/" => (200, format!("well, on {}\n", env::var("HOSTNAME").unwrap_or_default())),
        "/healthz" if now() < sick_until() => (503, "sick\n".to_owned()),
        "/healthz" => (200, "ok\n".to_owned()),
        "/trap" => core::arch::wasm32::unreachable(),
        "/panic" => panic!("asked to panic"),
        "/loop" => loop {
            black_box(());
        },
        "/hog" => (200, format!("{} MiB\n", hog(number))),
        "/fill" => (200, "x".repeat(number * MIB)),
        "/sleep" => {
            std::thread::sleep(Duration::from_millis(number as u64));
            (200, "slept\n".to_owned())
        }
        "/exit" => std::process::exit(number as i32),
        "/sick" => match fs::write(SICK_UNTIL, (now() + number as u64).to_string()) {
            Ok(()) => (200, format!("sick for {number} s\n")),
            Err(error) => (500, format!("{SICK_UNTIL}: {error}\n")),
        },
        _ => (404, format!("nothing at {path}\n")),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn sick_until() -> u64 {
    fs::read_to_string(SICK_UNTIL).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Touches each page, so that the memory is really taken.
fn hog(mib: usize) -> usize {
    let mut memory = vec![0_u8; mib * MIB];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    black_box(&memory).len() / MIB
}

fn respond(out: ResponseOutparam, status: u16, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let mut stream = body.write().expect("the stream is taken once");
    let written = stream.write_all(text.as_bytes()).and_then(|()| Write::flush(&mut stream));
    drop(stream);
    if written.is_ok() {
        let _ = OutgoingBody::finish(body, None);
    }
}
