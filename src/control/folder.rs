//! The manifests folder: which files there are, what they say, and which of them are not to be read now.
//!
//! Owns every look at the folder. One scan opens it anew and holds it open, so a folder that was replaced or comes back is simply read,
//! and one that is swapped meanwhile is read whole. A file is read only when its identity (device, inode, size, times) has changed since
//! the last time; an idle scan costs a stat a file.
//!
//! Guarantees: a half-written file is not read; a file that disappears counts until the folder has been quiet for a second; nothing but
//! regular files is ever opened, and never through a link that somebody other than root laid to the outside; a folder that cannot be
//! read, or is another one and empty, changes nothing; a sub-folder or entry that cannot be used holds what it had.

mod approach;
mod entry;
mod home;
mod reading;
mod revision;
mod scan;

pub use approach::whereabouts;
pub use entry::no_file;
pub use scan::Scan;

use super::trust::{Owner, Trust, Untrusted};
use super::watch::Interest;
use crate::manifest::away::settles_in;
use crate::manifest::diagnostic::{Diagnostic, Severity};
use crate::manifest::tree::Place;
use crate::manifest::{Claim, Parsed};
use crate::model::record::Origin;
use crate::model::spec::Spec;
use entry::{Entry, Listed, Root, Unlisted, list};
use home::Memory;
use reading::{Identity, Unread, changed_at, parse_or_refuse, read_file};
use revision::Revision;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How soon to look again at a file that is being written. Its closing wakes us sooner; this is for file systems that do not tell.
const BUSY_AGAIN: Duration = Duration::from_millis(200);
/// How seldom at most, when the same writer has been there for long.
const BUSY_AGAIN_MAX: Duration = Duration::from_secs(5);
/// A file changed this shortly before it was read may change again without its times telling: the kernel's clock for files ticks every
/// 4 to 10 ms.
const RACY: Duration = Duration::from_millis(100);
/// Git moves HEAD after it has written the files: only this long after a file was read is it certain which revision it came with.
const REVISION_FOLLOWS: Duration = Duration::from_secs(2);
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
    /// Since when somebody has had a file open for writing.
    written: BTreeMap<String, Instant>,
    /// When something was last found changed.
    stirred: Option<Instant>,
    /// The folder manifests were last seen in.
    memory: Memory,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    /// Read so soon after its last change that the identity proves nothing.
    racy: bool,
    parsed: Arc<Parsed>,
    /// When it was first found to say this.
    since: Instant,
}

/// Why the folder cannot be looked at. Nothing changes for what runs.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error(
        "cannot read the manifests folder {path}: {source}\n  help: mkdir -p {path}, or name another one with --manifests"
    )]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the manifests folder {path} has not answered for {seconds} s\n  help: see to the network or user-space file system it lies on"
    )]
    Silent { path: PathBuf, seconds: u64 },
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    #[error("the manifests folder {path} has more than {FILES_MAX} entries\n  help: is it the right folder?")]
    TooMany { path: PathBuf },
    #[error(
        "the manifests folder {path} is another one than before, and holds no manifest\n  help: mount it or bring its files back; if all but a few workloads are to go, put the manifests of the few there"
    )]
    Emptied { path: PathBuf },
}

impl Folder {
    pub fn new(path: PathBuf, trust: Trust) -> Folder {
        Folder {
            path,
            trust,
            read: BTreeMap::new(),
            missing: BTreeMap::new(),
            written: BTreeMap::new(),
            stirred: None,
            memory: Memory::default(),
        }
    }

    /// Keeps in this file which folder the manifests were in, so that a later controller knows it again.
    #[must_use]
    pub fn remembering(self, file: PathBuf) -> Folder {
        Folder { memory: Memory::kept_in(file), ..self }
    }

    /// The same folder, as if it had never been looked at.
    #[must_use]
    pub fn anew(&self) -> Folder {
        Folder { memory: self.memory.clone(), ..Folder::new(self.path.clone(), self.trust.clone()) }
    }

