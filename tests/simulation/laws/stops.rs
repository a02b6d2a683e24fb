//! Laws about what is asked to end, or killed.

use super::starts::due_of;
use super::{UNDER_WAY_MAX, is_here, is_other, workload};
use crate::folder::File;
use crate::kernel::{Run, RunId, Stage};
use crate::vocabulary::PROGRESS_DEADLINE;
use crate::world::{World, millis};
use containerctl::model::job::Concurrency;
use containerctl::model::name::Name;
use containerctl::model::replica::{Strategy, is_of};
use containerctl::model::spec::{Kind, RestartPolicy, Spec};
use std::collections::BTreeSet;
use std::sync::Arc;

/// So many are deleted without being asked, if half of all that run are no more than that.
const GUARDED_MIN: usize = 3;

impl World {
    pub fn laws_of_a_stop(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let healthy = matches!(run.stage, Stage::SettingUp | Stage::Running) && !run.excused && !run.asked_to_stop;
        if !healthy {
            return;
        }
        self.law_no_stop_without_a_reason(id);
        self.law_the_guard_holds(id);
        self.law_who_depends_leaves_first(id);
        self.law_an_update_leaves_enough(id);
        self.law_an_update_is_taken_back_for_a_reason(id);
    }

    /// The folder is about to be emptied: those that run as they are wanted, if there are more of them than the guard lets go without being
    /// asked. Who may end for another reason, an update or a probe, is left out.
    pub fn note_who_is_guarded(&mut self) {
        let is_plain =
            |spec: &Spec| spec.kind == Kind::Service && spec.strategy == Strategy::Recreate && spec.probes.is_empty();
        let stays = |run: &&Run| {
            let spec = &run.record.spec;
            let from = run.born.saturating_sub(UNDER_WAY_MAX);
            run.stage == Stage::Running
                && is_plain(spec)
                && self.disk.record(&run.name).is_some_and(|record| record.deletion.is_none() && record.spec == *spec)
                && !self.has_been(workload(&run.name), from, |era| era.is_against(spec) || era.broken)
        };
        let there = self.kernel.there.iter().map(|id| &self.kernel.runs[*id]);
        let names: BTreeSet<Name> = there.filter(stays).map(|run| run.name.clone()).collect();
        // A job, or a service that may be over, may count among those at rest a moment later.
        let goes_on = |claim: &Spec| claim.kind == Kind::Service && claim.restart.policy == RestartPolicy::Always;
        let is_counted = |claim: &&Arc<Spec>| {
            let record = self.disk.record(&claim.name);
            goes_on(claim)
                && !claim.suspend
                && record.is_some_and(|record| record.deletion.is_none() && !record.finished && record.spec == **claim)
        };
        let all: Vec<Arc<Spec>> =
            self.shelf.names.iter().flat_map(|name| self.shelf.claims(name, self.now).0).collect();
        let counted: BTreeSet<&Name> = all.iter().filter(is_counted).map(|claim| &claim.name).collect();
        let is_on = self.prune_guard && self.shelf.is_whole(self.now) && counted.len() > GUARDED_MIN;
        let counts = is_on && !names.is_empty();
        if counts {
            self.judge("the guard holds");
        }
        self.truth.guarded = Some((self.now, names)).filter(|_| counts);
    }

    /// Somebody writes a file: what it is about is asked for again. Before the files have been away for long, the others may be few enough.
    pub fn note_who_is_back(&mut self, of: &str) {
        let now = self.now;
        self.truth.guarded.take_if(|(at, _)| now < *at + UNDER_WAY_MAX);
        if let Some((_, names)) = &mut self.truth.guarded {
            names.retain(|name| workload(name) != of);
        }
    }

