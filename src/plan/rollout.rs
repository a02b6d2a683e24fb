//! Updates that reach the replicas of a workload some at a time.
//!
//! Problem: an edit that needs new processes may be a bad one, and all replicas at once would be down with it.
//!
//! Approach: each pass looks at every workload with `strategy: rolling` as a group. Whoever is not at what is wanted stays as it is, until it
//! is its turn: while the others have *arrived*. A replica that has its new process remembers what it had before, until all have arrived. One
//! that fails, or does not arrive in time, is put back to that, and what was wanted is refused until the manifest says something else;
//! those that moved before it go back in the same way, some at a time.
//!
//! Terms: to *arrive* is to be ready, by a run that has lasted for [`STEADY`]. *Refused* is a spec whatever the name and number of the replica.
//!
//! Guarantees: no more than `maxUnavailable` replicas are missing because of an update; only an edit brings back what was refused; an edit
//! that needs no new process reaches all replicas at once; every replica that has what is wanted while others have not can be judged and
//! put back, one that is new included; neither a restart of the host nor time without a controller speaks against an update.

use super::Input;
use super::lifecycle::{began, replacement_reasons};
use crate::model::clock::Moment;
use crate::model::desired::Wanted;
use crate::model::exit::{Exit, Outcome};
use crate::model::name::Name;
use crate::model::observed::Life;
use crate::model::record::{Record, Refused, Rollout};
use crate::model::replica::{Rolling, Strategy};
use crate::model::spec::Spec;
use crate::model::time::Timestamp;
use crate::model::units::format_duration;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a run has to last before it counts as arrived: a command that cannot start well mostly ends within it, and without a readiness
/// probe nothing else would tell.
const STEADY: Duration = Duration::from_secs(3);

/// What an update means for one workload in one pass.
#[derive(Clone, Debug)]
pub enum Course {
    /// It keeps what it has until it is its turn.
    Wait,
    /// It gets what is wanted now.
    Move,
    /// It is put back to what it had, because of this.
    Return(Refused),
    /// It keeps what it has: what is wanted is refused.
    Stay(Refused),
    /// It is new, and starts with what the others have kept.
    Join(Box<Wanted>, Refused),
    /// It is new, and starts with what is wanted while the others still have this.
    Debut(Box<Wanted>),
    /// All have arrived: what was before is forgotten.
    Settle,
}

/// The replicas of one workload.
struct Group<'a> {
    rolling: Rolling,
    members: Vec<Member<'a>>,
}

struct Member<'a> {
    name: &'a Name,
    wanted: &'a Wanted,
    record: Option<&'a Record>,
}

impl Member<'_> {
    fn is_at_target(&self) -> bool {
        self.record.is_none_or(|record| replacement_reasons(&record.spec, &self.wanted.spec).is_empty())
    }

    fn rollout(&self) -> Option<&Rollout> {
        self.record?.rollout.as_ref()
    }

    fn index(&self) -> u32 {
        self.wanted.spec.replica.as_ref().map_or(0, |replica| replica.index)
    }
}

/// Whether two specs ask for the same, apart from which replica they are for.
pub fn is_same(a: &Spec, b: &Spec) -> bool {
    Spec { name: b.name.clone(), replica: b.replica.clone(), ..a.clone() } == *b
}

fn groups<'a>(input: &Input<'a>) -> Vec<Group<'a>> {
    let mut groups: BTreeMap<&Name, Group<'a>> = BTreeMap::new();
    for (name, wanted) in &input.desired.wanted {
        // Who is not to run at all has nothing to be gentle about.
        let Strategy::Rolling(rolling) = wanted.spec.strategy else { continue };
        if wanted.spec.suspend {
            continue;
        }
        let member = Member { name, wanted, record: input.records.get(name) };
        let group = groups.entry(wanted.spec.workload()).or_insert_with(|| Group { rolling, members: Vec::new() });
        group.members.push(member);
    }
    groups.into_values().collect()
}