    /// Whether the folder may be used at all, asked on a thread of its own: one that does not answer holds up nobody for longer than this.
    pub fn check_within(&self, limit: Duration) -> Result<Owner, FolderError> {
        let (sender, checked) = mpsc::sync_channel(1);
        let folder = Folder::new(self.path.clone(), self.trust.clone());
        // Left alone where it hangs: it holds nothing but itself.
        thread::spawn(move || sender.send(folder.check()));
        let silent = |_| FolderError::Silent { path: self.path.clone(), seconds: limit.as_secs() };
        checked.recv_timeout(limit).map_err(silent)?
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
        let scanned = self.scan_all();
        if scanned.is_err() {
            // It may come back file by file: those that are not there yet have not been missing since the folder was lost.
            self.missing.clear();
        }
        scanned
    }

    fn scan_all(&mut self) -> Result<Scan, FolderError> {
        let mut scan = Scan::default();
        let way = approach::approach(&self.path);
        let root = Root::open(&self.path).map_err(|source| self.unreadable(source))?;
        let found = root.metadata().map_err(|source| self.unreadable(source))?;
        self.trust.check(&self.path, &found)?;
        let revision = revision::revision(&root.path, &way);
        scan.remote = entry::lies_remote(&root.path);
        scan.places = way.places;
        scan.places.insert(self.path.clone(), Interest::Everything);
        let Listed { entries: top, strays } = list(&root, "", FILES_MAX).map_err(|error| match error {
            Unlisted::Failed(source) => self.unreadable(source),
            Unlisted::TooMany => FolderError::TooMany { path: self.path.clone() },
        })?;
        self.hold_strays(strays, &mut scan);
        let mut entries = Vec::new();
        for entry in top {
            if entry.found.is_dir() {
                entries.extend(self.sub_folder(&entry, &root, &mut scan));
            } else {
                entries.push(entry);
            }
        }
        entries.retain(|entry| is_manifest(&entry.name));
        let present: BTreeSet<String> = entries.iter().map(|entry| entry.name.clone()).collect();
        let home = root.home().map_err(|source| self.unreadable(source))?;
        if present.is_empty() && self.memory.is_of_another(home) {
            return Err(FolderError::Emptied { path: self.path.clone() });
        }
        // The last deletion in it has been seen through once nothing that was read is left, and nothing that cannot be used is waited for.
        if !present.is_empty() || self.read.is_empty() && scan.unusable.is_empty() {
            self.memory.note(Some(home).filter(|_| !present.is_empty()));
        }
        self.note_sub_folders(&entries, &scan);
        for entry in entries {
            watch_link(&entry, &mut scan);
            self.look(&entry, &mut scan);
        }
        self.forget(&present, &mut scan);
        self.label(revision, &mut scan);
        for (name, read) in &self.read {
            scan.files.entry(name.clone()).or_insert_with(|| Arc::clone(&read.parsed));
        }
        scan.remarks.sort();
        Ok(scan)
    }

    /// A sub-folder's entries; those of its own sub-folders are not looked at.
    fn sub_folder(&mut self, entry: &Entry, root: &Root, scan: &mut Scan) -> Vec<Entry> {
        watch_link(entry, scan);
        if !entry.by_root
            && let Err(untrusted) = self.trust.check(&entry.path, &entry.found)
        {
            let (message, help) = split_help(&untrusted);
            return self.give_up(&entry.name, &message, &help, scan);
        }
        let below = format!("{}/", entry.name);
        let Listed { mut entries, strays } = match list(root, &below, FILES_MAX) {
            Ok(listed) => listed,
            // Removed since it was listed: its files are missing from now on.
            Err(Unlisted::Failed(error)) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(Unlisted::Failed(error)) => {
                let message = format!("{} cannot be read: {error}", entry.path.display());
                return self.give_up(&entry.name, &message, "check its permissions and the disk", scan);
            }
            Err(Unlisted::TooMany) => {
                let message = format!("{} has more than {FILES_MAX} entries", entry.path.display());
                return self.give_up(&entry.name, &message, "is it the right folder?", scan);
            }
        };
        entries.retain(|entry| entry.found.is_file() && is_manifest(&entry.name));
        // Watched even if it is given up: what is mounted or written there next is to be seen at once.
        scan.remote |= entry::lies_remote(&entry.at);
        scan.places.insert(entry.path.clone(), Interest::Everything);
        if entries.is_empty() && self.memory.was_elsewhere(&entry.name, home::file_system(&entry.at)) {
            let message = format!("{} is on another file system than before, and empty", entry.path.display());
            return self.give_up(&entry.name, &message, "mount it again, or remove it to stop its workloads", scan);
        }
        self.hold_strays(strays, scan);
        entries
    }

