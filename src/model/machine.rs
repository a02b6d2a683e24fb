//! The host as the planner sees it: facts, refreshed by the shell, passed in as a value.

use super::admission::Admission;
use super::cgroup::Support;
use super::gpu::Gpu;
use super::isolation::Resource;
use super::topology::Topology;
use super::units::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub topology: Topology,
    pub memory: Bytes,
    pub gpus: Vec<Gpu>,
    /// Why it is not known what other GPUs it has.
    pub gpu_trouble: Vec<String>,
    /// Major and minor number of each whole disk, by the path of its node.
    pub disks: BTreeMap<String, Disk>,
    /// Sizes of huge pages this machine has.
    pub huge_pages: BTreeSet<Bytes>,
    pub cgroup: Support,
    /// Changes with every boot (`/proc/sys/kernel/random/boot_id`): what was started under another one no longer runs.
    pub boot_id: String,
    pub ceilings: Ceilings,
    /// How much of it may be promised.
    pub admission: Admission,
}

/// A block device as cgroup files name it, `254:0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Disk(pub String);

/// What the controller cannot let a workload exceed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// The highest hard limits there may be: the kernel's own, and without CAP_SYS_RESOURCE those the controller has.
    pub hard: BTreeMap<Resource, u64>,
    /// The lowest OOM score.
    pub oom_score_adj_min: i32,
}
