//! The host: the only module that touches kernel, clock and devices.
//!
//! [`Host`] is what the rest of the program needs of a machine; [`linux::Linux`] is the real one. Calls may wait for the kernel and belong
//! on a thread of their own, but for [`Host::now`], [`Host::steady`], [`Host::instant`] and [`Host::cpu_times`], which take microseconds; none makes a choice.

mod asking;
pub mod cgroup;
mod clock;
pub mod confine;
pub mod dev;
pub mod exec;
mod facts;
pub mod fence;
pub mod gpu;
pub mod heap;
pub mod hotplug;
pub mod layers;
pub mod lease;
pub mod life;
pub mod linux;
pub mod lock;
pub mod mounts;
pub mod probe;
pub mod processes;
pub mod runtime;
pub mod sampler;
pub mod seccomp;
mod sources;
pub mod spawn;
mod strays;
pub mod terminal;
pub mod topology;
pub mod traces;

use crate::model::cgroup::Write;
use crate::model::clock::{Steady, Time};
use crate::model::isolation::Network;
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::observed::Observed;
use crate::model::probe::{Answer, Probe, ProbeKind};
use crate::model::record::Record;
use crate::model::spec::Signal;
use crate::model::time::Timestamp;
use crate::model::usage::Usage;
use sampler::Meter;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The oldest kernel with everything that is relied on: clone3 into a cgroup (5.7), mount_setattr (5.12) and cgroup.kill (5.14).
pub const KERNEL_MIN_MAJOR: u32 = 5;
pub const KERNEL_MIN_MINOR: u32 = 14;

/// A run to start.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// What is remembered about the workload; its `instance` numbers this run.
    pub record: &'a Record,
    /// The control files to write before anything runs, in order.
    pub writes: &'a [Write],
    /// The command's environment.
    pub env: &'a BTreeMap<String, String>,
}

/// CPU time the machine has spent since boot, in clock ticks, over all its CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTimes {
    /// Work for somebody: user, nice and system time.
    pub busy: u64,
    pub total: u64,
}

impl CpuTimes {
    /// Less says nothing: a tenth of a second on one CPU.
    const TICKS_MIN: u64 = 10;
    /// What the kernel counts in for programs, on every architecture (`man 7 time`, USER_HZ).
    const TICK_MS: u128 = 10;

    /// The share in percent that was busy since an earlier reading; none while that is too short ago. What was worked in `spare` does not
    /// count. Of CPUs that were switched off in between nothing is known, and the kernel takes back what it has counted as waiting for disks
    /// (`man 5 proc_stat`, iowait).
    pub fn busy_percent_since(self, before: CpuTimes, spare: Duration) -> Option<u8> {
        let busy = self.busy.saturating_sub(before.busy);
        let total = self.total.saturating_sub(before.total).max(busy);
        let busy = busy.saturating_sub(u64::try_from(spare.as_millis() / CpuTimes::TICK_MS).unwrap_or(u64::MAX));
        (total >= CpuTimes::TICKS_MIN).then(|| u8::try_from(100 * busy / total).unwrap_or(100))
    }
}

pub use crate::model::cgroup::Shrink;

/// What a folder is known by, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolderId {
    pub device: u64,
    pub inode: u64,
}

/// A probe to try.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub name: &'a Name,
    pub instance: u64,
    /// The network of that run.
    pub network: Network,
    /// The environment of a command in its box.
    pub env: &'a BTreeMap<String, String>,
    pub kind: ProbeKind,
    pub probe: &'a Probe,
}

/// One machine.
pub trait Host: Send + Sync {
    fn now(&self) -> Timestamp;

    /// The clock that nobody sets.
    fn steady(&self) -> Steady;

    /// Both.
    fn time(&self) -> Time {
        Time { wall: self.now(), steady: self.steady() }
    }

    /// The clock that nobody sets, for timers.
    fn instant(&self) -> Instant;

    /// A CPU, a node or memory came or went, as the kernel tells.
    fn expect_change(&self) {}

    /// The machine's facts as they are now.
    fn survey(&self) -> Result<Machine, HostError>;

    fn cpu_times(&self) -> Result<CpuTimes, HostError>;

    /// Every workload of which there is a cgroup or a trace.
    fn names(&self) -> Result<BTreeSet<Name>, HostError>;

    /// Everything there is of a workload. What runs is watched from then on.
    fn observe(&self, name: &Name) -> Result<Observed, HostError>;

