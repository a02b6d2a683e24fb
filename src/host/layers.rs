//! What workloads have changed in their root directories.
//!
//! Layout below the folder: `NAME/{upper,work}`, the layers of an overlay, made by init. Private to root: a set-user-id bit of a workload's
//! root would otherwise count for everybody on the host.

use super::HostError;
use crate::model::name::Name;
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
    // Only the folder itself may be missing: something in it that is not found says nothing about the rest.
    match folder.symlink_metadata() {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        found => {
            found.and_then(|_| flatten(folder)).map_err(|source| HostError::Layer { path: folder.to_owned(), source })
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        // What is there and cannot be removed is not taken for gone.
        std::os::unix::fs::symlink("nowhere", &layer).unwrap();
        assert!(matches!(remove(&layer), Err(HostError::Layer { .. })));
    }
}
