//! The revision of the whole folder: the commit of the git work tree it lies in, or what a swapped link led to.
//!
//! Git is not run: it would be a fork with every look. A commit is in two or three small files, whose format git keeps
//! (gitrepository-layout(5)); where it is kept otherwise (reftable) there is no revision rather than a wrong one.

use super::approach::Approach;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Folders above the manifests that a `.git` is looked for in.
const LEVELS_MAX: usize = 16;
/// The most that is read of `HEAD`, a reference, or a file that names a folder.
const SMALL_BYTES_MAX: u64 = 4096;
/// The most that is read of `packed-refs`: some ten thousand references.
const PACKED_BYTES_MAX: u64 = 1 << 20;
/// References that name another reference.
const REFERENCES_MAX: usize = 5;
/// The link that Kubernetes swaps when it mounts a `ConfigMap`.
const DATA: &str = "..data";

/// A revision of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    pub name: String,
    /// Whether it becomes the folder's only after the files have changed: git moves HEAD last.
    pub comes_last: bool,
}

/// The revision of the folder that is really `root`, reached by this way.
pub fn revision(root: &Path, approach: &Approach) -> Option<Revision> {
    if let Ok(target) = fs::read_link(root.join(DATA)) {
        return base(&target);
    }
    let link = approach.link.as_deref();
    for folder in root.ancestors().take(LEVELS_MAX) {
        let git = folder.join(".git");
        if let Some(commit) = fs::symlink_metadata(&git).ok().and_then(|_| commit(&git)) {
            return Some(Revision { name: commit, comes_last: true });
        }
        // Beyond what the link leads to is whoever lays links, not what is deployed.
        if link == Some(folder) {
            break;
        }
    }
    link.and_then(base)
}

fn base(path: &Path) -> Option<Revision> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    Some(Revision { name, comes_last: false })
}

/// The commit that is checked out, by `.git`: a folder, or in a further work tree a file that names one.
fn commit(git: &Path) -> Option<String> {
    let folder = if git.is_dir() { git.to_owned() } else { named(git, "gitdir: ")? };
    // References are shared between work trees, HEAD is not.
    let common = named(&folder.join("commondir"), "").unwrap_or_else(|| folder.clone());
    let mut text = small(&folder.join("HEAD"))?;
    for _ in 0..REFERENCES_MAX {
        let Some(reference) = text.trim_end().strip_prefix("ref: ").map(str::to_owned) else {
            return is_commit(text.trim_end()).then(|| text.trim_end().to_owned());
        };
        if !reference.starts_with("refs/") || reference.split('/').any(|part| part == "..") {
            return None;
        }
        let loose = [&folder, &common].into_iter().find_map(|place| small(&place.join(&reference)));
        text = loose.or_else(|| packed(&common.join("packed-refs"), &reference))?;
    }
    None
}

/// The folder that a file names, behind a prefix, relative to where the file lies.
fn named(file: &Path, prefix: &str) -> Option<PathBuf> {
    let text = small(file)?;
    Some(file.parent()?.join(text.trim_end().strip_prefix(prefix)?))
}

fn packed(file: &Path, reference: &str) -> Option<String> {
    let text = read(file, PACKED_BYTES_MAX)?;
    let commit = text.lines().find_map(|line| line.split_once(' ').filter(|(_, name)| *name == reference));
    commit.map(|(commit, _)| commit.to_owned())
}

/// SHA-1 or SHA-256, in hex.
fn is_commit(text: &str) -> bool {
    [40, 64].contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn small(file: &Path) -> Option<String> {
    read(file, SMALL_BYTES_MAX)
}

/// A regular file, not waited for, read up to a bound.
fn read(file: &Path, bytes_max: u64) -> Option<String> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(file).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(bytes_max).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::approach::approach;
    use super::*;
    use std::os::unix::fs::symlink;

    const A: &str = "0123456789abcdef0123456789abcdef01234567";
    const B: &str = "fedcba9876543210fedcba9876543210fedcba98";

    struct Place(tempfile::TempDir);

    impl Place {
        fn path(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), text).unwrap();
        }

        fn revision(&self, name: &str) -> String {
            let path = self.path(name);
            fs::create_dir_all(&path).unwrap();
            revision(&path.canonicalize().unwrap(), &approach(&path)).map(|found| found.name).unwrap_or_default()
        }
    }

    #[test]
    fn a_git_commit_is_read_loose_packed_detached_and_from_a_further_work_tree() {
        let place = Place(tempfile::tempdir().unwrap());
        assert_eq!(place.revision("repo/hosts/manifests"), "");
        place.write("repo/.git/HEAD", "ref: refs/heads/main\n");
        assert_eq!(place.revision("repo/hosts/manifests"), "", "no commit yet");
        place.write("repo/.git/packed-refs", &format!("# pack-refs with: peeled\n{B} refs/heads/main\n^{A}\n"));
        assert_eq!(place.revision("repo/hosts/manifests"), B);
        place.write("repo/.git/refs/heads/main", &format!("{A}\n"));
        assert_eq!(place.revision("repo/hosts/manifests"), A);
        place.write("repo/.git/HEAD", &format!("{B}\n"));
        assert_eq!(place.revision("repo/hosts/manifests"), B);
        place.write("tree/.git", "gitdir: ../repo/.git/worktrees/tree\n");
        place.write("repo/.git/worktrees/tree/HEAD", "ref: refs/heads/main\n");
        place.write("repo/.git/worktrees/tree/commondir", "../..\n");
        assert_eq!(place.revision("tree"), A);
    }

    #[test]
    fn a_hostile_repository_leads_nowhere() {
        let place = Place(tempfile::tempdir().unwrap());
        place.write("secret", &format!("{A}\n"));
        for head in ["ref: refs/../../secret", "ref: /etc/passwd", "ref: refs/heads/a", "", "zz"] {
            place.write("repo/.git/HEAD", head);
            place.write("repo/.git/refs/heads/a", "ref: refs/heads/a\n");
            assert_eq!(place.revision("repo"), "", "{head}");
        }
        fs::remove_file(place.path("repo/.git/HEAD")).unwrap();
        nix::unistd::mkfifo(&place.path("repo/.git/HEAD"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(place.revision("repo"), "");
    }

    #[test]
    fn a_swapped_link_names_what_it_leads_to() {
        let place = Place(tempfile::tempdir().unwrap());
        place.write(".git/HEAD", A);
        fs::create_dir_all(place.path("releases/2026-11-24/manifests")).unwrap();
        symlink("releases/2026-11-24", place.path("current")).unwrap();
        assert_eq!(place.revision("current/manifests"), "2026-11-24");
        place.write("releases/2026-11-24/.git/HEAD", B);
        assert_eq!(place.revision("current/manifests"), B, "what is deployed has a commit of its own");
        fs::create_dir_all(place.path("map/..2026_11_24")).unwrap();
        symlink("..2026_11_24", place.path("map/..data")).unwrap();
        assert_eq!(place.revision("map"), "..2026_11_24");
    }
}
