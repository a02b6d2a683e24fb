//! What workloads have changed in their root directories, and what of the controller's own such a directory would show.
//!
//! Layout below the folder: `NAME/{upper,work}`, the layers of an overlay, made by init. Private to root: a set-user-id bit of a workload's
//! root would otherwise count for everybody on the host.

use super::HostError;
use crate::model::name::Name;
use crate::model::spec::Process;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where the changes of one workload lie.
pub fn folder(layers: &Path, name: &Name) -> PathBuf {
    layers.join(name.as_str())
}

/// Makes the folder for them.
pub fn prepare(folder: &Path) -> Result<(), HostError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| HostError::Layer { path: folder.to_owned(), source })
}

/// Removes them. Depth does not matter: a workload may have nested its folders deeper than paths or stacks reach, so each is emptied of
/// folders before its turn comes, by moving those up.
pub fn remove(folder: &Path) -> Result<(), HostError> {
    match flatten(folder) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(HostError::Layer { path: folder.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn flatten(top: &Path) -> io::Result<()> {
    let mut moved: u64 = 0;
    loop {
        let mut empty = true;
        for entry in fs::read_dir(top)? {
            let entry = entry?;
            empty = false;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            for inner in fs::read_dir(entry.path())? {
                let inner = inner?;
                if inner.file_type()?.is_dir() {
                    // A name that is taken is passed over by taking the next.
                    while top.join(moved.to_string()).symlink_metadata().is_ok() {
                        moved += 1;
                    }
                    fs::rename(inner.path(), top.join(moved.to_string()))?;
                } else {
                    fs::remove_file(inner.path())?;
                }
            }
            fs::remove_dir(entry.path())?;
        }
        if empty {
            return fs::remove_dir(top);
        }
    }
}

/// The folders to keep out of sight as the workload would see them. Its root directory may hold some; one of them it cannot be.
pub fn hidden(process: &Process, folders: &[PathBuf]) -> Result<Vec<PathBuf>, HostError> {
    let hidden: Vec<PathBuf> = folders.iter().map(|folder| out_of_sight(folder)).collect();
    let Some((path, _)) = process.rootfs.directory() else { return Ok(hidden) };
    // One that is not there is told of when it is to be mounted.
    let root = Path::new(path).canonicalize().unwrap_or_else(|_| PathBuf::from(path));
    if let Some(own) = hidden.iter().find(|own| root.starts_with(own)) {
        return Err(HostError::OwnFolder { path: root, own: own.clone() });
    }
    let inside = hidden.iter().filter_map(|own| own.strip_prefix(&root).ok());
    Ok(inside.map(|rest| Path::new("/").join(rest)).collect())
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

    fn process(rootfs: &str) -> Process {
        let text = format!("command: x\nrootfs: {rootfs}");
        crate::manifest::parse("web.yaml", text.as_bytes()).workloads.remove(0).0.process.clone()
    }

    #[test]
    fn what_was_kept_is_removed_however_deep_it_is() {
        let place = tempfile::tempdir().unwrap();
        let layer = folder(place.path(), &"web".parse().unwrap());
        prepare(&layer).unwrap();
        // Deeper than a path can be, made as a workload would make it.
        let script =
            "i=0; while [ $i -lt 1500 ]; do mkdir 0 && cd -P 0 || exit 1; touch x; ln -s / 1; i=$((i+1)); done";
        let made = std::process::Command::new("sh").args(["-c", script]).current_dir(&layer).status().unwrap();
        assert!(made.success());
        let outside = place.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&outside, layer.join("link")).unwrap();
        remove(&layer).unwrap();
        assert!(!layer.exists() && outside.join("kept").exists());
        remove(&layer).unwrap();
    }

    #[test]
    fn the_controllers_own_folders_are_hidden_in_a_root_and_never_one() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        let own = vec![root.join("state"), PathBuf::from("/run/containerctl")];
        fs::create_dir_all(root.join("state/rootfs")).unwrap();
        std::os::unix::fs::symlink("state", root.join("link")).unwrap();
        let shown = |path: &Path| hidden(&process(&path.display().to_string()), &own);
        assert_eq!(hidden(&process("host"), &own).unwrap(), own);
        assert_eq!(shown(&root).unwrap(), [Path::new("/state")]);
        assert_eq!(shown(Path::new("/srv")).unwrap(), Vec::<PathBuf>::new());
        for inside in ["state", "state/rootfs", "link"] {
            assert!(matches!(shown(&root.join(inside)), Err(HostError::OwnFolder { .. })), "{inside}");
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
        std::os::unix::fs::symlink("rev-1", root.join("sync/current")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.join("links/far")).unwrap();
        assert_eq!(out_of_sight(&root.join("plain")), root.join("plain"));
        assert_eq!(out_of_sight(&root.join("sync/current")), root.join("sync"));
        assert_eq!(out_of_sight(&root.join("links/far")), elsewhere.path().canonicalize().unwrap());
        assert_eq!(out_of_sight(&root.join("gone")), root.join("gone"));
    }
}
