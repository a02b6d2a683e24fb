//! What a cgroup's files hold, as values: file name to text. The planner computes the wanted ones, a host reads the held ones, and the
//! difference is what a resize writes.

use super::cpuset::NodeSet;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;
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

/// Where a v2 group asks to have its CPUs alone (cgroup-v2.rst): `member`, `root`, or `root invalid (why not)`.
pub const PARTITION: &str = "cpuset.cpus.partition";

/// So many files there are of one workload on most hosts: room is made for them at once.
const FILES_USUAL: usize = 16;

/// Control files and their values, as read from or written to the kernel, without the final newline.
///
/// Kept as a list in order of the files, not as a map, and names of files that are known beforehand are not copied: each pass makes one for
/// each workload, a dozen files long, and compares it with the one that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(Vec<(Cow<'static, str>, String)>);

impl Settings {
    pub fn get(&self, file: &str) -> Option<&str> {
        self.place(file).ok().map(|at| self.0[at].1.as_str())
    }

    pub fn set(&mut self, file: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        let (file, mut value) = (file.into(), value.into());
        if is_per_device(&file) {
            // In whatever order the kernel keeps its devices.
            let mut lines: Vec<&str> = value.lines().collect();
            lines.sort_unstable();
            value = lines.join("\n");
        }
        match self.place(&file) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => {
                if self.0.is_empty() {
                    self.0.reserve(FILES_USUAL);
                }
                self.0.insert(at, (file, value));
            }
        }
    }

    /// Where a file is, or belongs.
    fn place(&self, file: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_ref().cmp(file))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each file with its value, and what `held` has in it.
    pub fn beside<'a>(&'a self, held: &'a Settings) -> impl Iterator<Item = (&'a str, &'a str, Option<&'a str>)> {
        let mut rest = held.0.iter().peekable();
        self.0.iter().map(move |(file, value)| {
            while rest.next_if(|(other, _)| other < file).is_some() {}
            let held = rest.next_if(|(other, _)| other == file);
            (file.as_ref(), value.as_str(), held.map(|(_, value)| value.as_str()))
        })
    }

    /// In order of the files.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(file, value)| (file.as_ref(), value.as_str()))
    }

    /// Whether a file holds what was asked of it, as [`is_met`] has it.
    pub fn holds(&self, file: &str, value: &str) -> bool {
        is_met(file, value, self.get(file))
    }
}

/// Whether what a file holds is what was asked of it. A partition is a wish: the kernel keeps it, and says beside it why it is not granted.
pub fn is_met(file: &str, value: &str, held: Option<&str>) -> bool {
    held == Some(value) || file == PARTITION && value == "root" && held.is_some_and(|held| held.starts_with("root"))
}

impl<F: Into<Cow<'static, str>>, V: Into<String>> FromIterator<(F, V)> for Settings {
    fn from_iter<I: IntoIterator<Item = (F, V)>>(entries: I) -> Settings {
        let mut settings = Settings::default();
        for (file, value) in entries {
            settings.set(file, value);
        }
        settings
    }
}

/// What to do where a memory limit would be below what is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrink {
    /// Have the kernel reclaim first, and leave the limit as it was if that is not enough.
    IfItFits,
    /// Lower it; the kernel ends something if it has to.
    Anyhow,
}

/// One control file and the value to write to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    pub file: String,
    pub value: String,
}

/// Whether a file has a line for each device it says something about, and takes one at a time.
pub fn is_per_device(file: &str) -> bool {
    file == "io.max" || file.starts_with("blkio.throttle.")
}

/// What is written for a device that is no longer limited; it is not among the lines then.
pub fn no_limit(file: &str) -> &'static str {
    if file == "io.max" { "rbps=max wbps=max riops=max wiops=max" } else { "0" }
}

impl Write {
    /// Whether the file holds what was written.
    pub fn is_in(&self, settings: &Settings) -> bool {
        let held = settings.get(&self.file).unwrap_or_default();
        match self.value.split_once(' ') {
            Some((device, limit)) if is_per_device(&self.file) && limit == no_limit(&self.file) => {
                !held.lines().any(|line| line.split(' ').next() == Some(device))
            }
            _ if is_per_device(&self.file) => held.lines().any(|line| line == self.value),
            _ => settings.holds(&self.file, &self.value) || held == self.value,
        }
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.file, self.value)
    }
}
