//! Laws about a host on which nothing goes wrong any more: it is as its manifests say, and stays so untouched.

use super::starts::due_of;
use super::{is_other, workload};
use crate::kernel::{Run, Stage};
use crate::vocabulary::NEVER_READY;
use crate::world::{Sim, World};
use containerctl::control::report::Snapshot;
use containerctl::model::exit::Outcome;
use containerctl::model::name::Name;
use containerctl::model::spec::{CpuClass, Kind, Resources, RestartPolicy, Spec};
use containerctl::model::status::{ConditionKind, Phase, Status};
use containerctl::model::time::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long a run may take from its time, and how long after its end it may be taken to go on, in milliseconds.
const PROMPT: u64 = 2_000;

/// The kernel keeps bounds of memory in pages.
const PAGE: u64 = 4096;

impl Sim {
    /// Everything is as the manifests say.
    pub fn check_converged(&self) {
        let snapshot = self.controller().as_ref().map(|controller| Arc::clone(&controller.snapshots().borrow()));
        let mut world = self.world();
        if world.violation.is_some() {
            return;
        }
        let Some(snapshot) = snapshot else { return world.violate("no controller is there at the end".to_owned()) };
        let mut names: BTreeSet<Name> = snapshot.statuses.keys().cloned().collect();
        names.extend(world.kernel.runs.iter().map(|run| run.name.clone()));
        names.extend(world.kernel.groups.keys().chain(world.kernel.traces.keys()).cloned());
        for base in world.shelf.names.clone() {
            names.insert(base.parse().unwrap());
            names.extend(world.shelf.claims(base, world.now).0.iter().map(|claim| claim.name.clone()));
        }
        for name in names {
            world.judge("as the manifests say");
            if let Some(what) = world.differs(&name, &snapshot) {
                world.violate(format!("not converged: {name} {what}"));
            }
            world.law_within_its_limits(&name);
            world.law_restarts_are_counted(&name);
            world.law_who_gave_way_comes_back(&name);
        }
    }
}

impl World {
    fn differs(&self, name: &Name, snapshot: &Snapshot) -> Option<String> {
        let (_, any, broken) = self.shelf.claims(workload(name), self.now);
        let claims = self.claims_on(name);
        let live = self.kernel.live(name).map(|id| &self.kernel.runs[id]);
        let Some(status) = snapshot.statuses.get(name) else {
            let left = live.is_some() || self.kernel.groups.contains_key(name) || self.kernel.traces.contains_key(name);
            // Those that wait for each other in a circle are refused where nothing is known of them.
            let refused = snapshot.diagnostics.iter().any(|found| found.message.contains("in a circle"));
            return match (claims.is_empty(), left) {
                (false, _) if !refused && !broken && !self.is_disputed(name) => {
                    Some("is wanted and unknown".to_owned())
                }
                // A manifest that cannot be read may explain it.
                (_, true) if !any => Some("has left something behind".to_owned()),
                _ => None,
            };
        };
        let accepted = status.condition(ConditionKind::Accepted);
        let reason = accepted.map_or("", |accepted| accepted.reason.as_str());
        // What is refused for a circle ends no replica that it asks no more for.
        let in_a_circle = || self.goes_in_a_circle(&workload(name).parse().unwrap());
        let broken = broken || reason == "Refused" && in_a_circle();
        if claims.is_empty() && !broken {
            let guarded = snapshot.guarded.contains(name) && self.prune_guard;
            return (!guarded).then(|| format!("is {} and nobody wants it", status.phase));
        }
        // What is refused, or held by a file that cannot be read, goes on as it was; which of two files has the name is not for us to say.
        let free = broken || ["Refused", "RolledBack", "RollingOut"].contains(&reason);
        if reason == "RollingOut" && !self.has_nothing_to_take_back(&claims) {
            return Some(format!("is in the middle of an update: {:?}", status.conditions));
        }
        let record = self.disk.record(name);
        let taken = record.as_ref().is_some_and(|record| claims.iter().any(|claim| **claim == *record.spec));
        if !free && !taken {
            return Some(format!("is recorded as what nobody wants: {:?}", record.map(|record| record.spec)));
        }
        let spec = record.map_or_else(|| Arc::clone(&claims[0]), |record| record.spec);
        self.differs_in_phase(name, &spec, status, live)
    }

