//! The real host: Linux, with its cgroups, namespaces, processes and sysfs.
//!
//! Order inside [`Linux::start`]: the traces (who is about to run, from which record), the cgroup (fails if it exists), the limits, read
//! back, and only then a process, which is born inside. A crash between any two leaves something that names itself: a box without a
//! process, or an empty group.

use super::cgroup::{self, Backend};
use super::confine::{self, Plan};
use super::facts::{ceilings, check_kernel, disks, facts, huge_pages, landlock_version, read_fact};
use super::gpu::Simulated;
use super::life::{self, Witness};
use super::processes::{Init, Processes, Reaped, Run, find_init};
use super::seccomp::Compiler;
use super::spawn::{Image, Namespaces, Spawn, Stdio, spawn};
use super::strays;
use super::traces::{Process, Trace, Traces, make_private};
use super::{CpuTimes, Host, HostError, Shrink, Start, dev, topology};
use crate::init;
use crate::init::wire::{self, Step};
use crate::model::cgroup::{Generation, Write};
use crate::model::cpuset::CpuSet;
use crate::model::machine::{Ceilings, Machine};
use crate::model::name::Name;
use crate::model::observed::Observed;
use crate::model::record::Record;
use crate::model::spec::Signal;
use crate::model::time::Timestamp;
use crate::model::units::Bytes;
use crate::model::usage::Usage;
use nix::fcntl::Flock;
use procfs::{Current, CurrentSI};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// How to set up a host.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sockets, locks and traces; a tmpfs in practice.
    pub runtime: PathBuf,
    /// A folder for each workload's logs.
    pub logs: PathBuf,
    /// The cgroup that holds all others, below the hierarchies' roots.
    pub cgroup_parent: String,
    pub gpus: Simulated,
    /// Folders no workload may see into.
    pub hidden: Vec<PathBuf>,
    /// Whether runs keep the caller's terminal and end with it.
    pub foreground: bool,
}

/// This machine.
pub struct Linux {
    options: Options,
    backend: Box<dyn Backend>,
    image: Image,
    traces: Traces,
    processes: Processes,
    mountpoint: PathBuf,
    dev: PathBuf,
    boot_id: String,
    seccomp: Compiler,
    landlock: u32,
    ceilings: Ceilings,
    /// Keeps other controllers off our cgroups.
    _lock: Option<Flock<File>>,
}

impl Linux {
    /// Makes everything ready. `changed` is called from another thread whenever a workload should be looked at.
    pub fn open(options: Options, changed: impl Fn(&Name) + Send + 'static) -> Result<Linux, HostError> {
        check_kernel(&read_fact("the kernel's release", "/proc/sys/kernel/osrelease")?)?;
        let traces = Traces::open(&options.runtime)?;
        let mountpoint = options.runtime.join("root");
        make_private(&mountpoint)?;
        make_private(&options.logs)?;
        let dev = dev::prepare(&options.runtime)?;
        let cgroup::Opened { backend, lock } = cgroup::open(&options.cgroup_parent)?;
        let image = Image::load(init::PROGRAM)?;
        let boot_id = read_fact("the boot id", "/proc/sys/kernel/random/boot_id")?;
        let processes = Processes::watch(changed)?;
        let (seccomp, landlock, ceilings) = (Compiler::default(), landlock_version(), ceilings()?);
        Ok(Linux {
            options,
            backend,
            image,
            traces,
            processes,
            mountpoint,
            dev,
            boot_id,
            seccomp,
            landlock,
            ceilings,
            _lock: lock,
        })
    }

