//! cgroup v2: written by us, relative to one open directory, with exact errors.
//!
//! The same code keeps the v2 tree beside v1 controllers (hybrid hosts), where it has no controllers but `cgroup.kill`, `cgroup.events`
//! and a place to clone into.

use super::partition::Partitions;
use super::probe::enable;
use super::{
    Backend, CgroupError, Counter, Counters, PROBE_GROUPS, counter, cpus_of_this_process, directory_name,
    list_directories, parse_pids, stalled_us, workload_at,
};
use crate::model::cgroup::{PARTITION, Settings, Support, Write};
use crate::model::cpuset::{CpuSet, NodeSet};
use crate::model::name::Name;
use crate::model::observed::Group;
use crate::model::usage::Usage;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A v2 tree below one parent group.
#[derive(Debug)]
pub struct Unified {
    /// The parent group.
    parent: OwnedFd,
    parent_path: PathBuf,
    /// The parent as people know it, below the mount point.
    shown: String,
    support: Support,
    partitions: Partitions,
    /// Those that the parent passes on to the groups below.
    controllers: Vec<String>,
}

impl Unified {
    /// Takes over an existing parent group.
    pub fn new(parent: OwnedFd, parent_path: PathBuf, shown: String, support: Support) -> Unified {
        let depth = shown.split('/').filter(|part| !part.is_empty()).count();
        let partitions = Partitions::below(&parent_path, depth);
        Unified { parent, parent_path, shown, support, partitions, controllers: Vec::new() }
    }

    /// The same, whose parent passes these controllers on to the groups below.
    pub fn passing_on(self, controllers: Vec<String>) -> Unified {
        Unified { controllers, ..self }
    }

    fn path_of(&self, name: &Name, file: &str) -> PathBuf {
        self.parent_path.join(directory_name(name)).join(file)
    }

    fn open_group(&self, name: &Name) -> Result<Option<OwnedFd>, CgroupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(&self.parent, directory_name(name), flags, Mode::empty()) {
            Ok(group) => Ok(Some(group)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(CgroupError::Open { path: self.path_of(name, ""), source: errno.into() }),
        }
    }

    fn group(&self, name: &Name) -> Result<OwnedFd, CgroupError> {
        let missing = || CgroupError::Open { path: self.path_of(name, ""), source: Errno::NOENT.into() };
        self.open_group(name)?.ok_or_else(missing)
    }

    fn read_in(&self, group: impl AsFd, name: &Name, file: &str) -> Result<String, CgroupError> {
        read_at(group, file).map_err(|source| CgroupError::Read { path: self.path_of(name, file), source })
    }
}

