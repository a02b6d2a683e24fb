//! What people and programs are told about a workload.

use super::cpuset::CpuSet;
use super::gpu::GpuLease;
use super::name::Name;
use super::probe::ProbeStatus;
use super::time::Timestamp;
use super::usage::Usage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Where a workload is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Wanted, not started: waiting for room, for a resource or for the next try.
    Pending,
    /// Being set up.
    Starting,
    Running,
    /// Asked to end.
    Stopping,
    /// A job that succeeded, or a service that ended and is not to be restarted.
    Completed,
    /// Could not be started, or ended badly and is not to be restarted.
    Failed,
    /// Kept from running by its manifest.
    Suspended,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Pending => "Pending",
            Phase::Starting => "Starting",
            Phase::Running => "Running",
            Phase::Stopping => "Stopping",
            Phase::Completed => "Completed",
            Phase::Failed => "Failed",
            Phase::Suspended => "Suspended",
        })
    }
}

/// One observation about a workload, in the manner of Kubernetes conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    pub status: bool,
    /// One word for programs, `BackOff`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// When `status` and `reason` became what they are, as far as this controller has seen; what it found so, as far as records and runs
    /// tell (`control::since` says which do).
    #[serde(with = "rfc3339")]
    pub since: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConditionKind {
    /// The manifest in the folder is what the controller works towards.
    Accepted,
    /// CPUs and GPUs are set aside for it.
    Placed,
    /// It runs and can serve.
    Ready,
    /// It runs, but not entirely as its manifest says.
    Degraded,
    /// No process of the host runs on the CPUs it is to have alone. Only of running workloads of class exclusive.
    Exclusive,
}

/// How the last run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// Which run it was, counted from 1 over the life of the workload.
    #[serde(default)]
    pub run: u64,
    /// As a shell would show it.
    pub code: i32,
    pub message: String,
    /// When that run's command began; none if it never did.
    #[serde(with = "rfc3339::option")]
    pub started: Option<Timestamp>,
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
}

/// Everything about one workload; the element of `ps -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub name: Name,
    pub kind: String,
    /// The sub-folder its manifest lies in, empty at the top.
    pub group: String,
    pub phase: Phase,
    pub ready: bool,
    /// The command's process on the host.
    pub pid: Option<u32>,
    pub restarts: u32,
    pub last_exit: Option<LastExit>,
    /// The ends before that one, oldest first.
    #[serde(default)]
    pub earlier_exits: Vec<LastExit>,
    pub cpus: CpuSet,
    /// The memory limit in bytes, none for no limit.
    pub memory: Option<u64>,
    pub gpus: Vec<GpuLease>,
    /// Path of its cgroup below the hierarchy's root.
    pub cgroup: String,
    /// Path of its manifest below the manifests folder.
    pub manifest: String,
    /// The beginning of the SHA-256 of the file its spec was read from.
    pub revision: String,
    /// The revision of the folder (a git commit, or what a swapped link led to) that its spec came with.
    #[serde(default)]
    pub folder_revision: Option<String>,
    pub generation: u64,
    /// The generation that the running process and its limits reflect, 0 while there is none.
    pub observed_generation: u64,
    pub conditions: Vec<Condition>,
    /// When the current run began.
    #[serde(with = "rfc3339::option")]
    pub started: Option<Timestamp>,
    pub command: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// The last tries of its probes; only where one workload is asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeStatus>,
    /// Control files of its cgroup as last read from the kernel.
    pub limits: BTreeMap<String, String>,
    /// The last move to other CPUs under the running process, and why; only if it is where that put it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<LastMove>,
    /// What it has used, as of the last resync; none while nothing runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A move of a running workload by the rebalancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastMove {
    pub from: CpuSet,
    pub to: CpuSet,
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    pub reason: String,
}

impl ConditionKind {
    /// What a workload is called when this is not as it should be.
    pub fn when_wrong(self) -> &'static str {
        match self {
            ConditionKind::Accepted => "NotAccepted",
            ConditionKind::Placed => "NotPlaced",
            ConditionKind::Ready => "NotReady",
            ConditionKind::Degraded => "Degraded",
            ConditionKind::Exclusive => "NotExclusive",
        }
    }
}

impl Status {
    pub fn condition(&self, kind: ConditionKind) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

/// Times as RFC 3339 text in JSON.
pub(crate) mod rfc3339 {
    use super::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's `with` passes a reference")]
    pub fn serialize<S: Serializer>(time: &Timestamp, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(time)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(from)?;
        let time: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        u64::try_from(time.as_millisecond()).map(Timestamp).map_err(D::Error::custom)
    }

    pub mod option {
        use super::Timestamp;
        use serde::{Deserialize, Deserializer, Serializer};

        #[allow(clippy::ref_option, reason = "serde's `with` passes a reference")]
        pub fn serialize<S: Serializer>(time: &Option<Timestamp>, out: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => out.collect_str(time),
                None => out.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
            #[derive(Deserialize)]
            struct Wrapped(#[serde(with = "super")] Timestamp);
            Ok(Option::<Wrapped>::deserialize(from)?.map(|Wrapped(time)| time))
        }
    }
}
