//! The real host: Linux, with its cgroups, namespaces, processes and sysfs.
//!
//! Order inside [`Linux::start`]: the traces (who is about to run, from which record), the cgroup (fails if it exists), the limits, read
//! back, and only then a process, which is born inside. A crash between any two leaves something that names itself: a box without a
//! process, or an empty group.

use super::cgroup::{self, Backend, Entry};
use super::confine::{self, Plan};
use super::gpu::Simulated;
use super::processes::{Processes, Reaped, Run};
use super::spawn::{Image, Spawn, Stdio, spawn};
use super::traces::{Boxed, Trace, Traces, make_private};
use super::{CpuTimes, Host, HostError, KERNEL_MIN_MAJOR, KERNEL_MIN_MINOR, Start, dev, topology};
use crate::init;
use crate::init::wire::{self, Step};
use crate::model::cgroup::{Generation, Write};
use crate::model::cpuset::CpuSet;
use crate::model::exit::{Exit, Outcome};
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::observed::{Group, Instance, Life, Observed};
use crate::model::record::Record;
use crate::model::spec::Signal;
use crate::model::time::Timestamp;
use crate::model::units::Bytes;
use nix::fcntl::Flock;
use procfs::{Current, CurrentSI};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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
        Ok(Linux { options, backend, image, traces, processes, mountpoint, dev, boot_id, _lock: lock })
    }

    fn confine<'a>(&'a self, record: &'a Record, env: &'a BTreeMap<String, String>, tasks: &'a [PathBuf]) -> Plan<'a> {
        Plan {
            name: &record.spec.name,
            process: &record.spec.process,
            env,
            tasks,
            shows_cgroup: self.backend.support().generation == Generation::Unified,
            mountpoint: &self.mountpoint,
            dev: &self.dev,
            hidden: &self.options.hidden,
            foreground: self.options.foreground,
        }
    }

    /// The steps a run was started with, to put a name to the one that failed.
    fn steps_of(&self, record: &Record) -> Vec<Step<CString>> {
        let tasks = self.backend.entry(&record.spec.name).map(|entry| entry.tasks).unwrap_or_default();
        confine::steps(&self.confine(record, &BTreeMap::new(), &tasks)).unwrap_or_default()
    }

    fn begin(&self, start: &Start<'_>, instance: &File) -> Result<(), HostError> {
        let record = start.record;
        let name = &record.spec.name;
        for write in start.writes {
            self.backend.write(name, write)?;
        }
        self.check(name, start.writes)?;
        let Entry { directory, tasks } = self.backend.entry(name)?;
        let plan = self.confine(record, start.env, &tasks);
        let order = wire::order(&confine::steps(&plan)?, &confine::run(&plan)?);
        let logs = self.log_folder(name);
        make_private(&logs)?;
        let logs = File::open(&logs).map_err(|source| HostError::Logs { path: logs, source })?;
        let spawned = spawn(
            &self.image,
            &Spawn {
                name: name.as_str(),
                order: &order,
                cgroup: directory.as_ref().map(AsFd::as_fd),
                instance: instance.as_fd(),
                logs: logs.as_fd(),
                stdio: if self.options.foreground { Stdio::Inherit } else { Stdio::Null },
            },
        )?;
        let run: Run = (name.clone(), record.instance);
        Ok(self.processes.add(&run, spawned.pid, spawned.pidfd, Some(spawned.report))?)
    }

    /// Reads back what was written.
    fn check(&self, name: &Name, writes: &[Write]) -> Result<(), HostError> {
        let held = self.backend.read(name)?.unwrap_or_default().settings;
        for Write { file, value } in writes {
            let found = held.get(file).unwrap_or("");
            if found != value {
                return Err(HostError::NotHeld { file: file.clone(), wanted: value.clone(), held: found.to_owned() });
            }
        }
        Ok(())
    }

    /// The life of the newest run, from its traces, its processes and its group.
    fn life(&self, trace: &Trace, group: Option<&Group>) -> Result<Option<Life>, HostError> {
        let run: Run = (trace.boxed.record.spec.name.clone(), trace.number);
        let alive = match trace.started {
            Some(started) if trace.boxed.boot_id == self.boot_id => self.processes.adopt(&run, started.init)?,
            Some(_) => false,
            None => self.processes.is_running(&run),
        };
        if alive {
            let running = trace.started.map(|started| Life::Running { pid: started.command.pid });
            return Ok(Some(running.unwrap_or(Life::Starting)));
        }
        let oom_kills = self.backend.oom_kills(&run.0);
        if let Some(exit) = trace.exit(&self.steps_of(&trace.boxed.record), oom_kills) {
            return Ok(Some(Life::Ended(exit)));
        }
        let reaped = self.processes.reaped(&run);
        if trace.started.is_none() && reaped.is_none() {
            // An earlier controller was killed while init set up: it will be there in a moment, or nothing was started at all.
            return Ok(group.filter(|group| group.populated).map(|_| Life::Starting));
        }
        let outcome = match reaped {
            Some(Reaped::Killed(9)) if oom_kills > 0 => Outcome::OutOfMemory,
            Some(Reaped::Killed(signal)) => Outcome::Killed { signal: Signal(signal) },
            // Init left without a word: its runtime directory was full or gone.
            Some(Reaped::Exited(code)) => Outcome::Exited { code },
            None => Outcome::Lost,
        };
        Ok(Some(Life::Ended(Exit { instance: trace.number, outcome, at: self.now() })))
    }

    /// Takes away what a failed start has made. The first error is the one to report, so these are not.
    fn undo(&self, name: &Name) {
        let _ = self.backend.kill(name);
        let _ = self.backend.remove(name);
        let _ = self.traces.clear(name);
    }
}

