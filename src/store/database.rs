//! Opening sled, whatever has become of its files.
//!
//! Guarantees: what a disk refuses (full, read-only) is an error and never taken for damage; what is damaged is set aside, never guessed
//! at, and what of it can still be read is in the new database; a panic of sled's is damage too.

use super::StoreError;
use super::lasting::{digest, witness_of};
use super::witness::{self, Mark};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
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
/// What a disk has to take, on top of what is to be written, before sled is let near it: a segment, and a page of records beside it.
const PROBE_BYTES: usize = 2 * SEGMENT_BYTES;
/// How much later than they ask the kernel may wake sled's threads: an hour, for nothing of theirs depends on the time.
const SLACK: NonZeroU64 = NonZeroU64::new(3_600_000_000_000).unwrap();
/// Begins the names of snapshots that were in the way.
const ASIDE: &str = "set-aside-";

/// Every database of ours holds this record. Sled takes a log whose beginning is overwritten for an empty one, and this tells the two apart.
const CANARY: &str = "containerctl";
/// The number of the newest change, as eight bytes, the highest first; not there in databases of versions that did not count.
const COUNT: &str = "changes";
/// Where sled keeps what is too large for its log, each in a file of its own that is named by its place in the log.
const BLOBS: &str = "blobs";

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    Records,
    Events,
}

impl Tree {
    /// What tells the tables apart in digests.
    pub fn number(self) -> u8 {
        match self {
            Tree::Records => 0,
            Tree::Events => 1,
        }
    }
}

/// An entry and the table it is in.
pub type Row = ((Tree, Vec<u8>), Vec<u8>);

/// An open database, and what was in it.
pub struct Database {
    pub open: Open,
    pub rows: Vec<Row>,
    /// How far it was; none if it does not say.
    pub mark: Option<Mark>,
}

/// The handles on an open database.
pub struct Open {
    db: sled::Db,
    records: sled::Tree,
    events: sled::Tree,
    file: File,
    blobs: PathBuf,
    /// Large entries that are on the disk.
    synced: Mutex<BTreeSet<OsString>>,
}

impl Open {
    pub fn insert(&self, (tree, key): &(Tree, Vec<u8>), value: &[u8]) -> io::Result<()> {
        let _patience = Patience::begin();
        Ok(self.table(*tree).insert(key, value).map(drop)?)
    }

    pub fn remove(&self, (tree, key): &(Tree, Vec<u8>)) -> io::Result<()> {
        let _patience = Patience::begin();
        Ok(self.table(*tree).remove(key).map(drop)?)
    }

    /// Hands everything to the kernel: the tables share one log.
    pub fn flush(&self) -> io::Result<()> {
        let _patience = Patience::begin();
        Ok(self.records.flush().map(drop)?)
    }

    /// Says how far it is.
    pub fn count(&self, number: u64) -> io::Result<()> {
        let _patience = Patience::begin();
        Ok(self.db.insert(COUNT, &number.to_be_bytes()).map(drop)?)
    }

    /// Also waits for the disk. Sled's own flush leaves that to the kernel, and the files of large entries altogether: those go first, since
    /// a log that names one that is not there ends before it.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_blobs()?;
        self.flush()?;
        // Those that were written meanwhile, by others or by the flush.
        self.sync_blobs()?;
        self.file.sync_data()
    }

    fn sync_blobs(&self) -> io::Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let found: BTreeSet<OsString> =
            fs::read_dir(&self.blobs)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()?;
        let mut is_new = false;
        for name in found.difference(&synced) {
            match File::open(self.blobs.join(name)) {
                Ok(file) => file.sync_data()?,
                // Replaced by a newer one already.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            is_new = true;
        }
        if is_new {
            File::open(&self.blobs)?.sync_data()?;
        }
        *synced = found;
        Ok(())
    }

    fn table(&self, tree: Tree) -> &sled::Tree {
        match tree {
            Tree::Records => &self.records,
            Tree::Events => &self.events,
        }
    }

    /// To be called before the handles are dropped because the disk refuses: sled 0.34 panics when it closes a log that has lost its disk
    /// unless it has been told so by a write that failed.
    pub fn refused(&self) {
        let _patience = Patience::begin();
        let _ = self.db.insert(CANARY, "canary");
        let _ = self.db.flush();
    }
}

/// A try to open one that failed, and what could be read before.
struct Failed {
    error: sled::Error,
    read: Vec<Row>,
}

/// Reads a database and compares it with its witness. `losses` is told in sentences what was lost, by damage or without a word.
pub fn open(path: &Path, losses: &mut Vec<String>) -> Result<Database, StoreError> {
    let database = Database::open(path, losses)?;
    losses.extend(missing(path, &database, losses));
    Ok(database)
}

