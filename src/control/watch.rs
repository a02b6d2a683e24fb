//! Being woken when something happens in the manifests folder.
//!
//! An event says only "look again"; what has changed is for the scan to find. So nothing is lost when the kernel's queue overflows, and a
//! folder that cannot be watched is still looked at every few seconds. After a new watch the loop looks once more: what happened between
//! the look and the watch made no event.

use super::folder::is_manifest;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What is worth a look among the events of one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Manifests, sub-folders and links come and go in it.
    Everything,
    /// Only these names: a link, what a link leads to, or a missing part of a path. The rest of a busy neighbourhood does not wake us.
    Names(BTreeSet<OsString>),
}

/// The folders to watch, and for what.
pub type Places = BTreeMap<PathBuf, Interest>;

impl Default for Interest {
    fn default() -> Interest {
        Interest::Names(BTreeSet::new())
    }
}

impl Interest {
    pub fn name(name: OsString) -> Interest {
        Interest::Names([name].into())
    }

    pub fn add(&mut self, name: OsString) {
        self.merge(Interest::name(name));
    }

    pub fn merge(&mut self, other: Interest) {
        match (self, other) {
            (Interest::Everything, _) => {}
            (Interest::Names(names), Interest::Names(more)) => names.extend(more),
            (this, Interest::Everything) => *this = Interest::Everything,
        }
    }

    /// Whether an entry of this name counts. What is written into litter does not, but any new name may be a folder or a link.
    fn covers(&self, name: &OsStr, kind: EventKind) -> bool {
        let writes = matches!(kind, EventKind::Modify(ModifyKind::Data(_)) | EventKind::Access(_));
        match self {
            Interest::Everything => !writes || is_manifest(&name.to_string_lossy()),
            Interest::Names(names) => names.contains(name),
        }
    }
}

/// The watches there are.
pub struct Watch {
    watcher: RecommendedWatcher,
    /// What is watched, with the device and inode it had: a folder that was replaced needs a new watch.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    /// What could not be watched the last time, and why.
    failed: BTreeMap<PathBuf, String>,
    /// Shared with the thread that takes events.
    places: Arc<Mutex<Places>>,
}

/// What became of a wish.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Whether something is watched that was not before, so that a look may find what came in between.
    pub added: bool,
    /// What could not be watched, and could the last time or was not asked for.
    pub newly_failed: Vec<(PathBuf, String)>,
    /// Whether anything could not be watched.
    pub incomplete: bool,
}

impl Watch {
    /// Calls `wake`, on another thread, whenever it is worth looking.
    pub fn new(wake: impl Fn() + Send + 'static) -> Result<Watch, notify::Error> {
        let places = Arc::new(Mutex::new(Places::new()));
        let known = Arc::clone(&places);
        let watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| {
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            if event.map_or(true, |event| is_news(&event, &known)) {
                wake();
            }
        })?;
        Ok(Watch { watcher, watched: BTreeMap::new(), failed: BTreeMap::new(), places })
    }

    /// Watches these folders and no others.
    pub fn set(&mut self, wanted: &Places) -> Change {
        let wanted = distinct(wanted);
        let stale: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(path, seen)| wanted.get(*path).is_none_or(|(id, _)| id != *seen))
            .map(|(path, _)| path.clone())
            .collect();
        for path in stale {
            // The kernel has dropped the watch already if the folder is gone.
            let _ = self.watcher.unwatch(&path);
            self.watched.remove(&path);
        }
        let places = wanted.iter().map(|(path, (_, interest))| (path.clone(), interest.clone())).collect();
        *self.places.lock().unwrap_or_else(PoisonError::into_inner) = places;
        let mut change = Change::default();
        let mut failed = BTreeMap::new();
        for (path, (id, _)) in wanted {
            if self.watched.contains_key(&path) {
                continue;
            }
            match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path, id);
                    change.added = true;
                }
                Err(error) => {
                    failed.insert(path, error.to_string());
                }
            }
        }
        let news = failed.iter().filter(|(path, _)| !self.failed.contains_key(*path));
        change.newly_failed = news.map(|(path, error)| (path.clone(), error.clone())).collect();
        change.incomplete = !failed.is_empty();
        self.failed = failed;
        change
    }
}

