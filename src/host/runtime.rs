//! The runtime directory of a controller: its lock, and making it anew where somebody has deleted it.
//!
//! Invariant: who holds a [`Home`] holds the lock in the directory that was last seen at its path. A directory that somebody put in its
//! place is taken over only with the lock in it, so that two controllers never share one.

use super::dev;
use super::lock::{Holder, exclusive};
use super::traces::{TraceError, make_private};
use nix::fcntl::Flock;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A runtime directory that is held.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    lock: Mutex<Flock<File>>,
}

/// Why a runtime directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("cannot make {path}")]
    Make { path: PathBuf, source: io::Error },
    #[error(
        "the runtime directory {path} is used by another controller{holder}\n  help: stop it, or give this one another --runtime-dir"
    )]
    Taken { path: PathBuf, holder: Holder },
    #[error(transparent)]
    Part(#[from] TraceError),
}

impl Home {
    /// Makes the directory and locks it.
    pub fn take(path: &Path) -> Result<Home, HomeError> {
        Ok(Home { path: path.to_owned(), lock: Mutex::new(lock(path)?) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory is there, is ours, and has what a start needs. Costs four stats.
    pub fn is_whole(&self) -> bool {
        is_same(&self.held(), &self.path) && self.parts().iter().all(|part| part.is_dir())
    }

    /// Makes, locks and fills the directory that is gone. Traces of runs are left as they are.
    pub fn take_again(&self) -> Result<(), HomeError> {
        let mut held = self.held();
        if !is_same(&held, &self.path) {
            *held = lock(&self.path)?;
        }
        let [_, mountpoint, traces] = self.parts();
        make_private(&traces)?;
        make_private(&mountpoint)?;
        dev::prepare(&self.path)?;
        Ok(())
    }

    fn parts(&self) -> [PathBuf; 3] {
        [dev::path(&self.path), self.path.join("root"), self.path.join("workloads")]
    }

    fn held(&self) -> MutexGuard<'_, Flock<File>> {
        // Whatever panicked, the lock is one that was had.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the lock that is held is the one in the directory.
fn is_same(held: &File, path: &Path) -> bool {
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    let (held, found) = (held.metadata().map(id), fs::metadata(file(path)).map(id));
    matches!((held, found), (Ok(held), Ok(found)) if held == found)
}

fn file(path: &Path) -> PathBuf {
    path.join("lock")
}

fn lock(path: &Path) -> Result<Flock<File>, HomeError> {
    let failed = |path: &Path, source| HomeError::Make { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(|source| failed(path, source))?;
    let file = file(path);
    let opened = File::options().create(true).truncate(false).write(true).open(&file);
    let opened = opened.map_err(|source| failed(&file, source))?;
    exclusive(opened).map_err(|refused| HomeError::Taken { path: path.to_owned(), holder: refused.holder })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_gone_is_locked_again_and_one_that_another_holds_is_left() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run");
        let home = Home::take(&path).unwrap();
        let is_taken = || matches!(Home::take(&path), Err(HomeError::Taken { .. }));
        assert!(is_taken());
        fs::remove_dir_all(&path).unwrap();
        assert!(!home.is_whole());
        let other = Home::take(&path).unwrap();
        let taken = home.take_again().unwrap_err().to_string();
        let holder = format!("used by another controller (pid {})\n  help: ", std::process::id());
        assert!(taken.contains(&holder), "{taken}");
        drop(other);
        // Without the right to make devices it ends there, with the lock had.
        let _ = home.take_again();
        assert!(is_taken(), "the new one is not held");
        fs::remove_dir_all(path.join("workloads")).unwrap();
        assert!(!home.is_whole(), "a part is gone");
    }
}
