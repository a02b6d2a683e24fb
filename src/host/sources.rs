//! Paths of the host that a manifest names, a volume's source or a root directory: what they lead to, and what of the controller's own
//! they would show.
//!
//! Problem: they are opened as root, and a part of one may lie where a workload writes. A link put there would be followed to any place of
//! the host (CVE-2017-1002101). Root inside a box makes links that belong to root outside, so the owner alone does not tell.
//!
//! Approach: the path is resolved here, part by part, before the start. A link is followed if it belongs to root and does not lie in a
//! volume that a workload may write. What comes out has no link in it, and init takes hold of it by a path that must not have any
//! (openat2(2), `RESOLVE_NO_SYMLINKS`): a part that is swapped for a link in between ends the start. Renaming folders only leads to others
//! of the same volume. Before each look the path is said to whoever asks ([`super::asking`]), because a file system may not answer.

use super::HostError;
use super::asking::Asking;
use super::traces::Traces;
use crate::model::isolation::{Rootfs, VolumeSource};
use crate::model::spec::Process;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2, readlinkat, statfs};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Links on the way to one place: as many as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Folders of the host, free of links, that workloads may write.
pub type Written = BTreeSet<PathBuf>;

/// Told what is looked at next; an error where that is known to hang.
pub type Look<'a> = &'a dyn Fn(&Path) -> Result<(), HostError>;

/// Whether it names any path of the host.
pub fn names_any(process: &Process) -> bool {
    let is_host = |source: &VolumeSource| matches!(source, VolumeSource::Host(_));
    process.rootfs.directory().is_some() || process.volumes.iter().any(|volume| is_host(&volume.source))
}

/// The process with every path of the host resolved. What is not there stays to be told of by init, which looks for it.
pub fn resolved(process: &Process, written: &Written, look: Look<'_>) -> Result<Process, HostError> {
    let mut process = process.clone();
    let follow = |path: &mut String| -> Result<(), HostError> {
        // What is no text cannot have come out of a manifest but by a link; it stays as it was written, and init refuses the link.
        if let Ok(real) = resolve(Path::new(path.as_str()), written, look)?.into_os_string().into_string() {
            *path = real;
        }
        Ok(())
    };
    if let Rootfs::Directory { path, .. } = &mut process.rootfs {
        follow(path)?;
    }
    for volume in &mut process.volumes {
        if let VolumeSource::Host(source) = &mut volume.source {
            follow(source)?;
        }
    }
    Ok(process)
}

/// What of a resolved process's volumes it may write.
pub fn written(process: &Process) -> impl Iterator<Item = PathBuf> {
    process.volumes.iter().filter(|volume| !volume.read_only).filter_map(|volume| match &volume.source {
        VolumeSource::Host(source) => Some(PathBuf::from(source)),
        VolumeSource::Tmpfs { .. } => None,
    })
}

/// What the workloads of which there are traces may write, as far as those can be read.
pub fn written_by(traces: &Traces, asking: &Asking) -> Result<Written, HostError> {
    let mut folders = Written::new();
    for name in traces.names()? {
        let Some(record) = traces.newest(&name).ok().flatten().and_then(|trace| trace.boxed.record) else { continue };
        for path in written(&record.spec.process) {
            let asked = path.clone();
            let real = asking.ask(move |question| {
                question.next(&asked)?;
                Ok(asked.canonicalize().ok())
            });
            // Its links were judged when it was started. Of one that hangs, only links beside it go unnoticed.
            folders.insert(real.ok().flatten().unwrap_or(path));
        }
    }
    Ok(folders)
}

fn resolve(path: &Path, written: &Written, look: Look<'_>) -> Result<PathBuf, HostError> {
    let mut real = PathBuf::from("/");
    let mut rest = parts(path);
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            real.pop();
            continue;
        }
        let next = real.join(part);
        look(&next)?;
        match link(&next) {
            Ok(None) => real = next,
            Ok(Some(Link { owner, target })) if links < LINKS_MAX => {
                if owner != 0 || written.iter().any(|folder| real.starts_with(folder)) {
                    return Err(HostError::Link { path: path.to_owned(), link: next });
                }
                links += 1;
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                rest.extend(parts(&target));
            }
            Ok(Some(_)) | Err(_) => {
                let rest = rest.into_iter().rev().filter(|part| part != "..");
                return Ok(rest.fold(next, |path, part| path.join(part)));
            }
        }
    }
    look(&real)?;
    // Looked into, so that what is mounted on demand is mounted when init copies it. If it cannot be, init says so.
    let _ = real.join(".").metadata();
    // Asked of the server each time, whatever is remembered of the folder: one that hangs is found out here and not by init.
    let _ = statfs(&real);
    Ok(real)
}

