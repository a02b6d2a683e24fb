//! What the controller remembers, in sled: one record a workload. The only module that names the database.
//!
//! Guarantees: after [`Store::put`] and [`Store::flush`] a record survives `kill -9`; a moment later (one background thread syncs whatever
//! has come in meanwhile) it survives a power cut. While the disk refuses, because it is full or read-only, everything is kept in memory,
//! [`Store::trouble`] says so, and it is tried again until it is saved. A damaged database is set aside, never guessed at: losing it costs
//! history, and no running workload, because those leave traces of their own.
//! What was on the disk and is missing when it is opened is said, even where sled takes the rest for all there is.
//! Caveat: sled 0.34's flush hands data to the kernel and waits for it to be written out, but does not flush the disk's cache.
//!
//! | file | what it is |
//! |---|---|
//! | here | records by name, and the thread that syncs them |
//! | `lasting` | the table that outlives refusals of the disk |
//! | `database` | opening sled, damaged or not |
//! | `events` | events, which nothing depends on |
//! | `witness` | how far the database was, so that it cannot lose its end without a word |
//!
//! Idle it does nothing: sled's own timer is off, and its threads are left asleep.

mod database;
mod events;
mod lasting;
#[cfg(test)]
mod tests;
mod witness;

use crate::model::codec::{self, DecodeError};
use crate::model::event::Event;
use crate::model::name::Name;
use crate::model::record::Record;
use database::{Tree, read_copy};
use lasting::{Lasting, View};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often it is tried to save what the disk has refused. Room is made by people, who may look at once; and a try costs an open.
const MEND_AGAIN: Duration = Duration::from_secs(2);

