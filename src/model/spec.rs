//! What a workload should be: the meaning of one manifest, every default filled in.
//!
//! The split matters: a change in [`Spec::process`], [`Spec::gpu`] or [`Spec::kind`] needs a new process; a change in
//! [`Spec::resources`] is written to the running one's cgroup; everything else is the controller's own business
//! (`docs/MANIFEST.md`, "Which edits restart").

use super::gpu::GpuRequest;
use super::isolation::{Network, ResourceLimits, Rootfs, Security, VolumeSource};
use super::job::Job;
use super::name::Name;
use super::probe::Probes;
use super::replica::{Replica, Strategy};
use super::units::{Bytes, Limit, MilliCpu};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// One workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub name: Name,
    pub kind: Kind,
    pub process: Process,
    pub resources: Resources,
    pub gpu: Option<GpuRequest>,
    /// Who is placed first, -1000..=1000, higher first.
    pub priority: i32,
    pub labels: BTreeMap<String, String>,
    /// Only where the host has these labels; everywhere if there are none.
    #[serde(default)]
    pub hosts: BTreeMap<String, String>,
    pub restart: Restart,
    pub stop: Stop,
    #[serde(default, skip_serializing_if = "Probes::is_empty")]
    pub probes: Probes,
    #[serde(default, skip_serializing_if = "Logs::is_usual")]
    pub logs: Logs,
    /// Keep it, but do not run it.
    pub suspend: bool,
    #[serde(default)]
    pub job: Job,
    /// Which of several it is; none if the manifest does not say how many.
    #[serde(default)]
    pub replica: Option<Replica>,
    /// Workloads that have to be ready, or completed, before it starts.
    #[serde(default)]
    pub after: BTreeSet<Name>,
    #[serde(default, skip_serializing_if = "Strategy::is_usual")]
    pub strategy: Strategy,
}

/// Tells a service which of its replicas it is.
pub const REPLICA_VARIABLE: &str = "CONTAINERCTL_REPLICA";

impl Spec {
    /// The workload that it is a replica of, or is itself.
    pub fn workload(&self) -> &Name {
        self.replica.as_ref().map_or(&self.name, |replica| &replica.of)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Runs for ever; an end is a failure or a wish.
    Service,
    /// Runs to an end; a success is never repeated.
    Job,
}

/// Volumes of one workload: more than any service seen in the wild has, fewer than the mounts init can hold in hand.
pub const VOLUMES_MAX: usize = 32;

/// What is executed, and as whom. Fixed for the life of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments, at least the program.
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Absolute.
    pub workdir: String,
    pub user: User,
    #[serde(default)]
    pub rootfs: Rootfs,
    pub volumes: Vec<Volume>,
    #[serde(default)]
    pub network: Network,
    #[serde(default)]
    pub security: Security,
    #[serde(default)]
    pub rlimits: ResourceLimits,
    /// Who the kernel ends first when memory is short: 1000 the first, -1000 never (proc(5)).
    #[serde(default)]
    pub oom_score_adj: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// Something of the host's, or memory of its own, inside the workload's view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub source: VolumeSource,
    /// Absolute, in the workload; has to exist there unless it can be made.
    pub target: String,
    pub read_only: bool,
    /// Whether set-user-id bits count there.
    #[serde(default)]
    pub suid: bool,
    /// Whether device nodes work there.
    #[serde(default)]
    pub dev: bool,
}

/// What the kernel is to hold the workload to. Changed in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu: Cpu,
    pub memory: Memory,
    /// Processes and threads, init included.
    pub pids: Limit<u32>,
    #[serde(default)]
    pub io: Io,
    /// Bytes of huge pages, by the size of the page in bytes. None of a size that is not named.
    #[serde(default)]
    pub hugepages: BTreeMap<Bytes, Bytes>,
}

/// Reading and writing of block devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Share against other groups when a device is contended, 1..=10000, 100 by default.
    pub weight: u32,
    /// By the device's path, `/dev/vda`.
    pub limits: BTreeMap<String, IoLimit>,
}

impl Default for Io {
    fn default() -> Io {
        Io { weight: 100, limits: BTreeMap::new() }
    }
}

/// The most a workload may do with one device in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    pub read_bps: Limit<u64>,
    pub write_bps: Limit<u64>,
    pub read_iops: Limit<u64>,
    pub write_iops: Limit<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// What admission sets aside; nothing by default for `shared` and `idle`, the number of CPUs for `pinned` and `exclusive`.
    pub request: MilliCpu,
    /// CPU time per time, at most.
    pub limit: Limit<MilliCpu>,
    /// Share against other groups when CPUs are contended, 1..=10000; `CpuClass::weight` by default.
    pub weight: u32,
    /// Unused quota that may be carried over, at most the quota of one period (100 ms).
    pub burst: Duration,
    pub class: CpuClass,
    /// How counted CPUs sit on cores; none is the class's own way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt: Option<Smt>,
    #[serde(default, skip_serializing_if = "Align::is_preferred")]
    pub align: Align,
}

