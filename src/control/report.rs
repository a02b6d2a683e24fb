//! What is told of each workload after a pass, and whether anything is left to do.

use super::since;
use crate::manifest::diagnostic::Diagnostic;
use crate::model::exit::Exit;
use crate::model::gpu::GpuStatus;
use crate::model::name::Name;
use crate::model::observed::{Life, Observed};
use crate::model::record::{Grant, Moved, Record};
use crate::model::spec::Spec;
use crate::model::status::{Condition, ConditionKind, LastExit, LastMove, Phase, Status};
use crate::model::time::Timestamp;
use crate::model::units::Limit;
use crate::model::usage::Usage;
use crate::plan::{Finding, Input, Plan, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything there is to tell, after one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub statuses: BTreeMap<Name, Arc<Status>>,
    pub diagnostics: Vec<Diagnostic>,
    /// Why the manifests folder cannot be read, if it cannot.
    pub folder_error: Option<String>,
    /// The revision of the manifests folder, where it has one.
    pub folder_revision: Option<String>,
    /// What keeps the host from being as its manifests say, in sentences; empty when it is.
    pub unsettled: Vec<String>,
    /// Workloads whose deletion waits for consent.
    pub guarded: BTreeSet<Name>,
    /// The machine's GPUs, as of the last resync, and who holds what of them now.
    pub gpus: Vec<GpuStatus>,
    /// What each workload has used, as of the last resync.
    pub usage: BTreeMap<Name, Usage>,
}

/// Where the controller stands; `GET /v1/health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    pub version: String,
    pub workloads: usize,
    pub running: usize,
    pub converged: bool,
    /// The revision of the manifests folder: a git commit, or what a swapped link leads to.
    pub folder_revision: Option<String>,
    pub unsettled: Vec<String>,
}

impl Snapshot {
    /// What there is to tell before the first look.
    pub fn unread() -> Snapshot {
        let unsettled = vec!["the manifests folder has not been looked at yet".to_owned()];
        Snapshot { unsettled, ..Snapshot::default() }
    }

    /// A status with what the workload has used.
    pub fn with_usage(&self, status: &Status) -> Status {
        Status { usage: self.usage.get(&status.name).copied(), ..status.clone() }
    }

    pub fn health(&self) -> Health {
        let running = self.statuses.values().filter(|status| status.phase == Phase::Running).count();
        Health {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            workloads: self.statuses.len(),
            running,
            converged: self.unsettled.is_empty(),
            folder_revision: self.folder_revision.clone(),
            unsettled: self.unsettled.clone(),
        }
    }
}

/// The status of one workload. `before` is what was told last, for the times of its conditions.
pub fn status(
    input: &Input<'_>,
    name: &Name,
    verdict: &Verdict,
    cgroup: String,
    before: Option<&Status>,
) -> Option<Status> {
    let nothing = Observed::default();
    let seen = input.observed.get(name).unwrap_or(&nothing);
    let started_as = seen.instance.as_ref().and_then(|instance| instance.record.as_ref());
    let record: &Record = input.records.get(name).or(started_as)?;
    let spec = &record.spec;
    let life = seen.instance.as_ref().map(|instance| &instance.life);
    let pid = match life {
        Some(Life::Running { pid }) => Some(*pid),
        _ => None,
    };
    let settings = seen.group.iter().flat_map(|group| group.settings.iter());
    let settings: BTreeMap<String, String> =
        settings.map(|(file, value)| (file.to_owned(), value.to_owned())).collect();
    let now = input.clock.wall;
    let conditions = conditions(verdict, before, |finding| match before {
        // This controller's own first word of it: what it finds has become so under an earlier one.
        None => since::remembered(finding, record, seen.instance.as_ref(), now).unwrap_or(now),
        Some(_) => now,
    });
    let ready = conditions.iter().any(|condition| condition.kind == ConditionKind::Ready && condition.status);
    Some(Status {
        name: name.clone(),
        kind: spec.kind.to_string(),
        group: record.origin.path.rsplit_once('/').map_or("", |(group, _)| group).to_owned(),
        phase: verdict.phase,
        ready,
        pid,
        restarts: record.restarts,
        last_exit: verdict.last_exit.as_ref().map(last_exit),
        earlier_exits: record.earlier_exits.iter().map(last_exit).collect(),
        cpus: settings.get("cpuset.cpus").and_then(|cpus| cpus.parse().ok()).unwrap_or_default(),
        memory: memory_limit(&settings, spec),
        gpus: record.held().map(|grant| grant.gpus.clone()).unwrap_or_default(),
        cgroup,
        manifest: record.origin.path.clone(),
        revision: record.origin.revision.clone(),
        folder_revision: record.origin.folder.clone(),
        generation: record.generation.max(verdict.generation),
        observed_generation: observed_generation(verdict, before, started_as),
        conditions,
        started: seen.instance.as_ref().and_then(|instance| instance.started).filter(|_| pid.is_some()),
        command: spec.process.command.clone(),
        labels: spec.labels.clone(),
        probes: Vec::new(),
        moved: record.grant.as_ref().and_then(last_move),
        limits: settings,
        usage: None,
    })
}

