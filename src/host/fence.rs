//! The host's own levers: the cpusets of groups that are not ours, the affinity of interrupts; and what stood in them, on the disk.
//!
//! Which CPUs they get is decided elsewhere (`plan::fence`); this reads, writes one, and remembers.
//!
//! The stamp is in the state folder: it has to outlive a crash and the runtime directory. It is flushed before a lever is moved. The kernel
//! forgets levers with a reboot, so one of another boot says nothing.

use crate::model::cpuset::CpuSet;
use crate::model::fence::{Pull, Stood, Surroundings, is_mask};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Groups of the host, and interrupts, that are looked at. A machine with more is kept off by the first ones, and the rest is told.
const LEVERS_MAX: usize = 4096;
/// Bytes of the stamp that are read: a hundred a lever are plenty.
const STAMP_BYTES_MAX: u64 = 1 << 20;

/// Where the levers are.
#[derive(Clone, Debug)]
pub struct Levers {
    /// The v2 tree, where it has controllers.
    pub tree: Option<PathBuf>,
    /// The group that holds our workloads, below the root of the tree.
    pub own: String,
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys/devices/system/cpu`.
    pub cpus: PathBuf,
    pub stamp: PathBuf,
    pub boot_id: String,
}

/// What cannot be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error(
        "cannot write {path}, where it is remembered what stood in the host's cpusets\n  help: nothing is kept off exclusive CPUs meanwhile; it is tried again with the next resync"
    )]
    Remember { path: PathBuf, source: io::Error },
    #[error(
        "cannot read {path}, which says what stood in the host's cpusets\n  help: if it is damaged, see the cpuset.cpus of the host's groups by hand, and delete it"
    )]
    Stamp { path: PathBuf, source: io::Error },
    #[error(
        "cannot read {path}, to see what bounds the host\n  help: nothing is moved meanwhile; it is tried again with the next resync"
    )]
    Look { path: PathBuf, source: io::Error },
}

impl Levers {
    /// What was moved under this boot and not put back.
    pub fn stood(&self) -> Result<Stood, FenceError> {
        let nothing = Stood { boot_id: self.boot_id.clone(), ..Stood::default() };
        let failed = |source| FenceError::Stamp { path: self.stamp.clone(), source };
        let text = match File::open(&self.stamp) {
            Ok(file) => io::read_to_string(io::Read::take(file, STAMP_BYTES_MAX)).map_err(failed)?,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(nothing),
            Err(source) => return Err(failed(source)),
        };
        let stood: Stood = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
        Ok(if stood.boot_id == self.boot_id { stood } else { nothing })
    }

    /// Remembers what stood, on the disk when this returns; nothing is a stamp that is gone.
    pub fn remember(&self, stood: &Stood) -> Result<(), FenceError> {
        let failed = |source| FenceError::Remember { path: self.stamp.clone(), source };
        if stood.levers.is_empty() {
            return match fs::remove_file(&self.stamp) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(source)),
                _ => Ok(()),
            };
        }
        let aside = self.stamp.with_extension("new");
        let write = || {
            let text = serde_json::to_string(stood)?;
            if text.len() as u64 > STAMP_BYTES_MAX {
                return Err(io::Error::other(format!(
                    "{} bytes are more than the {STAMP_BYTES_MAX} that are read again",
                    text.len()
                )));
            }
            let mut file = File::create(&aside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&aside, &self.stamp)?;
            // The name too has to be on the disk.
            self.stamp.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        };
        write().map_err(failed)
    }

    /// The host's levers as they are, and those that were moved wherever they are now. An error is one that leaves it open which there are.
    pub fn look(&self, stood: &Stood) -> Result<Surroundings, FenceError> {
        let list = |file| {
            let path = self.cpus.join(file);
            let list = read(&path).and_then(|text| text.parse().map_err(io::Error::other));
            list.map_err(|source| FenceError::Look { path, source })
        };
        let (online, possible) = (list("online")?, list("possible")?);
        let mut seen = Surroundings { online, possible, ..Surroundings::default() };
        match &self.tree {
            Some(tree) => self.look_at_groups(tree, &mut seen)?,
            None => seen.beyond.push("its processes: legacy cgroups are not touched".to_owned()),
        }
        let irq = self.proc.join("irq");
        let interrupts = subfolders(&irq)?.into_iter().map(|folder| folder.join("smp_affinity_list"));
        for path in interrupts.chain([irq.join("default_smp_affinity")]) {
            take(&mut seen, &path);
        }
        for lever in stood.levers.keys() {
            if seen.levers.contains_key(lever) || seen.unread.contains(lever) {
                continue;
            }
            match read(Path::new(lever)) {
                Ok(text) => drop(seen.strays.insert(lever.clone(), text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => drop(seen.unread.insert(lever.clone())),
            }
        }
        Ok(seen)
    }

    /// At each level down to our own group, the groups beside the way: whatever is below them is bounded by them.
    fn look_at_groups(&self, tree: &Path, seen: &mut Surroundings) -> Result<(), FenceError> {
        let mut here = tree.to_owned();
        for part in self.own.split('/').filter(|part| !part.is_empty()) {
            let next = here.join(part);
            for folder in subfolders(&here)?.into_iter().filter(|folder| *folder != next) {
                if let Some(why) = take(seen, &folder.join("cpuset.cpus")) {
                    seen.beyond.push(format!("those below {}, {why}", folder.display()));
                }
            }
            here = next;
        }
        let pids = read(&tree.join("cgroup.procs")).unwrap_or_default();
        // A thread of the kernel's has no command line; where it may run is the kernel's business.
        let is_process = |pid: &&str| read(&self.proc.join(pid).join("cmdline")).is_ok_and(|line| !line.is_empty());
        // How many is not told: they come and go, and each time that would be news.
        if pids.lines().any(|pid| is_process(&pid)) {
            seen.beyond.push("processes of the root group, which has no cpuset".to_owned());
        }
        Ok(())
    }

    /// Moves one lever, and reads it back.
    pub fn pull(&self, pull: &Pull) -> Result<(), String> {
        let path = Path::new(&pull.lever);
        match self.write(path, pull) {
            // Gone meanwhile: whoever makes it again makes it as it was.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.to_string()),
            Ok(()) => {}
        }
        // Taken is taken: what it holds is seen with the next look.
        let Ok(held) = read(path) else { return Ok(()) };
        let mask = CpuSet::from_mask(&held).filter(|_| is_mask(&pull.lever));
        let cpus = mask.or_else(|| held.parse().ok()).unwrap_or_default();
        // Whatever it holds now is as good as no bound.
        if cpus == pull.cpus || pull.cpus.is_empty() {
            return Ok(());
        }
        Err(format!("it holds {held:?} after {:?} was written", pull.value.trim_end()))
    }

    /// A group with processes cannot be left without a set of its own any more, once it had one (`validate_change` in
    /// kernel/cgroup/cpuset.c: ENOSPC); all CPUs that this machine could ever have bound it as little.
    fn write(&self, path: &Path, pull: &Pull) -> io::Result<()> {
        match fs::write(path, &pull.value) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && pull.cpus.is_empty() => {
                fs::write(path, read(&self.cpus.join("possible")).unwrap_or_default())
            }
            written => written,
        }
    }
}

/// Takes one lever in as it is, or answers why not.
fn take(seen: &mut Surroundings, path: &Path) -> Option<String> {
    if seen.levers.len() >= LEVERS_MAX {
        return Some(format!("as no more than {LEVERS_MAX} are looked after"));
    }
    let lever = path.display().to_string();
    match read(path) {
        Ok(text) => seen.levers.insert(lever, text).and(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("which has no cpuset".to_owned()),
        Err(error) => {
            seen.unread.insert(lever);
            Some(format!("whose cpuset cannot be read ({error})"))
        }
    }
}

/// In order, so that the same host is read alike each time; none of a folder that is not there.
fn subfolders(folder: &Path) -> Result<Vec<PathBuf>, FenceError> {
    let failed = |source| FenceError::Look { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim_end().to_owned())
}
