//! Which folder the manifests were last seen in, so that an empty one in its place (a mount point before its mount, after a reboot too) is
//! not taken for a wish to stop everything.
//!
//! Kept in a small file of its own, written when that changes: the database holds what is known of workloads, and this is read before any
//! is. Without the file, or with a damaged one, an empty folder counts as it did before there was one.

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

/// The folder manifests were last seen in, and where that is kept.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    home: Option<Home>,
    file: Option<PathBuf>,
}

impl Memory {
    pub fn kept_in(file: PathBuf) -> Memory {
        let home = fs::read_to_string(&file).ok().and_then(|text| read(&text));
        Memory { home, file: Some(file) }
    }

    /// Whether manifests were last seen in another folder than this one.
    pub fn is_of_another(&self, home: Home) -> bool {
        self.home.is_some_and(|known| known != home)
    }

    /// Notes where manifests are, none if there are none any more.
    pub fn note(&mut self, home: Option<Home>) {
        if self.home == home {
            return;
        }
        self.home = home;
        let Some(file) = &self.file else { return };
        if let Err(error) = write(file, home) {
            tracing::warn!(path = %file.display(), error = %error, "cannot note which folder the manifests are in; it counts until the next start");
        }
    }
}

fn read(text: &str) -> Option<Home> {
    let mut numbers = text.strip_suffix('\n')?.split(' ');
    let mut next = || numbers.next()?.parse::<u128>().ok();
    let (file_system, inode, born_ns) = (next()?, next()?, next()?);
    Some(Home { file_system: u64::try_from(file_system).ok()?, inode: u64::try_from(inode).ok()?, born_ns })
}

/// Written aside and renamed: half a file would be another folder's name.
fn write(file: &Path, home: Option<Home>) -> io::Result<()> {
    let Some(Home { file_system, inode, born_ns }) = home else { return fs::remove_file(file) };
    let aside = file.with_extension("new");
    let mut new = File::create(&aside)?;
    new.write_all(format!("{file_system} {inode} {born_ns}\n").as_bytes())?;
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
        fs::write(&file, "12 34").unwrap();
        assert!(!Memory::kept_in(file.clone()).is_of_another(home()), "half a file says nothing");
        memory.note(None);
        assert!(!file.exists() && !Memory::kept_in(file).is_of_another(home()));
    }
}
