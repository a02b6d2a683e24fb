//! cgroup v1 controllers through cgroups-rs, with the v2 tree beside them for killing and for cloning into.
//!
//! cgroups-rs finds the hierarchies, makes the groups and writes the values; reading back, listing and removing are ours, because it
//! swallows some errors and its delete sleeps. It never sees v2 here.

mod moving;

use super::hierarchies::Hierarchies;
use super::refill::Refill;
use super::unified::Unified;
use super::{
    Backend, CgroupError, Counter, Counters, FILES, counter, cpus_of_this_process, directory_name, list_directories,
    parse_pids, workload_at,
};
use crate::model::cgroup::{Settings, Support, Write, is_per_device};
use crate::model::cpuset::NodeSet;
use crate::model::name::Name;
use crate::model::observed::Group;
use crate::model::usage::Usage;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, MaxValue};
use moving::move_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Files that are only read, besides the control files.
const READ: [&str; 5] = ["cgroup.procs", "cpu.stat", "memory.usage_in_bytes", "pids.current", "pids.events"];

/// Times a group is emptied by hand, where `cgroup.kill` does not reach, before the rest is left to the next pass.
const KILL_ROUNDS_MAX: usize = 16;

/// v1 hierarchies, and a v2 tree if there is one.
#[derive(Debug)]
pub struct Legacy {
    hierarchies: Hierarchies,
    /// The parent group, below the hierarchies' roots.
    parent: String,
    /// The parent's directory in each hierarchy.
    directories: Vec<PathBuf>,
    /// The same in the hierarchies that are joined when needed.
    optional: Vec<PathBuf>,
    /// The controllers of `directories`.
    joined: BTreeSet<String>,
    /// For each control file, the parent's directory in the hierarchy that has it.
    homes: BTreeMap<String, PathBuf>,
    unified: Option<Unified>,
    /// None where there are no cpusets.
    refill: Option<Refill>,
    support: Support,
}

impl Legacy {
    /// Takes over an existing parent group. `support` names the control files groups below it have.
    pub fn new(hierarchies: Hierarchies, parent: String, unified: Option<Unified>, support: Support) -> Legacy {
        let directories = hierarchies.directories(Path::new(&parent));
        let optional = hierarchies.optional(Path::new(&parent));
        let home = |file: &&str| {
            let home = directories.iter().chain(&optional).find(|directory| directory.join(file).exists());
            home.map(|directory| ((*file).to_owned(), directory.clone()))
        };
        let homes = FILES.iter().chain(&READ).filter_map(home).collect();
        let joined = hierarchies.controllers();
        let depth = Path::new(&parent).components().count();
        let cpuset = directories.iter().find(|directory| directory.join("cpuset.cpus").exists());
        let refill = cpuset.map(|directory| Refill::of(directory, depth));
        Legacy { hierarchies, parent, directories, optional, joined, homes, unified, refill, support }
    }

    fn of(&self, name: &Name) -> Cgroup {
        self.hierarchies.load(&Path::new(&self.parent).join(directory_name(name)))
    }

    fn groups(&self, name: &Name) -> impl Iterator<Item = PathBuf> {
        let directory = directory_name(name);
        self.directories.iter().chain(&self.optional).map(move |parent| parent.join(&directory))
    }

    /// Whether a control file is in a hierarchy that the workload has not joined, which holds it to nothing.
    fn is_absent(&self, name: &Name, file: &str) -> bool {
        let home = self.homes.get(file).filter(|home| self.optional.contains(home));
        home.is_some_and(|home| !home.join(directory_name(name)).exists())
    }

    /// Joins the hierarchy of a control file, with everything that runs already.
    fn join(&self, name: &Name, file: &str) -> Result<(), CgroupError> {
        let home = self.homes.get(file).ok_or_else(|| CgroupError::NoSuchFile { file: file.to_owned() })?;
        let path = home.join(directory_name(name));
        fs::create_dir(&path).map_err(|source| CgroupError::Create { path: path.clone(), source })?;
        let procs = path.join("cgroup.procs");
        move_all(
            || self.processes(name),
            |pid| match fs::write(&procs, pid.to_string()) {
                Err(source) if source.raw_os_error() != Some(libc::ESRCH) => {
                    Err(CgroupError::Write { path: procs.clone(), value: pid.to_string(), source })
                }
                _ => Ok(()),
            },
        )
    }

