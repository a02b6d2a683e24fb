//! What the controller remembers, in sled: one record a workload. The only module that names the database.
//!
//! Guarantees: after [`Store::put`] and [`Store::flush`] a record survives `kill -9`; a moment later (one background thread syncs whatever
//! has come in meanwhile) it survives a power cut. A damaged database is set aside, never guessed at: losing it costs history, and no
//! running workload, because those leave traces of their own.
//! Caveat: sled 0.34's flush hands data to the kernel and waits for it to be written out, but does not flush the disk's cache.
//!
//! Idle it does nothing: sled's own timer is off.

mod events;

use crate::model::codec;
use crate::model::event::Event;
use crate::model::name::Name;
use crate::model::record::Record;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Memory for pages: a thousand records of a few kilobytes, twice over.
const CACHE_BYTES: u64 = 16 << 20;
/// Log segments. Small ones keep the file small: records are.
const SEGMENT_BYTES: usize = 64 << 10;
/// How long a lock is waited for: long enough for one that is being let go, too short to hide another controller.
const LOCK_TRIES: u32 = 10;
const LOCK_AGAIN: Duration = Duration::from_millis(20);
/// Folders of damaged databases that are kept. The newest tell what went wrong; more only fill the disk.
const SET_ASIDE_MAX: usize = 3;

