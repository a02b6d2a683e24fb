//! Probes: questions a workload is asked while it runs, and what its answers come to.

use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The probes of one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// Whether it has come up. Until then the others wait; if it does not, it is ended and counts as failed.
    pub startup: Option<Probe>,
    /// Whether it can serve: the condition `Ready`.
    pub readiness: Option<Probe>,
    /// Whether it is worth keeping: if not, it is ended and counts as failed.
    pub liveness: Option<Probe>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

/// One question and how often it is asked. Names and defaults are those of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub check: Check,
    /// From the start of the command to the first try.
    pub initial_delay: Duration,
    /// From one try to the next.
    pub period: Duration,
    /// An answer that takes longer is a failure.
    pub timeout: Duration,
    /// Successes in a row that make a readiness good; 1 for the others.
    pub success_threshold: u32,
    /// Failures in a row that make it bad.
    pub failure_threshold: u32,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// A command in the workload's box, as its user, has to exit with 0.
    Exec { command: Vec<String> },
    /// A GET on the loopback of the workload's network has to be answered with 200 to 399. The first answer counts: no redirect is followed.
    Http { port: u16, path: String, host: Option<String> },
    /// Something on the loopback of the workload's network has to accept a connection.
    Tcp { port: u16 },
}

impl Probe {
    /// A probe with Kubernetes' defaults.
    pub fn new(check: Check) -> Probe {
        Probe {
            check,
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success_threshold: 1,
            failure_threshold: 3,
        }
    }
}

impl ProbeKind {
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Readiness, ProbeKind::Liveness];

    /// One word for having been ended for it.
    pub fn failure(self) -> &'static str {
        match self {
            ProbeKind::Startup => "StartupFailed",
            ProbeKind::Readiness => "NotReady",
            ProbeKind::Liveness => "LivenessFailed",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "startup",
            ProbeKind::Readiness => "readiness",
            ProbeKind::Liveness => "liveness",
        }
    }
}

impl Probes {
    pub fn is_empty(&self) -> bool {
        let Probes { startup, readiness, liveness } = self;
        startup.is_none() && readiness.is_none() && liveness.is_none()
    }

    pub fn get(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
        }
    }
}

/// How one try went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Good,
    /// No, and why, for people.
    Bad(String),
    /// It could not be asked, which says nothing about the workload.
    Unasked(String),
}

/// What the answers of one run have come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The run: its number and its command's pid.
    pub instance: u64,
    pub pid: u32,
    /// What it was asked.
    pub probes: Arc<Probes>,
    pub ready: bool,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// It is to be ended for this.
    pub failed: Option<ProbeKind>,
}

impl Standing {
    /// Whether the two call for the same; their messages may differ.
    pub fn agrees_with(&self, other: &Standing) -> bool {
        let Standing { instance, pid, probes, ready, reason, message: _, failed } = self;
        (*instance, *pid, *ready, *reason, *failed)
            == (other.instance, other.pid, other.ready, other.reason, other.failed)
            && *probes == other.probes
    }

    /// Whether it says something about a probe as it is now.
    pub fn speaks_of(&self, kind: ProbeKind, probes: &Probes) -> bool {
        let check = |probes: &Probes| probes.get(kind).map(|probe| probe.check.clone());
        check(&self.probes) == check(probes)
    }
}

/// The last try of one probe, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeStatus {
    pub kind: ProbeKind,
    /// `http :8080/healthz every 10s`.
    pub asks: String,
    /// Tries so far, those included that could not be made.
    pub tries: u64,
    /// Failures in a row by now.
    pub failures: u32,
    /// `good`, or why not; none before the first try.
    pub last: Option<String>,
    #[serde(with = "super::status::rfc3339::option")]
    pub at: Option<Timestamp>,
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Check::Exec { command } => write!(f, "exec {}", command.join(" ")),
            Check::Http { port, path, host: None } => write!(f, "http :{port}{path}"),
            Check::Http { port, path, host: Some(host) } => write!(f, "http :{port}{path} ({host})"),
            Check::Tcp { port } => write!(f, "tcp :{port}"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Good => f.pad("good"),
            Answer::Bad(why) => f.pad(why),
            Answer::Unasked(why) => write!(f, "not asked: {why}"),
        }
    }
}