    fn differs_in_phase(&self, name: &Name, spec: &Arc<Spec>, status: &Status, live: Option<&Run>) -> Option<String> {
        let ready = status.condition(ConditionKind::Ready);
        let last = self.runs_of(name).next_back();
        let succeeded = last.is_none_or(|run| run.excused || run.end == Some(Outcome::Exited { code: 0 }));
        let may_end = |success: bool| match spec.restart.policy {
            RestartPolicy::Never => true,
            RestartPolicy::OnFailure => success,
            RestartPolicy::Always => success && spec.kind == Kind::Job,
        };
        let wrong = match (status.phase, live) {
            (Phase::Running, Some(run)) => {
                let other = !run.excused && is_other(&run.record.spec, spec);
                let is_unready =
                    !status.ready && !run.record.spec.process.command.iter().any(|word| word == NEVER_READY);
                other || spec.suspend || is_unready || run.stage != Stage::Running
            }
            (Phase::Completed, None) => spec.suspend || !succeeded || !may_end(true),
            (Phase::Failed, None) => {
                let tries = spec.job.retries.at().is_some();
                spec.suspend || !(may_end(false) || tries && spec.kind == Kind::Job)
            }
            (Phase::Suspended, None) => !spec.suspend,
            (Phase::Pending, None) => match ready.map_or("", |ready| ready.reason.as_str()) {
                "Scheduled" => spec.job.schedule.is_none(),
                "Dependency" | "UnknownDependency" => !self.waits_for_somebody(spec),
                "RefusedDependency" => !self.waits_for_a_refused(spec),
                "NotPlaced" => self.waits_beside_room(name, spec, status),
                _ => true,
            },
            _ => true,
        };
        let run = live.map(|run| run.number);
        let why = || {
            status
                .conditions
                .iter()
                .map(|known| format!("{:?} {} {}: {}", known.kind, known.status, known.reason, known.message))
        };
        wrong.then(|| format!("is {}, with run {run:?}: {}", status.phase, why().collect::<Vec<_>>().join("; ")))
    }

    /// What runs is in its group, and that has the limits that are recorded, whoever has written to it.
    fn law_within_its_limits(&mut self, name: &Name) {
        let (Some(record), Some(id)) = (self.disk.record(name), self.kernel.live(name)) else { return };
        let Resources { cpu, memory, pids, .. } = &record.spec.resources;
        let quota = cpu.limit.at().map_or("max".to_owned(), |limit| (u64::from(limit.0) * 100).to_string());
        let granted = record.grant.as_ref().map_or(0, |grant| grant.requested.memory.0);
        let wanted = [
            ("cpu.max", format!("{quota} 100000")),
            ("cpu.idle", u8::from(cpu.class == CpuClass::Idle).to_string()),
            ("memory.low", (granted / PAGE * PAGE).to_string()),
            ("memory.max", memory.limit.at().map_or("max".to_owned(), |limit| limit.0.to_string())),
            ("pids.max", pids.at().map_or("max".to_owned(), |limit| limit.to_string())),
        ];
        let group = self.kernel.groups.get(name);
        let holds = |(file, value): &(&str, String)| {
            group.is_some_and(|group| group.settings.get(file) == Some(value.as_str()))
        };
        let is_within = wanted.iter().all(holds);
        let in_group = self.kernel.runs[id].in_group;
        self.judge("within its limits");
        if !is_within || !in_group {
            self.violate(format!("{name} is not within its limits, {wanted:?}"));
        }
    }