/// The parts of a path, the last first.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |component| match component {
        Component::Normal(part) => Some(part),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).map(OsStr::to_owned).rev().collect()
}

struct Link {
    owner: u32,
    target: PathBuf,
}

/// The link at `path`, if it is one. Owner and target are those of one and the same, whatever happens to the name meanwhile.
fn link(path: &Path) -> io::Result<Option<Link>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let stat = fstat(&held)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    let target = readlinkat(&held, "", Vec::new())?;
    Ok(Some(Link { owner: stat.st_uid, target: PathBuf::from(OsString::from_vec(target.into_bytes())) }))
}

/// What to cover of the controller's own, as a workload would see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Below its root.
    pub root: Vec<PathBuf>,
    /// Below one of its volumes, by the volume's place in the list. They are there.
    pub volumes: Vec<(usize, PathBuf)>,
}

/// A folder of the controller's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// What to cover so that nobody sees into it.
    pub cover: PathBuf,
    pub is_there: bool,
}

impl Own {
    /// One that does not answer. It is there: what is not is known not to be at once.
    pub fn unseen(folder: &Path) -> Own {
        Own { cover: folder.to_owned(), is_there: true }
    }

    pub fn look_at(folder: &Path, look: Look<'_>) -> Result<Own, HostError> {
        look(folder)?;
        let cover = out_of_sight(folder);
        look(&cover)?;
        Ok(Own { is_there: cover.exists(), cover })
    }
}

/// Where a resolved process would see the controller's folders. Its root directory and its volumes may hold some; one of them they cannot be.
pub fn hidden(process: &Process, folders: &[Own]) -> Result<Hidden, HostError> {
    let all: Vec<PathBuf> = folders.iter().map(|own| own.cover.clone()).collect();
    let there: Vec<PathBuf> = folders.iter().filter(|own| own.is_there).map(|own| own.cover.clone()).collect();
    let root = match process.rootfs.directory() {
        None => all,
        Some((path, _)) => inside("rootfs", Path::new(path), Path::new("/"), &all)?,
    };
    let mut volumes = Vec::new();
    for (at, volume) in process.volumes.iter().enumerate() {
        let VolumeSource::Host(source) = &volume.source else { continue };
        let covered = inside("volume", Path::new(source), Path::new(&volume.target), &there)?;
        volumes.extend(covered.into_iter().map(|path| (at, path)));
    }
    Ok(Hidden { root, volumes })
}

/// Folders inside `source` as they are seen below `target`.
fn inside(kind: &'static str, source: &Path, target: &Path, folders: &[PathBuf]) -> Result<Vec<PathBuf>, HostError> {
    if let Some(own) = folders.iter().find(|own| source.starts_with(own)) {
        return Err(HostError::OwnFolder { kind, path: source.to_owned(), own: own.clone() });
    }
    Ok(folders.iter().filter_map(|own| own.strip_prefix(source).ok()).map(|rest| target.join(rest)).collect())
}