    /// Of those that a folder takes along that is emptied at once none is stopped, unless somebody consents.
    fn law_the_guard_holds(&mut self, id: RunId) {
        let name = self.kernel.runs[id].name.clone();
        let Some((_, names)) = &self.truth.guarded else { return };
        let held = names.contains(&name);
        if held {
            self.violate(format!(
                "{name} is stopped with all others that have lost their manifests, and nobody consented"
            ));
        }
    }

    /// For many programs a second signal means to end without delay.
    pub fn law_asked_once(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        if run.stage != Stage::Running || self.truth.disturbed {
            return;
        }
        let (again, name, number) = (run.asked_by == Some(self.incarnation), run.name.clone(), run.number);
        self.judge("asked once");
        if again {
            self.violate(format!("run {number} of {name} is asked to end twice by one controller"));
        }
    }

    /// Half of the grace at least: where asking fails, it is reckoned from the first try.
    pub fn law_killed_after_its_grace(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        if run.stage != Stage::Running || run.excused || run.killed {
            return;
        }
        let grace = self.asked_of(run).iter().map(|spec| millis(spec.stop.grace)).min().unwrap_or(0);
        let early = run.tried_at.is_none_or(|tried| self.now < tried + grace / 2);
        let (name, number, gave_way) = (run.name.clone(), run.number, run.gave_way);
        self.judge("killed after its grace only");
        if gave_way {
            self.judge("who gives way has its grace");
        }
        if early {
            self.violate(format!("run {number} of {name} is killed before its grace is over"));
        }
    }

    fn law_no_stop_without_a_reason(&mut self, id: RunId) {
        self.judge("nothing is stopped without a reason");
        let run = &self.kernel.runs[id];
        let (spec, from) = (&run.record.spec, run.born.saturating_sub(UNDER_WAY_MAX));
        let unwanted = self.has_been(workload(&run.name), from, |era| era.is_against(spec));
        if !unwanted
            && !self.is_let_go(run)
            && !self.is_superseded(run)
            && !self.has_timed_out(run)
            && !is_sick(run)
            && !self.may_roll_back(run)
        {
            self.law_only_the_more_urgent_are_made_room_for(id);
        }
    }

    /// Whether the file that has its name asks no more for it, or is gone, beside one that cannot be accepted: that holds only what it names.
    fn is_let_go(&self, run: &Run) -> bool {
        let last = self.truth.eras.get(workload(&run.name)).and_then(|eras| eras.last());
        let Some(record) = self.disk.record(&run.name).filter(|_| last.is_some_and(|era| era.broken)) else {
            return false;
        };
        let claims = |file: &File| file.parsed.claims.iter().any(|claim| is_of(&claim.name, &run.name));
        match self.shelf.files.get(&record.origin.path) {
            Some(file) => !file.parsed.broken && file.parsed.workloads.iter().all(|(spec, _)| spec.name != run.name),
            None => !self.shelf.files.values().any(|file| file.parsed.broken && claims(file)),
        }
    }

    /// Everything that was asked of a run while it went on, its own record first.
    fn asked_of(&self, run: &Run) -> Vec<Arc<Spec>> {
        let eras = self.truth.eras.get(workload(&run.name)).into_iter().flatten();
        let claims = eras.flat_map(|era| &era.claims).filter(|claim| claim.name == run.name);
        std::iter::once(&run.record.spec).chain(claims).cloned().collect()
    }

    /// Whether another time of its schedule has come that the manifest puts first.
    fn is_superseded(&self, run: &Run) -> bool {
        let wall = self.wall();
        // By a clock that was set meanwhile another time may have come.
        let set = self.truth.clock_set.is_some_and(|at| at + UNDER_WAY_MAX >= run.born);
        let by = |spec: &Arc<Spec>| {
            let schedule =
                spec.job.schedule.as_ref().filter(|schedule| schedule.concurrency == Concurrency::Replace)?;
            let since = due_of(run).unwrap_or(run.born_wall);
            Some(set || schedule.next_after(since).is_ok_and(|next| next <= wall))
        };
        self.asked_of(run).iter().filter_map(by).any(|superseded| superseded)
    }

