//! Where the kernel counts what a group has used: files that are only read, often.

use super::directory_name;
use crate::model::name::Name;
use std::path::PathBuf;

/// One counter: the parent group's directory in the hierarchy that has it, and the file in a workload's group there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    pub parent: PathBuf,
    pub file: &'static str,
}

impl Counter {
    pub fn path(&self, name: &Name) -> PathBuf {
        self.parent.join(directory_name(name)).join(self.file)
    }
}

/// The counters of a host's groups; none where it has no such.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// CPU time: `cpu.stat` of a v2 tree, with or without controllers, or v1's `cpuacct.usage`.
    pub cpu: Option<Counter>,
    /// Time in which some task waited for a CPU (Documentation/accounting/psi.rst).
    pub pressure: Option<Counter>,
    pub memory: Option<Counter>,
    /// The threads in it.
    pub threads: Option<Counter>,
}

impl Counters {
    /// What this has, and of the rest what the other has.
    #[must_use]
    pub fn or(self, other: Counters) -> Counters {
        Counters {
            cpu: self.cpu.or(other.cpu),
            pressure: self.pressure.or(other.pressure),
            memory: self.memory.or(other.memory),
            threads: self.threads.or(other.threads),
        }
    }
}
