//! Being woken when something happens in the manifests folder.
//!
//! An event says only "look again"; what has changed is for the scan to find. So nothing is lost when the kernel's queue overflows, and a
//! folder that cannot be watched is still looked at with every resync.

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The watches on a folder, its sub-folders and the folder it lies in.
pub struct Watch {
    watcher: RecommendedWatcher,
    /// What is watched, with the inode it had: a folder that was replaced needs a new watch.
    watched: BTreeMap<PathBuf, u64>,
    folder: PathBuf,
}

impl Watch {
    /// Calls `wake`, on another thread, whenever it is worth looking at `folder`.
    pub fn new(folder: &Path, wake: impl Fn() + Send + 'static) -> Result<Watch, notify::Error> {
        // Paths in events are as they were given, so they are made absolute first.
        let folder = std::path::absolute(folder).map_err(notify::Error::io)?;
        let relevant = folder.clone();
        let watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| {
            if event.map_or(true, |event| is_news(&event, &relevant)) {
                wake();
            }
        })?;
        Ok(Watch { watcher, watched: BTreeMap::new(), folder })
    }

    /// Watches these folders and no others, and where the folder is missing or a link that may be swapped, the one it lies in: a busy
    /// neighbourhood does not wake us for nothing. Answers what could not be watched.
    pub fn set(&mut self, folders: &BTreeSet<PathBuf>) -> Vec<(PathBuf, notify::Error)> {
        let comes_and_goes = !fs::symlink_metadata(&self.folder).is_ok_and(|found| found.is_dir());
        let parent = self.folder.parent().filter(|_| comes_and_goes).map(Path::to_owned);
        let wanted: BTreeSet<PathBuf> =
            folders.iter().filter_map(|path| std::path::absolute(path).ok()).chain(parent).collect();
        let inode = |path: &Path| fs::metadata(path).map(|found| found.ino()).ok();
        let stale: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(path, seen)| !wanted.contains(*path) || inode(path) != Some(**seen))
            .map(|(path, _)| path.clone())
            .collect();
        for path in stale {
            // The kernel has dropped the watch already if the folder is gone.
            let _ = self.watcher.unwatch(&path);
            self.watched.remove(&path);
        }
        let mut failures = Vec::new();
        for path in wanted {
            let Some(inode) = inode(&path).filter(|_| !self.watched.contains_key(&path)) else { continue };
            match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path, inode);
                }
                Err(error) => failures.push((path, error)),
            }
        }
        failures
    }
}

/// Whether an event can mean that a manifest has changed. Our own reading must not wake us: opening and closing for reading do not count.
/// Of the parent's events only those that are about the folder do.
fn is_news(event: &Event, folder: &Path) -> bool {
    let reads = matches!(event.kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
    !reads && (event.paths.is_empty() || event.need_rescan() || event.paths.iter().any(|path| path.starts_with(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    struct Watched {
        folder: tempfile::TempDir,
        watch: Watch,
        woken: mpsc::Receiver<()>,
    }

    fn watched() -> Watched {
        let folder = tempfile::tempdir().unwrap();
        let manifests = folder.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let (sender, woken) = mpsc::channel();
        let mut watch = Watch::new(&manifests, move || sender.send(()).unwrap_or_default()).unwrap();
        assert!(watch.set(&[manifests].into()).is_empty());
        Watched { folder, watch, woken }
    }

    impl Watched {
        fn manifests(&self) -> PathBuf {
            self.folder.path().join("manifests")
        }

        /// Whether anything woke us within a while; takes all of it.
        fn woke(&self) -> bool {
            let first = self.woken.recv_timeout(Duration::from_millis(300)).is_ok();
            while self.woken.recv_timeout(Duration::from_millis(50)).is_ok() {}
            first
        }
    }

    #[test]
    fn writing_renaming_and_deleting_wake_and_reading_does_not() {
        let watched = watched();
        let file = watched.manifests().join("web.yaml");
        fs::write(&file, "command: x").unwrap();
        assert!(watched.woke(), "a new file");
        fs::read(&file).unwrap();
        fs::read_dir(watched.manifests()).unwrap().count();
        assert!(!watched.woke(), "reading");
        fs::rename(&file, watched.manifests().join("db.yaml")).unwrap();
        assert!(watched.woke(), "a rename");
        fs::remove_file(watched.manifests().join("db.yaml")).unwrap();
        assert!(watched.woke(), "a deletion");
        fs::write(watched.folder.path().join("noise"), "x").unwrap();
        assert!(!watched.woke(), "something beside the folder");
    }

    #[test]
    fn a_folder_that_comes_back_is_watched_again() {
        let mut watched = watched();
        fs::remove_dir(watched.manifests()).unwrap();
        assert!(watched.woke(), "the folder went");
        watched.watch.set(&BTreeSet::new());
        fs::write(watched.folder.path().join("noise"), "x").unwrap();
        assert!(!watched.woke(), "something else in the folder it lay in");
        fs::create_dir(watched.manifests()).unwrap();
        assert!(watched.woke(), "the folder came back");
        assert!(watched.watch.set(&[watched.manifests()].into()).is_empty());
        fs::write(watched.manifests().join("web.yaml"), "command: x").unwrap();
        assert!(watched.woke(), "a file in the folder that came back");
    }
}