    fn has_timed_out(&self, run: &Run) -> bool {
        let by = |spec: &Arc<Spec>| spec.job.timeout.is_some_and(|timeout| self.now + 20 >= run.born + millis(timeout));
        self.asked_of(run).iter().any(by)
    }

    /// Whether it may give way to what was there before an update.
    fn may_roll_back(&self, run: &Run) -> bool {
        let rolls = |spec: &Arc<Spec>| matches!(spec.strategy, Strategy::Rolling(_));
        self.asked_of(run).iter().any(rolls)
    }

    /// Of two that are deleted, the one that comes after the other.
    fn law_who_depends_leaves_first(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let own = workload(&run.name).to_owned();
        let told_at = self.shelf.told_gone_at(&own).filter(|_| self.is_stopped_as_gone(run));
        if told_at.is_none() && !self.is_long_gone(&run.name) {
            return;
        }
        // Whoever decided on this stop because it is gone was told of the other before.
        let told_before =
            |other: &str| self.is_gone(other) && self.shelf.told_gone_at(other).is_some_and(|at| Some(at) <= told_at);
        let is_gone_too = |other: &Name| self.is_long_gone(other) || told_before(workload(other));
        let comes_after = |other: &&Run| {
            let alive = other.stage == Stage::Running && !other.excused && !other.asked_to_stop && !other.killed;
            let after = |run: &Run, of: &str| run.record.spec.after.iter().any(|name| workload(name) == of);
            // An edit of `after` needs no new process.
            let still =
                self.disk.record(&other.name).is_some_and(|record| record.spec.after == other.record.spec.after);
            alive && after(other, &own) && !after(run, workload(&other.name)) && is_gone_too(&other.name) && still
        };
        let first = self.kernel.runs.iter().find(comes_after).map(|other| other.name.clone());
        // Longer circles than of two are for the planner's own tests.
        let circle = run.record.spec.after.iter().next().is_some();
        if circle {
            return;
        }
        self.judge("who depends leaves first");
        if let Some(first) = first {
            self.violate(format!("{own} is stopped before {first}, which comes after it and is gone as well"));
        }
    }

    fn is_gone(&self, workload: &str) -> bool {
        let last = self.truth.eras.get(workload).and_then(|eras| eras.last());
        last.is_some_and(|era| !era.any) && self.shelf.is_known(workload)
    }

    /// Whether nothing has spoken against a run but that its files are gone.
    fn is_stopped_as_gone(&self, run: &Run) -> bool {
        let (spec, from) = (&run.record.spec, run.born.saturating_sub(UNDER_WAY_MAX));
        let Some(eras) = self.truth.eras.get(workload(&run.name)) else { return false };
        let first = eras.iter().rposition(|era| era.at <= from).unwrap_or(0);
        let before = eras[first..].iter().rev().skip_while(|era| !era.any);
        let other = before.into_iter().any(|era| !era.any || era.is_against(spec));
        let by_itself = self.is_superseded(run) || self.has_timed_out(run) || is_sick(run) || self.may_roll_back(run);
        self.is_gone(workload(&run.name)) && !other && !by_itself
    }

    /// Whether its files have been gone for so long that every controller that lives knows.
    fn is_long_gone(&self, name: &Name) -> bool {
        let last = self.truth.eras.get(workload(name)).and_then(|eras| eras.last());
        last.is_some_and(|era| !era.any && era.at + UNDER_WAY_MAX < self.now) && self.shelf.is_known(workload(name))
    }

    /// The manifest that rolls out a replica, if there is exactly one that speaks of it, and none that has it end.
    fn rolls(&self, name: &Name) -> Option<(Arc<Spec>, usize)> {
        let claims = self.claims_on(name);
        let [claim] = claims.as_slice() else { return None };
        if self.is_disputed(name) {
            return None;
        }
        let Strategy::Rolling(rolling) = claim.strategy else { return None };
        let max = usize::try_from(rolling.max_unavailable).ok()?;
        (!claim.suspend && is_here(claim)).then(|| (Arc::clone(claim), max))
    }

