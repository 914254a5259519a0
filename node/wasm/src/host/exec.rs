use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{
    Host, HostError,
    running::{Launch, Place, Running, arguments},
};
use crate::{
    engine::{Ending, GuestStreams, Pulse},
    live::{Heard, LISTENERS_MAX},
    output::Output,
    state::{ContainerRecord, ContainerState},
};

/// As CRI wants it: more is dropped, and the command goes on.
const CAPTURED_BYTES: usize = 16 * 1024 * 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExecResult {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Ends the guest when nobody waits for it any more.
struct Leash(Arc<Pulse>);

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Host {
    /// Runs the container's component anew with these arguments, to its end.
    pub(crate) async fn exec(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecResult, HostError> {
        let (stdout, stderr) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<Mutex<Vec<u8>>>::default());
        let streams = GuestStreams {
            stdin: None,
            stdout: Output::captured(stdout.clone(), CAPTURED_BYTES),
            stderr: Output::captured(stderr.clone(), CAPTURED_BYTES),
        };
        let pulse = Arc::new(Pulse::default());
        let ending = self.begin(id, command, streams, &pulse)?;
        let leash = Leash(pulse);
        let ended = if timeout.is_zero() {
            ending.await
        } else {
            let ended = tokio::time::timeout(timeout, ending).await;
            ended.map_err(|_| HostError::Timeout("the command"))?
        };
        drop(leash);
        let Ending { code, message, .. } = ended.map_err(|_| HostError::Failed("the container ended".to_owned()))?;
        let mut stderr = std::mem::take(&mut *stderr.lock());
        stderr.extend_from_slice(message.as_bytes());
        let stdout = std::mem::take(&mut *stdout.lock());
        Ok(ExecResult { code, stdout, stderr })
    }

    /// As `exec`, with its input and output passed on while they come. The command ends when the receivers are gone.
    pub(crate) async fn exec_live(
        &self,
        id: &str,
        command: &[String],
        stdin: Option<mpsc::Receiver<Bytes>>,
        stdout: mpsc::Sender<Bytes>,
        stderr: mpsc::Sender<Bytes>,
    ) -> Result<i32, HostError> {
        let gone = stdout.clone();
        let said = stderr.clone();
        let streams = GuestStreams { stdin, stdout: Output::sent(stdout), stderr: Output::sent(stderr) };
        let pulse = Arc::new(Pulse::default());
        let ending = self.begin(id, command, streams, &pulse)?;
        let _leash = Leash(pulse);
        let ended = tokio::select! {
            ended = ending => ended,
            () = gone.closed() => return Err(HostError::Failed("the client has gone".to_owned())),
        };
        let Ending { code, message, .. } = ended.map_err(|_| HostError::Failed("the container ended".to_owned()))?;
        if !message.is_empty() {
            // The client may be gone by now.
            drop(said.send(Bytes::from(message)).await);
        }
        Ok(code)
    }

    /// Passes on what the container says from now on, and its input, until it ends. No more of what clients want
    /// than they ask for: of an absent stream nothing is sent.
    pub(crate) async fn attach(
        &self,
        id: &str,
        stdin: Option<mpsc::Receiver<Bytes>>,
        stdout: Option<mpsc::Sender<Bytes>>,
        stderr: Option<mpsc::Sender<Bytes>>,
    ) -> Result<(), HostError> {
        let running = self.running(id).ok_or_else(|| HostError::Failed(format!("container {id} does not run")))?;
        let input = match stdin {
            Some(stdin) => Some((running.input().ok_or_else(without_input)?, stdin)),
            None => None,
        };
        let listener = running.log.live.listen().ok_or_else(|| {
            HostError::Failed(format!("{LISTENERS_MAX} clients are attached to container {id} already"))
        })?;
        let take = async {
            let goes_on = match input {
                Some((input, stdin)) => !input.take(stdin).await,
                None => false,
            };
            // As containerd has it: who says no more, while others may, wants to hear no more either.
            if !goes_on {
                std::future::pending::<()>().await;
            }
        };
        let hear = async {
            loop {
                let (stream, bytes) = match listener.next().await {
                    Heard::Output(stream, bytes) => (stream, bytes),
                    Heard::Ended => return Ok(()),
                    Heard::Behind => {
                        let why = "output of the container was lost, since it was not read quickly enough";
                        return Err(HostError::Failed(why.to_owned()));
                    }
                };
                let wanted = if stream == "stdout" { &stdout } else { &stderr };
                if let Some(wanted) = wanted
                    && wanted.send(bytes).await.is_err()
                {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            heard = hear => heard,
            () = take => Ok(()),
        }
    }

    fn begin(
        &self,
        id: &str,
        command: &[String],
        streams: GuestStreams,
        pulse: &Arc<Pulse>,
    ) -> Result<oneshot::Receiver<Ending>, HostError> {
        let record = self.container(id)?;
        let running = match (&record.state, self.running(id)) {
            (ContainerState::Running { .. }, Some(running)) => running,
            _ => return Err(HostError::Failed(format!("container {id} does not run"))),
        };
        if running.program.command.is_none() {
            return Err(HostError::Refused(
                "this component exports no wasi:cli/run, so there is nothing that exec could run".to_owned(),
            ));
        }
        let sandbox = self.table.sandbox(&record.sandbox);
        let sandbox = sandbox.ok_or_else(|| HostError::NotFound(format!("sandbox {}", record.sandbox)))?;
        let place = Place::of(&running.program, &sandbox.attachment);
        let args = exec_arguments(&record, command);
        let Running { program, cpu, .. } = &*running;
        let launch = Launch { program, blueprint: running.blueprint(), args: &args, cpu, pulse, place };
        self.launch(launch, streams)
    }
}

fn without_input() -> HostError {
    let why = "its input is closed: only a command whose pod says `stdin: true` has one that is not";
    HostError::Refused(why.to_owned())
}

/// The component is the only program that there is, so all words are its arguments; its own name may come first.
fn exec_arguments(record: &ContainerRecord, command: &[String]) -> Vec<String> {
    let name = arguments(record).into_iter().next().unwrap_or_default();
    let rest = match command.split_first() {
        Some((first, rest)) if *first == name => rest,
        _ => command,
    };
    std::iter::once(name).chain(rest.iter().cloned()).collect()
}
