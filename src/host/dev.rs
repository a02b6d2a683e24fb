//! The `/dev` of all workloads: a folder of the runtime directory, made once, mounted read-only into each box.
//!
//! Made once because its dozen nodes and links cost more than the rest of a box's mounts together, and are the same for all.

use super::traces::{TraceError, make_private};
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Nodes every program may expect (the OCI runtime specification's list), by major and minor number.
const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];
/// Mount points, and the empty folder that masks others.
const FOLDERS: [(&str, u32); 4] = [("pts", 0o755), ("shm", 0o755), ("mqueue", 0o755), (".masked", 0o555)];

/// Where it is, below a runtime directory.
pub fn path(runtime: &Path) -> PathBuf {
    runtime.join("dev").join("tree")
}

/// Makes the folder, or completes one that an earlier controller left. It lies in a folder only we may enter.
pub fn prepare(runtime: &Path) -> Result<PathBuf, TraceError> {
    make_private(&runtime.join("dev"))?;
    let dev = path(runtime);
    make(&dev).map_err(|(path, source)| TraceError::Make { path, source })?;
    Ok(dev)
}

fn make(dev: &Path) -> Result<(), (PathBuf, io::Error)> {
    let exists_or = |path: &Path, result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err((path.to_owned(), error)),
        _ => Ok(()),
    };
    // Afterwards, whatever the umask: that is the whole process's, and other threads make files at the same time.
    let open_to = |path: &Path, mode| {
        let is_open = fs::symlink_metadata(path).is_ok_and(|found| found.permissions().mode() & 0o7777 == mode);
        let opened = if is_open { Ok(()) } else { fs::set_permissions(path, fs::Permissions::from_mode(mode)) };
        opened.map_err(|error| (path.to_owned(), error))
    };
    let folder = |path: &Path, mode| {
        exists_or(path, fs::create_dir(path))?;
        open_to(path, mode)
    };
    folder(dev, 0o755)?;
    for (name, mode) in FOLDERS {
        folder(&dev.join(name), mode)?;
    }
    for (target, name) in LINKS {
        let path = dev.join(name);
        exists_or(&path, symlink(target, &path))?;
    }
    for (name, major, minor) in NODES {
        let path = dev.join(name);
        let result = mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor));
        exists_or(&path, result.map_err(|errno: Errno| errno.into()))?;
        open_to(&path, 0o666)?;
    }
    Ok(())
}