    /// Whether an update waits for replicas that will never be ready and have never been anything else: there is nothing that they could be
    /// taken back to, and whoever serves stays as it is.
    fn has_nothing_to_take_back(&self, claims: &[Arc<Spec>]) -> bool {
        claims.iter().filter(|claim| claim.process.command.iter().any(|word| word == NEVER_READY)).any(|claim| {
            let (all, ..) = self.shelf.claims(workload(&claim.name), self.now);
            all.iter().any(|other| {
                let record = self.disk.record(&other.name);
                record.is_some_and(|record| !is_other(&record.spec, other) && record.rollout.is_none())
            })
        })
    }

    /// Whether someone it comes after has a manifest that cannot be accepted.
    fn waits_for_a_refused(&self, spec: &Spec) -> bool {
        let is_refused = |other: &Name| {
            let (_, _, broken) = self.shelf.claims(other.as_str(), self.now);
            broken || self.goes_in_a_circle(other)
        };
        spec.after.iter().any(is_refused)
    }

    /// Whether someone it comes after is not there.
    fn waits_for_somebody(&self, spec: &Spec) -> bool {
        spec.after.iter().any(|other| {
            let (claims, ..) = self.shelf.claims(other.as_str(), self.now);
            let is_up = |claim: &Arc<Spec>| match claim.kind {
                Kind::Service => {
                    let live = self.kernel.live(&claim.name).map(|id| &self.kernel.runs[id]);
                    live.is_some_and(|run| run.stage == Stage::Running && run.served)
                }
                Kind::Job => self.disk.record(&claim.name).is_some_and(|record| {
                    record.is_over() && record.last_exit.as_ref().is_some_and(|exit| exit.outcome.is_success())
                }),
            };
            // Of one that is refused for a circle goes on what was there before, whatever that was.
            claims.is_empty() || self.goes_in_a_circle(other) || !claims.iter().all(is_up)
        })
    }

    /// A start that was being made as the power failed counts as ended by that, whether or not anything was born.
    pub fn reboots(&self) -> usize {
        usize::try_from(self.kernel.boot).unwrap_or(usize::MAX)
    }

    fn law_restarts_are_counted(&mut self, name: &Name) {
        let Some(record) = self.disk.record(name) else { return };
        let ended = self.runs_of(name).filter(|run| run.end.is_some()).count() + self.reboots();
        self.judge("restarts are counted");
        if usize::try_from(record.restarts).is_ok_and(|restarts| restarts > ended) {
            self.violate(format!("{name} has {} restarts after {ended} ends", record.restarts));
        }
    }

    /// While nothing goes wrong each time of a schedule is kept, unless the run before goes on.
    pub fn law_times_are_kept(&mut self, from: u64) {
        if self.truth.disturbed {
            return;
        }
        for base in self.shelf.names.clone() {
            let name: Name = base.parse().unwrap();
            let claims = self.claims_on(&name);
            let (_, _, broken) = self.shelf.claims(base, self.now);
            let [claim] = claims.as_slice() else { continue };
            let Some(schedule) =
                claim.job.schedule.clone().filter(|_| !broken && !claim.suspend && claim.after.is_empty())
            else {
                continue;
            };
            // A time that a clock set back makes come again has been kept.
            if self.truth.clock_set.is_some() {
                continue;
            }
            let (wall_now, now) = (self.wall(), self.now);
            let wall = |at: u64| Timestamp(wall_now.0.saturating_sub(now.saturating_sub(at)));
            let mut at = wall(from);
            let end = self.wall().minus(Duration::from_millis(PROMPT));
            while let Ok(next) = schedule.next_after(at) {
                if next > end {
                    break;
                }
                at = next;
                self.judge("times of a schedule are kept");
                let goes_on = |run: &&Run| {
                    let until = run.ended_at.map_or(u64::MAX, |ended| wall(ended).0 + PROMPT);
                    run.born_wall <= next && next.0 <= until
                };
                if !self.runs_of(&name).any(|run| due_of(run) == Some(next) || goes_on(&run)) {
                    return self.violate(format!("{name} was not run at {next}, and nothing stood against it"));
                }
            }
        }
    }
}
