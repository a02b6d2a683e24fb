//! Reading one manifest: whole, from a regular file, or not at all.

use super::entry::Entry;
use super::{START, split_help};
use crate::control::trust::Trust;
use crate::host::lease::try_read_lease;
use crate::manifest::diagnostic::Diagnostic;
use crate::manifest::{FILE_BYTES_MAX, Parsed, parse};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

/// Where a writer cannot be detected, a file this long untouched is taken to be whole.
const QUIET: Duration = Duration::from_millis(150);

/// What changes whenever a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

pub enum Unread {
    /// Somebody is writing it, or it changed while it was read.
    Busy,
    Refused(Diagnostic),
}

/// Reads a file if it is believed, not too large, whole and the one that was looked at.
pub fn read_file(entry: &Entry, trust: &Trust) -> Result<Vec<u8>, Unread> {
    let refused = |message: String, help: &str| Unread::Refused(Diagnostic::error(&entry.name, START, message, help));
    if !entry.by_root
        && let Err(untrusted) = trust.check(&entry.path, &entry.found)
    {
        let (message, help) = split_help(&untrusted);
        return Err(Unread::Refused(Diagnostic::error(&entry.name, START, message, help)));
    }
    if entry.found.len() > FILE_BYTES_MAX as u64 {
        let message = format!("has {} bytes, expected at most {FILE_BYTES_MAX}", entry.found.len());
        return Err(refused(message, "split it into several files; is it a manifest at all?"));
    }
    let failed = |error: &io::Error| refused(format!("cannot be read: {error}"), "check its permissions and the disk");
    // Non-blocking, and checked again once open: between the look and here it may have become a pipe.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&entry.at);
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

impl Identity {
    pub fn of(found: &Metadata) -> Identity {
        Identity {
            device: found.dev(),
            inode: found.ino(),
            size: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

pub fn changed_at(found: &Metadata) -> SystemTime {
    let (seconds, nanos) = (u64::try_from(found.ctime()).unwrap_or(0), u32::try_from(found.ctime_nsec()).unwrap_or(0));
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
}

/// A file that makes the parser panic is refused; its neighbours are read.
pub fn parse_or_refuse(name: &str, bytes: &[u8]) -> Parsed {
    // Nothing of a parse is shared, so nothing can be left half-changed.
    catch_unwind(AssertUnwindSafe(|| parse(name, bytes))).unwrap_or_else(|_| {
        let help = "please report it with this file; the panic's message is in the log";
        Parsed::refused(Diagnostic::error(name, START, "reading it ended in a panic, a bug in containerctl", help))
    })
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