    fn law_an_update_leaves_enough(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let (name, spec) = (run.name.clone(), Arc::clone(&run.record.spec));
        let Some((claim, max)) = self.rolls(&name) else { return };
        // Who makes room for another is not stopped for its update, though it comes back updated.
        let stopping = self.disk.record(&name).and_then(|record| record.stopping);
        if stopping.is_some_and(|stopping| stopping.preempted_for.is_some()) {
            return;
        }
        let Some(count) = claim.replica.as_ref().map(|replica| replica.count) else { return };
        let is_sick = is_sick(run);
        let eras = self.truth.eras.get(workload(&name));
        // An edit may be older than what the controller goes by.
        let lately = eras.and_then(|eras| eras.last()).is_none_or(|era| era.at + UNDER_WAY_MAX >= self.now);
        let wanted = |other: &&Name| {
            let index = other.as_str().split_once('.').map_or(0, |(_, index)| index.parse().unwrap_or(u32::MAX));
            index < count && **other != name
        };
        let down = self.truth.updating.get(workload(&name)).map_or(0, |names| names.iter().filter(wanted).count());
        if is_other(&claim, &spec) {
            let key = workload(&name).to_owned();
            // What was a job kept nothing up.
            if spec.kind != claim.kind {
                return;
            }
            let serves = run.served;
            self.truth.updating.entry(key).or_default().insert(name.clone());
            if lately || is_sick || !serves {
                return;
            }
            self.judge("an update leaves enough");
            if down >= max {
                self.violate(format!(
                    "{name} is stopped for an update while {down} others are down for it, {max} may be"
                ));
            }
        }
    }

    /// A replica serves: whatever it was down for is over.
    pub fn note_serving(&mut self, id: RunId) {
        let name = self.kernel.runs[id].name.clone();
        self.kernel.runs[id].served = true;
        self.truth.updating.get_mut(workload(&name)).into_iter().for_each(|names| {
            names.remove(&name);
        });
    }

    fn law_an_update_is_taken_back_for_a_reason(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let Some((claim, _)) = self.rolls(&run.name) else { return };
        let from = run.born.saturating_sub(UNDER_WAY_MAX);
        let others = self.has_been(workload(&run.name), from, |era| era.is_against(&run.record.spec));
        if is_other(&claim, &run.record.spec) || others || is_sick(run) || self.truth.disturbed {
            return;
        }
        let fails = |other: &Run| {
            let of = workload(&other.name) == workload(&run.name)
                && !is_other(&other.record.spec, &claim_for(&claim, other));
            of && (other.own_end
                || other.excused
                || other.bad_for >= PROGRESS_DEADLINE / 2
                || other.boot != self.kernel.boot)
        };
        // Nor is a replica ready in time whose old process took that time to end, by a grace of its own.
        let lingers = |other: &Run| {
            let took = other.tried_at.map(|tried| other.ended_at.unwrap_or(self.now).saturating_sub(tried));
            workload(&other.name) == workload(&run.name) && took.is_some_and(|took| took >= PROGRESS_DEADLINE / 2)
        };
        let reason = self.kernel.runs.iter().any(|other| fails(other) || lingers(other));
        let (name, number) = (run.name.clone(), run.number);
        self.judge("an update is taken back for a reason");
        if !reason {
            self.violate(format!("run {number} of {name} is taken back although no replica has failed"));
        }
    }
}

/// What a manifest asks of another replica than the one it was read for.
fn claim_for(claim: &Spec, other: &Run) -> Spec {
    Spec { name: other.name.clone(), ..claim.clone() }
}

/// Whether it has answered its probes badly enough to be ended for it.
fn is_sick(run: &Run) -> bool {
    run.bad_answers > 0
}
