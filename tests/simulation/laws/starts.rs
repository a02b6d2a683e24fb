//! Laws about the birth of a run.

use super::{UNDER_WAY_MAX, is_here, is_other, workload};
use crate::kernel::{Run, Stage};
use crate::world::{World, millis};
use containerctl::model::exit::Outcome;
use containerctl::model::gpu::{GpuLease, Share};
use containerctl::model::record::{Deletion, Record};
use containerctl::model::spec::{Kind, Restart, Spec};
use std::sync::Arc;

impl World {
    pub fn laws_of_a_start(&mut self, record: &Record) {
        self.law_one_at_a_time(record);
        self.law_gpus_are_leased_once(record);
        self.law_no_more_is_promised_than_there_is(record);
        self.law_jobs_complete_once(record);
        self.law_times_are_kept_once(record);
        self.law_no_start_before_its_time(record);
        self.law_none_before_those_it_comes_after(record);
        self.law_none_without_a_manifest(record);
        self.law_the_first_in_the_queue_is_not_passed(record);
    }

    fn law_one_at_a_time(&mut self, record: &Record) {
        self.judge("one at a time");
        let name = &record.spec.name;
        if let Some(id) = self.kernel.live(name) {
            let other = self.kernel.runs[id].number;
            self.violate(format!("run {} of {name} is started while run {other} lives", record.instance));
        }
        if self.kernel.there.iter().map(|id| &self.kernel.runs[*id]).any(|run| run.in_group && run.name == *name) {
            self.violate(format!("run {} of {name} is started in a group that is not empty", record.instance));
        }
    }

    /// No GPU is given twice: of whoever is started, nobody that lives holds one whole, whatever crashed in between.
    fn law_gpus_are_leased_once(&mut self, record: &Record) {
        let devices = |record: &Record| -> Vec<GpuLease> {
            record.grant.as_ref().map(|grant| grant.gpus.clone()).unwrap_or_default()
        };
        let mine = devices(record);
        if mine.is_empty() {
            return;
        }
        self.judge("GPUs are leased once");
        let clash = |run: &&Run| {
            let is_held = |lease: &GpuLease| {
                mine.iter().any(|own| own.gpu == lease.gpu && [own.share, lease.share].contains(&Share::Whole))
            };
            run.stage != Stage::Gone && run.name != record.spec.name && devices(&run.record).iter().any(is_held)
        };
        let other = self.kernel.there.iter().map(|id| &self.kernel.runs[*id]).find(clash).map(|run| run.name.clone());
        // When records were lost, and the traces of the run with them, nobody can know.
        if let (Some(other), false) = (other, self.lost_writes) {
            self.violate(format!("{} is started on a GPU of {other}, which lives", record.spec.name));
        }
    }

    fn law_jobs_complete_once(&mut self, record: &Record) {
        let spec = &record.spec;
        let Some((before, born)) = self.truth.completed.get(&spec.name).cloned() else { return };
        self.judge("a job that has succeeded is over");
        let anew = self.has_been(workload(&spec.name), born.saturating_sub(UNDER_WAY_MAX), |era| era.is_anew(&before));
        if !is_other(&before, spec) && !anew {
            self.violate(format!("{} has succeeded and is run again", spec.name));
        }
    }

    fn law_times_are_kept_once(&mut self, record: &Record) {
        let Some(due) = due(record) else { return };
        self.judge("a time of a schedule is kept once");
        let again = self.runs_of(&record.spec.name).find(|run| {
            let done = run.own_end && run.reported && !run.excused && run.end == Some(Outcome::Exited { code: 0 });
            done && due_of(run) == Some(due) && self.truth.clock_back.is_none_or(|at| at < run.born)
        });
        if let Some((number, born)) = again.map(|run| (run.number, run.born)) {
            let name = &record.spec.name;
            let anew =
                self.has_been(workload(name), born.saturating_sub(UNDER_WAY_MAX), |era| era.is_against(&record.spec));
            if !anew {
                self.violate(format!(
                    "run {number} of {name} was for {due} and has succeeded, and there is another for it"
                ));
            }
        }
    }

