//! Several runs of one manifest, each a workload with a name of its own.

use super::name::Name;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Replicas of one workload. More than one host has use for, and few enough that a slip of the finger does not drown it.
pub const REPLICAS_MAX: u32 = 256;

/// Which of a workload's replicas this is. The first bears the workload's own name, the others `NAME.1`, `NAME.2` and so on, so that more or
/// fewer of them touch only the difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The workload.
    pub of: Name,
    /// From 0.
    pub index: u32,
    /// How many there are to be.
    pub count: u32,
}

/// How an edit that needs new processes reaches the replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Each on its own: the old process is gone before the new one starts.
    #[default]
    Recreate,
    /// Some at a time, the others being ready; all of them back to what was good if the new ones are not.
    Rolling(Rolling),
}

impl Strategy {
    /// Whether it is what there is without a word about it.
    pub fn is_usual(&self) -> bool {
        *self == Strategy::default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rolling {
    /// Replicas that may be missing at a time because of the update.
    pub max_unavailable: u32,
    /// From the decision to replace one until it has to be ready.
    pub progress_deadline: Duration,
}

impl Replica {
    /// The names of all replicas, this one included.
    pub fn all(&self) -> impl Iterator<Item = Name> + '_ {
        (0..self.count).filter_map(|index| name(&self.of, index))
    }
}

/// The name of a replica, if it is short enough for one.
pub fn name(of: &Name, index: u32) -> Option<Name> {
    if index == 0 { Some(of.clone()) } else { format!("{of}.{index}").parse().ok() }
}

/// Whether `name` is the workload's own or one that a replica of it would have.
pub fn is_of(workload: &Name, name: &Name) -> bool {
    let index = name.as_str().strip_prefix(workload.as_str()).and_then(|rest| rest.strip_prefix('.'));
    name == workload || index.is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
}
