//! What lies in a folder: followed if it is a link, named if it is no manifest, never opened.

use super::home::Home;
use super::remark;
use crate::manifest::diagnostic::Diagnostic;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const OTHERS_READ: u32 = 0o004;

/// The folder as it is for one look: held open, so that a swap meanwhile does not mix two revisions.
pub struct Root {
    handle: File,
    /// Where it really is, for messages and comparisons.
    pub path: PathBuf,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Root> {
        let handle = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK).open(path)?;
        // Of what was opened, not of what the path leads to by now. An error where it has been deleted since.
        let path = fs::canonicalize(through(&handle))?;
        Ok(Root { handle, path })
    }

    pub fn home(&self) -> io::Result<Home> {
        Home::of(&self.handle)
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.handle.metadata()
    }

    /// A path that leads through the open folder (proc_pid_fd(5)).
    pub fn through(&self, name: &str) -> PathBuf {
        through(&self.handle).join(name)
    }
}

fn through(handle: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// An entry of the folder, followed if it is a link.
pub struct Entry {
    /// Below the folder.
    pub name: String,
    /// For messages.
    pub path: PathBuf,
    /// To open it by.
    pub at: PathBuf,
    /// Of what is there after following links.
    pub found: Metadata,
    /// Reached through a link that root laid: its owner's word is enough.
    pub by_root: bool,
    pub is_link: bool,
}

/// What one folder holds.
#[derive(Default)]
pub struct Listed {
    pub entries: Vec<Entry>,
    /// Names that are there and no manifest, and what is to be said of each.
    pub strays: BTreeMap<String, Diagnostic>,
}

/// Why a folder cannot be listed.
pub enum Unlisted {
    Failed(io::Error),
    TooMany,
}

impl From<io::Error> for Unlisted {
    fn from(error: io::Error) -> Unlisted {
        Unlisted::Failed(error)
    }
}

/// The entries of one folder that are regular files or folders. `below` is its name with a slash, empty for the top.
pub fn list(root: &Root, below: &str, entries_max: usize) -> Result<Listed, Unlisted> {
    let mut listed = Listed::default();
    // A sub-folder may be a link of root's to the outside, and what lies in there lies outside.
    let inside = below.is_empty() || fs::canonicalize(root.through(below))?.starts_with(&root.path);
    for (count, entry) in fs::read_dir(root.through(below))?.enumerate() {
        if count >= entries_max {
            return Err(Unlisted::TooMany);
        }
        let Ok(file_name) = entry?.file_name().into_string() else { continue };
        // Hidden: `.git`, `..data`, and what editors and rsync write before they rename.
        if file_name.starts_with('.') {
            continue;
        }
        let name = format!("{below}{file_name}");
        let (path, at) = (root.path.join(&name), root.through(&name));
        let stray = match follow(&at, &root.path, inside) {
            Ok(Followed { found, by_root, is_link }) if found.is_file() || found.is_dir() => {
                listed.entries.push(Entry { name, path, at, found, by_root, is_link });
                continue;
            }
            Ok(Followed { found, .. }) => no_file(&name, &found, "remove it from the folder"),
            Err(Stray::Gone) => continue,
            Err(Stray::Foreign { uid }) => remark(
                &name,
                &format!("is a link of uid {uid} that leads out of the folder, and is ignored"),
                "copy the file here, or have root make the link",
            ),
            Err(Stray::Private { mode }) => remark(
                &name,
                &format!(
                    "leads out of the folder to a file that not everybody may read (mode {mode:04o}), and is ignored"
                ),
                "copy the file here, or chmod o+r what the link leads to: findings quote what is read",
            ),
            Err(Stray::Dangling) => remark(&name, "is a link to nothing, and is ignored", "mend or remove the link"),
        };
        listed.strays.insert(name, stray);
    }
    Ok(listed)
}

/// What an entry is after following links, and whether root vouches for it.
struct Followed {
    found: Metadata,
    by_root: bool,
    is_link: bool,
}

/// An entry that is not followed.
enum Stray {
    Gone,
    Dangling,
    Foreign {
        uid: u32,
    },
    /// What is read is quoted in findings, to all who may ask: a link to `/etc/shadow` must not show it to them.
    Private {
        mode: u32,
    },
}

/// `inside`: whether the folder it lies in is really below `root`.
fn follow(path: &Path, root: &Path, inside: bool) -> Result<Followed, Stray> {
    let own = fs::symlink_metadata(path).map_err(|_| Stray::Gone)?;
    if !own.is_symlink() {
        check_open(&own, inside)?;
        return Ok(Followed { found: own, by_root: false, is_link: false });
    }
    let target = fs::canonicalize(path).map_err(|_| Stray::Dangling)?;
    let inside = target.starts_with(root);
    if !inside && own.uid() != 0 {
        return Err(Stray::Foreign { uid: own.uid() });
    }
    let found = fs::metadata(&target).map_err(|_| Stray::Dangling)?;
    check_open(&found, inside)?;
    Ok(Followed { found, by_root: !inside, is_link: true })
}

/// What lies outside is read only if everybody may.
fn check_open(found: &Metadata, inside: bool) -> Result<(), Stray> {
    let mode = found.mode() & 0o7777;
    let open = inside || !found.is_file() || mode & OTHERS_READ != 0;
    if open { Ok(()) } else { Err(Stray::Private { mode }) }
}

/// The folder and the name that a link leads to in the end.
pub fn target(entry: &Entry) -> Option<(PathBuf, OsString)> {
    let target = fs::canonicalize(&entry.at).ok()?;
    Some((target.parent()?.to_owned(), target.file_name()?.to_owned()))
}

/// What is to be said of a pipe, a socket or a device.
pub fn no_file(name: &str, found: &Metadata, help: &str) -> Diagnostic {
    remark(name, &format!("is a {}, not a file, and is ignored", kind_of(found)), help)
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

/// File systems whose changes inotify does not see, because they are made on another machine or by a program (statfs(2); the numbers are
/// those of linux/magic.h and of each file system's source).
const REMOTE: [(&str, i64); 12] = [
    ("nfs", 0x6969),
    ("fuse", 0x6573_5546),
    ("smb", 0x517B),
    ("cifs", 0xFF53_4D42),
    ("smb2", 0xFE53_4D42),
    ("9p", 0x0102_1997),
    ("ceph", 0x00C3_6400),
    ("afs", 0x5346_414F),
    ("coda", 0x7375_7245),
    ("ocfs2", 0x7461_636F),
    ("gfs2", 0x0116_1970),
    ("vboxsf", 0x786F_4256),
];

/// Whether changes in a file system of this type have to be looked for.
pub fn is_remote(kind: i64) -> bool {
    REMOTE.iter().any(|(_, magic)| *magic == kind)
}

/// The same of the file system that a folder is on. One that will not say is taken for a local one.
pub fn lies_remote(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| is_remote(found.f_type & 0xFFFF_FFFF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_and_user_space_file_systems_are_polled_and_local_ones_are_not() {
        // NFS, FUSE and CIFS as statfs(2) lists them; ext4, btrfs, xfs, tmpfs, overlayfs.
        for remote in [0x6969, 0x6573_5546, 0xFF53_4D42] {
            assert!(is_remote(remote), "{remote:#x}");
        }
        for local in [0xEF53, 0x9123_683E, 0x5846_5342, 0x0102_1994, 0x794C_7630] {
            assert!(!is_remote(local), "{local:#x}");
        }
        assert!(!lies_remote(Path::new("/proc/self")));
        assert!(!lies_remote(Path::new("/no/such/folder")));
    }
}
