//! Counters of a host's CPUs and workloads at one moment. They only grow; what they say is in the difference of two.

use super::clock::Steady;
use super::name::Name;
use super::units::Bytes;
use std::collections::BTreeMap;

/// What was read at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Of each online CPU, by number.
    pub cpus: BTreeMap<u32, CpuCount>,
    /// Of those whose turn it was.
    pub workloads: BTreeMap<Name, Count>,
}

/// Time of one CPU since boot, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuCount {
    /// Spent on somebody's work: user, nice and system time. Interrupts are nobody's, and what a hypervisor took was never there.
    pub busy: u64,
    /// All of it.
    pub total: u64,
}

/// What one run has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub run: u64,
    pub at: Steady,
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// How long its tasks waited for a CPU, in microseconds; none where this host does not tell.
    pub waited_us: Option<u64>,
    /// Memory in use, page cache included, as of the last time that was asked.
    pub memory: Option<Bytes>,
}
