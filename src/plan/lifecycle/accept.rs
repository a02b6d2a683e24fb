//! Which record a pass works from, and what of an edit needs a new process.

use super::end::is_last;
use crate::model::clock::Clock;
use crate::model::desired::{Desired, Held, Wanted};
use crate::model::gpu::GpuRequest;
use crate::model::observed::Observed;
use crate::model::record::{Record, Rollout};
use crate::model::replica::Strategy;
use crate::model::spec::Spec;
use crate::model::status::ConditionKind;
use crate::plan::Finding;
use crate::plan::rollout::{Course, is_same};
use std::sync::Arc;

/// The record this pass works from: the stored one, or a newer one that a run was started from, brought up to the manifest. With it,
/// whether the manifest has changed.
pub(super) fn accept(
    record: Option<&Record>,
    wanted: Option<&Wanted>,
    seen: &Observed,
    course: Option<&Course>,
    clock: &Clock<'_>,
) -> Option<(Record, bool)> {
    // There may be a run the database has not heard of yet: the controller was killed between starting it and writing that down.
    let newest = Record::in_force(record, seen.started_as(), clock);
    // Whether it is to be deleted has nothing to do with its runs, and nothing with an earlier life.
    let stored = record.filter(|record| newest.is_some_and(|newest| record.known_since == newest.known_since));
    let deletion = stored.or(newest).and_then(|record| record.deletion);
    let Some(mut record) = newest.map(|record| Record { deletion, ..record.clone() }) else {
        let (Wanted { spec, origin }, refused) = match course {
            Some(Course::Join(good, refused)) => (good.as_ref(), Some(refused.clone())),
            _ => (wanted?, None),
        };
        let rollout = match course {
            Some(Course::Debut(good)) => {
                let Wanted { spec, origin } = good.as_ref().clone();
                Some(Rollout { previous: spec, origin, since: clock.now() })
            }
            _ => None,
        };
        let (new, known_since) = (Record::new(Arc::clone(spec), origin.clone()), Some(clock.now()));
        return Some((Record { known_since, rollout, refused, ..new }, true));
    };
    let Some(Wanted { spec, origin }) = wanted else { return Some((record, false)) };
    // A manifest that is back takes every consent with it.
    record.deletion = None;
    if let Some(changed) = follow(&mut record, spec, course, clock) {
        return Some((record, changed));
    }
    let changed = record.spec != *spec;
    if changed {
        record.generation += 1;
        if !replacement_reasons(&record.spec, spec).is_empty() {
            // Another process: what became of the old one says nothing about it.
            (record.failures, record.failed_tries, record.retry_at, record.finished) = (0, 0, None, false);
        }
        if record.spec.job.schedule != spec.job.schedule {
            // Times of the old one are not the new one's to make up for.
            record.scheduled = None;
        }
        // More retries, or another restart policy: what was over may go on. A job that succeeded is done under any.
        let last = record.last_exit.as_ref().filter(|_| record.finished);
        if last.is_some_and(|exit| !is_last(spec, &exit.outcome, record.failed_tries)) {
            (record.finished, record.retry_at) = (false, None);
        }
        record.spec = Arc::clone(spec);
    }
    // The same text under a newer revision of the folder: the spec came with the older one, and an idle folder writes no record.
    if !record.origin.is_same_text(origin) || record.origin.folder.is_none() {
        record.origin = origin.clone();
    }
    Some((record, changed))
}

/// What an update means for the record; whether it has changed by it, if it is not simply to take what is wanted.
fn follow(record: &mut Record, wanted: &Arc<Spec>, course: Option<&Course>, clock: &Clock<'_>) -> Option<bool> {
    match course {
        Some(Course::Wait) => return Some(false),
        Some(Course::Stay(refused) | Course::Join(_, refused)) => {
            record.refused = Some(refused.clone());
            return Some(false);
        }
        Some(Course::Return(refused)) => {
            record.refused = Some(refused.clone());
            let Some(Rollout { previous, origin, .. }) = record.rollout.take() else { return Some(false) };
            let spec = Spec { replica: wanted.replica.clone(), ..previous.as_ref().clone() };
            (record.spec, record.origin) = (Arc::new(spec), origin);
            record.generation += 1;
            (record.failures, record.failed_tries, record.retry_at, record.finished) = (0, 0, None, false);
            return Some(true);
        }
        // What was a job is no service to go back to.
        Some(Course::Move) if record.spec.kind != wanted.kind => record.rollout = None,
        Some(Course::Move) => {
            // What was good before the first of several edits is what to go back to.
            let (previous, origin) = match record.rollout.take() {
                Some(Rollout { previous, origin, .. }) => (previous, origin),
                None => (Arc::clone(&record.spec), record.origin.clone()),
            };
            record.rollout = Some(Rollout { previous, origin, since: clock.now() });
        }
        Some(Course::Settle) => record.rollout = None,
        // Who is not to run has nothing to go back to, and whoever runs again begins with what is wanted then.
        None if wanted.strategy == Strategy::Recreate || wanted.suspend => record.rollout = None,
        None | Some(Course::Debut(_)) => {}
    }
    if record.refused.as_ref().is_some_and(|refused| !is_same(&refused.spec, wanted)) {
        record.refused = None;
    }
    None
}

