//! The `/dev` of workloads: a folder of the runtime directory, made once, mounted read-only into each box.
//!
//! Made once because its dozen nodes and links cost more than the rest of a box's mounts together, and are the same for all. A workload
//! that is granted devices has a folder of its own, made for each run, with their nodes and nobody else's.

use super::traces::{TraceError, make_private};
use crate::model::name::Name;
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
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

/// Where the folder of a workload with devices is.
pub fn own(runtime: &Path, name: &Name) -> PathBuf {
    runtime.join("dev").join("of").join(name.as_str())
}

/// Makes the folder of a workload with devices, anew: what an earlier run was granted says nothing about this one. Nodes are given by where
/// they are in the box, below `/dev`, and which of the host's they are.
pub fn prepare_own(runtime: &Path, name: &Name, nodes: &BTreeMap<&str, &str>) -> Result<(), TraceError> {
    let failed = |(path, source)| TraceError::Make { path, source };
    make_private(&runtime.join("dev"))?;
    make_private(&runtime.join("dev").join("of"))?;
    remove(runtime, name)?;
    let dev = own(runtime, name);
    make(&dev).map_err(failed)?;
    for (inside, host) in nodes {
        let relative = Path::new(inside).strip_prefix("/dev").unwrap_or(Path::new(inside));
        grant(&dev, relative, Path::new(host)).map_err(failed)?;
    }
    Ok(())
}

/// Removes it, if there is one.
pub fn remove(runtime: &Path, name: &Name) -> Result<(), TraceError> {
    let path = own(runtime, name);
    match fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(TraceError::Remove { path, source }),
        _ => Ok(()),
    }
}

/// A node of the host's once more: by its numbers, which are all a node is, and open to whoever is in the box.
fn grant(dev: &Path, relative: &Path, host: &Path) -> Result<(), (PathBuf, io::Error)> {
    let named = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| (path, source)
    };
    let found = fs::metadata(host).map_err(named(host))?;
    let kind = SFlag::from_bits_truncate(found.mode() & SFlag::S_IFMT.bits());
    if kind != SFlag::S_IFCHR && kind != SFlag::S_IFBLK {
        return Err((host.to_owned(), io::Error::other("it is no device node")));
    }
    let path = dev.join(relative);
    let parents: Vec<&Path> = relative.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
    for parent in parents.into_iter().rev() {
        let folder = dev.join(parent);
        fs::create_dir_all(&folder).map_err(named(&folder))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).map_err(named(&folder))?;
    }
    match mknod(&path, kind, Mode::empty(), found.rdev()) {
        // One of the usual ones, which each box has.
        Err(Errno::EEXIST) if fs::metadata(&path).is_ok_and(|there| there.rdev() == found.rdev()) => return Ok(()),
        made => made.map_err(|errno| named(&path)(errno.into()))?,
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(named(&path))
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
