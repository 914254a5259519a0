//! Room on the disk: a reserve that is given up when everything else is full, so that things can still be deleted.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
};
use tokio::sync::watch;

/// Bytes that a member keeps in reserve, unless its options say otherwise.
pub const RESERVE_BYTES: u64 = 64 << 20;

const RESERVE_FILE: &str = "reserve";

/// How often a member looks how much room there is.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How much room a member has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    #[default]
    Enough,
    /// What makes the data larger is refused; deleting and forgetting go on, on the reserve.
    Low,
    /// The reserve is used up too: only forgetting history goes on.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Keep,
    GiveUp,
    MakeAgain,
}

/// What is to be done with `free` bytes beside a reserve of so many, which may have been given up.
fn plan(free: u64, reserve: u64, there: bool) -> (Space, Step) {
    let (low, none) = (reserve / 2, reserve / 8);
    match there {
        true if free >= low => (Space::Enough, Step::Keep),
        true if free >= none => (Space::Low, Step::Keep),
        true => (Space::Low, Step::GiveUp),
        // More than what was given up, so that it is not made and given up in turns.
        false if free >= 2 * reserve => (Space::Enough, Step::MakeAgain),
        false if free >= none => (Space::Low, Step::Keep),
        false => (Space::None, Step::Keep),
    }
}

pub(crate) struct Reserve {
    dir: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Looks for the first time, before anything in the folder is opened: on a full disk that needs room too.
    pub(crate) fn open(dir: &Path, bytes: u64) -> io::Result<(Reserve, Space)> {
        let reserve = Reserve { dir: dir.to_owned(), bytes };
        let space = reserve.look()?;
        Ok((reserve, space))
    }

    fn file(&self) -> PathBuf {
        self.dir.join(RESERVE_FILE)
    }

    fn look(&self) -> io::Result<Space> {
        if self.bytes == 0 {
            return Ok(Space::Enough);
        }
        let found = statvfs(&self.dir)?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let (space, step) = plan(free, self.bytes, self.file().exists());
        match step {
            Step::Keep => (),
            Step::GiveUp => std::fs::remove_file(self.file())?,
            Step::MakeAgain => self.make()?,
        }
        Ok(space)
    }

    fn make(&self) -> io::Result<()> {
        let partial = self.dir.join(format!("{RESERVE_FILE}.partial"));
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        match fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
            // Some file systems can only be written to.
            Err(Errno::OPNOTSUPP) => drop(io::copy(&mut io::repeat(0).take(self.bytes), &mut &file)?),
            allocated => allocated?,
        }
        file.sync_all()?;
        std::fs::rename(&partial, self.file())?;
        File::open(&self.dir)?.sync_all()
    }

    /// Keeps looking, and tells.
    pub(crate) async fn observe(self, told: watch::Sender<Space>) {
        if self.bytes == 0 {
            return;
        }
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            ticks.tick().await;
            match self.look() {
                Ok(space) => {
                    if told.send_if_modified(|before| std::mem::replace(before, space) != space) {
                        tracing::warn!(?space, path = %self.dir.display(), "the room on the disk has changed");
                    }
                }
                Err(error) => tracing::warn!(%error, "the room on the disk could not be looked at"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_reserve_is_given_up_late_and_made_again_later() {
        let mut shown = String::new();
        for there in [true, false] {
            for free in [200, 100, 32, 31, 8, 7, 0] {
                shown.push_str(&format!("{there} {free}: {:?}\n", plan(free, 64, there)));
            }
        }
        expect![[r#"
            true 200: (Enough, Keep)
            true 100: (Enough, Keep)
            true 32: (Enough, Keep)
            true 31: (Low, Keep)
            true 8: (Low, Keep)
            true 7: (Low, GiveUp)
            true 0: (Low, GiveUp)
            false 200: (Enough, MakeAgain)
            false 100: (Low, Keep)
            false 32: (Low, Keep)
            false 31: (Low, Keep)
            false 8: (Low, Keep)
            false 7: (None, Keep)
            false 0: (None, Keep)
        "#]]
        .assert_eq(&shown);
    }
}