    /// Whoever ends by itself waits, longer each time.
    fn law_no_start_before_its_time(&mut self, record: &Record) {
        let (spec, boot) = (&record.spec, self.kernel.boot);
        let Restart { initial_delay, max_delay, reset_after, .. } = spec.restart;
        let (mut next, mut failures) = (self.now, 0);
        for run in self.runs_of(&spec.name).rev() {
            let was = &run.record.spec;
            // An edit there and back is two edits, and an update that is taken back is one too.
            let same = !is_other(was, spec)
                && record.generation == run.record.generation
                && (&was.restart, &was.job, &was.resources) == (&spec.restart, &spec.job, &spec.resources);
            let counts = run.own_end && run.reported && !run.excused && run.boot == boot && same;
            if !counts || next - run.born >= millis(reset_after) {
                // One that lasted, or may have been taken for it, is the first of a new row.
                failures += u32::from(counts && failures == 0);
                break;
            }
            (next, failures) = (run.born, failures + 1);
        }
        let last = self.runs_of(&spec.name).next_back();
        let Some((born, ended)) = last.and_then(|run| Some((run.born, run.ended_at?))) else { return };
        if failures == 0 || spec.job.schedule.is_some() || self.truth.flush_failed {
            return;
        }
        let from = born.saturating_sub(UNDER_WAY_MAX);
        if self.has_been(workload(&spec.name), from, |era| {
            era.is_against(spec)
                || era.claims.iter().any(|claim| claim.job != spec.job || claim.restart != spec.restart)
        }) {
            return;
        }
        self.judge("no start before its time");
        let delay = millis(initial_delay.saturating_mul(1 << (failures - 1).min(20)).min(max_delay));
        if self.now < ended + delay {
            let early = ended + delay - self.now;
            self.violate(format!("{} is started {early} ms too early after {failures} ends in a row", spec.name));
        }
    }

    /// Services are there, jobs are done. What was there until a moment ago may still be taken to be.
    fn law_none_before_those_it_comes_after(&mut self, record: &Record) {
        for other in record.spec.after.clone() {
            let (claims, _, broken) = self.shelf.claims(other.as_str(), self.now);
            let claims: Vec<Arc<Spec>> = claims.into_iter().filter(|claim| is_here(claim)).collect();
            let edited = |eras: &Vec<super::Era>| {
                eras.last().is_some_and(|era| era.at + UNDER_WAY_MAX >= self.now || era.at > self.shelf.told_at)
            };
            // Nor does anybody know of an edit while the folder is gone, or cannot be read.
            let hidden = self.shelf.gone_until + UNDER_WAY_MAX >= self.now;
            let hidden = hidden || !self.shelf.is_known(other.as_str());
            let lately = hidden || self.truth.eras.get(other.as_str()).is_none_or(edited);
            // What is refused because it waits for itself counts as what was there before.
            let refused = broken || self.goes_in_a_circle(&other);
            let Some(first) = claims.first().filter(|_| !refused && !lately) else { continue };
            let count = |claim: &Spec| claim.replica.as_ref().map(|replica| replica.count);
            let differs =
                |claim: &Spec| claim.kind != first.kind || is_other(claim, first) || count(claim) != count(first);
            if claims.iter().any(|claim| differs(claim)) {
                continue;
            }
            self.judge("none before those it comes after");
            if let Some(missing) = claims.iter().find(|claim| !self.is_or_was_there(claim)) {
                let what = format!("{} is started although {} is not there", record.spec.name, missing.name);
                return self.violate(what);
            }
        }
    }

    /// What this controller has seen no file about may be deleted: it is not for it to start it, unless its deletion waits for consent.
    fn law_none_without_a_manifest(&mut self, record: &Record) {
        let name = &record.spec.name;
        self.judge("none without a manifest");
        if record.deletion != Some(Deletion::Held) && self.shelf.is_untold(workload(name)) {
            self.violate(format!("{name} is started, and this controller has seen no manifest of it"));
        }
    }

    fn is_or_was_there(&self, claim: &Spec) -> bool {
        let done = |run: &Run| run.excused || run.end == Some(Outcome::Exited { code: 0 });
        let lately = |run: &Run| match run.ended_at {
            None => run.stage == Stage::Running,
            Some(ended) => ended + UNDER_WAY_MAX >= self.now || run.excused,
        };
        // What is known of a job whose record outlives its runs' excuses is known from there.
        let known = self.disk.record(&claim.name).is_some_and(|record| {
            record.last_exit.is_some_and(|exit| exit.outcome.is_success())
                && (record.finished || record.spec.job.schedule.is_some())
        });
        let mut runs = self.runs_of(&claim.name);
        match claim.kind {
            Kind::Job => known || runs.any(done),
            Kind::Service => known || runs.any(lately),
        }
    }
}

/// Which time of its schedule a run is for.
pub fn due_of(run: &Run) -> Option<containerctl::model::time::Timestamp> {
    due(&run.record)
}

fn due(record: &Record) -> Option<containerctl::model::time::Timestamp> {
    record.spec.job.schedule.as_ref()?;
    Some(record.scheduled.as_ref()?.due.as_ref()?.at)
}
