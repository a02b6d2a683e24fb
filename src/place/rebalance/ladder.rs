//! What to do about a hot group: the ladder, cheapest rung first.
//!
//! Algorithm, for the fullest hot groups: of each rung the candidates that would help most by a rough count are tried on a copy of the
//! picture, with what flows flowing anew; the first rung with one whose gain exceeds its cost makes the move. What helped is put into the
//! picture, and it begins again until the moves of the tick are spent.

mod rungs;

use super::groups::{Groups, Place};
use super::heat::{self, Heats, Means};
use super::picture::{Picture, Way};
use super::track::{Clock, Track};
use crate::model::balance::{Member, Move, Rung};
use crate::model::cpuset::CpuSet;
use crate::model::name::Name;
use crate::model::spec::CpuClass;
use std::cmp::Reverse;

/// Groups looked at in a tick, the fullest first: with two moves a tick the others wait for the next one anyway.
const GROUPS_MAX: usize = 4;
/// Candidates tried in full, of each rung.
const TRIALS_MAX: usize = 6;
/// One tick's search.
pub struct Ladder<'a> {
    pub groups: &'a Groups,
    pub tracks: &'a [Track],
    pub members: &'a [(&'a Name, &'a Member)],
    pub clock: Clock<'a>,
    pub picture: Picture,
    pub moves: Vec<Move>,
    /// Whether nothing helped, by hot group that was looked at.
    pub stuck: Vec<usize>,
    /// By group, the workloads that lie in it alone and may move; and idle work wherever it is.
    residents: Vec<Vec<usize>>,
    idle: Vec<usize>,
}

/// A workload and where it might go.
struct Candidate {
    rung: Rung,
    cost: u64,
    steps: Vec<(usize, CpuSet)>,
    /// The group it would help.
    to: usize,
}

