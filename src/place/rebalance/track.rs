//! What is remembered of each workload: smoothed demand, where it came from and when, and what came of it.

use super::groups::Place;
use super::smooth::{self, Kept, Smooth};
use crate::model::balance::{Member, Move, Rung, Sample, Settings};
use crate::model::cpuset::CpuSet;
use crate::model::name::Name;
use serde::{Deserialize, Serialize};

/// Places left that are remembered of one workload. With a cooldown of 120 s there are at most five within the 600 s that count.
const PAST_MAX: usize = 8;
/// Bans of one workload: more would mean that an hour had been spent on moving it back and forth.
const BANS_MAX: usize = 8;
/// Ticks a proposal may take to be carried out: a pass, a worker, the next sample. After that it was not.
const PENDING_TICKS: u64 = 3;

/// One workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Track {
    pub name: Name,
    /// Its CPUs at the last tick.
    pub cpus: CpuSet,
    /// What it would use if nothing held it back, in thousandths of a CPU; none before the first reading.
    pub demand: Option<Smooth>,
    /// Its wait, and its usage in the same readings: those that had a wait.
    pub wait: Option<Smooth>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Smooth>,
    /// Readings so far, as far as they count.
    pub readings: u32,
    /// Of those few that were ever moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Box<History>>,
    /// Where its CPUs lie; worked out again when they or the groups change.
    #[serde(skip)]
    pub place: Option<Place>,
}

/// What was done with one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// When its CPUs last changed, whoever changed them.
    pub moved_ms: Option<u64>,
    /// The places it left, oldest first.
    pub past: Vec<Past>,
    pub bans: Vec<Ban>,
    pub pending: Option<Pending>,
    pub watch: Option<Watch>,
    /// What it held before it was widened or squeezed.
    pub home: Option<CpuSet>,
}

/// A place that was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Past {
    pub cpus: CpuSet,
    pub left_ms: u64,
}

/// A place that did not do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ban {
    pub cpus: CpuSet,
    pub until_ms: u64,
}

/// A move that was proposed and not seen yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    pub to: CpuSet,
    pub rung: Rung,
    #[serde(default)]
    pub with: Option<Name>,
    pub since_ms: u64,
}

/// A move whose effect is being measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Watch {
    pub from: CpuSet,
    /// Who took its place.
    #[serde(default)]
    pub with: Option<Name>,
    /// Smoothed usage and wait together when it was moved, and wait alone; that is none if nobody counted it.
    pub demand_before: u64,
    pub wait_before: Option<u64>,
    /// The same two since then, in thousandths of a CPU times milliseconds, of the readings that had a wait.
    pub demand_after: u64,
    pub wait_after: u64,
    pub measured_ms: u64,
    /// For how long of that readings lacked their wait.
    #[serde(default)]
    pub unknown_ms: u64,
    /// Whether it was told that it goes back: a proposal that no pass takes up is made again, and told once.
    #[serde(default)]
    pub is_told: bool,
}

/// What is the same for every workload of one tick.
#[derive(Clone, Copy, Debug)]
pub struct Clock<'a> {
    pub at_ms: u64,
    pub elapsed_ms: u64,
    pub kept: Kept,
    pub settings: &'a Settings,
}

/// Ticks further apart than this many of them are a gap: the host slept, or the controller was away.
const GAP_TICKS: u64 = 3;

impl Clock<'_> {
    pub fn is_gap(&self) -> bool {
        self.elapsed_ms > GAP_TICKS * self.settings.tick_ms
    }
}

/// Brings the tracks, sorted by name, up to a sample: one for each of its members, in their order.
pub fn follow(tracks: &mut Vec<Track>, sample: &Sample, clock: &Clock<'_>) {
    let is_same = tracks.len() == sample.members.len()
        && tracks.iter().zip(sample.members.keys()).all(|(track, name)| track.name == *name);
    if !is_same {
        let mut old = std::mem::take(tracks).into_iter().peekable();
        for (name, member) in &sample.members {
            while old.next_if(|track| track.name < *name).is_some() {}
            let known = old.next_if(|track| track.name == *name);
            tracks.push(known.unwrap_or_else(|| Track::new(name, member)));
        }
    }
    for (track, member) in tracks.iter_mut().zip(sample.members.values()) {
        track.add(member, clock);
    }
}

impl Track {
    fn new(name: &Name, member: &Member) -> Track {
        let cpus = member.cpus.clone();
        Track {
            name: name.clone(),
            cpus,
            demand: None,
            wait: None,
            usage: None,
            readings: 0,
            history: None,
            place: None,
        }
    }

    fn add(&mut self, member: &Member, clock: &Clock<'_>) {
        if self.cpus != member.cpus {
            self.note_change(member, clock);
        }
        if let Some(history) = self.history.as_deref_mut() {
            history.forget(clock);
        }
        let Some(usage) = member.usage else { return };
        let demand = demand_of(member, u64::from(usage.0));
        smooth::add(&mut self.demand, demand, clock.kept);
        if let Some(wait) = member.wait {
            smooth::add(&mut self.wait, u64::from(wait.0), clock.kept);
            smooth::add(&mut self.usage, u64::from(usage.0), clock.kept);
        }
        self.readings = self.readings.saturating_add(1);
        if let Some(watch) = self.history.as_deref_mut().and_then(|history| history.watch.as_mut()) {
            watch.add(u64::from(usage.0), member.wait.map(|wait| u64::from(wait.0)), clock);
        }
    }

