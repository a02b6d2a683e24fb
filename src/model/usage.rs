//! What a workload has used and run into, as the kernel counts it.

use serde::{Deserialize, Serialize};

/// Counters of one workload's cgroup. Those that only grow begin at 0 with each run; none where the host does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// CPU time in microseconds.
    pub cpu_us: Option<u64>,
    /// Bytes in use now, page cache included.
    pub memory_bytes: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// Periods in which there was a CPU quota and something ran.
    pub periods: u64,
    /// Those of them in which the quota was used up.
    pub throttled_periods: u64,
    /// How long its tasks stood still because of that, in microseconds, added up over CPUs.
    pub throttled_us: u64,
    /// Processes the kernel has killed for want of memory.
    pub oom_kills: u64,
    /// Forks refused at the limit on processes.
    pub pids_refused: u64,
    /// How long some of its tasks waited, in microseconds (PSI, Documentation/accounting/psi.rst); none without PSI.
    pub cpu_stalled_us: Option<u64>,
    pub memory_stalled_us: Option<u64>,
    pub io_stalled_us: Option<u64>,
}