    /// Remembers where each sub-folder with manifests is, for as long as anything was read there or it is waited for.
    fn note_sub_folders(&mut self, entries: &[Entry], scan: &Scan) {
        let sub_folder = |path: &str| path.split_once('/').map(|(folder, _)| folder.to_owned());
        let mut seen = BTreeMap::new();
        for entry in entries {
            let Some(name) = sub_folder(&entry.name).filter(|name| !seen.contains_key(name)) else { continue };
            if let Some(number) = entry.at.parent().and_then(home::file_system) {
                seen.insert(name, number);
            }
        }
        let read = self.read.keys().filter_map(|path| sub_folder(path));
        self.memory.note_below(&seen, &read.chain(scan.unusable.keys().cloned()).collect());
    }

    /// A sub-folder that cannot be used: said, and what was read there before is held, not gone.
    fn give_up(&self, name: &str, message: &str, help: &str, scan: &mut Scan) -> Vec<Entry> {
        scan.remarks.push(Diagnostic::error(name, START, format!("{message}; the folder is ignored"), help));
        self.hold(name, &format!("{name}: {message}"), scan);
        Vec::new()
    }

    /// Names that are there but lead to no manifest. A broken link is no deletion.
    fn hold_strays(&self, strays: BTreeMap<String, Diagnostic>, scan: &mut Scan) {
        for (name, stray) in strays {
            self.hold(&name, &stray.headline(), scan);
            scan.remarks.push(stray);
        }
    }

    /// Has what was read of a file, or below a folder, go on as it is.
    fn hold(&self, name: &str, why: &str, scan: &mut Scan) {
        scan.unusable.insert(name.to_owned(), why.to_owned());
        let below = format!("{name}/");
        for (path, read) in self.read.iter().filter(|(path, _)| *path == name || path.starts_with(&below)) {
            scan.files.insert(path.clone(), held(&read.parsed, why));
        }
    }

    /// Takes a file as it was read before, or reads it.
    fn look(&mut self, entry: &Entry, scan: &mut Scan) {
        let name = &entry.name;
        self.missing.remove(name);
        let identity = Identity::of(&entry.found);
        if self.read.get(name).is_some_and(|read| read.identity == identity && !read.racy) {
            self.written.remove(name);
            return;
        }
        let parsed = match read_file(entry, &self.trust) {
            Ok(bytes) => Arc::new(parse_or_refuse(name, &bytes)),
            Err(Unread::Busy) => return self.wait_for_writer(name, scan),
            Err(Unread::Refused(diagnostic)) => Arc::new(Parsed::refused(diagnostic)),
        };
        scan.read += 1;
        self.written.remove(name);
        let since_change = SystemTime::now().duration_since(changed_at(&entry.found)).unwrap_or_default();
        let racy = since_change < RACY;
        if racy {
            scan.again(RACY);
        }
        // Read again and found the same: the same object, so that nobody downstream has to compare.
        let known = self.read.get(name).filter(|known| is_same(&known.parsed, &parsed));
        let known = known.map(|known| (Arc::clone(&known.parsed), known.since));
        let (parsed, since) = known.unwrap_or_else(|| {
            self.stir(scan);
            (parsed, Instant::now())
        });
        self.read.insert(name.clone(), Known { identity, racy, parsed, since });
    }

