//! Laws about room: who has to leave for whom, who comes back, who may pass whom, and that none is left unused.

use super::{UNDER_WAY_MAX, is_here, is_other, workload};
use crate::host::MEMORY;
use crate::kernel::{Run, RunId, Stage};
use crate::world::{World, millis};
use containerctl::model::exit::Outcome;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::model::spec::{CpuClass, Kind, Spec};
use containerctl::model::status::{ConditionKind, Status};
use std::collections::BTreeSet;
use std::sync::Arc;

const GPUS: u32 = 2;

/// Where no step fails a start is under way for less than this, in milliseconds: whoever has waited for longer was known when it was decided.
const KNOWN_MIN: u64 = 1_500;

/// Whether it asks for anything of which there may be too little.
fn is_demanding(spec: &Spec) -> bool {
    let cpu = &spec.resources.cpu;
    let counted = matches!(cpu.class, CpuClass::Pinned | CpuClass::Exclusive) || cpu.request.0 > 0;
    memory(spec) > 0 || spec.gpu.is_some() || counted
}

fn memory(spec: &Spec) -> u64 {
    spec.resources.memory.request.0
}

/// The sub-folder that its manifest lies in.
fn group(record: &Record) -> &str {
    record.origin.path.rsplit_once('/').map_or("", |(group, _)| group)
}

impl World {
    /// Nobody but jobs and idle work is stopped for want of room, and only for those of a strictly higher priority that have none.
    pub fn law_only_the_more_urgent_are_made_room_for(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let (name, number) = (run.name.clone(), run.number);
        let own = self.asked_lately(&name).into_iter().chain([Arc::clone(&run.record.spec)]);
        let gives_way = |spec: &Arc<Spec>| spec.kind == Kind::Job || spec.resources.cpu.class == CpuClass::Idle;
        let least = own.filter(gives_way).map(|spec| spec.priority).min();
        let newcomer = least.and_then(|least| self.who_lacks_room(&name, least));
        self.kernel.runs[id].gave_way = true;
        self.judge("only the more urgent are made room for");
        match newcomer {
            Some(newcomer) => self.say(|| format!("run {number} of {name} makes room for {newcomer}")),
            None => self.violate(format!(
                "run {number} of {name} is stopped although nobody asked for it, and nobody who has no room comes before it"
            )),
        }
    }

    /// What manifests have asked of a workload lately, and what is on record, which holds where they cannot be read.
    fn asked_lately(&self, name: &Name) -> Vec<Arc<Spec>> {
        let from = self.now.saturating_sub(UNDER_WAY_MAX);
        let eras = self.truth.eras.get(workload(name)).map(Vec::as_slice).unwrap_or_default();
        let first = eras.iter().rposition(|era| era.at <= from).unwrap_or(0);
        let claims = eras.iter().skip(first).flat_map(|era| &era.claims).filter(|claim| claim.name == *name);
        claims.cloned().chain(self.disk.record(name).map(|record| record.spec)).collect()
    }

    fn all_names(&self) -> BTreeSet<Name> {
        let eras = self.truth.eras.values().flatten();
        eras.flat_map(|era| &era.claims).map(|claim| claim.name.clone()).collect()
    }

    /// Somebody above this priority that does not run, and may lack what another holds.
    fn who_lacks_room(&self, but: &Name, priority: i32) -> Option<Name> {
        let lacks = |name: &Name| {
            let live = self.kernel.live(name).map(|id| &self.kernel.runs[id]);
            // A run that began a moment ago may not have been seen yet.
            let runs = live.is_some_and(|run| run.stage == Stage::Running && run.born + UNDER_WAY_MAX < self.now);
            let above =
                |spec: &Arc<Spec>| spec.priority > priority && is_demanding(spec) && !spec.suspend && is_here(spec);
            name != but && !runs && self.asked_lately(name).iter().any(above)
        };
        self.all_names().into_iter().find(lacks)
    }

