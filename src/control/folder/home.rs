//! Which folder the manifests were last seen in, and on which file system each of its sub-folders, so that an empty one in its place (a mount
//! point before its mount, after a reboot too) is not taken for a wish to stop everything.
//!
//! Kept in a small file of its own, written when that changes: the database holds what is known of workloads, and this is read before any
//! is. Without the file, or with a damaged one, an empty folder counts as it did before there was one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// What stays the same over a reboot for as long as it is the same folder. An inode's number alone is given to the next folder; where the
/// file system does not tell when it was made, that is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    file_system: u64,
    inode: u64,
    born_ns: u128,
}

impl Home {
    pub fn of(folder: &File) -> io::Result<Home> {
        let found = folder.metadata()?;
        let born = found.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let file_system = rustix::fs::fstatvfs(folder)?.f_fsid;
        Ok(Home { file_system, inode: found.ino(), born_ns: born.as_nanos() })
    }
}

/// The file system a folder is on, by a number that outlives a reboot on most of them (statvfs(3)); none where it will not say.
pub fn file_system(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().map(|found| found.f_fsid)
}

/// The folder manifests were last seen in, and where that is kept.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    known: Known,
    file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    home: Option<Home>,
    /// The file system of each sub-folder with manifests. Its inode says nothing: a sub-folder that was made anew and is empty is a wish.
    below: BTreeMap<String, u64>,
}

impl Memory {
    pub fn kept_in(file: PathBuf) -> Memory {
        let known = fs::read_to_string(&file).ok().and_then(|text| read(&text)).unwrap_or_default();
        Memory { known, file: Some(file) }
    }

    /// Whether manifests were last seen in another folder than this one.
    pub fn is_of_another(&self, home: Home) -> bool {
        self.known.home.is_some_and(|known| known != home)
    }

    /// Whether the manifests of a sub-folder were last seen on another file system than this one.
    pub fn was_elsewhere(&self, sub_folder: &str, file_system: Option<u64>) -> bool {
        self.known.below.get(sub_folder).is_some_and(|known| file_system != Some(*known))
    }

    /// Notes where manifests are, none if there are none any more.
    pub fn note(&mut self, home: Option<Home>) {
        let below = if home.is_some() { self.known.below.clone() } else { BTreeMap::new() };
        self.keep(Known { home, below });
    }

    /// Notes on which file systems the manifests of sub-folders are, and lets go of those that are not to be `kept`.
    pub fn note_below(&mut self, seen: &BTreeMap<String, u64>, kept: &BTreeSet<String>) {
        let Known { home, below } = &self.known;
        let mut below = below.clone();
        below.retain(|name, _| kept.contains(name));
        below.extend(seen.iter().map(|(name, file_system)| (name.clone(), *file_system)));
        self.keep(Known { home: *home, below });
    }

    fn keep(&mut self, known: Known) {
        if self.known == known {
            return;
        }
        self.known = known;
        let Some(file) = &self.file else { return };
        if let Err(error) = write(file, &self.known) {
            tracing::warn!(path = %file.display(), error = %error, "cannot note which folder the manifests are in; it counts until the next start");
        }
    }
}

/// Three numbers of the folder, then a line a sub-folder.
fn read(text: &str) -> Option<Known> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    let mut numbers = lines.next()?.split(' ');
    let mut next = || numbers.next()?.parse::<u128>().ok();
    let (file_system, inode, born_ns) = (next()?, next()?, next()?);
    let home = Home { file_system: u64::try_from(file_system).ok()?, inode: u64::try_from(inode).ok()?, born_ns };
    let below =
        lines.map(|line| line.split_once(' ').and_then(|(number, name)| Some((name.to_owned(), number.parse().ok()?))));
    Some(Known { home: Some(home), below: below.collect::<Option<_>>()? })
}

/// Written aside and renamed: half a file would be another folder's name.
fn write(file: &Path, known: &Known) -> io::Result<()> {
    let Known { home: Some(Home { file_system, inode, born_ns }), below } = known else { return fs::remove_file(file) };
    let mut text = format!("{file_system} {inode} {born_ns}\n");
    // A name that would break the lines is known until the next start only.
    for (name, file_system) in below.iter().filter(|(name, _)| !name.contains('\n')) {
        let _ = writeln!(text, "{file_system} {name}");
    }
    let aside = file.with_extension("new");
    let mut new = File::create(&aside)?;
    new.write_all(text.as_bytes())?;
    new.sync_data()?;
    fs::rename(aside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_known_again_and_one_in_its_place_is_not() {
        let place = tempfile::tempdir().unwrap();
        let (folder, file) = (place.path().join("manifests"), place.path().join("folder"));
        let home = || Home::of(&File::open(&folder).unwrap()).unwrap();
        fs::create_dir(&folder).unwrap();
        let mut memory = Memory::kept_in(file.clone());
        assert!(!memory.is_of_another(home()), "nothing is known yet");
        memory.note(Some(home()));
        let again = Memory::kept_in(file.clone());
        assert!(!again.is_of_another(home()));
        fs::remove_dir(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert!(again.is_of_another(home()), "another folder, of the same inode perhaps");
        let mut memory = Memory::kept_in(file.clone());
        memory.note_below(&[("team a".to_owned(), 7), ("ops".to_owned(), 8)].into(), &BTreeSet::new());
        let again = Memory::kept_in(file.clone());
        assert!(again.was_elsewhere("team a", Some(9)) && again.was_elsewhere("ops", None));
        assert!(!again.was_elsewhere("team a", Some(7)) && !again.was_elsewhere("unknown", Some(9)));
        memory.note_below(&BTreeMap::new(), &["ops".to_owned()].into());
        let again = Memory::kept_in(file.clone());
        assert!(again.was_elsewhere("ops", Some(9)) && !again.was_elsewhere("team a", Some(9)), "let go of");
        // As an earlier version wrote it.
        fs::write(&file, "12 34 56\n").unwrap();
        assert!(Memory::kept_in(file.clone()).is_of_another(home()));
        fs::write(&file, "12 34").unwrap();
        assert!(!Memory::kept_in(file.clone()).is_of_another(home()), "half a file says nothing");
        memory.note(None);
        assert!(!file.exists() && !Memory::kept_in(file).is_of_another(home()));
    }
}
