//! Something that happened on the host, for people and programs that come later.

use super::name::Name;
use super::status::rfc3339;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One event, in the manner of Kubernetes events: what keeps happening is one event that is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Grows with every event and with every repetition; an event that is counted again takes the next number.
    pub sequence: u64,
    pub severity: Severity,
    /// None for what is about the folder or the host.
    pub workload: Option<Name>,
    /// One word for programs, `Throttled`.
    pub reason: String,
    /// A sentence for people, with the numbers.
    pub message: String,
    /// Of an end, the newest run whose it is: by this a later controller knows which ends are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u64>,
    pub count: u32,
    #[serde(with = "rfc3339")]
    pub first: Timestamp,
    #[serde(with = "rfc3339")]
    pub last: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Severity {
    Normal,
    Warning,
}

/// What is to be told, before it has a number and a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    pub severity: Severity,
    pub workload: Option<Name>,
    pub reason: &'static str,
    pub message: String,
    /// Of an end, the run whose it is.
    pub run: Option<u64>,
}

impl News {
    pub fn normal(workload: &Name, reason: &'static str, message: impl Into<String>) -> News {
        News {
            severity: Severity::Normal,
            workload: Some(workload.clone()),
            reason,
            message: message.into(),
            run: None,
        }
    }

    pub fn warning(workload: &Name, reason: &'static str, message: impl Into<String>) -> News {
        News { severity: Severity::Warning, ..News::normal(workload, reason, message) }
    }

    /// A warning about no workload in particular.
    pub fn of_host(reason: &'static str, message: impl Into<String>) -> News {
        News { severity: Severity::Warning, workload: None, reason, message: message.into(), run: None }
    }

    /// Whether an event tells the same.
    pub fn is_again(&self, event: &Event) -> bool {
        let News { severity, workload, reason, message, run: _ } = self;
        event.severity == *severity
            && event.workload == *workload
            && event.reason == *reason
            && event.message == *message
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        })
    }
}