/// How CPUs that are counted out one by one sit on cores of several hardware threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Smt {
    /// Whole cores, all threads of one before the next.
    FullCore,
    /// One thread a core; with class exclusive the others stay idle.
    Spread,
    /// Threads as they come.
    Any,
}

/// Whether CPUs, and the memory beside them, have to be of one NUMA node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Align {
    /// Of one node where they fit; memory as the kernel gives it, from the node that first touches it while it lasts.
    #[default]
    Preferred,
    /// Of one node or not at all; memory from that node only.
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuClass {
    /// The smallest topology domain with room, shared with others.
    Shared,
    /// Exactly as many CPUs as requested, shared with others.
    Pinned,
    /// Exactly as many CPUs as requested, used by no other workload.
    Exclusive,
    /// Runs only where nobody else wants the CPU.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What admission sets aside and the kernel protects from reclaim where it can.
    pub request: Bytes,
    /// What the kernel never reclaims, whoever else runs short.
    #[serde(default)]
    pub min: Bytes,
    /// Reclaim above this.
    pub high: Limit<Bytes>,
    /// Never more than this.
    pub limit: Limit<Bytes>,
    /// Swap on top of `limit`; none by default where there is a limit.
    pub swap: Limit<Bytes>,
    /// Whether running out of memory ends all of it, not only the process that the kernel picks.
    #[serde(default)]
    pub oom_group: bool,
    /// Whether a limit below what it uses is put in force even if that ends it.
    #[serde(default)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    pub policy: RestartPolicy,
    /// The wait after the first failure in a row; it doubles with each further one.
    pub initial_delay: Duration,
    pub max_delay: Duration,
    /// A run of this length makes the next failure the first in a row again.
    pub reset_after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub signal: Signal,
    /// From the signal to the end of the whole cgroup.
    pub grace: Duration,
}

/// How much of its output is kept. Fixed by each run for itself when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// Of one file, the one being written or an older one.
    pub max_size: Bytes,
    /// The one being written included, 1..=9.
    pub max_files: u32,
}

impl Logs {
    fn is_usual(&self) -> bool {
        *self == Logs::default()
    }
}

impl Default for Logs {
    /// 30 MB a workload at most.
    fn default() -> Logs {
        Logs { max_size: Bytes(10_000_000), max_files: 3 }
    }
}

impl fmt::Display for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{maxSize: {}, maxFiles: {}}}", self.max_size, self.max_files)
    }
}

/// A signal number, 1..=31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signal(pub i32);

/// Names in numeric order from 1, for x86-64 (signal(7)).
const SIGNAL_NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

impl Signal {
    pub const KILL: Signal = Signal(9);
    pub const TERM: Signal = Signal(15);

    /// A signal by its name, with or without `SIG`.
    pub fn named(name: &str) -> Option<Signal> {
        let bare = name.strip_prefix("SIG").unwrap_or(name);
        let index = SIGNAL_NAMES.iter().position(|known| known.strip_prefix("SIG") == Some(bare))?;
        i32::try_from(index + 1).ok().map(Signal)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = usize::try_from(self.0).ok().and_then(|number| number.checked_sub(1));
        match index.and_then(|index| SIGNAL_NAMES.get(index)) {
            Some(name) => f.pad(name),
            None => f.pad(&format!("signal {}", self.0)),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Service => "service",
            Kind::Job => "job",
        })
    }
}

impl Cpu {
    /// How its counted CPUs sit on cores.
    pub fn smt(&self) -> Smt {
        match (self.smt, self.class) {
            (Some(smt), _) => smt,
            (None, CpuClass::Exclusive) => Smt::FullCore,
            (None, CpuClass::Shared | CpuClass::Pinned | CpuClass::Idle) => Smt::Any,
        }
    }
}

impl Align {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_preferred(&self) -> bool {
        *self == Align::Preferred
    }
}

impl fmt::Display for Smt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Smt::FullCore => "full-core",
            Smt::Spread => "spread",
            Smt::Any => "any",
        })
    }
}

impl fmt::Display for CpuClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            CpuClass::Shared => "shared",
            CpuClass::Pinned => "pinned",
            CpuClass::Exclusive => "exclusive",
            CpuClass::Idle => "idle",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_usual_names_and_numbers() {
        for (name, number) in [("SIGHUP", 1), ("SIGKILL", 9), ("TERM", 15), ("SIGCONT", 18), ("SIGSYS", 31)] {
            assert_eq!(Signal::named(name), Some(Signal(number)));
        }
        assert_eq!(Signal::named("SIGSIGTERM"), None);
        assert_eq!(Signal(34).to_string(), "signal 34");
        for number in 1..=31 {
            assert_eq!(Signal::named(&Signal(number).to_string()), Some(Signal(number)));
        }
    }
}
