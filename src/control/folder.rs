//! The manifests folder: which files there are, what they say, and which of them are not to be read now.
//!
//! Owns every look at the folder. One scan opens it anew, so a folder that was replaced or comes back is simply read. A file is read only
//! when its identity (device, inode, size, times) has changed since the last time; an idle scan costs a stat a file.
//!
//! Guarantees: a half-written file is not read; a file that disappears counts for another second; nothing but regular files is ever
//! opened, and never through a link that somebody other than root laid to the outside; a folder that cannot be read changes nothing.

use super::trust::{Owner, Trust, Untrusted};
use crate::host::lease::try_read_lease;
use crate::manifest::diagnostic::{Diagnostic, Severity};
use crate::manifest::tree::Place;
use crate::manifest::{Claim, FILE_BYTES_MAX, Parsed, parse};
use crate::model::record::Origin;
use crate::model::spec::Spec;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A file that is gone may be back in a moment: editors and rsync replace by removing.
pub const DELETION_SETTLES: Duration = Duration::from_secs(1);
/// Where a writer cannot be detected, a file this long untouched is taken to be whole.
const QUIET: Duration = Duration::from_millis(150);
/// How soon to look again at a file that is being written. Its closing wakes us sooner.
const BUSY_AGAIN: Duration = Duration::from_millis(200);
/// A file changed this shortly before it was read may change again without its times telling: the kernel's clock for files ticks every
/// 4 to 10 ms.
const RACY: Duration = Duration::from_millis(100);
/// Files that are looked at, and sub-folders. More is a mistake, such as a home directory.
pub const FILES_MAX: usize = 20_000;

/// The watched folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    trust: Trust,
    /// What was read last of each file, by its path below the folder.
    read: BTreeMap<String, Known>,
    /// Since when a file that was read is missing.
    missing: BTreeMap<String, Instant>,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    /// Read so soon after its last change that the identity proves nothing.
    racy: bool,
    parsed: Arc<Parsed>,
}

/// What changes whenever a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What one look found.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    pub files: BTreeMap<String, Arc<Parsed>>,
    /// Files among them that have disappeared and are about to be forgotten.
    pub settling: BTreeSet<String>,
    /// Files that somebody has open for writing, or that changed while they were read.
    pub being_written: BTreeSet<String>,
    /// Folders to watch: the folder itself and its sub-folders.
    pub folders: BTreeSet<PathBuf>,
    /// Remarks about entries that are no manifests.
    pub remarks: Vec<Diagnostic>,
    /// When a look may find something new without an event.
    pub again_in: Option<Duration>,
}

/// Why the folder cannot be looked at. Nothing changes for what runs.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error(
        "cannot read the manifests folder {path}: {source}\n  help: mkdir -p {path}, or name another one with --manifests"
    )]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    #[error("the manifests folder {path} has more than {FILES_MAX} entries\n  help: is it the right folder?")]
    TooMany { path: PathBuf },
}

/// An entry of the folder, followed if it is a link.
struct Entry {
    /// Below the folder.
    name: String,
    path: PathBuf,
    /// Of what is there after following links.
    found: Metadata,
    /// Reached through a link that root laid: its owner's word is enough.
    by_root: bool,
}

/// A file that makes the parser panic is refused; its neighbours are read.
fn parse_or_refuse(name: &str, bytes: &[u8]) -> Parsed {
    // Nothing of a parse is shared, so nothing can be left half-changed.
    catch_unwind(AssertUnwindSafe(|| parse(name, bytes))).unwrap_or_else(|_| {
        let help = "please report it with this file; the panic's message is in the log";
        Parsed::refused(Diagnostic::error(name, START, "reading it ended in a panic, a bug in containerctl", help))
    })
}

impl Folder {
    pub fn new(path: PathBuf, trust: Trust) -> Folder {
        Folder { path, trust, read: BTreeMap::new(), missing: BTreeMap::new() }
    }

    /// The same folder, as if it had never been looked at.
    #[must_use]
    pub fn anew(&self) -> Folder {
        Folder::new(self.path.clone(), self.trust.clone())
    }

    /// Whether the folder may be used at all. Answers the user behind sudo if it is theirs.
    pub fn check(&self) -> Result<Owner, FolderError> {
        let found = fs::metadata(&self.path).map_err(|source| self.unreadable(source))?;
        Ok(self.trust.check(&self.path, &found)?)
    }

    fn unreadable(&self, source: io::Error) -> FolderError {
        FolderError::Read { path: self.path.clone(), source }
    }

    /// Looks at everything.
    pub fn scan(&mut self) -> Result<Scan, FolderError> {
        self.check()?;
        let mut scan = Scan::default();
        let mut present = BTreeSet::new();
        let root = fs::canonicalize(&self.path).map_err(|source| self.unreadable(source))?;
        scan.folders.insert(self.path.clone());
        let top = self.entries(&root, "", &root, &mut scan)?;
        let mut entries = Vec::new();
        for entry in top {
            if entry.found.is_dir() {
                entries.extend(self.sub_folder(&entry, &root, &mut scan)?);
            } else {
                entries.push(entry);
            }
        }
        for entry in entries.into_iter().filter(|entry| is_manifest(&entry.name)) {
            present.insert(entry.name.clone());
            self.look(&entry, &mut scan);
        }
        self.forget(&present, &mut scan);
        for (name, read) in &self.read {
            scan.files.entry(name.clone()).or_insert_with(|| Arc::clone(&read.parsed));
        }
        scan.remarks.sort();
        Ok(scan)
    }