/// What the witness of `path` says is missing. Where a loss is known already, it would only be told once more.
fn missing(path: &Path, database: &Database, losses: &[String]) -> Option<String> {
    let witness = witness::read(&witness_of(path));
    losses.is_empty().then(|| witness::compare(path, database.mark, witness)).flatten()
}

impl Database {
    /// Opens or makes the database in `path`: if it is damaged, without its snapshot, which sled can rebuild; if that does not help, an
    /// empty one with what could be read of the old one. `losses` is told in sentences what was lost.
    pub fn open(path: &Path, losses: &mut Vec<String>) -> Result<Database, StoreError> {
        let aside = |source| StoreError::SetAside { path: path.to_owned(), source };
        // Records hold environments, and those hold secrets.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| StoreError::Folder { path: path.to_owned(), source })?;
        probe(path, 0)?;
        remove_half_written_snapshots(path);
        let existed = path.join("db").exists();
        let first = match attempt(path) {
            Ok((database, known)) => {
                if existed && !known {
                    losses.push(format!("the database {} has lost its contents", path.display()));
                }
                return Ok(database);
            }
            Err(failed) => failed,
        };
        refuse_unless_damaged(path, &first.error)?;
        losses
            .push(format!("the database cannot be opened ({}); trying without its snapshot", in_a_line(&first.error)));
        set_snapshots_aside(path).map_err(aside)?;
        let second = match attempt(path) {
            Ok((database, _)) => return Ok(database),
            Err(failed) => failed,
        };
        refuse_unless_damaged(path, &second.error)?;
        let target = free_name(path).map_err(aside)?;
        fs::rename(path, &target).map_err(aside)?;
        fs::DirBuilder::new().mode(0o700).create(path).map_err(aside)?;
        let failed = |error| StoreError::Open { path: path.to_owned(), source: error };
        let (mut database, _) = attempt(path).map_err(|again| failed(again.error))?;
        // The witness is of the one that is set aside.
        database.mark = None;
        database.rows = if first.read.len() > second.read.len() { first.read } else { second.read };
        for (key, value) in &database.rows {
            let put = database.open.insert(key, value);
            put.map_err(|error| failed(error.into()))?;
        }
        let kept = database.rows.iter().filter(|((tree, _), _)| *tree == Tree::Records).count();
        losses.push(format!(
            "the database is damaged and was set aside as {}; {kept} records of it could be read, other restart counts and completed jobs \
             are forgotten, what runs is adopted",
            target.display()
        ));
        Ok(database)
    }
}

/// Reads what is in the database `path`, which cannot be written where it is: from a copy in `spare`, which is removed again.
pub fn read_copy(path: &Path, spare: &Path, losses: &mut Vec<String>) -> Result<(Vec<Row>, Option<Mark>), StoreError> {
    let failed = |source| StoreError::Copy { path: path.to_owned(), to: spare.to_owned(), source };
    if spare.exists() {
        fs::remove_dir_all(spare).map_err(failed)?;
    }
    if !path.exists() {
        return Ok((Vec::new(), None));
    }
    let read = copy(path, spare).map_err(failed).and_then(|()| Database::open(spare, losses));
    let rows = read.map(|database| {
        losses.extend(missing(path, &database, losses));
        (database.rows, database.mark)
    });
    // The copy, and any that was set aside beside it.
    for left in [spare.to_owned(), set_aside_name(spare, 1)] {
        if left.exists() {
            fs::remove_dir_all(&left).map_err(failed)?;
        }
    }
    rows
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if entry.is_dir() {
            copy(&entry, &target)?;
        } else {
            fs::copy(&entry, &target)?;
        }
    }
    Ok(())
}

/// Opens the database once nobody else has it, and reads all of it. Also answers whether the record that every database of ours holds was
/// there. The threads of a sled that was just closed keep the lock for a few milliseconds more.
fn attempt(path: &Path) -> Result<(Database, bool), Failed> {
    for _ in 0..LOCK_TRIES {
        match attempt_once(path) {
            Err(failed) if is_locked(&failed.error) => thread::sleep(LOCK_AGAIN),
            opened => return opened,
        }
    }
    attempt_once(path)
}

fn attempt_once(path: &Path) -> Result<(Database, bool), Failed> {
    let mut read = Vec::new();
    // Some damage makes sled 0.34 panic instead of answering an error; both mean the same to us.
    let opened = catch_unwind(AssertUnwindSafe(|| open_and_read(path, &mut read)));
    let panicked = || Err(sled::Error::ReportableBug("sled panicked".to_owned()));
    match opened.unwrap_or_else(|_| panicked()) {
        Ok((open, known, number)) => {
            let mark = number.map(|number| Mark { number, digest: digest(&read) });
            Ok((Database { open, rows: read, mark }, known))
        }
        Err(error) => Err(Failed { error, read }),
    }
}