/// What the store can fail at.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot make the state folder {path}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("the state folder {path} is used by another controller\n  help: stop it, or give this one another --state")]
    Locked { path: PathBuf },
    #[error("cannot open the database {path}")]
    Open { path: PathBuf, source: sled::Error },
    #[error("cannot set the damaged database {path} aside")]
    SetAside { path: PathBuf, source: io::Error },
    #[error("cannot write the record of {name}")]
    Put { name: Name, source: io::Error },
    #[error("cannot encode the record of {name}")]
    Encode { name: Name, source: serde_json::Error },
    #[error("cannot read records")]
    Read(#[source] io::Error),
    #[error("cannot flush records")]
    Flush(#[source] io::Error),
    #[error("cannot keep events")]
    Events(#[source] io::Error),
    #[error("cannot start the thread that syncs records")]
    Thread(#[source] io::Error),
}

/// A table of the database, as little as is needed of one: sled's, or a simulated one that loses, tears and refuses.
pub trait Table: Send + Sync {
    fn insert(&self, key: &[u8], value: Vec<u8>) -> io::Result<()>;

    fn remove(&self, key: &[u8]) -> io::Result<()>;

    /// Hands everything to the kernel.
    fn flush(&self) -> io::Result<()>;

    fn entries(&self) -> io::Result<Vec<Entry>>;
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

impl Table for sled::Tree {
    fn insert(&self, key: &[u8], value: Vec<u8>) -> io::Result<()> {
        Ok(sled::Tree::insert(self, key, value).map(drop)?)
    }

    fn remove(&self, key: &[u8]) -> io::Result<()> {
        Ok(sled::Tree::remove(self, key).map(drop)?)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(sled::Tree::flush(self).map(drop)?)
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        let plain = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            Ok(entry.map(|(key, value)| (key.to_vec(), value.to_vec()))?)
        };
        self.iter().map(plain).collect()
    }
}

/// The open database.
pub struct Store {
    records: Box<dyn Table>,
    events: Box<dyn Table>,
    /// Wakes the syncing thread; full means it is awake already. None once the store is being closed.
    dirty: Option<SyncSender<()>>,
    syncing: Option<JoinHandle<()>>,
}

/// What was found on opening.
#[derive(Debug, Default)]
pub struct Found {
    pub records: BTreeMap<Name, Record>,
    pub events: Vec<Event>,
    /// What was lost, in sentences, for the log.
    pub losses: Vec<String>,
}

impl Store {
    /// Opens or makes the database in `state`, and reads it.
    pub fn open(state: &Path) -> Result<(Store, Found), StoreError> {
        let folder = |source| StoreError::Folder { path: state.to_owned(), source };
        fs::create_dir_all(state).map_err(folder)?;
        let path = state.join("db");
        // Records hold environments, and those hold secrets.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(folder)?;
        let mut found = Found::default();
        let existed = path.join("db").exists();
        let db = open_or_set_aside(&path, &mut found.losses)?;
        if !check_canary(&db)? && existed && found.losses.is_empty() {
            found.losses.push(format!("the database {} has lost its contents", path.display()));
        }
        let records = db.open_tree("records").map_err(|source| StoreError::Open { path: path.clone(), source })?;
        read(&records, &mut found)?;
        let events = db.open_tree("events").map_err(|source| StoreError::Open { path: path.clone(), source })?;
        found.events = events::read(&events)?;
        let log = File::open(path.join("db")).map_err(folder)?;
        let (dirty, woken) = mpsc::sync_channel(1);
        let synced = records.clone();
        let sync = move || {
            while woken.recv().is_ok() {
                let flushed = synced.flush().map_err(io::Error::other);
                if let Err(error) = flushed.and_then(|_| log.sync_data()) {
                    tracing::error!(error = %error, "cannot sync the database: what happens now is forgotten if the power fails");
                }
            }
        };
        let syncing = thread::Builder::new().name("sync".to_owned()).spawn(sync).map_err(StoreError::Thread)?;
        let (records, events) = (Box::new(records), Box::new(events));
        Ok((Store { records, events, dirty: Some(dirty), syncing: Some(syncing) }, found))
    }

    /// A store on tables that sync by themselves. Reads them.
    pub fn over(records: Box<dyn Table>, events: Box<dyn Table>) -> Result<(Store, Found), StoreError> {
        let mut found = Found::default();
        read(records.as_ref(), &mut found)?;
        found.events = events::read(events.as_ref())?;
        Ok((Store { records, events, dirty: None, syncing: None }, found))
    }

    /// Remembers a record from now on; durable a moment later.
    pub fn put(&self, name: &Name, record: &Record) -> Result<(), StoreError> {
        let bytes = codec::encode(record).map_err(|source| StoreError::Encode { name: name.clone(), source })?;
        self.records
            .insert(name.as_str().as_bytes(), bytes)
            .map_err(|source| StoreError::Put { name: name.clone(), source })?;
        self.wake();
        Ok(())
    }

    pub fn remove(&self, name: &Name) -> Result<(), StoreError> {
        self.records
            .remove(name.as_str().as_bytes())
            .map_err(|source| StoreError::Put { name: name.clone(), source })?;
        self.wake();
        Ok(())
    }

    /// Hands everything to the kernel. Blocks for one write.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.records.flush().map_err(StoreError::Flush)
    }

    fn wake(&self) {
        // Full: the thread has yet to begin the sync that will take this record along.
        if let Some(dirty) = &self.dirty {
            let _ = dirty.try_send(());
        }
    }
}

impl Drop for Store {
    /// Ends the syncing thread, and with it the last handle on the database's lock.
    fn drop(&mut self) {
        self.dirty = None;
        if let Some(syncing) = self.syncing.take() {
            // It only ends in a panic if logging does.
            let _ = syncing.join();
        }
    }
}

/// Whether the record that every database of ours holds is there; puts it there. Sled takes a log whose beginning is overwritten for an
/// empty one, and this tells the two apart.
fn check_canary(db: &sled::Db) -> Result<bool, StoreError> {
    const KEY: &str = "containerctl";
    let present = db.contains_key(KEY).map_err(|error| StoreError::Read(error.into()))?;
    if !present {
        db.insert(KEY, "canary").map_err(|error| StoreError::Read(error.into()))?;
        Table::flush(&**db).map_err(StoreError::Flush)?;
    }
    Ok(present)
}

fn read(records: &dyn Table, found: &mut Found) -> Result<(), StoreError> {
    for (key, value) in records.entries().map_err(StoreError::Read)? {
        let key = String::from_utf8_lossy(&key).into_owned();
        match (key.parse::<Name>(), codec::decode(&value)) {
            (Ok(name), Ok(record)) => {
                found.records.insert(name, record);
            }
            (Ok(_), Err(error)) => found.losses.push(format!("the record of {key} {error}")),
            (Err(_), _) => found.losses.push(format!("a record has the impossible name {key:?}")),
        }
    }
    Ok(())
}

/// Opens the database; if it is damaged, without its snapshot, which sled can rebuild; if that does not help, an empty one.
fn open_or_set_aside(path: &Path, losses: &mut Vec<String>) -> Result<sled::Db, StoreError> {
    let aside = |source| StoreError::SetAside { path: path.to_owned(), source };
    remove_half_written_snapshots(path);
    let first = match open_unlocked(path) {
        Ok(db) => return Ok(db),
        Err(error) if is_locked(&error) => return Err(StoreError::Locked { path: path.to_owned() }),
        Err(error) => error,
    };
    losses.push(format!("the database cannot be opened ({first}); trying without its snapshot"));
    for snapshot in entries(path).into_iter().filter(|name| name.starts_with("snap.")) {
        fs::rename(path.join(&snapshot), path.join(format!("set-aside-{snapshot}"))).map_err(aside)?;
    }
    if let Ok(db) = open(path) {
        return Ok(db);
    }
    let target = free_name(path).map_err(aside)?;
    fs::rename(path, &target).map_err(aside)?;
    fs::DirBuilder::new().mode(0o700).create(path).map_err(aside)?;
    losses.push(format!(
        "the database is damaged and was set aside as {}; restart counts and completed jobs are forgotten, what runs is adopted",
        target.display()
    ));
    open(path).map_err(|source| StoreError::Open { path: path.to_owned(), source })
}

/// Opens the database once nobody else has it. The threads of a sled that was just closed keep the lock for a few milliseconds more.
fn open_unlocked(path: &Path) -> Result<sled::Db, sled::Error> {
    for _ in 0..LOCK_TRIES {
        match open(path) {
            Err(error) if is_locked(&error) => thread::sleep(LOCK_AGAIN),
            opened => return opened,
        }
    }
    open(path)
}

fn open(path: &Path) -> Result<sled::Db, sled::Error> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        .segment_size(SEGMENT_BYTES)
        .flush_every_ms(None);
    // Some damage makes sled 0.34 panic on recovery instead of answering an error; both mean the same to us.
    catch_unwind(AssertUnwindSafe(|| config.open()))
        .unwrap_or_else(|_| Err(sled::Error::ReportableBug("sled panicked on opening the database".to_owned())))
}

/// A `kill -9` during an open can leave a torn `snap.*.generating` that fails the next one; it is of no use to anybody.
fn remove_half_written_snapshots(path: &Path) {
    for name in entries(path).into_iter().filter(|name| name.ends_with(".generating")) {
        // What cannot be removed shows when the database is opened.
        let _ = fs::remove_file(path.join(name));
    }
}

fn entries(path: &Path) -> Vec<String> {
    let listing = fs::read_dir(path).into_iter().flatten().flatten();
    listing.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn is_locked(error: &sled::Error) -> bool {
    let sled::Error::Io(error) = error else { return false };
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("lock")
}

/// `db.damaged-N` that is free, the oldest making room.
fn free_name(path: &Path) -> io::Result<PathBuf> {
    let name = |number: usize| path.with_extension(format!("damaged-{number}"));
    if name(SET_ASIDE_MAX).exists() {
        fs::remove_dir_all(name(1))?;
        for number in 2..=SET_ASIDE_MAX {
            fs::rename(name(number), name(number - 1))?;
        }
    }
    Ok((1..=SET_ASIDE_MAX).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(SET_ASIDE_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;
    use std::os::unix::fs::PermissionsExt;

    fn record(name: &str) -> Record {
        let parsed = parse("x.yaml", format!("name: {name}\ncommand: x").as_bytes());
        let (spec, origin) = parsed.workloads.into_iter().next().unwrap();
        Record::new(spec, origin)
    }

    fn put(store: &Store, name: &str) {
        store.put(&name.parse().unwrap(), &record(name)).unwrap();
    }

    fn names(found: &Found) -> Vec<&str> {
        found.records.keys().map(Name::as_str).collect()
    }

    #[test]
    fn records_outlive_the_store() {
        let state = tempfile::tempdir().unwrap();
        let (store, found) = Store::open(state.path()).unwrap();
        assert!(found.records.is_empty() && found.losses.is_empty());
        put(&store, "web");
        put(&store, "db");
        store.remove(&"db".parse().unwrap()).unwrap();
        store.flush().unwrap();
        drop(store);
        let (_, found) = Store::open(state.path()).unwrap();
        assert_eq!((names(&found), found.losses.len()), (vec!["web"], 0));
        assert_eq!(found.records.values().next().unwrap(), &record("web"));
    }

    #[test]
    fn nobody_else_can_read_records() {
        let state = tempfile::tempdir().unwrap();
        let _store = Store::open(state.path()).unwrap();
        assert_eq!(fs::metadata(state.path().join("db")).unwrap().permissions().mode() & 0o077, 0);
    }

    #[test]
    fn a_state_folder_has_one_controller() {
        let state = tempfile::tempdir().unwrap();
        let _first = Store::open(state.path()).unwrap();
        let second = Store::open(state.path()).err().unwrap();
        assert!(matches!(second, StoreError::Locked { .. }), "{second}");
        assert!(second.to_string().contains("help:"));
    }

    #[test]
    fn a_half_written_snapshot_is_no_obstacle() {
        let state = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(state.path()).unwrap();
        put(&store, "web");
        store.flush().unwrap();
        drop(store);
        fs::write(state.path().join("db/snap.00000000000000FF.generating"), b"torn").unwrap();
        let (_, found) = Store::open(state.path()).unwrap();
        assert_eq!((names(&found), found.losses.len()), (vec!["web"], 0));
    }

    #[test]
    fn a_damaged_record_costs_only_itself() {
        let state = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(state.path()).unwrap();
        put(&store, "web");
        store.records.insert(b"db", b"\x01nonsense".to_vec()).unwrap();
        store.flush().unwrap();
        drop(store);
        let (_, found) = Store::open(state.path()).unwrap();
        assert_eq!(names(&found), ["web"]);
        assert_eq!(found.losses.len(), 1);
        assert!(found.losses[0].starts_with("the record of db "), "{:?}", found.losses);
    }

    #[test]
    fn a_damaged_database_is_set_aside_and_a_new_one_begun() {
        for round in 0..5 {
            let state = tempfile::tempdir().unwrap();
            let (store, _) = Store::open(state.path()).unwrap();
            put(&store, "web");
            store.flush().unwrap();
            drop(store);
            let path = state.path().join("db");
            match round {
                0 => fs::write(path.join("conf"), b"garbage").unwrap(),
                1 => fs::write(path.join("conf"), b"").unwrap(),
                2 => fs::write(path.join("db"), vec![0xAA; 200_000]).unwrap(),
                3 => fs::write(path.join("db"), b"").unwrap(),
                _ => fs::write(path.join("snap.0000000000000001"), b"garbage").unwrap(),
            }
            let (store, found) = Store::open(state.path()).unwrap();
            // Whatever could be saved, it works and says what it lost.
            put(&store, "new");
            assert!(
                found.records.contains_key(&"web".parse().unwrap()) || !found.losses.is_empty() || round == 3,
                "{round}: {found:?}"
            );
        }
    }
}