    fn confine<'a>(
        &'a self,
        record: &'a Record,
        env: &'a BTreeMap<String, String>,
        tasks: &'a [PathBuf],
        hidden: &'a [PathBuf],
    ) -> Plan<'a> {
        Plan {
            name: &record.spec.name,
            process: &record.spec.process,
            env,
            tasks,
            shows_cgroup: self.backend.support().generation == Generation::Unified,
            mountpoint: &self.mountpoint,
            dev: &self.dev,
            hidden,
            ids: record.ids.filter(|_| record.spec.process.security.user_namespace),
            ceilings: &self.ceilings,
            landlock: self.landlock,
            foreground: self.options.foreground,
        }
    }

    /// The folders to keep out of sight, where they are now: behind a link that is swapped, that changes.
    fn hidden(&self) -> Vec<PathBuf> {
        self.options.hidden.iter().map(|folder| out_of_sight(folder)).collect()
    }

    fn begin(&self, start: &Start<'_>, instance: &File) -> Result<(), HostError> {
        let record = start.record;
        let name = &record.spec.name;
        for write in start.writes {
            self.backend.write(name, write)?;
        }
        HostError::all(self.check(name, start.writes)?)?;
        let directory = self.backend.directory(name)?;
        let (tasks, hidden) = (self.backend.tasks(name), self.hidden());
        let plan = self.confine(record, start.env, &tasks, &hidden);
        let security = &record.spec.process.security;
        let filters = self.seccomp.filters(&security.seccomp, &security.capabilities)?;
        let order = wire::order(&confine::steps(&plan)?, &confine::run(&plan, filters)?);
        let logs = self.log_folder(name);
        make_private(&logs)?;
        let logs = File::open(&logs).map_err(|source| HostError::Logs { path: logs, source })?;
        let spawned = spawn(
            &self.image,
            &Spawn {
                name: name.as_str(),
                order: &order,
                cgroup: directory.as_ref().map(AsFd::as_fd),
                namespaces: Namespaces::New,
                instance: instance.as_fd(),
                logs: logs.as_fd(),
                stdio: if self.options.foreground { Stdio::Inherit } else { Stdio::Null },
            },
        )?;
        let run: Run = (name.clone(), record.instance);
        Ok(self.processes.add(&run, spawned.pid, spawned.pidfd, Some(spawned.report))?)
    }

    /// Reads back what was written; every file that holds something else is named.
    fn check(&self, name: &Name, writes: &[Write]) -> Result<Vec<HostError>, HostError> {
        let held = self.backend.read(name)?.unwrap_or_default().settings;
        let differs = |write: &&Write| !write.is_in(&held);
        let not_held = |Write { file, value }: &Write| {
            let held = held.get(file).unwrap_or("").to_owned();
            HostError::NotHeld { file: file.clone(), wanted: value.clone(), held }
        };
        Ok(writes.iter().filter(differs).map(not_held).collect())
    }

    /// Takes away what a failed start has made. The first error is the one to report, so these are not.
    fn undo(&self, name: &Name, instance: u64) {
        let _ = self.backend.kill(name);
        let _ = self.backend.remove(name);
        let _ = self.traces.abandon(name, instance);
    }
}

impl Witness for Linux {
    fn boot_id(&self) -> &str {
        &self.boot_id
    }

    fn newest(&self, name: &Name) -> Result<Option<Trace>, HostError> {
        Ok(self.traces.newest(name)?)
    }

    fn adopt(&self, run: &Run, init: Process) -> Result<bool, HostError> {
        Ok(self.processes.adopt(run, init)?)
    }

    fn is_running(&self, run: &Run) -> bool {
        self.processes.is_running(run)
    }

    fn reaped(&self, run: &Run) -> Option<Reaped> {
        self.processes.reaped(run)
    }

    fn init_in_group(&self, name: &Name) -> Result<Option<Init>, HostError> {
        Ok(find_init(&self.backend.processes(name)?))
    }

    fn oom_kills(&self, name: &Name) -> u64 {
        self.backend.oom_kills(name)
    }

    /// The steps a run was started with, to put a name to the one that failed.
    fn steps(&self, record: &Record) -> Vec<Step<CString>> {
        let (tasks, hidden) = (self.backend.tasks(&record.spec.name), self.hidden());
        confine::steps(&self.confine(record, &BTreeMap::new(), &tasks, &hidden)).unwrap_or_default()
    }

    fn ended_at(&self) -> Timestamp {
        self.now()
    }
}