fn last_move(grant: &Grant) -> Option<LastMove> {
    let Moved { from, at } = grant.moved.clone()?;
    Some(LastMove { from, to: grant.cpus.clone(), at, reason: grant.reason.clone() })
}

pub fn last_exit(exit: &Exit) -> LastExit {
    let Exit { instance, outcome, started, at } = exit;
    LastExit { run: *instance, code: outcome.code(), message: outcome.to_string(), started: *started, at: *at }
}

/// The limit in bytes that the kernel holds it to, or will.
fn memory_limit(settings: &BTreeMap<String, String>, spec: &Spec) -> Option<u64> {
    let held = ["memory.max", "memory.limit_in_bytes"].iter().find_map(|file| settings.get(*file));
    match (held, spec.resources.memory.limit) {
        // A limit of none is the word `max` or the largest number there is, in either generation's way.
        (Some(_), Limit::Max) | (None, _) => spec.resources.memory.limit.at().map(|bytes| bytes.0),
        (Some(held), Limit::At(_)) => held.parse().ok(),
    }
}

/// The generation in force. While a resize is under way it is the one before.
fn observed_generation(verdict: &Verdict, before: Option<&Status>, started_as: Option<&Record>) -> u64 {
    let started_as = started_as.map_or(0, |record| record.generation);
    match verdict.phase {
        Phase::Running | Phase::Starting if verdict.observed_generation == 0 => {
            before.map_or(started_as, |before| before.observed_generation.max(started_as))
        }
        _ => verdict.observed_generation,
    }
}

fn conditions(verdict: &Verdict, before: Option<&Status>, anew: impl Fn(&Finding) -> Timestamp) -> Vec<Condition> {
    let mut conditions: Vec<Condition> = Vec::new();
    for finding in &verdict.findings {
        let known = before.and_then(|before| {
            before.conditions.iter().find(|condition| {
                condition.kind == finding.kind
                    && condition.status == finding.status
                    && condition.reason == finding.reason
            })
        });
        conditions.push(Condition {
            kind: finding.kind,
            status: finding.status,
            reason: finding.reason.to_owned(),
            message: finding.message.clone(),
            since: known.map_or_else(|| anew(finding), |known| known.since),
        });
    }
    conditions.sort_by(|a, b| (a.kind, &a.reason).cmp(&(b.kind, &b.reason)));
    conditions
}