    /// The entries of one folder that are regular files or folders. `below` is its name with a slash, empty for the top.
    fn entries(&self, folder: &Path, below: &str, root: &Path, scan: &mut Scan) -> Result<Vec<Entry>, FolderError> {
        let mut entries = Vec::new();
        for (count, entry) in fs::read_dir(folder).map_err(|source| self.unreadable(source))?.enumerate() {
            let entry = entry.map_err(|source| self.unreadable(source))?;
            if count >= FILES_MAX {
                return Err(FolderError::TooMany { path: folder.to_owned() });
            }
            let Ok(file_name) = entry.file_name().into_string() else { continue };
            // Hidden: `.git`, `..data`, and what editors and rsync write before they rename.
            if file_name.starts_with('.') {
                continue;
            }
            let name = format!("{below}{file_name}");
            match follow(&entry.path(), root) {
                Ok(Followed { found, by_root }) if found.is_file() || found.is_dir() => {
                    entries.push(Entry { name, path: entry.path(), found, by_root });
                }
                Ok(Followed { found, .. }) => {
                    scan.remarks.push(remark(
                        &name,
                        &format!("is a {}, not a file, and is ignored", kind_of(&found)),
                        "remove it from the folder",
                    ));
                }
                Err(Stray::Gone) => {}
                Err(Stray::Foreign { uid }) => scan.remarks.push(remark(
                    &name,
                    &format!("is a link of uid {uid} that leads out of the folder, and is ignored"),
                    "copy the file here, or have root make the link",
                )),
                Err(Stray::Dangling) => {
                    scan.remarks.push(remark(&name, "is a link to nothing, and is ignored", "mend or remove the link"));
                }
            }
        }
        Ok(entries)
    }

    /// A sub-folder's entries; those of its own sub-folders are not looked at.
    fn sub_folder(&self, entry: &Entry, root: &Path, scan: &mut Scan) -> Result<Vec<Entry>, FolderError> {
        if !entry.by_root
            && let Err(untrusted) = self.trust.check(&entry.path, &entry.found)
        {
            let (message, help) = split_help(&untrusted);
            let why = format!("{}: {message}", entry.name);
            scan.remarks.push(Diagnostic::error(&entry.name, START, format!("{message}; the folder is ignored"), help));
            // What was read there before is held, not gone.
            for (name, read) in &self.read {
                if name.starts_with(&format!("{}/", entry.name)) {
                    scan.files.insert(name.clone(), held(&read.parsed, &why));
                }
            }
            return Ok(Vec::new());
        }
        scan.folders.insert(entry.path.clone());
        self.entries(&entry.path, &format!("{}/", entry.name), root, scan)
    }

    /// Takes a file as it was read before, or reads it.
    fn look(&mut self, entry: &Entry, scan: &mut Scan) {
        self.missing.remove(&entry.name);
        let identity = Identity::of(&entry.found);
        if self.read.get(&entry.name).is_some_and(|read| read.identity == identity && !read.racy) {
            return;
        }
        let parsed = match self.read_file(entry) {
            Ok(bytes) => Arc::new(parse_or_refuse(&entry.name, &bytes)),
            Err(Unread::Busy) => {
                scan.again_in = Some(scan.again_in.map_or(BUSY_AGAIN, |other| other.min(BUSY_AGAIN)));
                scan.being_written.insert(entry.name.clone());
                // As it was before; if it was never read, its workloads are to be left alone.
                if !self.read.contains_key(&entry.name) {
                    let parsed = Parsed { broken: true, ..Parsed::default() };
                    scan.files.insert(entry.name.clone(), Arc::new(parsed));
                }
                return;
            }
            Err(Unread::Refused(diagnostic)) => Arc::new(Parsed::refused(diagnostic)),
        };
        let since_change = SystemTime::now().duration_since(changed_at(&entry.found)).unwrap_or_default();
        let racy = since_change < RACY;
        if racy {
            scan.again_in = Some(scan.again_in.map_or(RACY, |other| other.min(RACY)));
        }
        // Read again and found the same: the same object, so that nobody downstream has to compare.
        let same =
            self.read.get(&entry.name).filter(|read| *read.parsed == *parsed).map(|read| Arc::clone(&read.parsed));
        let parsed = same.unwrap_or(parsed);
        self.read.insert(entry.name.clone(), Known { identity, racy, parsed });
    }

