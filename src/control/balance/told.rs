//! Where the rebalancer stands, as it is told.

use super::Mode;
use crate::model::balance::{Decision, Move};
use crate::model::status::rfc3339;
use crate::model::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Where the rebalancer stands; `GET /v1/rebalance`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub mode: Mode,
    /// Why it does nothing here, if so.
    pub resting: Option<String>,
    /// The file that its decisions are recorded in, if they are.
    #[serde(default)]
    pub record: Option<PathBuf>,
    /// When it decided last, and what.
    #[serde(with = "rfc3339::option")]
    pub at: Option<Timestamp>,
    pub decision: Option<Decision>,
    /// What it has proposed, oldest first.
    pub recent: Vec<Proposed>,
}

/// A move, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proposed {
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    pub proposal: Move,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Not done, as asked.
    DryRun,
    Proposed,
    Made,
    /// The kernel refused; it is where it was.
    Refused,
    /// Something else was to be done with the workload.
    Dropped,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::On => "on",
            Mode::DryRun => "dry-run",
            Mode::Off => "off",
        })
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fate::DryRun => "not done (dry run)",
            Fate::Proposed => "proposed",
            Fate::Made => "made",
            Fate::Refused => "refused by the kernel",
            Fate::Dropped => "dropped",
        })
    }
}