/// While a thread holds this, timers that it or a thread it starts sets may be late by [`SLACK`].
///
/// Sled keeps seven threads or more for its I/O. Each looks up from its bed once a second, for ever, and there is no option against it:
/// 420 wake-ups a minute for nothing. A new thread inherits its maker's slack (PR_SET_TIMERSLACK(2const)), and any call may make sled's.
/// What there is to do wakes them at once all the same. Nothing that is called meanwhile may sleep; sled itself does not.
struct Patience;

impl Patience {
    fn begin() -> Patience {
        // Without it sled's threads only wake more often.
        let _ = rustix::thread::set_current_timer_slack(Some(SLACK));
        Patience
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        let _ = rustix::thread::set_current_timer_slack(None);
    }
}

fn open_and_read(path: &Path, read: &mut Vec<Row>) -> sled::Result<(Open, bool, Option<u64>)> {
    let _patience = Patience::begin();
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        .segment_size(SEGMENT_BYTES)
        .flush_every_ms(None);
    let db = config.open()?;
    let (records, events) = (db.open_tree("records")?, db.open_tree("events")?);
    for (tree, table) in [(Tree::Records, &records), (Tree::Events, &events)] {
        for entry in table {
            let (key, value) = entry?;
            read.push(((tree, key.to_vec()), value.to_vec()));
        }
    }
    let known = check_canary(&db)?;
    let number = db.get(COUNT)?.and_then(|bytes| Some(u64::from_be_bytes(bytes.as_ref().try_into().ok()?)));
    let file = File::open(path.join("db"))?;
    let (blobs, synced) = (path.join(BLOBS), Mutex::default());
    Ok((Open { db, records, events, file, blobs, synced }, known, number))
}

/// Whether the canary is there; puts it there.
fn check_canary(db: &sled::Db) -> sled::Result<bool> {
    let present = db.contains_key(CANARY)?;
    if !present {
        db.insert(CANARY, "canary")?;
        db.flush()?;
    }
    Ok(present)
}

/// An error, unless what is wrong can only be the database itself.
fn refuse_unless_damaged(path: &Path, error: &sled::Error) -> Result<(), StoreError> {
    if is_locked(error) {
        return Err(StoreError::Locked { path: path.to_owned() });
    }
    // Sled answers some refusals of a disk with a panic or another error.
    probe(path, 0)
}

/// Asks the disk whether it takes as much as this, before sled does: one that is refused a large record (kept as a file of its own) leaves
/// its log buffer reserved for ever, and the next flush waits for that.
pub fn probe(path: &Path, bytes: usize) -> Result<(), StoreError> {
    let probe = path.join("probe");
    let probed = File::create(&probe).and_then(|mut file| file.write_all(&vec![0; PROBE_BYTES + bytes]));
    let _ = fs::remove_file(&probe);
    probed.map_err(|source| StoreError::Refused { path: path.to_owned(), source })
}

fn is_locked(error: &sled::Error) -> bool {
    let sled::Error::Io(error) = error else { return false };
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("lock")
}

fn in_a_line(error: &sled::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A `kill -9` during an open can leave a torn `snap.*.generating` that fails the next one; it is of no use to anybody.
fn remove_half_written_snapshots(path: &Path) {
    for name in names(path).into_iter().filter(|name| name.ends_with(".generating")) {
        // What cannot be removed shows when the database is opened.
        let _ = fs::remove_file(path.join(name));
    }
}

/// Those of the last time go.
fn set_snapshots_aside(path: &Path) -> io::Result<()> {
    for old in names(path).into_iter().filter(|name| name.starts_with(ASIDE)) {
        fs::remove_file(path.join(old))?;
    }
    for snapshot in names(path).into_iter().filter(|name| name.starts_with("snap.")) {
        fs::rename(path.join(&snapshot), path.join(format!("{ASIDE}{snapshot}")))?;
    }
    Ok(())
}

fn names(path: &Path) -> Vec<String> {
    let listing = fs::read_dir(path).into_iter().flatten().flatten();
    listing.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn set_aside_name(path: &Path, number: usize) -> PathBuf {
    path.with_extension(format!("damaged-{number}"))
}

/// `db.damaged-N` that is free, the oldest making room.
fn free_name(path: &Path) -> io::Result<PathBuf> {
    let name = |number| set_aside_name(path, number);
    if name(SET_ASIDE_MAX).exists() {
        fs::remove_dir_all(name(1))?;
        for number in 2..=SET_ASIDE_MAX {
            fs::rename(name(number), name(number - 1))?;
        }
    }
    Ok((1..=SET_ASIDE_MAX).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(SET_ASIDE_MAX)))
}