impl<'a> Ladder<'a> {
    pub fn of(
        groups: &'a Groups,
        tracks: &'a [Track],
        members: &'a [(&'a Name, &'a Member)],
        clock: Clock<'a>,
        picture: Picture,
    ) -> Ladder<'a> {
        let mut residents = vec![Vec::new(); groups.count()];
        let mut idle = Vec::new();
        for (at, (track, (_, member))) in tracks.iter().zip(members).enumerate() {
            if member.fixed.is_some() || !track.is_free(&clock) {
                continue;
            }
            match (member.cpu.class, &track.place) {
                (CpuClass::Idle, _) => idle.push(at),
                (CpuClass::Shared | CpuClass::Pinned, Some(Place::Whole(group) | Place::Seats(group))) => {
                    residents[*group].push(at);
                }
                _ => {}
            }
        }
        Ladder { groups, tracks, members, clock, picture, moves: Vec::new(), stuck: Vec::new(), residents, idle }
    }

    /// Spends the moves of the tick on the hot groups.
    pub fn climb(&mut self, heats: &Heats) {
        let heat = |group: usize| heats.get(&self.groups.list()[group].id()).copied().unwrap_or_default();
        let mut hot: Vec<(u64, usize)> = Vec::new();
        let means = Means::of(self.groups, &self.picture);
        let excess = heat::excess(self.groups, &self.picture, &means);
        for (group, excess) in excess.into_iter().enumerate() {
            let heat = heat(group);
            if heat.hot || heat.seat_hot {
                hot.push((excess, group));
            }
        }
        hot.sort_by_key(|(excess, group)| (Reverse(*excess), *group));
        for (_, group) in hot.into_iter().take(GROUPS_MAX) {
            let heat = heat(group);
            while self.moves.len() < self.clock.settings.moves_max && self.is_crowded(group, heat.hot) {
                let found = if heat.hot { self.relief(group, heat.far) } else { None };
                let found = found.or_else(|| if heat.seat_hot { self.reseat(group) } else { None });
                match found {
                    Some((candidate, gain)) => self.make(group, candidate, gain),
                    None => {
                        if heat.hot {
                            self.stuck.push(group);
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Gives one workload back what it held before it was widened or squeezed, once nobody is in the way any more: CPUs that are left for
    /// a crowd of an hour ago would be missed for ever.
    pub fn gather(&mut self, heats: &Heats) {
        if self.moves.len() >= self.clock.settings.moves_max || heats.values().any(|heat| heat.hot) {
            return;
        }
        let homesick = (0..self.tracks.len()).find_map(|at| {
            let track = &self.tracks[at];
            let (home, member) = (track.history.as_deref()?.home.as_ref()?, self.members[at].1);
            let is_apart = member.cpu.class == CpuClass::Idle || matches!(track.place, Some(Place::Several(_)));
            // Shared work that was given all of its cache keeps it: nothing gets cold there, and on its old seats it would be in the way again.
            let home = match (member.cpu.class, self.groups.place(home)) {
                (CpuClass::Shared, Place::Seats(group)) => &self.groups.list()[group].cpus,
                _ => home,
            };
            let may = is_apart && member.fixed.is_none() && track.is_free(&self.clock) && self.allows_idle(at, home);
            (may && self.groups.are_open(home)).then(|| (at, home.clone()))
        });
        let Some((at, home)) = homesick else { return };
        let candidate = Candidate { rung: Rung::Revert, cost: 0, steps: vec![(at, home.clone())], to: 0 };
        let after = self.after(&candidate);
        let excess = heat::excess(self.groups, &after, &Means::of(self.groups, &after));
        if excess.iter().any(|excess| *excess >= u64::from(self.clock.settings.leave_permille)) {
            return;
        }
        let (name, member) = self.members[at];
        self.moves.push(Move {
            name: name.clone(),
            from: member.cpus.clone(),
            to: home,
            rung: Rung::Revert,
            with: None,
            gain: 0,
            cost: 0,
            reason: "what it made room for is over: back to what it held before".to_owned(),
        });
    }

    /// Whether there is something left to do, after the moves so far.
    fn is_crowded(&self, group: usize, hot: bool) -> bool {
        let means = Means::of(self.groups, &self.picture);
        let excess = heat::excess(self.groups, &self.picture, &means)[group];
        !hot || excess >= u64::from(self.clock.settings.leave_permille)
    }

    /// The first rung that helps.
    fn relief(&self, hot: usize, far: bool) -> Option<(Candidate, u64)> {
        let room = self.clock.settings.moves_max - self.moves.len();
        self.best(self.squeezes(hot))
            .or_else(|| if self.stands_out_near(hot) { self.near_relief(hot, room) } else { None })
            .or_else(|| if far { self.best(self.transfers(hot, Rung::Far)) } else { None })
    }

    fn near_relief(&self, hot: usize, room: usize) -> Option<(Candidate, u64)> {
        self.best(self.widenings(hot))
            .or_else(|| self.best(self.transfers(hot, Rung::Near)))
            .or_else(|| if room >= 2 { self.best(self.swaps(hot)) } else { None })
    }

    /// Whether a group stands above those of its node too. Where a whole node is full every group of it stands above the mean of the machine,
    /// and what is moved about within it comes to where it waits as long.
    fn stands_out_near(&self, group: usize) -> bool {
        let here = &self.groups.list()[group];
        let near = self.groups.list().iter().zip(&self.picture.loads);
        let near = near.filter(|(other, _)| other.kind == here.kind && other.node == here.node);
        let (load, capacity) = near.fold((0, 0), |sum, (_, load)| (sum.0 + load.all(), sum.1 + load.capacity));
        let above = self.picture.loads[group].level().saturating_sub(1000 * load / capacity.max(1));
        above >= u64::from(self.clock.settings.leave_permille)
    }

    /// The candidate that gains most beyond its cost. They come sorted by promise.
    fn best(&self, candidates: Vec<Candidate>) -> Option<(Candidate, u64)> {
        let now = self.picture.objective(self.groups);
        let tried = candidates.into_iter().take(TRIALS_MAX).filter_map(|candidate| {
            let gain = now.saturating_sub(self.after(&candidate).objective(self.groups));
            (gain > candidate.cost).then_some((candidate, gain))
        });
        tried.reduce(|best, next| if next.1 - next.0.cost > best.1 - best.0.cost { next } else { best })
    }

    /// The picture as it would be.
    fn after(&self, candidate: &Candidate) -> Picture {
        let mut picture = self.picture.clone();
        for (at, to) in &candidate.steps {
            let (track, (_, member)) = (&self.tracks[*at], self.members[*at]);
            let Some(from) = &track.place else { continue };
            picture.shift(member.cpu.class, &member.cpus, from, track.demand(), Way::Out);
            picture.shift(member.cpu.class, to, &self.groups.place(to), track.demand(), Way::In);
        }
        picture.pour();
        picture
    }

    fn make(&mut self, hot: usize, candidate: Candidate, gain: u64) {
        let level = |picture: &Picture, group: usize| picture.loads[group].level() / 10;
        let after = self.after(&candidate);
        let Candidate { rung, cost, steps, to } = candidate;
        let reason = format!(
            "{} was at {} %, {} at {} %; expected {} % and {} %",
            self.groups.list()[hot].cpus,
            level(&self.picture, hot),
            self.groups.list()[to].cpus,
            level(&self.picture, to),
            level(&after, hot),
            level(&after, to)
        );
        for (index, (at, cpus)) in steps.iter().enumerate() {
            let (name, member) = self.members[*at];
            let with = steps.len() == 2;
            self.moves.push(Move {
                name: name.clone(),
                from: member.cpus.clone(),
                to: cpus.clone(),
                rung,
                with: with.then(|| self.members[steps[1 - index].0].0.clone()),
                gain,
                cost,
                reason: reason.clone(),
            });
            self.residents.iter_mut().for_each(|list| list.retain(|other| other != at));
            self.idle.retain(|other| other != at);
        }
        self.picture = after;
    }

    /// The largest workload of a group, what it asks for, and why it stays.
    pub fn largest(&self, group: usize) -> Option<(&Name, u64, String)> {
        let here = |at: &usize| matches!(self.tracks[*at].place, Some(Place::Whole(g) | Place::Seats(g)) if g == group);
        let at = (0..self.tracks.len()).filter(here).max_by_key(|at| (self.tracks[*at].demand(), Reverse(*at)))?;
        let (name, member) = self.members[at];
        let why = match &member.fixed {
            Some(why) => why.clone(),
            None if !self.tracks[at].is_free(&self.clock) => "moved a moment ago".to_owned(),
            None => "too large for any other group".to_owned(),
        };
        Some((name, self.tracks[at].demand(), why))
    }

    /// What would be moved within a group if that were done.
    pub fn would_reseat(&self, group: usize) -> Option<(&Name, CpuSet, CpuSet)> {
        let (candidate, _) = self.reseat(group)?;
        let (at, to) = candidate.steps.into_iter().next()?;
        let (name, member) = self.members[at];
        Some((name, member.cpus.clone(), to))
    }
}
