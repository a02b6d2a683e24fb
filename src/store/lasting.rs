//! A table on disk that outlives what the disk does to it.
//!
//! Problem: after one failed write sled 0.34 refuses everything until it is opened anew, and a disk that is full or read-only may stay so
//! for hours. Approach: all entries are in memory too; while the database is out of order they are all there is, and each flush tries to
//! open it again and to bring it up to date.
//!
//! Guarantees: an insert never fails, it is only not saved yet; a flush succeeds once everything before it is handed to the kernel.

use super::database::{Database, Open, Row, Tree, probe};
use super::{Entry, StoreError, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub struct Lasting {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// None while the database is out of order.
    open: Option<Arc<Open>>,
    rows: BTreeMap<(Tree, Vec<u8>), Vec<u8>>,
    /// Keys changed since the last flush that succeeded, and the how-manieth change it was.
    unsaved: BTreeMap<(Tree, Vec<u8>), u64>,
    changes: u64,
}

impl Lasting {
    pub fn new(path: PathBuf, database: Database) -> Lasting {
        let Database { open, rows } = database;
        Lasting::with(path, Some(Arc::new(open)), rows)
    }

    /// One whose database cannot be opened now.
    pub fn out_of_order(path: PathBuf, rows: Vec<Row>) -> Lasting {
        Lasting::with(path, None, rows)
    }

    fn with(path: PathBuf, open: Option<Arc<Open>>, rows: Vec<Row>) -> Lasting {
        let rows = rows.into_iter().collect();
        Lasting { path, inner: Mutex::new(Inner { open, rows, unsaved: BTreeMap::new(), changes: 0 }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held is a bug of sled's; the maps are consistent between any two statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes an entry in memory, and in the database if that is in order.
    fn change(&self, key: &(Tree, Vec<u8>), value: Option<Vec<u8>>) {
        let open = {
            let mut inner = self.inner();
            inner.changes += 1;
            let number = inner.changes;
            inner.unsaved.insert(key.clone(), number);
            match &value {
                Some(value) => inner.rows.insert(key.clone(), value.clone()),
                None => inner.rows.remove(key),
            };
            inner.open.clone()
        };
        let Some(open) = open else { return };
        // Twice: a page is rewritten with what was in it before.
        if probe(&self.path, value.as_ref().map_or(0, |value| 2 * value.len())).is_err() {
            return self.discard(open);
        }
        let changed = match value {
            Some(value) => open.insert(key, &value),
            None => open.remove(key),
        };
        if changed.is_err() {
            self.discard(open);
        }
    }

    /// Lets go of a database that is out of order. The next flush says why and mends it.
    fn discard(&self, open: Arc<Open>) {
        let mut inner = self.inner();
        if inner.open.as_ref().is_some_and(|current| Arc::ptr_eq(current, &open)) {
            inner.open = None;
        }
        drop(inner);
        open.refused();
        // What sled does not forgive in spite of that is no worse than what has happened already.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
    }

    /// The open database, opened again and brought up to date if it was out of order.
    fn mended(&self) -> io::Result<(Arc<Open>, u64)> {
        let mut inner = self.inner();
        let changes = inner.changes;
        if let Some(open) = &inner.open {
            return Ok((Arc::clone(open), changes));
        }
        let all: usize = inner.rows.values().map(Vec::len).sum();
        if self.path.exists() {
            probe(&self.path, 2 * all).map_err(|error| flatten(&error))?;
        }
        let mut losses = Vec::new();
        let database = Database::open(&self.path, &mut losses);
        // What is lost there is still here.
        for loss in losses {
            tracing::error!(loss, "the database");
        }
        let Database { open, rows } = database.map_err(|error| flatten(&error))?;
        let saved: BTreeMap<(Tree, Vec<u8>), Vec<u8>> = rows.into_iter().collect();
        for (key, value) in inner.rows.iter().filter(|(key, value)| saved.get(*key) != Some(value)) {
            open.insert(key, value)?;
        }
        for key in saved.keys().filter(|key| !inner.rows.contains_key(*key)) {
            open.remove(key)?;
        }
        let open = Arc::new(open);
        inner.open = Some(Arc::clone(&open));
        Ok((open, changes))
    }

    fn save(&self, save: impl Fn(&Open) -> io::Result<()>) -> io::Result<()> {
        let (open, changes) = self.mended()?;
        match save(&open) {
            Ok(()) => {
                self.inner().unsaved.retain(|_, change| *change > changes);
                Ok(())
            }
            Err(error) => {
                self.discard(open);
                // The disk itself says it in plainer words than sled.
                probe(&self.path, 0).map_err(|error| flatten(&error)).and(Err(error))
            }
        }
    }
}

/// One of its tables. A flush is of all of them.
pub struct View {
    pub of: Arc<Lasting>,
    pub tree: Tree,
}

impl Table for View {
    fn insert(&self, key: &[u8], value: Vec<u8>) -> io::Result<()> {
        self.of.change(&(self.tree, key.to_vec()), Some(value));
        Ok(())
    }

    fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.of.change(&(self.tree, key.to_vec()), None);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.of.save(Open::flush)
    }

    fn sync(&self) -> io::Result<()> {
        self.of.save(Open::sync)
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        let inner = self.of.inner();
        let own = inner.rows.iter().filter(|((tree, _), _)| *tree == self.tree);
        Ok(own.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn unsaved(&self) -> BTreeSet<Vec<u8>> {
        let inner = self.of.inner();
        inner.unsaved.keys().filter(|(tree, _)| *tree == self.tree).map(|(_, key)| key.clone()).collect()
    }
}

/// An error of the store as one of I/O, its causes in its text.
fn flatten(error: &StoreError) -> io::Error {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    io::Error::other(text)
}