type Identified = BTreeMap<PathBuf, ((u64, u64), Interest)>;

/// Each folder that is there once, by the first of its paths: the kernel has one watch for an inode, and events bear one name.
fn distinct(places: &Places) -> Identified {
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut distinct = Identified::new();
    for (path, interest) in places {
        let Ok(found) = fs::metadata(path) else { continue };
        let id = (found.dev(), found.ino());
        let path = first.entry(id).or_insert_with(|| path.clone()).clone();
        distinct.entry(path).or_insert_with(|| (id, Interest::default())).1.merge(interest.clone());
    }
    distinct
}

/// Whether an event can mean that a manifest has changed. Our own reading must not wake us: opening and closing for reading do not count.
fn is_news(event: &Event, places: &Places) -> bool {
    let reads = matches!(event.kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
    let counts = |path: &PathBuf| {
        let inside = path.parent().and_then(|parent| places.get(parent)).zip(path.file_name());
        places.contains_key(path) || inside.is_some_and(|(interest, name)| interest.covers(name, event.kind))
    };
    !reads && (event.paths.is_empty() || event.need_rescan() || event.paths.iter().any(counts))
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
        let (sender, woken) = mpsc::channel();
        let watch = Watch::new(move || sender.send(()).unwrap_or_default()).unwrap();
        let mut watched = Watched { folder, watch, woken };
        fs::create_dir(watched.manifests()).unwrap();
        assert!(watched.watch_folder().added);
        watched
    }

    impl Watched {
        fn manifests(&self) -> PathBuf {
            self.folder.path().join("manifests")
        }

        fn watch_folder(&mut self) -> Change {
            self.watch.set(&[(self.manifests(), Interest::Everything)].into())
        }

        /// Whether anything woke us within a while; takes all of it.
        fn woke(&self) -> bool {
            let first = self.woken.recv_timeout(Duration::from_millis(300)).is_ok();
            while self.woken.recv_timeout(Duration::from_millis(50)).is_ok() {}
            first
        }
    }

    #[test]
    fn writing_renaming_and_deleting_wake_and_reading_and_litter_do_not() {
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
        let mut swap = fs::File::create(watched.manifests().join(".web.yaml.swp")).unwrap();
        assert!(watched.woke(), "a new name, whatever it is");
        std::io::Write::write_all(&mut swap, b"x").unwrap();
        drop(swap);
        assert!(!watched.woke(), "what is written into litter");
    }

    #[test]
    fn a_folder_that_comes_back_is_watched_again() {
        let mut watched = watched();
        assert_eq!(watched.watch_folder(), Change::default(), "nothing new");
        fs::remove_dir(watched.manifests()).unwrap();
        assert!(watched.woke(), "the folder went");
        let beside = [(watched.folder.path().to_owned(), Interest::name("manifests".into()))].into();
        watched.watch.set(&beside);
        fs::write(watched.folder.path().join("noise"), "x").unwrap();
        assert!(!watched.woke(), "something else in the folder it lay in");
        fs::create_dir(watched.manifests()).unwrap();
        assert!(watched.woke(), "the folder came back");
        assert!(watched.watch_folder().added);
        fs::write(watched.manifests().join("web.yaml"), "command: x").unwrap();
        assert!(watched.woke(), "a file in the folder that came back");
    }

    #[test]
    fn a_folder_with_two_paths_is_watched_once_for_both() {
        let mut watched = watched();
        let link = watched.folder.path().join("again");
        std::os::unix::fs::symlink("manifests", &link).unwrap();
        let name = Interest::name("one".into());
        let places: Places = [(link.clone(), name), (watched.manifests(), Interest::Everything)].into();
        assert!(watched.watch.set(&places).added);
        fs::write(watched.manifests().join("web.yaml"), "command: x").unwrap();
        assert!(watched.woke());
        watched.watch.set(&[(link, Interest::Everything)].into());
        fs::write(watched.manifests().join("db.yaml"), "command: x").unwrap();
        assert!(watched.woke());
    }
}