impl Group<'_> {
    /// Why what is wanted is refused, if it is.
    fn refused(&self) -> Option<Refused> {
        self.members.iter().find_map(|Member { wanted, record, .. }| {
            record.and_then(|record| record.refused.clone()).filter(|refused| is_same(&refused.spec, &wanted.spec))
        })
    }

    /// What the others had before an update that is not over, as a replica without a past would have had it.
    fn good_for(&self, member: &Member<'_>) -> Option<Wanted> {
        let own = &member.wanted.spec;
        let (good, origin) = self.members.iter().find_map(|member| {
            // A job has no replicas, and a service is no update of it.
            let record = member.record.filter(|record| record.spec.kind == own.kind)?;
            Some(match &record.rollout {
                Some(Rollout { previous, origin, .. }) => (previous, origin),
                None => (&record.spec, &record.origin),
            })
        })?;
        let spec = Spec { name: own.name.clone(), replica: own.replica.clone(), ..good.as_ref().clone() };
        Some(Wanted { spec: Arc::new(spec), origin: origin.clone() })
    }

    /// What holds before anybody has been looked at.
    fn courses(&self) -> Vec<(Name, Course)> {
        let refused = self.refused();
        let course = |member: &Member<'_>| match (&refused, member.record) {
            (Some(refused), Some(_)) => Some(Course::Stay(refused.clone())),
            (Some(refused), None) => Some(Course::Join(Box::new(self.good_for(member)?), refused.clone())),
            // A job keeps nothing up that an update could take down, and replicas may need it to become ready.
            (None, Some(record)) if record.spec.kind != member.wanted.spec.kind => None,
            (None, Some(_)) => (!member.is_at_target()).then_some(Course::Wait),
            (None, None) => {
                let good = self.good_for(member)?;
                let differs = !replacement_reasons(&good.spec, &member.wanted.spec).is_empty();
                differs.then(|| Course::Debut(Box::new(good)))
            }
        };
        self.members.iter().filter_map(|member| Some((member.name.clone(), course(member)?))).collect()
    }
}

/// The last end of its new process that was its own. A restart of the host says nothing about an update.
fn own_failure(record: &Record) -> Option<&Exit> {
    // One that is the last is not counted among those that another try follows.
    let failures = record.failures.saturating_add(u32::from(record.finished));
    let latest = record.last_exit.iter().chain(record.earlier_exits.iter().rev());
    latest.take(usize::try_from(failures).unwrap_or(usize::MAX)).find(|exit| exit.outcome != Outcome::HostRestarted)
}

/// The course of each workload that does not simply take what is wanted.
pub fn courses(input: &Input<'_>) -> BTreeMap<Name, Course> {
    groups(input).iter().flat_map(Group::courses).collect()
}

/// Whose turn it is, given who is ready; and when to look again.
pub fn turns(input: &Input<'_>, ready: &BTreeSet<Name>) -> (Vec<(Name, Course)>, Option<Timestamp>) {
    let (mut turns, mut wake_at) = (Vec::new(), None);
    for group in groups(input) {
        let under_way = |member: &Member<'_>| {
            member.rollout().is_some()
                || member.record.is_some_and(|record| record.refused.is_some())
                || !member.is_at_target()
        };
        if group.members.iter().any(under_way) {
            let mut turn = Turn { input, ready, group: &group, turns: &mut turns, wake_at: &mut wake_at };
            turn.take();
        }
    }
    (turns, wake_at)
}

/// One group's turn.
struct Turn<'a, 'b> {
    input: &'b Input<'a>,
    ready: &'b BTreeSet<Name>,
    group: &'b Group<'a>,
    turns: &'b mut Vec<(Name, Course)>,
    wake_at: &'b mut Option<Timestamp>,
}

impl Turn<'_, '_> {
    fn take(&mut self) {
        let group = self.group;
        let arrived: Vec<bool> = group.members.iter().map(|member| self.has_arrived(member)).collect();
        if let Some(refused) = group.refused() {
            self.replace(&arrived, |member| member.rollout().map(|_| Course::Return(refused.clone())));
            return;
        }
        let failed =
            group.members.iter().zip(&arrived).find_map(|(member, arrived)| {
                Some((member.name.clone(), Course::Return(self.failure(member, *arrived)?)))
            });
        if let Some(failed) = failed {
            self.turns.push(failed);
        } else if arrived.iter().all(|arrived| *arrived) && group.members.iter().all(Member::is_at_target) {
            let moved = group.members.iter().filter(|member| member.rollout().is_some());
            self.turns.extend(moved.map(|member| (member.name.clone(), Course::Settle)));
        } else {
            self.replace(&arrived, |member| (!member.is_at_target()).then_some(Course::Move));
        }
    }

