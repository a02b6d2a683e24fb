//! How a run of a workload ended.

use super::spec::Signal;
use super::time::Timestamp;
use super::units::format_duration;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The end of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Which run it was, counted from 1 over the life of the workload.
    pub instance: u64,
    pub outcome: Outcome,
    /// When the command began; none if it never did, or nobody knows.
    #[serde(default)]
    pub started: Option<Timestamp>,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The command called exit.
    Exited { code: i32 },
    /// The command was ended by a signal.
    Killed { signal: Signal },
    /// A job that was stopped because it took longer than its timeout.
    TimedOut { after: Duration },
    /// The kernel ended it for want of memory within its limit.
    OutOfMemory,
    /// The command never ran: not found.
    NotFound { command: String },
    /// The command never ran, for another reason.
    NotStarted { reason: String },
    /// It was ended because a probe of its failed; `code` is how it then ended.
    Unhealthy { reason: String, code: i32 },
    /// It is gone and nothing tells how: its PID 1 was killed.
    Lost,
    /// It ran under another boot.
    HostRestarted,
}

impl Outcome {
    pub fn is_success(&self) -> bool {
        *self == Outcome::Exited { code: 0 }
    }

    /// Whether the command was never executed.
    pub fn never_ran(&self) -> bool {
        matches!(self, Outcome::NotFound { .. } | Outcome::NotStarted { .. })
    }

    /// The code a shell would show: 124 as timeout(1) has it, 128 + the signal, 127 for a missing command, 126 for one that cannot be started.
    pub fn code(&self) -> i32 {
        match self {
            Outcome::Exited { code } | Outcome::Unhealthy { code, .. } => *code,
            Outcome::Killed { signal } => 128 + signal.0,
            Outcome::TimedOut { .. } => 124,
            Outcome::OutOfMemory | Outcome::Lost | Outcome::HostRestarted => 128 + Signal::KILL.0,
            Outcome::NotFound { .. } => 127,
            Outcome::NotStarted { .. } => 126,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Exited { code } => write!(f, "exited with code {code}"),
            Outcome::Killed { signal } => write!(f, "killed by {signal}"),
            Outcome::TimedOut { after } => write!(f, "timed out after {}", format_duration(*after)),
            Outcome::OutOfMemory => f.write_str("killed: out of memory within its limit"),
            Outcome::NotFound { command } => write!(f, "command not found: {command}"),
            Outcome::NotStarted { reason } | Outcome::Unhealthy { reason, .. } => f.write_str(reason),
            Outcome::Lost => f.write_str("gone without an exit status"),
            Outcome::HostRestarted => f.write_str("ended by a restart of the host"),
        }
    }
}