    fn path_of(&self, name: &Name, file: &str) -> Result<PathBuf, CgroupError> {
        let home = self.homes.get(file).ok_or_else(|| CgroupError::NoSuchFile { file: file.to_owned() })?;
        Ok(home.join(directory_name(name)).join(file))
    }

    /// A control file's text; `None` if the group is not there.
    fn read_file(&self, name: &Name, file: &str) -> Result<Option<String>, CgroupError> {
        let path = self.path_of(name, file)?;
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CgroupError::Read { path, source }),
        }
    }
}

/// What holds without a group of one's own, of the files in hierarchies that are joined when needed.
fn unset(file: &str) -> Option<&'static str> {
    if is_per_device(file) {
        return Some("");
    }
    (file == "blkio.bfq.weight").then_some("100")
}

/// Writes a value through the crate's setter for the file, or, for files it does not know, as the kernel takes it.
fn set(group: &Cgroup, path: &Path, write: &Write) -> Result<(), CgroupError> {
    let Write { file, value } = write;
    let failed = |source| CgroupError::Write { path: path.to_owned(), value: value.clone(), source };
    let missing = || CgroupError::NoSuchFile { file: file.clone() };
    let invalid = || failed(io::ErrorKind::InvalidInput.into());
    let signed = || value.parse::<i64>().map_err(|_| invalid());
    let unsigned = || value.parse::<u64>().map_err(|_| invalid());
    let cpu = || group.controller_of::<CpuController>().ok_or_else(missing);
    let cpuset = || group.controller_of::<CpuSetController>().ok_or_else(missing);
    let memory = || group.controller_of::<MemController>().ok_or_else(missing);
    let result = match file.as_str() {
        "cpu.cfs_quota_us" => cpu()?.set_cfs_quota(signed()?),
        "cpu.cfs_period_us" => cpu()?.set_cfs_period(unsigned()?),
        "cpu.shares" => cpu()?.set_shares(unsigned()?),
        "cpuset.cpus" => cpuset()?.set_cpus(value),
        "cpuset.mems" => cpuset()?.set_mems(value),
        "memory.limit_in_bytes" => memory()?.set_limit(signed()?),
        "memory.memsw.limit_in_bytes" => memory()?.set_memswap_limit(signed()?),
        "pids.max" => {
            let most = if value == "max" { MaxValue::Max } else { MaxValue::Value(signed()?) };
            group.controller_of::<PidController>().ok_or_else(missing)?.set_pid_max(most)
        }
        _ => return fs::write(path, value).map_err(failed),
    };
    result.map_err(|error| match cause(&error) {
        busy if busy.raw_os_error() == Some(libc::EBUSY) && file.starts_with("memory.") => {
            CgroupError::InUseLegacy { path: path.to_owned(), wanted: value.clone() }
        }
        source => failed(source),
    })
}

/// The kernel's answer inside an error of the crate.
fn cause(error: &cgroups_rs::fs::error::Error) -> io::Error {
    let mut current: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = current {
        if let Some(errno) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(errno);
        }
        current = error.source();
    }
    io::Error::other(error.to_string())
}

impl Backend for Legacy {
    fn support(&self) -> &Support {
        &self.support
    }

    fn create(&self, name: &Name) -> Result<(), CgroupError> {
        let created = |source| CgroupError::Create { path: PathBuf::from(self.path(name)), source };
        if let Some(unified) = &self.unified {
            unified.create(name)?;
        } else if self.groups(name).any(|directory| directory.exists()) {
            return Err(created(io::ErrorKind::AlreadyExists.into()));
        }
        self.of(name).create().map_err(|error| created(cause(&error)))
    }