impl Host for Linux {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::default().plus(since)
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }

    fn survey(&self) -> Result<Machine, HostError> {
        let cpus = self.backend.usable_cpus()?;
        let allowed: CpuSet = cpus.parse().map_err(|source| {
            let path = PathBuf::from("cpuset.cpus.effective");
            topology::TopologyError::List { path, source }
        })?;
        let memory = procfs::Meminfo::current().map_err(|error| facts("/proc/meminfo", error))?;
        Ok(Machine {
            topology: topology::read(Path::new("/sys"), &allowed)?,
            memory: Bytes(memory.mem_total),
            gpus: self.options.gpus.0.clone(),
            disks: disks(Path::new("/sys/block")),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            cgroup: self.backend.support().clone(),
            boot_id: self.boot_id.clone(),
            ceilings: self.ceilings.clone(),
        })
    }

    fn cpu_times(&self) -> Result<CpuTimes, HostError> {
        let stat = procfs::KernelStats::current().map_err(|error| facts("/proc/stat", error))?;
        let total = &stat.total;
        let busy = total.user + total.nice + total.system;
        let waiting = total.idle + total.iowait.unwrap_or(0);
        let stolen = total.irq.unwrap_or(0) + total.softirq.unwrap_or(0) + total.steal.unwrap_or(0);
        Ok(CpuTimes { busy, total: busy + waiting + stolen })
    }

    fn names(&self) -> Result<BTreeSet<Name>, HostError> {
        let mut names: BTreeSet<Name> = self.backend.list()?.into_iter().collect();
        names.extend(self.traces.names()?);
        Ok(names)
    }

    fn observe(&self, name: &Name) -> Result<Observed, HostError> {
        let group = self.backend.read(name)?;
        let instance = life::instance(self, name, group.as_ref())?;
        Ok(Observed { instance, group })
    }

    fn start(&self, start: &Start<'_>) -> Result<(), HostError> {
        let (name, number) = (&start.record.spec.name, start.record.instance);
        let instance = self.traces.begin(name, &self.boot_id, start.record)?;
        // Whoever has the group may be running: its existence stops us, and neither it nor its traces are ours to undo.
        if let Err(error) = self.backend.create(name) {
            let _ = self.traces.abandon(name, number);
            return Err(error.into());
        }
        let begun =
            self.traces.keep_only(name, number).map_err(HostError::from).and_then(|()| self.begin(start, &instance));
        if begun.is_err() {
            self.undo(name, number);
        }
        begun
    }

    fn resize(&self, name: &Name, writes: &[Write], shrink: Shrink) -> Result<(), HostError> {
        let mut failed: Vec<HostError> = Vec::new();
        let mut written = Vec::new();
        for write in writes {
            let room = match shrink {
                Shrink::IfItFits => self.backend.make_room(name, write),
                Shrink::Anyhow => Ok(()),
            };
            match room.and_then(|()| self.backend.write(name, write)) {
                Ok(()) => written.push(write.clone()),
                Err(error) => failed.push(error.into()),
            }
        }
        failed.extend(self.check(name, &written)?);
        HostError::all(failed)
    }

    fn restore(&self, name: &Name, writes: &[Write], shrink: Shrink) -> Result<(), HostError> {
        self.backend.restore(name)?;
        // Limits first: on v1 nobody can enter a group whose cpuset is empty (cpuset(7)).
        let resized = self.resize(name, writes, shrink);
        // Looked for anew: a number seen a moment ago may be somebody else's by now.
        let mut failed: Vec<HostError> = resized.err().into_iter().collect();
        for pid in self.strays().remove(name).unwrap_or_default() {
            failed.extend(self.backend.attach(name, pid).err().map(HostError::from));
        }
        HostError::all(failed)
    }

    fn strays(&self) -> BTreeMap<Name, BTreeSet<u32>> {
        strays::find(&self.processes.inits(), |memberships| self.backend.home(memberships))
    }

    fn usage(&self, name: &Name) -> Usage {
        self.backend.usage(name)
    }

    fn stop(&self, name: &Name, instance: u64, signal: Signal) -> Result<(), HostError> {
        Ok(self.processes.signal(&(name.clone(), instance), signal)?)
    }

    fn kill(&self, name: &Name) -> Result<(), HostError> {
        Ok(self.backend.kill(name)?)
    }

    fn clear(&self, name: &Name) -> Result<(), HostError> {
        // The group first: while it is there, nothing of this name is started.
        self.backend.remove(name)?;
        self.traces.clear(name)?;
        self.processes.clear(name);
        Ok(())
    }

    fn forget(&self, name: &Name) -> Result<(), HostError> {
        self.clear(name)?;
        let path = self.log_folder(name);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(HostError::RemoveLogs { path, source }),
            _ => Ok(()),
        }
    }

    fn cgroup_path(&self, name: &Name) -> String {
        self.backend.path(name)
    }

    fn log_folder(&self, name: &Name) -> PathBuf {
        self.options.logs.join(name.as_str())
    }
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
