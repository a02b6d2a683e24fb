//! The real host: Linux, with its cgroups, namespaces, processes and sysfs.
//!
//! Order inside [`Linux::start`]: the cgroup (fails if it exists), the traces (who is about to run, from which record), the limits, read
//! back, and only then a process, which is born inside. A crash between any two leaves something that names itself: an empty group, or a
//! box without a process. The group comes first because it is the lock: traces laid before it is had would hide those of a run that has it.

mod begin;

use super::asking::Asking;
use super::cgroup::{self, Backend};
use super::clock::{self, Clocks};
use super::confine;
use super::facts::{ceilings, check_kernel, disks, facts, huge_pages, landlock_version, read_fact};
use super::fence::Levers;
use super::gpu::{Gpus, Source};
use super::life::{self, Witness};
use super::processes::{Init, Processes, Reaped, Run, find_init};
use super::sampler::{Meter, Sampler};
use super::seccomp::Compiler;
use super::sources::{self, Own, Written};
use super::spawn::Image;
use super::strays;
use super::traces::{Process, Trace, Traces, make_private};
use super::{Ask, CpuTimes, FolderId, Host, HostError, Refusal, Shrink, Start, chain, dev, layers, topology};
use crate::init;
use crate::init::wire::Step;
use crate::model::admission::Admission;
use crate::model::cgroup::{Support, Write};
use crate::model::clock::Steady;
use crate::model::cpuset::CpuSet;
use crate::model::machine::{Ceilings, Machine};
use crate::model::name::Name;
use crate::model::observed::Observed;
use crate::model::probe::Answer;
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
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// How to set up a host.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sockets, locks and traces; a tmpfs in practice.
    pub runtime: PathBuf,
    /// A folder for each workload's logs.
    pub logs: PathBuf,
    /// A folder for what each workload has changed in its root directory, where that is kept.
    pub layers: Option<PathBuf>,
    /// The cgroup that holds all others, below the hierarchies' roots.
    pub cgroup_parent: String,
    /// CPUs that no workload is given.
    pub reserved: CpuSet,
    /// How much of the machine may be promised.
    pub admission: Admission,
    pub gpus: Source,
    /// Folders of CDI specs.
    pub cdi: Vec<PathBuf>,
    /// Folders no workload may see into.
    pub hidden: Vec<PathBuf>,
    /// Where to remember what stood in the host's own cpusets; none to leave them alone.
    pub fence: Option<PathBuf>,
    /// Whether runs keep the caller's terminal and end with it.
    pub foreground: bool,
}

/// This machine.
pub struct Linux {
    pub(super) options: Options,
    pub(super) backend: Box<dyn Backend>,
    pub(super) image: Image,
    pub(super) traces: Traces,
    processes: Processes,
    mountpoint: PathBuf,
    dev: PathBuf,
    boot_id: String,
    clocks: Clocks,
    pub(super) seccomp: Compiler,
    landlock: u32,
    gpus: Gpus,
    ceilings: Ceilings,
    /// What workloads may write of the host: those that run, and those that ran since this was opened.
    written: Mutex<Written>,
    /// The folders of [`Options::hidden`], as they were last seen.
    own: Mutex<Vec<Own>>,
    asking: Asking,
    levers: Option<Levers>,
    /// Keeps other controllers off our cgroups.
    _locks: Vec<Flock<File>>,
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
        let cgroup::Opened { backend, tree, locks } = cgroup::open(&options.cgroup_parent)?;
        let image = Image::load(init::PROGRAM)?;
        let boot_id = read_fact("the boot id", "/proc/sys/kernel/random/boot_id")?;
        let processes = Processes::watch(changed)?;
        let asking = Asking::default();
        let written = Mutex::new(sources::written_by(&traces, &asking)?);
        let own = Mutex::new(options.hidden.iter().map(|folder| own_folder(&asking, folder)).collect());
        let (seccomp, landlock, ceilings) = (Compiler::default(), landlock_version(), ceilings()?);
        let gpus = Gpus::open(options.gpus.clone(), options.cdi.clone());
        let levers = options.fence.as_ref().map(|stamp| Levers {
            tree,
            own: options.cgroup_parent.clone(),
            proc: PathBuf::from("/proc"),
            cpus: PathBuf::from("/sys/devices/system/cpu"),
            stamp: stamp.clone(),
            boot_id: boot_id.clone(),
        });
        Ok(Linux {
            options,
            backend,
            image,
            traces,
            processes,
            mountpoint,
            dev,
            boot_id,
            clocks: Clocks::new(),
            seccomp,
            landlock,
            gpus,
            ceilings,
            written,
            own,
            asking,
            levers,
            _locks: locks,
        })
    }

    /// What cgroups can do here, with the nodes there are now.
    fn support(&self) -> Support {
        let support = self.backend.support().clone();
        Support { nodes: self.backend.usable_nodes().unwrap_or(support.nodes.clone()), ..support }
    }

    /// What is still not as it should be of a group that was put right: without looking, the next pass would only try the same again.
    fn restored(&self, name: &Name) -> Result<Option<String>, HostError> {
        let Some(group) = self.backend.read(name)? else { return Ok(Some("is gone".to_owned())) };
        if group.frozen {
            return Ok(Some("is frozen".to_owned()));
        }
        let is_setting = |file: &&String| !file.contains(".events") && *file != "memory.oom_control";
        let mut files = self.backend.support().files.iter().filter(is_setting);
        Ok(files.find(|file| group.settings.get(file).is_none()).map(|file| format!("has no {file}")))
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
}