    fn directory(&self, name: &Name) -> Result<Option<OwnedFd>, CgroupError> {
        self.unified.as_ref().map_or(Ok(None), |unified| unified.directory(name))
    }

    fn tasks(&self, name: &Name) -> Vec<PathBuf> {
        self.groups(name).filter(|directory| directory.exists()).map(|directory| directory.join("tasks")).collect()
    }

    fn write(&self, name: &Name, write: &Write) -> Result<(), CgroupError> {
        if self.is_absent(name, &write.file) {
            self.join(name, &write.file)?;
        }
        set(&self.of(name), &self.path_of(name, &write.file)?, write)
    }

    fn make_room(&self, _: &Name, _: &Write) -> Result<(), CgroupError> {
        // v1 reclaims, and refuses with EBUSY if that is not enough (cgroup-v1/memory.rst, 3.1).
        Ok(())
    }

    fn read(&self, name: &Name) -> Result<Option<Group>, CgroupError> {
        let mut settings = Settings::default();
        for file in self.support.files.iter().filter(|file| *file != "memory.oom_control") {
            // A hierarchy whose directory is gone leaves its files out: the planner sees them as not held.
            if let Some(text) = self.read_file(name, file)? {
                settings.set(file.clone(), text);
            }
        }
        let beside = match &self.unified {
            Some(unified) => unified.read(name)?,
            None => None,
        };
        if beside.is_none() && settings.is_empty() {
            return Ok(None);
        }
        for file in self.support.files.iter().filter(|file| self.is_absent(name, file)) {
            if let Some(value) = unset(file) {
                settings.set(file.clone(), value);
            }
        }
        // The v2 tree knows at once while something runs. When it says no, somebody may still have put a process into a v1 group alone.
        let frozen = beside.as_ref().is_some_and(|group| group.frozen);
        let populated = beside.is_some_and(|group| group.populated) || !self.processes(name)?.is_empty();
        Ok(Some(Group { settings, populated, frozen }))
    }

    fn oom_kills(&self, name: &Name) -> u64 {
        let text = self.read_file(name, "memory.oom_control").ok().flatten();
        text.and_then(|text| counter(&text, "oom_kill")).unwrap_or(0)
    }

    fn usage(&self, name: &Name) -> Usage {
        let read = |file: &str| self.read_file(name, file).ok().flatten();
        let number = |file: &str| read(file).and_then(|text| text.parse().ok());
        let cpu = read("cpu.stat").unwrap_or_default();
        let pids = read("pids.events").unwrap_or_default();
        // CPU time and pressure every v2 group has, with controllers or without.
        let beside = self.unified.as_ref().map(|unified| unified.usage(name)).unwrap_or_default();
        Usage {
            memory_bytes: number("memory.usage_in_bytes"),
            pids: number("pids.current"),
            periods: counter(&cpu, "nr_periods").unwrap_or(0),
            throttled_periods: counter(&cpu, "nr_throttled").unwrap_or(0),
            // v1 counts it in nanoseconds (scheduler/sched-bwc.rst).
            throttled_us: counter(&cpu, "throttled_time").unwrap_or(0) / 1000,
            oom_kills: self.oom_kills(name),
            pids_refused: counter(&pids, "max").unwrap_or(0),
            ..beside
        }
    }