/// What to cover so that nobody sees into a folder. One that is reached by a link beside what the link is swapped between (git-sync, an
/// atomic symlink deployment) is hidden with all its revisions, the coming ones included.
fn out_of_sight(folder: &Path) -> PathBuf {
    let Ok(real) = folder.canonicalize() else { return folder.to_owned() };
    let parent = |path: &Path| path.parent().and_then(|parent| parent.canonicalize().ok());
    match (folder.is_symlink(), parent(folder)) {
        (true, Some(common)) if common != Path::new("/") && real.starts_with(&common) => common,
        _ => real,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{lchown, symlink};

    fn process(fields: &str) -> Process {
        let text = format!("command: x\n{fields}");
        crate::manifest::parse("web.yaml", text.as_bytes()).workloads.remove(0).0.process.clone()
    }

    #[test]
    fn a_link_is_followed_if_root_made_it_and_no_workload_can_have() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("app/shared")).unwrap();
        fs::create_dir_all(root.join("sync/rev-1/data")).unwrap();
        symlink("rev-1", root.join("sync/current")).unwrap();
        symlink(root.join("sync/current"), root.join("app/link")).unwrap();
        let follow = |path: &str, written: &[&str]| {
            resolve(&root.join(path), &written.iter().map(|folder| root.join(folder)).collect(), &|_| Ok(()))
        };
        assert_eq!(follow("sync/current/data", &[]).unwrap(), root.join("sync/rev-1/data"));
        assert_eq!(follow("app/link/data", &[]).unwrap(), root.join("sync/rev-1/data"));
        assert_eq!(follow("app/shared", &["app"]).unwrap(), root.join("app/shared"));
        assert_eq!(follow("sync/current/gone/x", &[]).unwrap(), root.join("sync/rev-1/gone/x"));
        // On the way to it or at its end, in a folder that a workload writes.
        for (path, written) in [("app/link", "app"), ("app/link/data", "sync"), ("sync/current", "")] {
            let refused = follow(path, &[written]);
            assert!(matches!(refused, Err(HostError::Link { .. })), "{path} {refused:?}");
        }
        symlink("/etc", root.join("theirs")).unwrap();
        assert_eq!(follow("theirs", &[]).unwrap(), Path::new("/etc"));
        lchown(root.join("theirs"), Some(4242), None).unwrap();
        assert!(matches!(follow("theirs/ssl", &[]), Err(HostError::Link { link, .. }) if link == root.join("theirs")));
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(follow("loop", &[]).unwrap(), root.join("loop"));
    }

    #[test]
    fn the_controllers_own_folders_are_hidden_in_a_root_or_volume_and_never_one() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        let own = vec![root.join("state"), root.join("not-there")];
        fs::create_dir_all(root.join("state/rootfs")).unwrap();
        symlink("state", root.join("link")).unwrap();
        let seen: Vec<Own> = own.iter().map(|own| Own::look_at(own, &|_| Ok(())).unwrap()).collect();
        let shown = |fields: &str| hidden(&resolved(&process(fields), &Written::new(), &|_| Ok(())).unwrap(), &seen);
        let paths = |paths: &[&str]| -> Vec<PathBuf> { paths.iter().map(PathBuf::from).collect() };
        assert_eq!(shown("rootfs: host").unwrap(), Hidden { root: own.clone(), volumes: vec![] });
        let at = root.display();
        assert_eq!(shown(&format!("rootfs: {at}")).unwrap().root, paths(&["/state", "/not-there"]));
        assert_eq!(shown("rootfs: /srv").unwrap(), Hidden::default());
        let volumes = format!("volumes: [{{tmpfs: 1Mi, target: /a}}, {{source: {at}, target: /mnt}}]");
        assert_eq!(shown(&volumes).unwrap().volumes, [(1, PathBuf::from("/mnt/state"))]);
        for inside in ["state", "state/rootfs", "link"] {
            for fields in
                [format!("rootfs: {at}/{inside}"), format!("volumes: [{{source: {at}/{inside}, target: /mnt}}]")]
            {
                assert!(matches!(shown(&fields), Err(HostError::OwnFolder { .. })), "{fields}");
            }
        }
    }

    #[test]
    fn a_linked_folder_is_hidden_with_the_revisions_beside_it() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        for folder in ["plain", "sync/rev-1", "links"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        symlink("rev-1", root.join("sync/current")).unwrap();
        symlink(elsewhere.path(), root.join("links/far")).unwrap();
        assert_eq!(out_of_sight(&root.join("plain")), root.join("plain"));
        assert_eq!(out_of_sight(&root.join("sync/current")), root.join("sync"));
        assert_eq!(out_of_sight(&root.join("links/far")), elsewhere.path().canonicalize().unwrap());
        assert_eq!(out_of_sight(&root.join("gone")), root.join("gone"));
    }
}