fn own_folder(asking: &Asking, folder: &Path) -> Own {
    let asked = folder.to_owned();
    let seen = asking.ask(move |question| Own::look_at(&asked, &|path| question.next(path)));
    seen.unwrap_or_else(|_| Own::unseen(folder))
}

impl Witness for Linux {
    fn is_this_boot(&self, boot_id: &str) -> bool {
        self.boot_id == boot_id
    }

    fn newest(&self, name: &Name) -> Result<Option<Trace>, HostError> {
        Ok(self.traces.newest(name)?)
    }

    fn adopt(&self, run: &Run, init: Process) -> Result<bool, HostError> {
        Ok(self.processes.adopt(run, init)?)
    }

    fn began(&self, process: Process) -> Steady {
        self.clocks.at_tick(process.start_ticks)
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
        let Ok(paths) = self.paths(record) else { return Vec::new() };
        confine::steps(&self.confine(record, &BTreeMap::new(), &paths)).unwrap_or_default()
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

    fn steady(&self) -> Steady {
        clock::steady()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }

    fn expect_change(&self) {
        self.backend.expect_refill();
    }

    fn survey(&self) -> Result<Machine, HostError> {
        if let Err(error) = self.backend.refill() {
            tracing::warn!(error = %chain(&error), "what has come back cannot be given to workloads; it is tried again with the next resync");
        }
        let cpus = self.backend.usable_cpus()?;
        let allowed: CpuSet = cpus.parse().map_err(|source| {
            let path = PathBuf::from("cpuset.cpus.effective");
            topology::TopologyError::List { path, source }
        })?;
        let memory = procfs::Meminfo::current().map_err(|error| facts("/proc/meminfo", error))?;
        let (gpus, gpu_trouble) = self.gpus.read();
        Ok(Machine {
            topology: topology::read(Path::new("/"), Some(&allowed.difference(&self.options.reserved)))?,
            memory: Bytes(memory.mem_total),
            gpus,
            gpu_trouble,
            disks: disks(Path::new("/sys/block")),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            cgroup: self.support(),
            boot_id: self.boot_id.clone(),
            ceilings: self.ceilings.clone(),
            admission: self.options.admission,
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
        life::observe(self, name, group)
    }

    fn start(&self, start: &Start<'_>) -> Result<(), HostError> {
        let (name, number) = (&start.record.spec.name, start.record.instance);
        // Whoever has the group may be running: its existence stops us, and neither it nor its traces are ours to undo.
        self.backend.create(name)?;
        let traced = self.traces.begin(name, &self.boot_id, start.record).and_then(|instance| {
            self.traces.keep_only(name, number)?;
            Ok(instance)
        });
        let begun = traced.map_err(HostError::from).and_then(|instance| self.begin(start, &instance));
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
        failed.extend(self.restored(name)?.map(|what| HostError::NotRestored { path: self.cgroup_path(name), what }));
        HostError::all(failed)
    }

    fn strays(&self) -> BTreeMap<Name, BTreeSet<u32>> {
        strays::find(&self.processes.namespaces(), |memberships| self.backend.home(memberships))
    }

    fn usage(&self, name: &Name) -> Usage {
        self.backend.usage(name)
    }

    fn meter(&self) -> Option<Box<dyn Meter>> {
        Some(Box::new(Sampler::new(self.backend.counters(), PathBuf::from("/proc/stat"))?))
    }

    fn levers(&self) -> Option<&Levers> {
        self.levers.as_ref()
    }

    fn ask_again(&self) {
        self.backend.ask_again();
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
        dev::remove(&self.options.runtime, name)?;
        self.processes.clear(name);
        Ok(())
    }

    fn forget(&self, name: &Name) -> Result<(), HostError> {
        self.clear(name)?;
        if let Some(layers) = &self.options.layers {
            layers::remove(&layers::folder(layers, name))?;
        }
        let path = self.log_folder(name);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(HostError::RemoveLogs { path, source }),
            _ => Ok(()),
        }
    }

    fn probe(&self, ask: &Ask<'_>) -> Answer {
        self.ask(ask)
    }

    fn cgroup_path(&self, name: &Name) -> String {
        self.backend.path(name)
    }

    fn log_folder(&self, name: &Name) -> PathBuf {
        self.options.logs.join(name.as_str())
    }

    fn log_folder_id(&self, name: &Name) -> Option<FolderId> {
        let found = fs::metadata(self.log_folder(name)).ok()?;
        Some(FolderId { device: found.dev(), inode: found.ino() })
    }

    fn log_folder_refusal(&self, name: &Name) -> Option<Refusal> {
        let found = rustix::fs::statvfs(self.log_folder(name)).ok()?;
        // Some file systems count no inodes.
        let no_room = found.f_bfree == 0 || found.f_files > 0 && found.f_ffree == 0;
        let read_only = found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
        read_only.then_some(Refusal::ReadOnly).or(no_room.then_some(Refusal::Full))
    }
}