    fn counters(&self) -> Counters {
        let there = |file: &'static str| {
            let parent = self.directories.iter().find(|parent| parent.join(file).exists())?;
            Some(Counter { parent: parent.clone(), file })
        };
        let own = Counters {
            cpu: there("cpuacct.usage"),
            pressure: None,
            memory: there("memory.usage_in_bytes"),
            threads: there("tasks"),
        };
        self.unified.as_ref().map(Backend::counters).unwrap_or_default().or(own)
    }

    fn restore(&self, name: &Name) -> Result<(), CgroupError> {
        for path in self.directories.iter().map(|parent| parent.join(directory_name(name))) {
            match fs::create_dir(&path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Create { path, source });
                }
                _ => {}
            }
        }
        self.unified.as_ref().map_or(Ok(()), |unified| unified.restore(name))
    }

    fn attach(&self, name: &Name, pid: u32) -> Result<(), CgroupError> {
        for path in self.groups(name).filter(|group| group.exists()).map(|group| group.join("cgroup.procs")) {
            match fs::write(&path, pid.to_string()) {
                Err(source) if source.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(CgroupError::Write { path, value: pid.to_string(), source });
                }
                _ => {}
            }
        }
        self.unified.as_ref().map_or(Ok(()), |unified| unified.attach(name, pid))
    }

    fn home(&self, memberships: &str) -> Option<Name> {
        let mut found: Option<Name> = None;
        for line in memberships.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let counts = if controllers.is_empty() {
                self.unified.is_some()
            } else {
                controllers.split(',').any(|controller| self.joined.contains(controller))
            };
            if !counts {
                continue;
            }
            let name = workload_at(path, &self.parent)?;
            if found.as_ref().is_some_and(|found| *found != name) {
                return None;
            }
            found = Some(name);
        }
        found
    }

    fn processes(&self, name: &Name) -> Result<Vec<u32>, CgroupError> {
        let mut pids = match &self.unified {
            Some(unified) => unified.processes(name)?,
            None => Vec::new(),
        };
        for path in self.groups(name).map(|group| group.join("cgroup.procs")) {
            match fs::read_to_string(&path) {
                Ok(text) => pids.extend(parse_pids(&text)),
                // ENODEV: removed between opening and reading.
                Err(source)
                    if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV) => {}
                Err(source) => return Err(CgroupError::Read { path, source }),
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    fn kill(&self, name: &Name) -> Result<(), CgroupError> {
        if let Some(unified) = &self.unified {
            unified.kill(name)?;
        }
        // What is in a v1 group only, by hand: whoever forks faster than this is caught by the end of its pid namespace, whose PID 1 is
        // among the first.
        for _ in 0..KILL_ROUNDS_MAX {
            let pids = self.processes(name)?;
            if pids.is_empty() {
                break;
            }
            for pid in pids.into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
                // Gone already is what we want.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        Ok(())
    }

    fn remove(&self, name: &Name) -> Result<(), CgroupError> {
        for path in self.groups(name) {
            match fs::remove_dir(&path) {
                Ok(()) => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(CgroupError::Remove { path, source }),
            }
        }
        match &self.unified {
            Some(unified) => unified.remove(name),
            None => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<Name>, CgroupError> {
        let mut names = match &self.unified {
            Some(unified) => unified.list()?,
            None => Vec::new(),
        };
        // A crash may have left a group in one hierarchy only.
        for directory in self.directories.iter().chain(&self.optional) {
            names.extend(list_directories(directory)?);
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn path(&self, name: &Name) -> String {
        format!("/{}/{}", self.parent.trim_matches('/'), directory_name(name))
    }

    fn expect_refill(&self) {
        if let Some(refill) = &self.refill {
            refill.expect();
        }
    }

    fn refill(&self) -> Result<(), CgroupError> {
        self.refill.as_ref().map_or(Ok(()), Refill::look)
    }

    fn usable_nodes(&self) -> Option<NodeSet> {
        let files = ["cpuset.effective_mems", "cpuset.mems"].iter();
        let mut paths = files.flat_map(|file| self.directories.iter().map(move |directory| directory.join(file)));
        paths.find_map(|path| fs::read_to_string(path).ok()?.parse().ok())
    }

    fn usable_cpus(&self) -> Result<String, CgroupError> {
        let found = ["cpuset.effective_cpus", "cpuset.cpus"].iter().find_map(|file| {
            let mut paths = self.directories.iter().map(|directory| directory.join(file));
            paths.find_map(|path| fs::read_to_string(path).ok())
        });
        found.map_or_else(cpus_of_this_process, Ok)
    }
}