/// What the store can fail at.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot make the state folder {path}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("the state folder {path} is used by another controller\n  help: stop it, or give this one another --state")]
    Locked { path: PathBuf },
    #[error("cannot open the database {path}")]
    Open { path: PathBuf, source: sled::Error },
    #[error("cannot write to the database {path}")]
    Refused { path: PathBuf, source: io::Error },
    #[error("cannot write to the database {path}, nor copy it to {to} to read it there")]
    Copy { path: PathBuf, to: PathBuf, source: io::Error },
    #[error("cannot set the damaged database {path} aside")]
    SetAside { path: PathBuf, source: io::Error },
    #[error("cannot write the record of {name}")]
    Put { name: Name, source: io::Error },
    #[error("cannot encode the record of {name}")]
    Encode { name: Name, source: serde_json::Error },
    #[error(
        "the record of {name} in the state folder was written by a newer containerctl (version {version} of records)\n  help: start that one again; workloads go on meanwhile. Or move the folder's `db` away: then what it remembers is lost, and \
         jobs that are done run again"
    )]
    Newer { name: Name, version: u8 },
    #[error("cannot read records")]
    Read(#[source] io::Error),
    #[error("cannot flush records")]
    Flush(#[source] io::Error),
    #[error("cannot keep events")]
    Events(#[source] io::Error),
    #[error("cannot start the thread that syncs records")]
    Thread(#[source] io::Error),
}

impl StoreError {
    /// The error of a disk that does not take anything now and may later, whatever is on it.
    fn refusal(&self) -> Option<&io::Error> {
        let (StoreError::Folder { source, .. } | StoreError::Refused { source, .. }) = self else { return None };
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::ReadOnlyFilesystem];
        Some(source).filter(|source| kinds.contains(&source.kind()))
    }
}

/// A table of the database, as little as is needed of one: sled's, or a simulated one that loses, tears and refuses.
pub trait Table: Send + Sync {
    fn insert(&self, key: &[u8], value: Vec<u8>) -> io::Result<()>;

    fn remove(&self, key: &[u8]) -> io::Result<()>;

    /// Hands everything to the kernel.
    fn flush(&self) -> io::Result<()>;

    /// Has everything on the disk.
    fn sync(&self) -> io::Result<()> {
        self.flush()
    }

    fn entries(&self) -> io::Result<Vec<Entry>>;

    /// The keys whose last change is not handed to the kernel, as far as the table knows.
    fn unsaved(&self) -> BTreeSet<Vec<u8>> {
        BTreeSet::new()
    }
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// The open database.
pub struct Store {
    records: Arc<dyn Table>,
    events: Arc<dyn Table>,
    /// Why nothing is saved at present.
    trouble: Arc<Mutex<Option<String>>>,
    /// Wakes the syncing thread; full means it is awake already. None once the store is being closed.
    dirty: Option<SyncSender<()>>,
    syncing: Option<JoinHandle<()>>,
}

/// What was found on opening.
#[derive(Debug, Default)]
pub struct Found {
    pub records: BTreeMap<Name, Record>,
    pub events: Vec<Event>,
    /// Numbers of events that are damaged, or of a newer containerctl: to be removed, or each start would tell of them again.
    pub unread: Vec<u64>,
    /// What was lost, in sentences, for the log.
    pub losses: Vec<String>,
}

/// Where a database is, and whom to tell.
pub struct Place<'a> {
    pub state: &'a Path,
    /// A folder that may be made, elsewhere, to read the database from while its own disk takes nothing.
    pub spare: &'a Path,
    /// Called from another thread when trouble begins or is over.
    pub turned: Box<dyn Fn() + Send>,
}

impl Store {
    /// Opens or makes the database in `state`, and reads it. A disk that takes nothing is no obstacle.
    pub fn open(place: Place<'_>) -> Result<(Store, Found), StoreError> {
        let Place { state, spare, turned } = place;
        let mut found = Found::default();
        let path = state.join("db");
        let made = fs::create_dir_all(state).map_err(|source| StoreError::Folder { path: state.to_owned(), source });
        let (records, trouble) = match made.and_then(|()| database::open(&path, &mut found.losses)) {
            Ok(database) => {
                let lasting = Lasting::new(path, database);
                // There from the first change on: a database without a witness is one that was robbed of it. What the disk refuses it
                // refuses again, and says so, when there is something to keep.
                let _ = lasting.sync();
                (lasting, None)
            }
            Err(error) => {
                let Some(refusal) = error.refusal() else { return Err(error) };
                let trouble = in_words(&format!("{error}: {refusal}"));
                let (entries, mark) = read_copy(&path, spare, &mut found.losses)?;
                (Lasting::out_of_order(path, entries, mark), Some(trouble))
            }
        };
        let records = Arc::new(records);
        let view = |tree| -> Arc<dyn Table> { Arc::new(View { of: Arc::clone(&records), tree }) };
        let (records, events) = (view(Tree::Records), view(Tree::Events));
        read(records.as_ref(), &mut found)?;
        events::read(events.as_ref(), &mut found)?;
        let (dirty, woken) = mpsc::sync_channel(1);
        let trouble = Arc::new(Mutex::new(trouble));
        let syncer = Syncer { records: Arc::clone(&records), trouble: Arc::clone(&trouble), turned };
        let syncing = thread::Builder::new().name("sync".to_owned()).spawn(move || syncer.run(&woken));
        let syncing = Some(syncing.map_err(StoreError::Thread)?);
        Ok((Store { records, events, trouble, dirty: Some(dirty), syncing }, found))
    }

    /// A store on tables that sync by themselves. Reads them.
    pub fn over(records: Box<dyn Table>, events: Box<dyn Table>) -> Result<(Store, Found), StoreError> {
        let mut found = Found::default();
        read(records.as_ref(), &mut found)?;
        events::read(events.as_ref(), &mut found)?;
        let (records, events) = (records.into(), events.into());
        Ok((Store { records, events, trouble: Arc::default(), dirty: None, syncing: None }, found))
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

    /// Has everything on the disk. Blocks for as long as that takes.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.records.sync().map_err(StoreError::Flush)
    }

    /// Why nothing is saved at present, if so, with what to do about it.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Workloads of which something is remembered that is not saved.
    pub fn unsaved(&self) -> BTreeSet<Name> {
        let name = |key: Vec<u8>| String::from_utf8_lossy(&key).parse().ok();
        self.records.unsaved().into_iter().filter_map(name).collect()
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

/// The thread that brings records to the disk.
struct Syncer {
    records: Arc<dyn Table>,
    trouble: Arc<Mutex<Option<String>>>,
    turned: Box<dyn Fn() + Send>,
}

impl Syncer {
    /// Until the store is closed.
    fn run(&self, woken: &Receiver<()>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(trouble) = &trouble {
            tracing::error!(trouble, "the state cannot be saved; everything goes on, and it is tried again");
        }
        loop {
            let more = match &trouble {
                None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => woken.recv_timeout(MEND_AGAIN),
            };
            if more == Err(RecvTimeoutError::Disconnected) {
                break;
            }
            // This thread is the only one that syncs by itself: whatever happens, it goes on.
            let synced = catch_unwind(AssertUnwindSafe(|| self.records.sync()));
            let synced = synced.unwrap_or_else(|_| Err(io::Error::other("a bug, of which the lines above tell more")));
            let now = synced.err().map(|error| in_words(&error.to_string()));
            match (&trouble, &now) {
                (None, Some(now)) => {
                    tracing::error!(
                        trouble = now,
                        "the state cannot be saved; everything goes on, and it is tried again"
                    );
                }
                (Some(_), None) => tracing::info!("the state is saved again"),
                _ => {}
            }
            if trouble != now {
                self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&now);
                trouble = now;
                (self.turned)();
            }
        }
    }
}

fn in_words(error: &str) -> String {
    let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("what happens is kept in memory only: {error}; help: make room there, or mount it writable")
}

fn read(records: &dyn Table, found: &mut Found) -> Result<(), StoreError> {
    for (key, value) in records.entries().map_err(StoreError::Read)? {
        let key = String::from_utf8_lossy(&key).into_owned();
        match (key.parse::<Name>(), codec::decode(&value)) {
            (Ok(name), Ok(record)) => {
                found.records.insert(name, record);
            }
            // To go on without it is to overwrite it.
            (Ok(name), Err(DecodeError::Version { version })) if version > codec::RECORD_VERSION => {
                return Err(StoreError::Newer { name, version });
            }
            (Ok(_), Err(error)) => found.losses.push(format!("the record of {key} {error}")),
            (Err(_), _) => found.losses.push(format!("a record has the impossible name {key:?}")),
        }
    }
    Ok(())
}
