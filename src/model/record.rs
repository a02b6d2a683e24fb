//! What the controller remembers about a workload across its own restarts: what was intended, allocated and has happened.
//!
//! Invariant: a record is put before the step it describes is taken, so that after a crash the record is at most one step ahead of the
//! kernel. The database may be a moment behind; the record a run is started from lies beside the run before anything runs, and the
//! newer of the two counts.

use super::clock::{Clock, Moment};
use super::cpuset::CpuSet;
use super::exit::Exit;
use super::gpu::GpuLease;
use super::isolation::IdRange;
use super::name::Name;
use super::probe::ProbeKind;
use super::spec::{Kind, Spec};
use super::time::Timestamp;
use super::units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// One workload's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The last good spec: what runs, or should. Shared: it is passed on a lot and never changed.
    pub spec: Arc<Spec>,
    pub origin: Origin,
    /// Since when it is known: tells this life of its name from those before, whose manifests were deleted. None in older records, which
    /// nothing tells apart but their run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_since: Option<Moment>,
    /// Counts accepted changes of the spec, from 1.
    pub generation: u64,
    /// Counts runs, from 1; 0 before the first.
    pub instance: u64,
    /// When the newest run was begun, as long as nothing is known of its end.
    #[serde(default)]
    pub begun: Option<Moment>,
    /// Whether that run is known to have been made: then it has ended if nothing of it is left, and not just never begun.
    #[serde(default, skip_serializing_if = "is_false")]
    pub made: bool,
    /// The CPUs and GPUs set aside, while it runs or is about to; of a job that waits for another try those it had ([`Record::held`]).
    pub grant: Option<Grant>,
    /// The ids its user namespace maps. Kept for as long as the workload is known, so that nobody else meets files it may have left.
    #[serde(default)]
    pub ids: Option<IdRange>,
    /// Runs begun by the controller because the one before had ended by itself.
    pub restarts: u32,
    /// Failures in a row, for the backoff.
    pub failures: u32,
    /// Failures of a job since it was last given its task, against its `retries`.
    #[serde(default)]
    pub failed_tries: u32,
    /// Not to be started before this.
    pub retry_at: Option<Moment>,
    pub last_exit: Option<Exit>,
    /// The ends before that one, oldest first, at most [`EARLIER_EXITS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_exits: Vec<Exit>,
    /// Its work is done, or it may not be tried again: it is not started any more unless its process changes.
    pub finished: bool,
    pub stopping: Option<Stopping>,
    /// How far the job's schedule has been dealt with; none for one without.
    #[serde(default)]
    pub scheduled: Option<Scheduled>,
    /// How far its deletion has got, if its manifest is gone and that has not led to its end at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
    /// What it had before an update that is not over.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// What its manifest asks for and was found to be no good.
    #[serde(default)]
    pub refused: Option<Refused>,
    /// Since when a job has been waiting for room, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<Moment>,
    /// Whom it has had stopped to make room for it, until it starts or that has led to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempting: Option<Preempting>,
}

/// Runs that were stopped for a newcomer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preempting {
    /// Which run of whom.
    pub runs: BTreeMap<Name, u64>,
    /// Of the newcomer: an edit asks for something else, and may preempt anew.
    pub generation: u64,
    /// When they were chosen. None in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Moment>,
    /// Whether they were to be started anew on other devices, and not for their priority.
    #[serde(default)]
    pub moves: bool,
}

/// How far the deletion of a workload has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Deletion {
    /// Too many manifests have gone with its own: it waits for consent.
    Held,
    /// Somebody has consented.
    Approved,
    /// It was decided on without anybody's consent, and is seen through.
    Begun,
}

/// An update that is not over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The last good spec, and where it was read.
    pub previous: Arc<Spec>,
    pub origin: Origin,
    /// When it was its turn.
    pub since: Moment,
}

/// A spec that did not become ready. It is not tried again until the manifest says something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub spec: Arc<Spec>,
    pub generation: u64,
    pub reason: String,
    pub at: Moment,
    /// The manifest it came with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// How far a schedule has been dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduled {
    /// Every time up to this one has been kept or left out.
    pub handled: Timestamp,
    /// The run that is to be made, or being made.
    pub due: Option<Due>,
    /// The last run that was not made, and why.
    pub left_out: Option<LeftOut>,
}

/// A run whose time has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    pub at: Timestamp,
    /// Whether it has been started, once at least.
    pub begun: bool,
}

/// A run that was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub at: Timestamp,
    pub reason: String,
}

/// Where a spec was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Relative to the manifests folder.
    pub path: String,
    /// The first line of the document, from 1.
    pub line: u64,
    /// The beginning of the SHA-256 of the file, in hex.
    pub revision: String,
    /// The revision of the whole folder that this came with, where it has one: a git commit, or what a swapped link led to.
    #[serde(default)]
    pub folder: Option<String>,
}

impl Origin {
    /// Whether both are the same lines of the same file, whichever revision of the folder they were met in.
    pub fn is_same_text(&self, other: &Origin) -> bool {
        let Origin { path, line, revision, folder: _ } = self;
        (path, line, revision) == (&other.path, &other.line, &other.revision)
    }
}

