//! A table on disk that outlives what the disk does to it.
//!
//! Problem: after one failed write sled 0.34 refuses everything until it is opened anew, and a disk that is full or read-only may stay so
//! for hours. Approach: all entries are in memory too; while the database is out of order they are all there is, and each flush tries to
//! open it again and to bring it up to date.
//!
//! Guarantees: an insert never fails, it is only not saved yet; a flush succeeds once everything before it is handed to the kernel; a sync
//! once it is on the disk, and the witness beside the database says so.

use super::database::{Database, Open, Row, Tree, probe};
use super::witness::{self, Digest, Mark};
use super::{Entry, StoreError, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub struct Lasting {
    path: PathBuf,
    /// Held while changes go into the database, so that they do in the order of their numbers. Taken before `inner`.
    order: Mutex<()>,
    inner: Mutex<Inner>,
    /// What the witness says, as far as we have written it.
    witnessed: Mutex<Option<Mark>>,
}

struct Inner {
    /// None while the database is out of order.
    open: Option<Arc<Open>>,
    rows: BTreeMap<(Tree, Vec<u8>), Vec<u8>>,
    /// Keys of records that are not handed to the kernel as they are, and the how-manieth change made them so. Only of those that are there:
    /// nobody asks for one that was removed, nor for an event, and all are compared once the database can be opened.
    unsaved: BTreeMap<Vec<u8>, u64>,
    mark: Mark,
}

impl Inner {
    /// Changes an entry in memory.
    fn change(&mut self, (tree, key): &(Tree, Vec<u8>), value: Option<&Vec<u8>>) {
        self.mark.number += 1;
        let number = self.mark.number;
        let place = (*tree, key.clone());
        let table = tree.number();
        let before = match value {
            Some(value) => {
                self.mark.digest = self.mark.digest.with(table, key, value);
                self.rows.insert(place, value.clone())
            }
            None => self.rows.remove(&place),
        };
        if let Some(before) = before {
            self.mark.digest = self.mark.digest.without(table, key, &before);
        }
        match (tree, value) {
            (Tree::Records, Some(_)) => drop(self.unsaved.insert(key.clone(), number)),
            (Tree::Records, None) => drop(self.unsaved.remove(key)),
            (Tree::Events, _) => {}
        }
    }
}

impl Lasting {
    pub fn new(path: PathBuf, database: Database) -> Lasting {
        let Database { open, rows, mark } = database;
        Lasting::with(path, Some(Arc::new(open)), rows, mark)
    }

    /// One whose database cannot be opened now.
    pub fn out_of_order(path: PathBuf, rows: Vec<Row>, mark: Option<Mark>) -> Lasting {
        Lasting::with(path, None, rows, mark)
    }

    /// Counts on from what the database or its witness has seen, whichever is more, and from what is in it now.
    fn with(path: PathBuf, open: Option<Arc<Open>>, rows: Vec<Row>, found: Option<Mark>) -> Lasting {
        let witnessed = witness::read(&witness_of(&path));
        let number = found.into_iter().chain(witnessed).map(|mark| mark.number).max().unwrap_or(0);
        let digest = digest(&rows);
        // What is there now is another state than the one that has this number.
        let is_other = witnessed.is_some_and(|known| known.number == number && known.digest != digest);
        let mark = Mark { number: number + u64::from(is_other), digest };
        if let Some(open) = open.as_ref().filter(|_| found.map(|found| found.number) != Some(mark.number)) {
            // A disk that refuses it refuses the next change, and says so then.
            let _ = open.count(mark.number);
        }
        let inner = Inner { open, rows: rows.into_iter().collect(), unsaved: BTreeMap::new(), mark };
        Lasting { path, order: Mutex::default(), inner: Mutex::new(inner), witnessed: Mutex::new(witnessed) }
    }

    fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held is a bug of sled's; the maps are consistent between any two statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes an entry in memory, and in the database if that is in order.
    fn change(&self, key: &(Tree, Vec<u8>), value: Option<Vec<u8>>) {
        // Twice: a page is rewritten with what was in it before.
        let refused = self.inner().open.is_some()
            && probe(&self.path, value.as_ref().map_or(0, |value| 2 * value.len())).is_err();
        let _order = self.order();
        let (open, number) = {
            let mut inner = self.inner();
            inner.change(key, value.as_ref());
            (inner.open.clone(), inner.mark.number)
        };
        let Some(open) = open else { return };
        if refused {
            return self.discard(open);
        }
        // The number first: a log that ends between the two is ahead of its witness, not behind.
        let changed = caught(|| {
            open.count(number).and_then(|()| match value {
                Some(value) => open.insert(key, &value),
                None => open.remove(key),
            })
        });
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
    fn mended(&self) -> io::Result<(Arc<Open>, Mark)> {
        // Every change up to the mark is in the database, and none after it.
        let _order = self.order();
        // Not held meanwhile: who asks what is unsaved does not wait for a disk.
        let (mark, rows) = {
            let inner = self.inner();
            match &inner.open {
                Some(open) => return Ok((Arc::clone(open), inner.mark)),
                None => (inner.mark, inner.rows.clone()),
            }
        };
        let all: usize = rows.values().map(Vec::len).sum();
        if self.path.exists() {
            probe(&self.path, 2 * all).map_err(|error| flatten(&error))?;
        }
        let open = Arc::new(caught(|| self.opened(mark, &rows))?);
        self.inner().open = Some(Arc::clone(&open));
        Ok((open, mark))
    }

    /// The database opened anew, with these rows in it and no others.
    fn opened(&self, mark: Mark, wanted: &BTreeMap<(Tree, Vec<u8>), Vec<u8>>) -> io::Result<Open> {
        let mut losses = Vec::new();
        let database = Database::open(&self.path, &mut losses);
        // What is lost there is still here.
        for loss in losses {
            tracing::error!(loss, "the database");
        }
        let Database { open, rows, mark: _ } = database.map_err(|error| flatten(&error))?;
        open.count(mark.number)?;
        let saved: BTreeMap<(Tree, Vec<u8>), Vec<u8>> = rows.into_iter().collect();
        for (key, value) in wanted.iter().filter(|(key, value)| saved.get(*key) != Some(value)) {
            open.insert(key, value)?;
        }
        for key in saved.keys().filter(|key| !wanted.contains_key(*key)) {
            open.remove(key)?;
        }
        Ok(open)
    }

    fn save(&self, save: impl Fn(&Open) -> io::Result<()>) -> io::Result<Mark> {
        let (open, mark) = self.mended()?;
        match caught(|| save(&open)) {
            Ok(()) => {
                self.inner().unsaved.retain(|_, change| *change > mark.number);
                Ok(mark)
            }
            Err(error) => {
                self.discard(open);
                // The disk itself says it in plainer words than sled.
                probe(&self.path, 0).map_err(|error| flatten(&error)).and(Err(error))
            }
        }
    }

    /// Has everything on the disk, and the witness say so.
    pub fn sync(&self) -> io::Result<()> {
        let mark = self.save(Open::sync)?;
        let path = witness_of(&self.path);
        let mut witnessed = self.witnessed.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been faster with a newer one; and whoever was deleted, or is on another disk now, says nothing any more.
        let is_said = |known: Mark| known.number > mark.number || known == mark;
        if !witnessed.is_some_and(is_said) || !path.exists() {
            witness::write(&path, mark)?;
            *witnessed = Some(mark);
        }
        Ok(())
    }
}

/// What sled does, a panic of its included: its log has asserts, and one that fails is a database that is out of order like any other.
fn caught<T>(does: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let panicked = |_| Err(io::Error::other("the database has a bug, of which the lines above tell more"));
    catch_unwind(AssertUnwindSafe(does)).unwrap_or_else(panicked)
}

/// Where the witness of a database is.
pub fn witness_of(database: &Path) -> PathBuf {
    database.with_extension("witness")
}

pub fn digest(rows: &[Row]) -> Digest {
    rows.iter().fold(Digest::default(), |sum, ((tree, key), value)| sum.with(tree.number(), key, value))
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
        self.of.save(Open::flush).map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        self.of.sync()
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        let inner = self.of.inner();
        let own = inner.rows.iter().filter(|((tree, _), _)| *tree == self.tree);
        Ok(own.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn unsaved(&self) -> BTreeSet<Vec<u8>> {
        match self.tree {
            Tree::Records => self.of.inner().unsaved.keys().cloned().collect(),
            Tree::Events => BTreeSet::new(),
        }
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
