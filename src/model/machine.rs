//! The host as the planner sees it: facts, refreshed by the shell, passed in as a value.

use super::cgroup::Support;
use super::gpu::Gpu;
use super::topology::Topology;
use super::units::Bytes;

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub topology: Topology,
    pub memory: Bytes,
    pub gpus: Vec<Gpu>,
    pub cgroup: Support,
    /// Changes with every boot (`/proc/sys/kernel/random/boot_id`): what was started under another one no longer runs.
    pub boot_id: String,
}
