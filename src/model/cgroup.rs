//! What a cgroup's files hold, as values: file name to text. The planner computes the wanted ones, a host reads the held ones, and the
//! difference is what a resize writes.

use super::cpuset::NodeSet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Which kernel interface a host's controllers speak (cgroups(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Generation {
    /// cgroup v2 with its controllers.
    Unified,
    /// cgroup v1, alone or with a v2 tree beside it that has no controllers.
    Legacy,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Generation::Unified => "unified",
            Generation::Legacy => "legacy",
        })
    }
}

/// What the cgroups of a host can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    pub generation: Generation,
    /// The control files a workload's group has here, `cpu.max` and so on.
    pub files: BTreeSet<String>,
    /// NUMA nodes with memory that groups may use. On v1 a group has to be told before a task may enter (cpuset(7)).
    pub nodes: NodeSet,
}

/// Control files and their values, as read from or written to the kernel, without the final newline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(pub BTreeMap<String, String>);

impl Settings {
    pub fn get(&self, file: &str) -> Option<&str> {
        self.0.get(file).map(String::as_str)
    }

    pub fn set(&mut self, file: &str, value: impl Into<String>) {
        self.0.insert(file.to_owned(), value.into());
    }
}

/// One control file and the value to write to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    pub file: String,
    pub value: String,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.file, self.value)
    }
}