    fn stir(&mut self, scan: &mut Scan) {
        self.stirred = Some(Instant::now());
        scan.stirred = true;
    }

    /// Leaves a file as it was until its writer is done.
    fn wait_for_writer(&mut self, name: &str, scan: &mut Scan) {
        let now = Instant::now();
        let since = *self.written.entry(name.to_owned()).or_insert(now);
        scan.again((now.duration_since(since) / 4).clamp(BUSY_AGAIN, BUSY_AGAIN_MAX));
        scan.being_written.insert(name.to_owned());
        self.stir(scan);
        // If it was never read, its workloads are to be left alone.
        if !self.read.contains_key(name) {
            let parsed = Parsed { broken: true, ..Parsed::default() };
            scan.files.insert(name.to_owned(), Arc::new(parsed));
        }
    }

    /// Lets go of files that have been missing for long enough.
    fn forget(&mut self, present: &BTreeSet<String>, scan: &mut Scan) {
        let now = Instant::now();
        let gone = |name: &&String| !present.contains(*name) && !scan.files.contains_key(*name);
        let gone: BTreeSet<String> = self.read.keys().filter(gone).cloned().collect();
        self.missing.retain(|name, _| gone.contains(name));
        self.written.retain(|name, _| present.contains(name));
        for name in &gone {
            if !self.missing.contains_key(name) {
                self.missing.insert(name.clone(), now);
                self.stir(scan);
            }
        }
        for name in gone {
            let since = self.missing.get(&name).copied().unwrap_or(now);
            let ago = |then: Instant| now.saturating_duration_since(then);
            let left = settles_in(ago(since), self.stirred.map_or(Duration::MAX, ago));
            if left.is_zero() {
                self.read.remove(&name);
                self.missing.remove(&name);
            } else {
                scan.again(left);
                scan.settling.insert(name);
            }
        }
    }

    /// Notes on what has been read which revision of the folder it came with, once that is certain.
    fn label(&mut self, revision: Option<Revision>, scan: &mut Scan) {
        let Some(Revision { name, comes_last }) = revision else { return };
        let unlabelled = |known: &&mut Known| known.parsed.workloads.iter().any(|(_, origin)| origin.folder.is_none());
        for known in self.read.values_mut().filter(unlabelled) {
            let wait = REVISION_FOLLOWS.saturating_sub(known.since.elapsed());
            if comes_last && !wait.is_zero() {
                scan.again(wait);
                continue;
            }
            let mut parsed = known.parsed.as_ref().clone();
            for (_, origin) in &mut parsed.workloads {
                origin.folder = Some(name.clone());
            }
            known.parsed = Arc::new(parsed);
        }
        scan.revision = Some(name);
    }
}

/// Whether two readings of a file say the same. That of an older revision of the folder keeps its label.
fn is_same(known: &Parsed, now: &Parsed) -> bool {
    if known.revision.is_empty() { known == now } else { known.revision == now.revision && known.broken == now.broken }
}

/// A link leads where nobody would look otherwise: its way and its target are watched too.
fn watch_link(entry: &Entry, scan: &mut Scan) {
    if !entry.is_link {
        return;
    }
    let target = entry::target(entry).map(|(folder, name)| (folder, Interest::name(name)));
    for (folder, interest) in approach::approach(&entry.path).places.into_iter().chain(target) {
        scan.places.entry(folder).or_default().merge(interest);
    }
}

const START: Place = Place { line: 1, column: 1 };

/// `*.yaml` and `*.yml`. What tools leave around (`.swp`, `~`, `.tmp`, `.yaml-bak`) ends otherwise or is hidden.
pub(super) fn is_manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml"))
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