/// The text of a control file without its final newline.
pub fn read_at(group: impl AsFd, file: &str) -> io::Result<String> {
    let opened = openat(group, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(opened).read_to_string(&mut text)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// Writes a control file with one write(2), as the kernel wants it; it does not mind the truncation, and a file of a disk holds what was written.
pub fn write_at(group: impl AsFd, file: &str, value: &str) -> io::Result<()> {
    let opened = openat(group, file, OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC, Mode::empty())?;
    File::from(opened).write_all(value.as_bytes())
}

impl Backend for Unified {
    fn support(&self) -> &Support {
        &self.support
    }

    fn create(&self, name: &Name) -> Result<(), CgroupError> {
        mkdirat(&self.parent, directory_name(name), Mode::from_raw_mode(0o755))
            .map_err(|errno| CgroupError::Create { path: self.path_of(name, ""), source: errno.into() })
    }

    fn directory(&self, name: &Name) -> Result<Option<OwnedFd>, CgroupError> {
        self.group(name).map(Some)
    }

    fn tasks(&self, _: &Name) -> Vec<PathBuf> {
        Vec::new()
    }

    fn write(&self, name: &Name, write: &Write) -> Result<(), CgroupError> {
        let failed =
            |source| CgroupError::Write { path: self.path_of(name, &write.file), value: write.value.clone(), source };
        let group = self.group(name)?;
        if write.file == PARTITION {
            return self.partitions.ask(name, group, &write.value).map_err(failed);
        }
        if write.file == "cpuset.cpus" {
            self.partitions.give(name, group, &write.value).map_err(failed)?;
            self.partitions.ask_again();
            return Ok(());
        }
        write_at(group, &write.file, &write.value).map_err(failed)
    }

    fn ask_again(&self) {
        self.partitions.ask_again();
    }

    fn make_room(&self, name: &Name, write: &Write) -> Result<(), CgroupError> {
        let (true, Ok(wanted)) = (write.file == "memory.max", write.value.parse::<u64>()) else { return Ok(()) };
        let group = self.group(name)?;
        let used = || Ok(self.read_in(&group, name, "memory.current")?.parse::<u64>().unwrap_or(0));
        let before: u64 = used()?;
        if before <= wanted {
            return Ok(());
        }
        // Whether that was enough, and on kernels before 5.19 whether it can be asked for at all, shows in what is left.
        let _ = write_at(&group, "memory.reclaim", &(before - wanted).to_string());
        let used: u64 = used()?;
        if used <= wanted {
            Ok(())
        } else {
            Err(CgroupError::InUse { path: self.path_of(name, "memory.max"), wanted, used })
        }
    }

    fn read(&self, name: &Name) -> Result<Option<Group>, CgroupError> {
        let Some(group) = self.open_group(name)? else { return Ok(None) };
        let mut settings = Settings::default();
        for file in self.support.files.iter().filter(|file| !file.contains(".events")) {
            match read_at(&group, file) {
                Ok(text) if file == PARTITION => settings.set(PARTITION, self.partitions.answer(name, &group, text)),
                Ok(text) => settings.set(file.clone(), text),
                // Somebody has taken the controller away from the parent: the planner sees the file as not held.
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(CgroupError::Read { path: self.path_of(name, file), source }),
            }
        }
        let events = self.read_in(&group, name, "cgroup.events")?;
        let populated = counter(&events, "populated") != Some(0);
        Ok(Some(Group { settings, populated, frozen: counter(&events, "frozen") == Some(1) }))
    }

    fn oom_kills(&self, name: &Name) -> u64 {
        let events = self.group(name).and_then(|group| self.read_in(group, name, "memory.events"));
        events.ok().and_then(|events| counter(&events, "oom_kill")).unwrap_or(0)
    }

    fn usage(&self, name: &Name) -> Usage {
        let Ok(Some(group)) = self.open_group(name) else { return Usage::default() };
        let read = |file: &str| read_at(&group, file).ok();
        let number = |file: &str| read(file).and_then(|text| text.parse().ok());
        let cpu = read("cpu.stat").unwrap_or_default();
        let memory = read("memory.events").unwrap_or_default();
        let pids = read("pids.events").unwrap_or_default();
        let stalled = |file: &str| read(file).as_deref().and_then(stalled_us);
        Usage {
            cpu_us: counter(&cpu, "usage_usec"),
            memory_bytes: number("memory.current"),
            pids: number("pids.current"),
            periods: counter(&cpu, "nr_periods").unwrap_or(0),
            throttled_periods: counter(&cpu, "nr_throttled").unwrap_or(0),
            throttled_us: counter(&cpu, "throttled_usec").unwrap_or(0),
            oom_kills: counter(&memory, "oom_kill").unwrap_or(0),
            pids_refused: counter(&pids, "max").unwrap_or(0),
            cpu_stalled_us: stalled("cpu.pressure"),
            memory_stalled_us: stalled("memory.pressure"),
            io_stalled_us: stalled("io.pressure"),
        }
    }

    fn counters(&self) -> Counters {
        // The parent is not the root, so it has the files its children have.
        let there = |file: &'static str| {
            let counter = Counter { parent: self.parent_path.clone(), file };
            self.parent_path.join(file).exists().then_some(counter)
        };
        Counters {
            cpu: there("cpu.stat"),
            // Refused with EOPNOTSUPP where the kernel was started with psi=0: then it is no counter.
            pressure: there("cpu.pressure").filter(|_| read_at(&self.parent, "cpu.pressure").is_ok()),
            memory: there("memory.current"),
            threads: there("cgroup.threads"),
        }
    }

    fn restore(&self, name: &Name) -> Result<(), CgroupError> {
        enable(&self.parent_path, &self.controllers)?;
        match self.create(name) {
            Err(CgroupError::Create { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        // The parent too: what is frozen there stays frozen below, whatever the group itself says (cgroup-v2.rst, cgroup.freeze).
        let (file, value) = ("cgroup.freeze", "0");
        let failed = |path, source| CgroupError::Write { path, value: value.to_owned(), source };
        write_at(&self.parent, file, value).map_err(|source| failed(self.parent_path.join(file), source))?;
        write_at(self.group(name)?, file, value).map_err(|source| failed(self.path_of(name, file), source))
    }

    fn attach(&self, name: &Name, pid: u32) -> Result<(), CgroupError> {
        let (file, value) = ("cgroup.procs", pid.to_string());
        match write_at(self.group(name)?, file, &value) {
            Err(source) if source.raw_os_error() != Some(libc::ESRCH) => {
                Err(CgroupError::Write { path: self.path_of(name, file), value, source })
            }
            _ => Ok(()),
        }
    }

    fn home(&self, memberships: &str) -> Option<Name> {
        workload_at(memberships.lines().find_map(|line| line.strip_prefix("0::"))?, &self.shown)
    }

    fn processes(&self, name: &Name) -> Result<Vec<u32>, CgroupError> {
        match self.open_group(name)? {
            Some(group) => Ok(parse_pids(&self.read_in(group, name, "cgroup.procs")?)),
            None => Ok(Vec::new()),
        }
    }

    fn kill(&self, name: &Name) -> Result<(), CgroupError> {
        let Some(group) = self.open_group(name)? else { return Ok(()) };
        let failed =
            |source| CgroupError::Write { path: self.path_of(name, "cgroup.kill"), value: "1".to_owned(), source };
        write_at(group, "cgroup.kill", "1").map_err(failed)
    }

    fn remove(&self, name: &Name) -> Result<(), CgroupError> {
        if let Ok(Some(group)) = self.open_group(name) {
            self.partitions.leave(name, group);
        }
        let remove = || unlinkat(&self.parent, directory_name(name), AtFlags::REMOVEDIR);
        // Groups of probes are removed where there are any; whatever keeps one keeps the other, which says so.
        let removed = remove().or_else(|errno| {
            if errno == Errno::BUSY
                && let Ok(Some(group)) = self.open_group(name)
            {
                for probe in PROBE_GROUPS {
                    let _ = unlinkat(&group, probe, AtFlags::REMOVEDIR);
                }
                return remove();
            }
            Err(errno)
        });
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(CgroupError::Remove { path: self.path_of(name, ""), source: errno.into() }),
        }
    }

    fn list(&self) -> Result<Vec<Name>, CgroupError> {
        list_directories(&self.parent_path)
    }

    fn path(&self, name: &Name) -> String {
        Path::new(&self.shown).join(directory_name(name)).display().to_string()
    }

    fn usable_nodes(&self) -> Option<NodeSet> {
        read_at(&self.parent, "cpuset.mems.effective").ok()?.parse().ok()
    }

    fn usable_cpus(&self) -> Result<String, CgroupError> {
        let file = "cpuset.cpus.effective";
        match read_at(&self.parent, file) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => cpus_of_this_process(),
            read => {
                let read = read.map_err(|source| CgroupError::Read { path: self.parent_path.join(file), source })?;
                // Those that a workload has alone are still ours to give.
                let granted = self.partitions.granted();
                Ok(read.parse::<CpuSet>().map_or(read, |cpus| cpus.union(&granted).to_string()))
            }
        }
    }
}