    /// Makes the cgroup with its limits and starts the run in it. Returns when it is on its way, not when its command runs. What it made
    /// before it failed is taken away again.
    fn start(&self, start: &Start<'_>) -> Result<(), HostError>;

    /// Writes control files, and reads them back.
    fn resize(&self, name: &Name, writes: &[Write], shrink: Shrink) -> Result<(), HostError>;

    /// Puts back what somebody has taken from running workloads: makes missing cgroups again, thaws them, writes limits, and moves the
    /// workload's processes back in.
    fn restore(&self, name: &Name, writes: &[Write], shrink: Shrink) -> Result<(), HostError>;

    /// Processes of running workloads that are outside their cgroups.
    fn strays(&self) -> BTreeMap<Name, BTreeSet<u32>>;

    /// What a workload has used and run into.
    fn usage(&self, name: &Name) -> Usage;

    /// What reads counters often; none where there is nothing to read.
    fn meter(&self) -> Option<Box<dyn Meter>> {
        None
    }

    /// What the host's own processes and interrupts are kept off CPUs by; none where that is not to be touched.
    fn levers(&self) -> Option<&fence::Levers> {
        None
    }

    /// Asks the kernel again for the partitions it has not granted: somebody who was in the way has made room, and it does not look by itself.
    fn ask_again(&self) {}

    /// Sends a signal to the command of a run.
    fn stop(&self, name: &Name, instance: u64, signal: Signal) -> Result<(), HostError>;

    /// Kills everything in the workload's cgroup.
    fn kill(&self, name: &Name) -> Result<(), HostError>;

    /// Removes cgroup and traces of what has ended.
    fn clear(&self, name: &Name) -> Result<(), HostError>;

    /// The same, and its logs.
    fn forget(&self, name: &Name) -> Result<(), HostError>;

    /// Asks a run what a probe of it asks. Waits for the answer, for its timeout at most.
    fn probe(&self, ask: &Ask<'_>) -> Answer;

    /// The workload's cgroup, for people.
    fn cgroup_path(&self, name: &Name) -> String;

    /// Where its log files are.
    fn log_folder(&self, name: &Name) -> PathBuf;

    /// Which folder is there now; none if there is none.
    fn log_folder_id(&self, name: &Name) -> Option<FolderId>;

    /// Why nothing can be written there, if that is seen at a glance.
    fn log_folder_refusal(&self, _name: &Name) -> Option<Refusal> {
        None
    }
}

/// What a file system has against being written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Full,
    ReadOnly,
}

/// What a host can fail at.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    #[error(transparent)]
    Trace(#[from] traces::TraceError),
    #[error(transparent)]
    Spawn(#[from] spawn::SpawnError),
    #[error(transparent)]
    Process(#[from] processes::ProcessError),
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
    #[error(transparent)]
    Topology(#[from] topology::TopologyError),
    #[error(
        "the kernel is {release}, expected {KERNEL_MIN_MAJOR}.{KERNEL_MIN_MINOR} or newer\n  help: it lacks cgroup.kill; install a newer kernel"
    )]
    Kernel { release: String },
    #[error("looking at it ended in a panic")]
    Panicked,
    /// Several at once, none hiding another.
    #[error("{}", .0.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; "))]
    Several(Vec<HostError>),
    #[error("{file} holds {held:?} after {wanted:?} was written to it")]
    NotHeld { file: String, wanted: String, held: String },
    #[error("cannot read {what}")]
    Facts { what: &'static str, source: io::Error },
    #[error(
        "the cgroup {path} {what} although it was put right\n  help: look at the groups above it: cgroup.freeze and cgroup.subtree_control"
    )]
    NotRestored { path: String, what: String },
    #[error("cannot open the log folder {path}")]
    Logs { path: PathBuf, source: io::Error },
    #[error("cannot make or remove {path}, where changes of a root directory are kept")]
    Layer { path: PathBuf, source: io::Error },
    #[error(
        "somebody has moved {name} out of its cgroup ({hierarchies}), where its limits are\n  help: the controller moves it back with its next resync; try again then"
    )]
    OutOfGroup { name: Name, hierarchies: String },
    #[error("{kind} {path} is in {own}, a folder of the controller\n  help: choose a directory elsewhere")]
    OwnFolder { kind: &'static str, path: PathBuf, own: PathBuf },
    #[error(
        "{path} leads by way of the link {link}, which a workload or another user than root may have made\n  help: name the place that is meant, or the folder that holds the link"
    )]
    Link { path: PathBuf, link: PathBuf },
    #[error(
        "{path} has not answered since {since}: the file system there hangs\n  help: see that its server is there; the start is tried again by itself"
    )]
    Hangs { path: PathBuf, since: Timestamp },
    #[error(
        "{count} looks at paths of the host wait for file systems that hang\n  help: see that their servers are there, or unmount them"
    )]
    ManyHang { count: usize },
    #[error("cannot remove the log folder {path}")]
    RemoveLogs { path: PathBuf, source: io::Error },
}

impl HostError {
    /// Nothing, one error, or all of them.
    fn all(mut errors: Vec<HostError>) -> Result<(), HostError> {
        match (errors.pop(), errors.is_empty()) {
            (None, _) => Ok(()),
            (Some(error), true) => Err(error),
            (Some(error), false) => {
                errors.push(error);
                Err(HostError::Several(errors))
            }
        }
    }
}

/// An error and all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_busy_it_was_is_told_in_percent_whatever_the_counters_do() {
        let before = CpuTimes { busy: 1000, total: 50_000 };
        let check = |busy, total| CpuTimes { busy, total }.busy_percent_since(before, Duration::ZERO);
        assert_eq!([check(1000, 50_200), check(1050, 50_200), check(1200, 50_200)], [Some(0), Some(25), Some(100)]);
        assert_eq!(check(1005, 50_009), None, "too short");
        // More work than time in all: time spent waiting for a disk was taken back.
        assert_eq!([check(1100, 50_020), check(1100, 49_900)], [Some(100), Some(100)]);
        assert_eq!(check(900, 49_000), None, "all of them went back");
        let spare =
            |millis| CpuTimes { busy: 1200, total: 50_200 }.busy_percent_since(before, Duration::from_millis(millis));
        assert_eq!([spare(500), spare(2000), spare(9000)], [Some(75), Some(0), Some(0)]);
    }
}
