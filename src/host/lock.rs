//! Exclusive locks on files, which go with the process that holds them: a crash leaves nothing to clean up.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::thread::sleep;
use std::time::Duration;

/// How long a lock is waited for. One that was killed with its controller may live on for the moment that a child between clone3 and
/// execveat still has a copy of the descriptor; one that is really held is held for longer.
const TRIES: u32 = 10;
const AGAIN: Duration = Duration::from_millis(20);

/// The lock, or `EWOULDBLOCK` if somebody else has it.
pub fn exclusive(mut file: File) -> Result<Flock<File>, Errno> {
    for _ in 1..TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((given_back, Errno::EWOULDBLOCK)) => file = given_back,
            locked => return locked.map_err(|(_, errno)| errno),
        }
        sleep(AGAIN);
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_had_once_and_soon_after_it_is_let_go() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(place.path()).unwrap();
        let first = exclusive(open()).unwrap();
        assert_eq!(exclusive(open()).err(), Some(Errno::EWOULDBLOCK));
        let file = open();
        let waits = std::thread::spawn(move || exclusive(file).is_ok());
        sleep(AGAIN * 2);
        drop(first);
        assert!(waits.join().unwrap());
    }
}