/// What of a changed spec needs a new process, by field.
pub(in crate::plan) fn replacement_reasons(from: &Arc<Spec>, to: &Arc<Spec>) -> Vec<&'static str> {
    let mut fields = Vec::new();
    if Arc::ptr_eq(from, to) {
        return fields;
    }
    let (old, new) = (&from.process, &to.process);
    for (field, same) in [
        ("kind", from.kind == to.kind),
        ("command", old.command == new.command),
        ("env", old.env == new.env),
        ("workdir", old.workdir == new.workdir),
        ("user", old.user == new.user),
        ("rootfs", old.rootfs == new.rootfs),
        ("volumes", old.volumes == new.volumes),
        ("network", old.network == new.network),
        ("security", old.security == new.security),
        ("rlimits", old.rlimits == new.rlimits),
        ("oomScoreAdj", old.oom_score_adj == new.oom_score_adj),
        ("gpu", is_same_gpu(from.gpu.as_ref(), to.gpu.as_ref())),
    ] {
        if !same {
            fields.push(field);
        }
    }
    fields
}

fn is_same_gpu(from: Option<&GpuRequest>, to: Option<&GpuRequest>) -> bool {
    match (from, to) {
        (Some(from), Some(to)) => from.is_same_device(to),
        (from, to) => from.is_none() && to.is_none(),
    }
}

pub(super) fn accepted(record: &Record, desired: &Desired, course: Option<&Course>, changed: bool) -> Finding {
    let Record { spec, generation, origin, .. } = record;
    let Desired { wanted, held, guarded, away, refused: _, elsewhere } = desired;
    let name = &spec.name;
    let (status, reason, message) = match (wanted.get(name), held.get(name)) {
        (Some(wanted), _) if matches!(course, Some(Course::Wait)) => {
            let message = format!("{} (revision {}) waits for its turn", wanted.origin.path, wanted.origin.revision);
            (false, "RollingOut", format!("{message}; generation {generation} goes on until the others are ready"))
        }
        (Some(wanted), _)
            if let Some(Course::Return(refused) | Course::Stay(refused) | Course::Join(_, refused)) = course =>
        {
            let message = format!("{} (revision {}) was taken back", wanted.origin.path, wanted.origin.revision);
            let goes_on = match &record.rollout {
                Some(rollout) => format!("it goes back to revision {} in its turn", rollout.origin.revision),
                None => format!("revision {} goes on until the manifest changes", origin.revision),
            };
            (false, "RolledBack", format!("{message}: {}; {goes_on}", refused.reason))
        }
        (Some(_), _) if changed => (true, "Current", format!("generation {generation} accepted")),
        (Some(_), _) => (true, "Current", format!("{}:{} is what runs", origin.path, origin.line)),
        (None, Some(Held { finding, .. })) if guarded.contains(name) => (false, "DeletionHeld", finding.clone()),
        (None, Some(Held { finding, .. })) if away.contains(name) => (false, "ManifestAway", finding.clone()),
        (None, Some(Held { path, revision, finding })) => {
            let refused = revision.as_ref().map(|revision| format!(" (revision {revision})")).unwrap_or_default();
            let runs = format!("generation {generation} (revision {}) goes on as it was", origin.revision);
            (false, "Refused", format!("{path} cannot be accepted{refused}: {finding}; {runs}"))
        }
        (None, None) => match elsewhere.get(name) {
            Some(mismatch) => (false, "OtherHost", mismatch.clone()),
            None => match fewer(spec, desired) {
                Some(fewer) => (false, "Deleted", fewer),
                None => (false, "Deleted", format!("{} is gone", origin.path)),
            },
        },
    };
    Finding { kind: ConditionKind::Accepted, status, reason, message }
}

/// Whether it is not wanted any more because its workload asks for fewer replicas.
pub(super) fn fewer(spec: &Spec, desired: &Desired) -> Option<String> {
    let Wanted { spec: now, origin } = desired.wanted.get(spec.workload()).filter(|_| spec.replica.is_some())?;
    let count = now.replica.as_ref().map_or(1, |replica| replica.count);
    Some(format!("{} asks for {count} of {}", origin.path, now.name))
}
