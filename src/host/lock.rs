//! Exclusive locks on files and folders, which go with the process that holds them: a crash leaves nothing to clean up.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rustix::fs::{fstat, major, minor};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// The kernel's table of locks (proc_locks(5)).
const TABLE: &str = "/proc/locks";

/// How long a lock is waited for. One that was killed with its controller may live on for the moment that a child between clone3 and
/// execveat still has a copy of the descriptor; one that is really held is held for longer.
const TRIES: u32 = 10;
const AGAIN: Duration = Duration::from_millis(20);

/// Why a lock cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `EWOULDBLOCK` if somebody else has it.
    pub errno: Errno,
    pub holder: Holder,
}

/// Who has a lock, as far as the kernel tells: not who is in a process namespace that we are not in. Shown as what follows a noun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
    }
}

/// The lock, or who has it.
pub fn exclusive(mut file: File) -> Result<Flock<File>, Refused> {
    for _ in 1..TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((given_back, Errno::EWOULDBLOCK)) => file = given_back,
            locked => return locked.map_err(refused),
        }
        sleep(AGAIN);
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(refused)
}

/// A folder that is held; its file system need not be writable for that.
#[derive(Debug)]
pub struct Held {
    _lock: Flock<File>,
}

/// Why a folder cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    #[error("cannot open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "the {what} {path} is used by another controller{holder}\n  help: stop it, or give this one another {option}"
    )]
    Taken { what: &'static str, path: PathBuf, holder: Holder, option: &'static str },
    #[error("cannot lock {path}")]
    Lock { path: PathBuf, source: io::Error },
}

/// Holds a folder, which `what` and `option` name to people.
pub fn folder(path: &Path, what: &'static str, option: &'static str) -> Result<Held, HoldError> {
    let file = File::open(path).map_err(|source| HoldError::Open { path: path.to_owned(), source })?;
    let locked = exclusive(file).map_err(|Refused { errno, holder }| match errno {
        Errno::EWOULDBLOCK => HoldError::Taken { what, path: path.to_owned(), holder, option },
        errno => HoldError::Lock { path: path.to_owned(), source: errno.into() },
    });
    Ok(Held { _lock: locked? })
}

fn refused((file, errno): (File, Errno)) -> Refused {
    let holder = if errno == Errno::EWOULDBLOCK { holder(&file) } else { None };
    Refused { errno, holder: Holder(holder) }
}

fn holder(file: &File) -> Option<u32> {
    let stat = fstat(file).ok()?;
    let id = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
    pid_of(&fs::read_to_string(TABLE).ok()?, &id)
}

/// Whose lock of the kind that flock(2) makes a line tells of: `1: FLOCK  ADVISORY  WRITE 708 00:13:4711 0 EOF`.
fn pid_of(table: &str, id: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, pid, place) = (words.next()?, words.nth(2)?, words.next()?);
        // Zero and below are of namespaces we are not in; lines with an arrow wait for a lock and have none.
        (kind == "FLOCK" && place == id).then(|| pid.parse().ok().filter(|pid| *pid > 0)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_had_once_and_soon_after_it_is_let_go() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(place.path()).unwrap();
        let first = exclusive(open()).unwrap();
        let taken = Refused { errno: Errno::EWOULDBLOCK, holder: Holder(Some(std::process::id())) };
        assert_eq!(exclusive(open()).err(), Some(taken));
        let file = open();
        let waits = std::thread::spawn(move || exclusive(file).is_ok());
        sleep(AGAIN * 2);
        drop(first);
        assert!(waits.join().unwrap());
    }

    #[test]
    fn the_holder_is_the_one_whose_lock_is_of_that_file_and_kind() {
        let table = "1: POSIX  ADVISORY  WRITE 7 00:13:4711 0 EOF\n2: FLOCK  ADVISORY  WRITE 8 00:13:4712 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 708 00:13:4711 0 EOF\n3: -> FLOCK  ADVISORY  WRITE 9 00:13:4711 0 EOF\n";
        assert_eq!(pid_of(table, "00:13:4711"), Some(708));
        assert_eq!(pid_of(table, "00:14:4711"), None);
        assert_eq!(pid_of("1: FLOCK  ADVISORY  WRITE 0 00:13:4711 0 EOF\n", "00:13:4711"), None);
        assert_eq!((Holder(Some(7)).to_string(), Holder(None).to_string()), (" (pid 7)".to_owned(), String::new()));
    }

    #[test]
    fn a_folder_is_held_once() {
        let place = tempfile::tempdir().unwrap();
        let held = folder(place.path(), "state folder", "--state").unwrap();
        let said = folder(place.path(), "state folder", "--state").unwrap_err().to_string();
        assert!(
            said.contains(&format!("is used by another controller (pid {})\n  help: ", std::process::id())),
            "{said}"
        );
        drop(held);
        folder(place.path(), "state folder", "--state").unwrap();
    }
}