    /// Its CPUs are others than at the last tick: a proposal has been carried out, or somebody else decided.
    fn note_change(&mut self, member: &Member, clock: &Clock<'_>) {
        let from = std::mem::replace(&mut self.cpus, member.cpus.clone());
        self.place = None;
        let (asked, wait) = (self.asked(), self.wait.map(Smooth::get));
        let history = self.history.get_or_insert_with(Box::default);
        history.moved_ms = Some(clock.at_ms);
        history.watch = None;
        match history.pending.take() {
            Some(pending) if pending.to == member.cpus => history.note_move(from, &pending, asked, wait, clock),
            // Placed anew, or cut by an exclusive neighbour: what it held before is nobody's wish any more.
            _ => history.home = None,
        }
    }

    /// Smoothed, in thousandths of a CPU.
    pub fn demand(&self) -> u64 {
        self.demand.map_or(0, Smooth::get)
    }

    /// Smoothed usage and wait together, however much that is: what waits are parts of. Demand is cut at what it may use, so that of two
    /// saturated workloads it tells the same whichever waits longer.
    pub fn asked(&self) -> u64 {
        self.usage.map_or(0, Smooth::get) + self.wait.map_or(0, Smooth::get)
    }

    /// Remembers a proposal, so that it is known again when it has been carried out.
    pub fn propose(&mut self, proposed: &Move, clock: &Clock<'_>) {
        let history = self.history.get_or_insert_with(Box::default);
        history.pending = Some(Pending {
            to: proposed.to.clone(),
            rung: proposed.rung,
            with: proposed.with.clone(),
            since_ms: clock.at_ms,
        });
    }

    /// Whether it may be moved now, as far as its own past says.
    pub fn is_free(&self, clock: &Clock<'_>) -> bool {
        let seen = self.readings >= clock.settings.dwell_ticks;
        let rested = self.history.as_deref().is_none_or(|history| {
            let is_recent = |moved_ms: u64| clock.at_ms.saturating_sub(moved_ms) < clock.settings.cooldown_ms;
            history.pending.is_none() && history.watch.is_none() && !history.moved_ms.is_some_and(is_recent)
        });
        seen && rested
    }

    /// Whether it may go there: it comes from nowhere near, and did not do badly there.
    pub fn may_take(&self, to: &CpuSet, clock: &Clock<'_>) -> bool {
        let Some(history) = self.history.as_deref() else { return true };
        let gained = to.difference(&self.cpus);
        let was_there = |past: &Past| {
            clock.at_ms.saturating_sub(past.left_ms) < clock.settings.no_return_ms
                && (past.cpus == *to || !past.cpus.is_disjoint(&gained))
        };
        let is_banned = |ban: &Ban| !ban.cpus.is_disjoint(&gained);
        !history.past.iter().any(was_there) && !history.bans.iter().any(is_banned)
    }
}

impl History {
    /// A proposal is in force.
    fn note_move(&mut self, from: CpuSet, done: &Pending, asked: u64, wait: Option<u64>, clock: &Clock<'_>) {
        let Pending { to, rung, with, since_ms: _ } = done;
        if self.past.len() == PAST_MAX {
            self.past.remove(0);
        }
        self.past.push(Past { cpus: from.clone(), left_ms: clock.at_ms });
        match rung {
            // What has returned home has none to return to any more.
            Rung::Squeeze | Rung::Widen => {
                self.home = Some(self.home.take().unwrap_or_else(|| from.clone())).filter(|home| home != to);
            }
            Rung::Near | Rung::Swap | Rung::Far | Rung::Revert => self.home = None,
        }
        // A move taken back was judged already; idle work waits by design.
        if !matches!(*rung, Rung::Revert | Rung::Squeeze) {
            self.watch = Some(Watch {
                from,
                with: with.clone(),
                demand_before: asked,
                wait_before: wait,
                demand_after: 0,
                wait_after: 0,
                measured_ms: 0,
                unknown_ms: 0,
                is_told: false,
            });
        }
    }

    /// Never there again for a while; banned again, from now on.
    pub fn ban(&mut self, cpus: CpuSet, clock: &Clock<'_>) {
        self.bans.retain(|ban| ban.cpus != cpus);
        if self.bans.len() == BANS_MAX {
            self.bans.remove(0);
        }
        self.bans.push(Ban { cpus, until_ms: clock.at_ms.saturating_add(clock.settings.ban_ms) });
    }

    /// Drops what no longer counts.
    fn forget(&mut self, clock: &Clock<'_>) {
        let waited_ms = PENDING_TICKS * clock.settings.tick_ms;
        self.pending.take_if(|pending| clock.at_ms.saturating_sub(pending.since_ms) > waited_ms);
        self.past.retain(|past| clock.at_ms.saturating_sub(past.left_ms) < clock.settings.no_return_ms);
        self.bans.retain(|ban| clock.at_ms < ban.until_ms);
    }
}

impl Watch {
    fn add(&mut self, usage: u64, wait: Option<u64>, clock: &Clock<'_>) {
        self.measured_ms += clock.elapsed_ms;
        let Some(wait) = wait else {
            self.unknown_ms += clock.elapsed_ms;
            return;
        };
        self.demand_after += (usage + wait) * clock.elapsed_ms;
        self.wait_after += wait * clock.elapsed_ms;
    }
}

/// What it would use if nothing held it back. Waiting threads are counted one by one, a hundred of them as a hundred CPUs: they say no more
/// than that it could use all it may, so that is the most that counts.
fn demand_of(member: &Member, usage: u64) -> u64 {
    let wait = member.wait.map_or(0, |wait| u64::from(wait.0));
    let limit = member.cpu.limit.at().map_or(u64::MAX, |limit| u64::from(limit.0));
    (usage + wait).min(limit.min(1000 * member.cpus.len() as u64)).max(usage)
}