/// What keeps the host from being as it should be, once the plan's work has begun.
pub fn unsettled(input: &Input<'_>, plan: &Plan, snapshot: &Snapshot) -> Vec<String> {
    let mut reasons: Vec<String> = Vec::new();
    if !plan.guarded.is_empty() {
        let names: Vec<&str> = plan.guarded.iter().map(Name::as_str).collect();
        reasons.push(format!("the deletion of {} waits for `containerctl approve`", names.join(", ")));
    }
    reasons.extend(snapshot.folder_error.clone());
    let refused =
        snapshot.diagnostics.iter().filter(|found| found.severity == crate::manifest::diagnostic::Severity::Error);
    reasons.extend(refused.map(|found| format!("{}:{}:{}: {}", found.path, found.line, found.column, found.message)));
    for (name, verdict) in &plan.verdicts {
        // A job between two runs of its schedule is as it should be.
        let scheduled = verdict.findings.iter().any(|finding| finding.reason == "Scheduled");
        // Until an update is over, or has been mended, the host is not as its manifests say.
        let rolling = verdict.findings.iter().any(|finding| ["RollingOut", "RolledBack"].contains(&finding.reason));
        let settled =
            !rolling && (scheduled || matches!(verdict.phase, Phase::Running | Phase::Completed | Phase::Suspended));
        if !settled || input.busy.contains(name) {
            let finding = verdict
                .findings
                .iter()
                .rev()
                .find(|finding| !finding.status || finding.kind == ConditionKind::Degraded);
            let why = finding.map_or_else(|| "a step is under way".to_owned(), |finding| finding.message.clone());
            reasons.push(format!("{name} is {}: {why}", verdict.phase));
        }
    }
    reasons
}

/// Tells of each of these workloads that what is remembered of it is not saved.
pub fn unsaved(plan: &mut Plan, names: &BTreeSet<Name>, trouble: &str) {
    for (_, verdict) in plan.verdicts.iter_mut().filter(|(name, _)| names.contains(*name)) {
        let message = trouble.to_owned();
        verdict.findings.push(Finding { kind: ConditionKind::Degraded, status: true, reason: "NotSaved", message });
    }
}

/// A plan for people and programs; `containerctl plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    pub steps: Vec<PreviewStep>,
    pub diagnostics: Vec<Diagnostic>,
}

/// One planned step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewStep {
    pub workload: Name,
    /// start, resize, restore, stop, kill, clear, forget or remember; wait for one that has to.
    pub step: String,
    pub reason: String,
    /// What is written, `cpu.max = 200000 100000`.
    pub writes: Vec<String>,
}

/// What a plan would do, and who would wait.
pub fn preview(plan: &Plan, diagnostics: Vec<Diagnostic>) -> Preview {
    use crate::plan::Act;
    let mut steps = Vec::new();
    for work in &plan.work {
        let (step, writes) = match &work.act {
            Act::Remember => continue,
            Act::Start { writes, .. } => ("start", writes.as_slice()),
            Act::Resize { writes, .. } => ("resize", writes.as_slice()),
            Act::Restore { writes, .. } => ("restore", writes.as_slice()),
            Act::Stop { .. } => ("stop", &[][..]),
            Act::Kill => ("kill", &[][..]),
            Act::Clear => ("clear", &[][..]),
            Act::Forget => ("forget", &[][..]),
        };
        let writes = writes.iter().map(ToString::to_string).collect();
        steps.push(PreviewStep {
            workload: work.name.clone(),
            step: step.to_owned(),
            reason: work.reason.clone(),
            writes,
        });
    }
    for (name, verdict) in plan.verdicts.iter().filter(|(_, verdict)| verdict.phase == Phase::Pending) {
        if !steps.iter().any(|step| step.workload == *name) {
            let is_why = |finding: &&Finding| !finding.status && finding.kind != ConditionKind::Accepted;
            let why: Vec<&str> =
                verdict.findings.iter().filter(is_why).map(|finding| finding.message.as_str()).collect();
            let reason = why.join("; ");
            steps.push(PreviewStep { workload: name.clone(), step: "wait".to_owned(), reason, writes: Vec::new() });
        }
    }
    for name in &plan.guarded {
        let reason = "its manifest is gone with too many others; `containerctl approve` lets it be deleted".to_owned();
        steps.push(PreviewStep { workload: name.clone(), step: "wait".to_owned(), reason, writes: Vec::new() });
    }
    Preview { steps, diagnostics }
}
