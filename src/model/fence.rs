//! What the host's own processes and interrupts are kept off, and with which of the host's own files that is done.
//!
//! A *lever* is a file of the host's that bounds where something of the host's runs: `cpuset.cpus` of a group that is not ours, or the
//! affinity of an interrupt. It is named by its path.

use super::cpuset::CpuSet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The host's levers as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    pub online: CpuSet,
    /// Those that this machine could ever have, switched off or not.
    pub possible: CpuSet,
    /// What each holds.
    pub levers: BTreeMap<String, String>,
    /// What those hold that were moved and are not to be any more: they are put back.
    pub strays: BTreeMap<String, String>,
    /// Those that could not be read this time. They may be there.
    pub unread: BTreeSet<String>,
    /// What there is no lever for, in sentences.
    pub beyond: Vec<String>,
}

/// What stood in the levers that were moved, kept where a crash leaves it: what was taken from the host can be given back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stood {
    /// Under another boot the kernel has forgotten all of it.
    pub boot_id: String,
    pub levers: BTreeMap<String, Was>,
}

/// One lever that was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Was {
    /// What it held.
    pub before: String,
    /// The CPUs it was given instead; two sets while it is moved from one to the other. If it holds none of them by now, somebody else has
    /// moved it since.
    pub given: Vec<CpuSet>,
}

/// A lever and what to write to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    pub lever: String,
    pub value: String,
    pub cpus: CpuSet,
    /// What is remembered of it once that is done; nothing where it was put back.
    pub then: Option<Was>,
}

/// A pull that the kernel did not take. It is not tried again for the same CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub cpus: CpuSet,
    pub why: String,
}

/// How far the host is kept off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    /// The CPUs it was last asked to keep off.
    pub cpus: CpuSet,
    pub refused: BTreeMap<String, Refused>,
    /// Who may run there all the same, in sentences.
    pub left: Vec<String>,
    /// Interrupts that stay there, in sentences.
    pub interrupts: Vec<String>,
}

/// Whether a lever is an interrupt's.
pub fn is_interrupt(lever: &str) -> bool {
    lever.contains("/irq/")
}

/// Whether a lever is written as a mask, where the others are lists.
pub fn is_mask(lever: &str) -> bool {
    lever.ends_with("affinity")
}