impl Host for Linux {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::default().plus(since)
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
            cgroup: self.backend.support().clone(),
            boot_id: self.boot_id.clone(),
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
        let instance = match self.traces.newest(name)? {
            Some(trace) => self.life(&trace, group.as_ref())?.map(|life| Instance {
                number: trace.number,
                started: trace.started.map(|started| started.at),
                record: trace.boxed.record,
                life,
            }),
            None => None,
        };
        Ok(Observed { instance, group })
    }

    fn start(&self, start: &Start<'_>) -> Result<(), HostError> {
        let name = &start.record.spec.name;
        self.traces.clear(name)?;
        let boxed = Boxed { boot_id: self.boot_id.clone(), record: start.record.clone() };
        let instance = self.traces.begin(name, &boxed)?;
        // Whoever has the group may be running: its existence stops us, and is not ours to undo.
        self.backend.create(name)?;
        let begun = self.begin(start, &instance);
        if begun.is_err() {
            self.undo(name);
        }
        begun
    }

    fn resize(&self, name: &Name, writes: &[Write]) -> Result<(), HostError> {
        for write in writes {
            self.backend.write(name, write)?;
        }
        self.check(name, writes)
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

fn check_kernel(release: &str) -> Result<(), HostError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) < (KERNEL_MIN_MAJOR, KERNEL_MIN_MINOR) {
        return Err(HostError::Kernel { release: release.to_owned() });
    }
    Ok(())
}

fn facts(what: &'static str, error: procfs::ProcError) -> HostError {
    HostError::Facts { what, source: io::Error::other(error) }
}

fn read_fact(what: &'static str, path: &str) -> Result<String, HostError> {
    let text = fs::read_to_string(path).map_err(|source| HostError::Facts { what, source })?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused_by_name() {
        for release in ["5.14.0", "6.1.0-56-cloud-amd64", "6.18.44-fc-v657", "10.0"] {
            check_kernel(release).unwrap();
        }
        for release in ["5.13.19", "4.19.0-8-amd64", "nonsense"] {
            assert!(
                check_kernel(release)
                    .unwrap_err()
                    .to_string()
                    .starts_with(&format!("the kernel is {release}, expected 5.14"))
            );
        }
    }
}