    /// Of a job that was stopped to make room for another nothing is over.
    pub fn law_who_gave_way_comes_back(&mut self, name: &Name) {
        let Some(run) = self.runs_of(name).next_back() else { return };
        let Some(record) = self.disk.record(name) else { return };
        let (spec, born) = (Arc::clone(&run.record.spec), run.born);
        if !run.gave_way || run.own_end || run.excused || run.end == Some(Outcome::HostRestarted) {
            return;
        }
        // Where a crash took the record of the stop, its end was its own for all that anybody knows.
        if self.lost_writes {
            return;
        }
        // By an edit it may have had all its tries.
        let from = born.saturating_sub(UNDER_WAY_MAX);
        let edited = self.has_been(workload(name), from, |era| {
            era.is_against(&spec)
                || era.claims.iter().any(|claim| claim.job != spec.job || claim.restart != spec.restart)
        });
        if edited || is_other(&record.spec, &spec) {
            return;
        }
        self.judge("who gave way comes back");
        if record.finished {
            self.violate(format!("{name} was stopped to make room, and is taken for over: {:?}", record.last_exit));
        }
    }

    fn granted(&self, run: &Run) -> u64 {
        let known = self.disk.record(&run.name).and_then(|record| record.grant);
        known.as_ref().or(run.record.grant.as_ref()).map_or(0, |grant| grant.requested.memory.0)
    }

    /// The memory that is set aside for a run, at least. An edit that asks for more than there is keeps what it had, and one that asks for
    /// less gives it back as soon as it is read.
    fn promised(&self, run: &Run) -> u64 {
        let granted = self.granted(run);
        self.asked_lately(&run.name).iter().map(|spec| memory(spec)).fold(granted, u64::min)
    }

    pub fn law_no_more_is_promised_than_there_is(&mut self, record: &Record) {
        let granted = record.grant.as_ref().map_or(0, |grant| grant.requested.memory.0);
        let own = self.asked_lately(&record.spec.name).iter().map(|spec| memory(spec)).fold(granted, u64::min);
        // When records were lost, nobody may know any more of what was granted.
        if own == 0 || self.lost_writes {
            return;
        }
        let living = self.kernel.there.iter().map(|id| &self.kernel.runs[*id]);
        let others = living.filter(|run| run.stage != Stage::Gone && run.name != record.spec.name);
        let held: u64 = others.map(|run| self.promised(run)).sum();
        self.judge("no more is promised than there is");
        if held + own > MEMORY {
            self.violate(format!("{} is started with {own} bytes set aside, and {held} are others'", record.spec.name));
        }
    }

    /// Nobody who asks for no more than is free waits for room on a host at rest.
    pub fn waits_beside_room(&self, name: &Name, spec: &Spec, status: &Status) -> bool {
        let placed = status.condition(ConditionKind::Placed).map_or("", |placed| placed.reason.as_str());
        if placed == "Queued" {
            return true;
        }
        let others = self.kernel.there.iter().map(|id| &self.kernel.runs[*id]);
        let others: Vec<&Run> = others.filter(|run| run.stage != Stage::Gone && run.name != *name).collect();
        let held: u64 = others.iter().map(|run| self.granted(run)).sum();
        let leases = others.iter().filter_map(|run| run.record.grant.as_ref()).flat_map(|grant| &grant.gpus);
        let taken: BTreeSet<_> = leases.map(|lease| &lease.gpu).collect();
        let free = GPUS - u32::try_from(taken.len()).unwrap_or(GPUS);
        let wanted = spec.gpu.as_ref().map_or(0, |request| request.count);
        let class = spec.resources.cpu.class;
        let counted = matches!(class, CpuClass::Pinned | CpuClass::Exclusive) || spec.resources.cpu.request.0 > 0;
        !counted && held + memory(spec) <= MEMORY && wanted <= free
    }

