//! What a first pass would do on a machine that is made up: the real reading, planning and placing, and nobody there yet.

use super::Options;
use super::folder::Scan;
use super::state::State;
use crate::manifest::diagnostic::Diagnostic;
use crate::model::clock::Time;
use crate::model::cpuset::CpuSet;
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::plan::Act;
use serde::Serialize;
use std::collections::BTreeMap;

/// Who would be placed where, who would wait, and what is wrong with the manifests.
#[derive(Clone, Debug, Serialize)]
pub struct Rehearsal {
    pub placed: Vec<Seat>,
    pub waiting: Vec<Waiting>,
    pub diagnostics: Vec<Diagnostic>,
}

/// Where a workload would go.
#[derive(Clone, Debug, Serialize)]
pub struct Seat {
    pub workload: Name,
    pub cpus: CpuSet,
    pub reason: String,
}

/// Why one would not start.
#[derive(Clone, Debug, Serialize)]
pub struct Waiting {
    pub workload: Name,
    pub reason: String,
}

/// Plans the first pass.
pub fn rehearse(machine: Machine, scan: Scan, options: &Options, now: Time) -> Rehearsal {
    let mut state = State::new(machine, BTreeMap::new(), options);
    // Nothing is recorded, so nothing is waited for.
    state.take_scan(scan, now.steady);
    let plan = state.plan(None, now);
    let mut rehearsal =
        Rehearsal { placed: Vec::new(), waiting: Vec::new(), diagnostics: state.diagnostics().to_vec() };
    for work in plan.work {
        if let (Act::Start { .. }, Some(grant)) = (&work.act, work.record.and_then(|record| record.grant)) {
            rehearsal.placed.push(Seat { workload: work.name, cpus: grant.cpus, reason: grant.reason });
        }
    }
    let placed = |name: &Name| rehearsal.placed.iter().any(|seat| seat.workload == *name);
    for (workload, verdict) in plan.verdicts.iter().filter(|(name, _)| !placed(name)) {
        let finding = verdict.findings.iter().find(|finding| !finding.status);
        let reason = finding.map_or_else(String::new, |finding| finding.message.clone());
        rehearsal.waiting.push(Waiting { workload: workload.clone(), reason });
    }
    rehearsal
}