/// A stop that has begun; it is seen through even if the reason goes away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// When the stop signal was sent, or was about to be.
    pub since: Moment,
    /// When it was decided on, as the wall had it: what ended before has ended by itself. None in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<Timestamp>,
    /// Whether it is known to have been sent. Known before as soon as it was decided on.
    #[serde(default = "asked")]
    pub asked: bool,
    /// When the whole cgroup was last killed, the grace being over.
    pub killed: Option<Moment>,
    pub reason: String,
    /// Whether it is a job's timeout that ends it.
    #[serde(default)]
    pub timed_out: bool,
    /// That timeout: the manifest may say another by the time it has ended. None in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// The probe it is stopped for. That counts as a failure of its own, however it then ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<ProbeKind>,
    /// The workload of a higher priority that it makes room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempted_for: Option<Name>,
}

fn asked() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's `skip_serializing_if` passes a reference")]
fn is_false(what: &bool) -> bool {
    !what
}

/// An end that was decided on so much later than it happened was not unseen for so long: the clock was set in between. Looks follow an end
/// within milliseconds, or seconds on a host that is out of breath; a controller that begins looks before it decides anything.
const UNSEEN_MAX: Duration = Duration::from_secs(30);

impl Stopping {
    /// One that begins with the stop signal.
    pub fn by_asking(now: Moment, reason: String) -> Stopping {
        let decided = Some(now.wall);
        Stopping {
            since: now,
            decided,
            asked: false,
            killed: None,
            reason,
            timed_out: false,
            timeout: None,
            failed: None,
            preempted_for: None,
        }
    }

    /// One that begins with its end.
    pub fn by_force(now: Moment, reason: String) -> Stopping {
        Stopping { asked: true, killed: Some(now.clone()), ..Stopping::by_asking(now, reason) }
    }

    /// Whether a run had ended when it was decided to end it: then it did so by itself.
    pub fn came_late(&self, exit: &Exit) -> bool {
        self.decided.is_some_and(|decided| exit.at < decided && decided.since(exit.at) <= UNSEEN_MAX)
    }
}

/// CPUs and GPUs set aside for a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The CPUs of the domain it was placed in; those that became exclusive to another since are left out when it is applied.
    pub cpus: CpuSet,
    /// CPUs nobody else may use: the granted ones and the idle siblings of their cores. Empty unless `exclusive`.
    pub fenced: CpuSet,
    pub gpus: Vec<GpuLease>,
    /// What admission has set aside; an edit that does not fit leaves it as it was.
    #[serde(default)]
    pub requested: Requested,
    /// Why these, for people.
    pub reason: String,
    /// Where the rebalancer moved it from, if that is how it came by its CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
}

/// A move between CPUs under a running workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    pub from: CpuSet,
    pub at: Timestamp,
}

/// CPU time and memory that nobody else is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requested {
    pub cpu: MilliCpu,
    pub memory: Bytes,
}

/// Ends that are remembered beside the last one: enough to tell a crash loop from a bad night, little beside the spec in the same record.
pub const EARLIER_EXITS_MAX: usize = 9;

impl Record {
    /// Which of two speaks for a workload: what is stored, or what its newest run was started from. Within a life the later run counts. A disk
    /// that takes nothing keeps the record of a life that is over, which says nothing about the one that came after, however many runs it
    /// counts.
    pub fn in_force<'a>(
        stored: Option<&'a Record>,
        started_as: Option<&'a Record>,
        clock: &Clock<'_>,
    ) -> Option<&'a Record> {
        let (Some(stored), Some(started_as)) = (stored, started_as) else { return stored.or(started_as) };
        let is_newer = match (&stored.known_since, &started_as.known_since) {
            (Some(stored), Some(started)) if stored != started => clock.is_later(started, stored),
            _ => stored.instance < started_as.instance,
        };
        Some(if is_newer { started_as } else { stored })
    }

    /// What is set aside for it, as far as its record tells. A job that waits for another try has nothing: it would keep from others what it
    /// does not use, for minutes each time, and could not be stopped for anybody. What it had is what it would like to have again.
    /// A service keeps its room: it is down for a moment, and in its place somebody would start who does not mean to end.
    pub fn held(&self) -> Option<&Grant> {
        let is_between_tries = self.spec.kind == Kind::Job && self.retry_at.is_some();
        self.grant.as_ref().filter(|_| !is_between_tries)
    }

    /// Whether nothing is to follow what has ended: another try would do a second time what is done, or has been given up.
    pub fn is_over(&self) -> bool {
        self.finished || self.scheduled.as_ref().is_some_and(|scheduled| scheduled.due.is_none())
    }

    /// Notes how a run has ended.
    pub fn note_exit(&mut self, exit: Exit) {
        self.earlier_exits.extend(self.last_exit.replace(exit));
        let over = self.earlier_exits.len().saturating_sub(EARLIER_EXITS_MAX);
        self.earlier_exits.drain(..over);
    }

    /// The record of a workload that was never run.
    pub fn new(spec: Arc<Spec>, origin: Origin) -> Record {
        Record {
            spec,
            origin,
            known_since: None,
            generation: 1,
            instance: 0,
            begun: None,
            made: false,
            grant: None,
            ids: None,
            restarts: 0,
            failures: 0,
            failed_tries: 0,
            retry_at: None,
            last_exit: None,
            earlier_exits: Vec::new(),
            finished: false,
            stopping: None,
            scheduled: None,
            deletion: None,
            rollout: None,
            refused: None,
            queued: None,
            preempting: None,
        }
    }
}