    /// Whoever has waited longer for memory, or comes before it, is not passed by a job that takes of it. Judged where one kind is all
    /// that anybody lacks, where only jobs stand in the way, and of a job that may run for longer than those.
    pub fn law_the_first_in_the_queue_is_not_passed(&mut self, record: &Record) {
        let spec = &record.spec;
        if spec.kind != Kind::Job || memory(spec) == 0 || self.truth.disturbed || self.lost_writes {
            return;
        }
        // What it holds from the run before is nobody else's.
        let holds = |run: &Run| {
            let held = run.record.grant.as_ref().map_or(0, |grant| grant.requested.memory.0);
            held >= memory(spec) && run.ended_at.is_some_and(|ended| ended + UNDER_WAY_MAX > self.now) && !run.gave_way
        };
        if self.runs_of(&spec.name).next_back().is_some_and(holds) {
            return;
        }
        // A start that a crash has cut short had its room, and has it again.
        let born = self.runs_of(&spec.name).next_back().map_or(0, |run| run.number);
        if record.instance > born + 1 {
            return;
        }
        let waiting: Vec<Record> = self
            .all_names()
            .into_iter()
            .filter(|name| *name != spec.name)
            .filter_map(|name| self.waits(&name))
            .collect();
        // Whoever lacks something else may be the first, and only the first has room kept.
        if waiting.iter().any(|other| other.spec.gpu.is_some() || memory(&other.spec) == 0) {
            return;
        }
        let living = self.kernel.there.iter().map(|id| &self.kernel.runs[*id]).filter(|run| run.stage != Stage::Gone);
        let (jobs, services): (Vec<&Run>, Vec<&Run>) = living.filter(|run| self.promised(run) > 0).partition(|run| {
            // One that is to be a service holds its room for nobody knows how long.
            let lately = self.asked_lately(&run.name);
            run.record.spec.kind == Kind::Job && lately.iter().all(|spec| spec.kind == Kind::Job)
        });
        let held_by = |runs: &[&Run]| runs.iter().map(|run| self.promised(run)).sum::<u64>();
        let (by_jobs, by_services) = (held_by(&jobs), held_by(&services));
        // By then everybody in the way is gone, if all of them end.
        let ends = |run: &&Run| {
            let spec = &run.record.spec;
            spec.job.timeout.map(|timeout| run.born + millis(timeout) + millis(spec.stop.grace))
        };
        let last = jobs.iter().map(ends).collect::<Option<Vec<u64>>>().map(|ends| ends.into_iter().max().unwrap_or(0));
        let own_end = spec.job.timeout.map(|timeout| self.now + millis(timeout) + millis(spec.stop.grace));
        let may_pass = match (own_end, last) {
            (Some(end), Some(last)) => end <= last + UNDER_WAY_MAX,
            // Some of those in the way may be enough.
            (Some(_), None) => jobs.iter().any(|run| run.record.spec.job.timeout.is_some()),
            (None, _) => false,
        };
        let passed = waiting.iter().find(|other| {
            let lacks = by_jobs + by_services + memory(&other.spec) > MEMORY;
            let would_fit = by_services + memory(&other.spec) <= MEMORY;
            lacks && would_fit && self.is_before(other, record)
        });
        let passed = passed.map(|other| other.spec.name.clone());
        if waiting.is_empty() {
            return;
        }
        self.judge("the first in the queue is not passed");
        if let Some(first) = passed.filter(|_| !may_pass) {
            self.violate(format!("{} is started although {first} has waited longer for room", spec.name));
        }
    }

    /// The record of a job that has been waiting for room, and for nothing else, for so long that whoever decides knows.
    fn waits(&self, name: &Name) -> Option<Record> {
        let record = self.disk.record(name).filter(|_| self.kernel.live(name).is_none())?;
        let since = record.queued.as_ref()?.steady(&self.kernel.boot_id())?;
        let long = u64::try_from(since.0).is_ok_and(|since| since + KNOWN_MIN < self.steady());
        let from = self.now.saturating_sub(KNOWN_MIN);
        let claims = self.claims_on(name);
        let [claim] = claims.as_slice() else { return None };
        let same = |era: &super::Era| era.any && !era.broken && era.claims.len() == 1 && *era.claims[0] == **claim;
        let stays = !self.has_been(workload(name), from, |era| !same(era));
        let waits_for_more = !claim.after.is_empty() || claim.job.schedule.is_some() || claim.suspend;
        let fits = record.retry_at.is_none() && !record.finished && *record.spec == **claim;
        (long && stays && fits && !waits_for_more && self.shelf.is_known(workload(name))).then_some(record)
    }

    /// Whether one that waits comes before one that is started, in the same group.
    fn is_before(&self, waiting: &Record, started: &Record) -> bool {
        let (above, equal) =
            (waiting.spec.priority > started.spec.priority, waiting.spec.priority == started.spec.priority);
        let boot = self.kernel.boot_id();
        let since = |record: &Record| Some(record.queued.as_ref()?.steady(&boot)?.0);
        let began_to_wait = self.truth.waited.get(&started.spec.name).and_then(since);
        let longer = since(waiting).is_some_and(|since| began_to_wait.is_none_or(|own| since + 100 < own));
        above || equal && longer && group(waiting) == group(started)
    }
}