    fn read_file(&self, entry: &Entry) -> Result<Vec<u8>, Unread> {
        let refused =
            |message: String, help: &str| Unread::Refused(Diagnostic::error(&entry.name, START, message, help));
        if !entry.by_root
            && let Err(untrusted) = self.trust.check(&entry.path, &entry.found)
        {
            let (message, help) = split_help(&untrusted);
            return Err(Unread::Refused(Diagnostic::error(&entry.name, START, message, help)));
        }
        if entry.found.len() > FILE_BYTES_MAX as u64 {
            let message = format!("has {} bytes, expected at most {FILE_BYTES_MAX}", entry.found.len());
            return Err(refused(message, "split it into several files; is it a manifest at all?"));
        }
        let failed =
            |error: &io::Error| refused(format!("cannot be read: {error}"), "check its permissions and the disk");
        // Non-blocking, and checked again once open: between the look and here it may have become a pipe.
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&entry.path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unread::Busy),
            Err(error) => return Err(failed(&error)),
        };
        let before = file.metadata().map_err(|error| failed(&error))?;
        if Identity::of(&before) != Identity::of(&entry.found) || has_writer(&file, &before) {
            return Err(Unread::Busy);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(before.len()).unwrap_or(0) + 1);
        (&mut file).take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        let after = file.metadata().map_err(|error| failed(&error))?;
        if Identity::of(&after) == Identity::of(&before) { Ok(bytes) } else { Err(Unread::Busy) }
    }

    /// Lets go of files that have been missing for long enough.
    fn forget(&mut self, present: &BTreeSet<String>, scan: &mut Scan) {
        let now = Instant::now();
        let gone: Vec<String> = self
            .read
            .keys()
            .filter(|name| !present.contains(*name) && !scan.files.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            let since = *self.missing.entry(name.clone()).or_insert(now);
            let left = DELETION_SETTLES.saturating_sub(now.duration_since(since));
            if left.is_zero() {
                self.read.remove(&name);
                self.missing.remove(&name);
            } else {
                scan.again_in = Some(scan.again_in.map_or(left, |other| other.min(left)));
                scan.settling.insert(name);
            }
        }
    }
}

const START: Place = Place { line: 1, column: 1 };

enum Unread {
    /// Somebody is writing it, or it changed while it was read.
    Busy,
    Refused(Diagnostic),
}

impl Identity {
    fn of(found: &Metadata) -> Identity {
        Identity {
            device: found.dev(),
            inode: found.ino(),
            size: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

fn changed_at(found: &Metadata) -> SystemTime {
    let (seconds, nanos) = (u64::try_from(found.ctime()).unwrap_or(0), u32::try_from(found.ctime_nsec()).unwrap_or(0));
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
}

/// What an entry is after following links, and whether root vouches for it.
struct Followed {
    found: Metadata,
    by_root: bool,
}

/// An entry that is not followed.
enum Stray {
    Gone,
    Dangling,
    Foreign { uid: u32 },
}

fn follow(path: &Path, root: &Path) -> Result<Followed, Stray> {
    let own = fs::symlink_metadata(path).map_err(|_| Stray::Gone)?;
    if !own.is_symlink() {
        return Ok(Followed { found: own, by_root: false });
    }
    let target = fs::canonicalize(path).map_err(|_| Stray::Dangling)?;
    let inside = target.starts_with(root);
    if !inside && own.uid() != 0 {
        return Err(Stray::Foreign { uid: own.uid() });
    }
    let found = fs::metadata(&target).map_err(|_| Stray::Dangling)?;
    Ok(Followed { found, by_root: !inside })
}

/// Whether somebody has the file open for writing. A read lease is refused then. Where leases do not work (network file systems) a file counts as written until it has been quiet for a while.
fn has_writer(file: &File, found: &Metadata) -> bool {
    match try_read_lease(file) {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => true,
        Err(_) => {
            let quiet = SystemTime::now().duration_since(changed_at(found)).unwrap_or_default();
            quiet < QUIET
        }
    }
}

/// `*.yaml` and `*.yml`. What tools leave around (`.swp`, `~`, `.tmp`, `.yaml-bak`) ends otherwise or is hidden.
fn is_manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml"))
}

fn kind_of(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    if kind.is_fifo() {
        "pipe"
    } else if kind.is_socket() {
        "socket"
    } else {
        "device"
    }
}

fn remark(path: &str, message: &str, help: &str) -> Diagnostic {
    Diagnostic { severity: Severity::Warning, ..Diagnostic::error(path, START, message, help) }
}

/// The same workloads, but as a file that cannot be read now.
fn held(parsed: &Parsed, why: &str) -> Arc<Parsed> {
    let claim = |(spec, _): &(Arc<Spec>, Origin)| Claim { name: spec.name.clone(), finding: why.to_owned() };
    let claims = parsed.workloads.iter().map(claim).collect();
    Arc::new(Parsed { broken: true, claims, ..Parsed::default() })
}

/// Message and next step of an error that carries both.
fn split_help(error: &Untrusted) -> (String, String) {
    let text = error.to_string();
    let (message, help) = text.split_once("\n  help: ").unwrap_or((&text, ""));
    (message.to_owned(), help.to_owned())
}

#[cfg(test)]
mod tests;
