//! The way to a file or folder: each link on it may be swapped, each part that is missing may come, and both happen in another folder
//! than the one that is read (git-sync, an atomic symlink deployment, a folder that is mounted late).

use crate::control::watch::{Interest, Places};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Links that are followed, as the kernel does (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Where a path leads, and what decides that.
#[derive(Debug, Default)]
pub struct Approach {
    /// Folders with a link on the way, or with room for the part that is missing, and the name of that.
    pub places: Places,
    /// Where the last link on the way led.
    pub link: Option<PathBuf>,
}

/// Follows an absolute path link by link.
pub fn approach(path: &Path) -> Approach {
    let mut approach = Approach::default();
    let mut reached = PathBuf::from("/");
    let mut to_go = parts(path);
    let mut links = 0;
    while let Some(part) = to_go.pop() {
        if part == ".." {
            reached.pop();
            continue;
        }
        let next = reached.join(&part);
        let Ok(found) = fs::symlink_metadata(&next) else {
            approach.notice(reached, part);
            return approach;
        };
        if !found.is_symlink() {
            reached = next;
            continue;
        }
        links += 1;
        approach.notice(reached.clone(), part);
        let Ok(target) = fs::read_link(&next) else { return approach };
        if links > LINKS_MAX {
            return approach;
        }
        approach.link = fs::canonicalize(&next).ok();
        if target.is_absolute() {
            reached = PathBuf::from("/");
        }
        to_go.extend(parts(&target));
    }
    approach
}

/// What decides where the folder is, to be watched while it cannot be read.
pub fn whereabouts(path: &Path) -> Places {
    let mut places = approach(path).places;
    if path.is_dir() {
        places.insert(path.to_owned(), Interest::Everything);
    }
    places
}

/// The names a path consists of, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let named = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    named.rev().map(|part| part.as_os_str().to_owned()).collect()
}

impl Approach {
    fn notice(&mut self, folder: PathBuf, name: OsString) {
        self.places.entry(folder).or_default().add(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_link_on_the_way_is_found_and_so_is_what_is_missing() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("sync/rev-1/manifests")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        symlink("rev-1", root.join("sync/current")).unwrap();
        symlink(root.join("etc/../sync/current/manifests"), root.join("etc/manifests")).unwrap();
        let shown = |path: &str| {
            let Approach { places, link } = approach(&root.join(path));
            let below = |path: &Path| path.strip_prefix(&root).unwrap().display().to_string();
            let places: Vec<String> =
                places.iter().map(|(path, names)| format!("{}: {names:?}", below(path))).collect();
            format!("{} -> {}", places.join("; "), link.map(|link| below(&link)).unwrap_or_default())
        };
        assert_eq!(shown("sync/rev-1"), " -> ");
        assert_eq!(shown("etc/manifests"), "etc: Names({\"manifests\"}); sync: Names({\"current\"}) -> sync/rev-1");
        assert_eq!(shown("etc/conf.d/manifests"), "etc: Names({\"conf.d\"}) -> ");
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(shown("loop"), ": Names({\"loop\"}) -> ");
    }
}