    /// Gives a course to as many as may be missing: to those that do not run first, then to others that are missing anyway, then from the
    /// highest down. A controller that has just begun has asked nobody yet: all are missing, and only those that do not run take nothing away.
    fn replace(&mut self, arrived: &[bool], course: impl Fn(&Member<'_>) -> Option<Course>) {
        let max = usize::try_from(self.group.rolling.max_unavailable).unwrap_or(usize::MAX);
        let mut missing = arrived.iter().filter(|arrived| !**arrived).count();
        let members = self.group.members.iter().zip(arrived);
        let order = |member: &Member<'_>, arrived: bool| (self.runs(member), arrived, Reverse(member.index()));
        let mut candidates: Vec<_> = members
            .filter_map(|(member, arrived)| Some((*arrived, order(member, *arrived), member, course(member)?)))
            .collect();
        // Those whose course is set and that are on their way count against the bound; those that are missing as they were do not.
        let on_their_way = missing - candidates.iter().filter(|(arrived, ..)| !*arrived).count();
        candidates.sort_by_key(|(_, order, ..)| *order);
        for (under_way, (arrived, _, member, course)) in (on_their_way..).zip(candidates) {
            if under_way >= max || arrived && missing >= max {
                break;
            }
            missing += usize::from(arrived);
            self.turns.push((member.name.clone(), course));
        }
    }

    fn runs(&self, member: &Member<'_>) -> bool {
        let instance = self.input.observed.get(member.name).and_then(|seen| seen.instance.as_ref());
        instance.is_some_and(|instance| !matches!(instance.life, Life::Ended(_)))
    }

    fn has_arrived(&mut self, member: &Member<'_>) -> bool {
        let clock = self.input.clock;
        let instance = self.input.observed.get(member.name).and_then(|seen| seen.instance.as_ref());
        let Some(instance) = instance.filter(|_| self.ready.contains(member.name)) else { return false };
        // When a run began may not be known yet, or no longer; it was not before its turn.
        let turn = member.rollout().map(|rollout| &rollout.since);
        let turn = turn.or_else(|| member.record?.refused.as_ref().map(|refused| &refused.at));
        let began = member.record.and_then(|record| began(record, instance, &clock));
        let lasted = began.map(|began| clock.steady.since(began));
        let lasted = turn.map(|turn| clock.up_since(turn)).into_iter().chain(lasted).min();
        let left = lasted.and_then(|lasted| STEADY.checked_sub(lasted)).filter(|left| !left.is_zero());
        if let Some(left) = left {
            self.wake_in(left);
        }
        left.is_none()
    }

    /// For how long something could be done about it. After a reboot the others come up as well, and without a controller nobody starts what
    /// has failed, or hears that it is ready: it has its whole time again.
    fn helped_since(&self, turn: &Moment) -> Duration {
        let clock = self.input.clock;
        clock.up_since(turn).min(clock.steady.since(self.input.since))
    }

    /// Why a replica that has its new process is no good, if it is not.
    fn failure(&mut self, member: &Member<'_>, arrived: bool) -> Option<Refused> {
        // One that an edit has overtaken gets its next chance before it is judged.
        let record = member.record.filter(|_| member.is_at_target())?;
        let rollout = record.rollout.as_ref()?;
        let clock = self.input.clock;
        let deadline = self.group.rolling.progress_deadline;
        let reason = if let Some(exit) = own_failure(record) {
            format!("{} {}", member.name, exit.outcome)
        } else if arrived {
            return None;
        } else if let Some(left) =
            deadline.checked_sub(self.helped_since(&rollout.since)).filter(|left| !left.is_zero())
        {
            self.wake_in(left);
            return None;
        } else {
            format!("{} was not ready within {}", member.name, format_duration(deadline))
        };
        Some(Refused {
            spec: Arc::clone(&member.wanted.spec),
            generation: record.generation,
            reason,
            at: clock.now(),
            path: member.wanted.origin.path.clone(),
        })
    }

    fn wake_in(&mut self, wait: Duration) {
        let at = self.input.clock.wall.plus(wait);
        *self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }
}
