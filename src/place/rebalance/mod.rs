//! Rebalancing: which running workload should use other CPUs, and whether any should at all.
//!
//! Problem: workloads are placed by what they may use and then use something else. One last-level cache is crowded while its neighbour
//! idles. But every move costs warm caches, loads change by themselves, and a loop that chases them does more harm than the crowd did.
//! Approach: measure demand (usage and runnable wait: a saturated group's usage hides what it wants), smooth it, and act only on what
//! lasts, with the cheapest means that help, a little at a time; then look whether it did help, and take it back if not.
//! Terms: *group*, CPUs that work flows between freely ([`groups`]); *level*, load of a group on each thousandth of its CPUs;
//! *imbalance*, the fullest group's level above the mean of its kind of core; *hot*, a group to be relieved; *objective*, the sum over
//! groups of load^2/capacity.
//! Guarantees:
//! * A decision is a function of the machine, the samples so far and the settings: no clock, no chance.
//! * It only proposes. A move counts as made once a later sample shows its CPUs in force; one that was not carried out is forgotten after
//!   three ticks, and nobody has to be told.
//! * Every move lowers the objective by more than it costs, at most `moves_max` of a tick; those apart that go back to where they were.
//! * A proposed set is not empty, open to everybody, within the node that is required or kept to, of one kind of core, and, for pinned
//!   work, of as many CPUs as before, on cores as asked.
//! * Who was moved rests, and returns only if it is taken back, or after `no_return_ms`.
//! * Exclusive CPUs, and what is exclusive, never change. A machine of one group sees no move.
//!
//! Steps of a tick: [`Balancer::tick`] follows the workloads (`track`), draws the picture (`picture`), sees which groups are hot (`heat`),
//! judges earlier moves (`verdict`), climbs the ladder (`ladder`), and advises where nothing helps (`advice`).

mod advice;
pub mod groups;
mod heat;
mod ladder;
mod picture;
pub mod replay;
mod smooth;
mod track;
mod verdict;

use crate::model::balance::{Decision, Figures, GroupFigures, Member, Sample, Settings};
use crate::model::cpuset::CpuSet;
use crate::model::name::Name;
use crate::model::topology::Topology;
use groups::Groups;
use heat::{Heats, Means};
use ladder::Ladder;
use picture::Picture;
use serde::{Deserialize, Serialize};
use smooth::{Kept, Smooth};
use std::collections::BTreeMap;
use track::{Clock, Track};

/// What the rebalancer remembers from tick to tick. Lost with the controller, it begins anew and is careful until it knows again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Balancer {
    /// Of the last sample; none before the first.
    at_ms: Option<u64>,
    /// By name.
    tracks: Vec<Track>,
    /// What others use, by the lowest CPU of each group.
    foreign: BTreeMap<u32, Smooth>,
    /// Which groups are to be relieved, by their lowest CPU.
    heats: Heats,
    #[serde(skip)]
    groups: Cached,
}

/// The groups of the machine of the last tick. Worked out from it, so it is nothing that is remembered.
#[derive(Clone, Debug, Default)]
struct Cached(Groups);

impl PartialEq for Cached {
    fn eq(&self, _: &Cached) -> bool {
        true
    }
}

impl Eq for Cached {}

impl Balancer {
    /// What to do about one more sample. A sample that is not later than the one before says nothing.
    pub fn tick(&mut self, machine: &Topology, sample: &Sample, settings: &Settings) -> Decision {
        let elapsed_ms = sample.at_ms.saturating_sub(self.at_ms.unwrap_or(sample.at_ms));
        if self.at_ms.is_some() && elapsed_ms == 0 {
            return Decision::default();
        }
        self.at_ms = Some(sample.at_ms);
        let kept = Kept::over(elapsed_ms, settings.half_life_ms);
        let clock = Clock { at_ms: sample.at_ms, elapsed_ms, kept, settings };
        self.follow(machine, sample, &clock);
        let groups = &self.groups.0;
        let foreign = picture::foreign(groups, &self.tracks, sample, &mut self.foreign, kept);
        let picture = Picture::of(groups, &self.tracks, sample, &foreign);
        let excess = heat::excess(groups, &picture, &Means::of(groups, &picture));
        heat::follow(&mut self.heats, groups, &picture, &excess, &clock);
        let figures = figures(groups, &picture, &self.heats, &excess);
        let members: Vec<(&Name, &Member)> = sample.members.iter().collect();
        let (verdicts, reverts) = verdict::judge(&mut self.tracks, &members, groups, &clock);
        let mut ladder = Ladder::of(groups, &self.tracks, &members, clock, picture);
        ladder.moves = reverts;
        let advice = if groups.count() > 1 {
            ladder.climb(&self.heats);
            ladder.gather(&self.heats);
            advice::of_stuck(&ladder)
        } else {
            advice::of_seats(&ladder, &self.heats)
        };
        let moves = ladder.moves;
        for proposed in &moves {
            if let Ok(at) = self.tracks.binary_search_by(|track| track.name.cmp(&proposed.name)) {
                self.tracks[at].propose(proposed, &clock);
            }
        }
        Decision { moves, advice, verdicts, figures }
    }

    fn follow(&mut self, machine: &Topology, sample: &Sample, clock: &Clock<'_>) {
        let mut fenced = CpuSet::new();
        for member in sample.members.values().filter(|member| !member.fenced.is_empty()) {
            fenced = fenced.union(&member.fenced);
        }
        if !self.groups.0.hold_for(machine, &fenced) {
            self.groups = Cached(Groups::of(machine, &fenced));
            self.tracks.iter_mut().for_each(|track| track.place = None);
        }
        track::follow(&mut self.tracks, sample, clock);
        for track in self.tracks.iter_mut().filter(|track| track.place.is_none()) {
            track.place = Some(self.groups.0.place(&track.cpus));
        }
    }
}

fn figures(groups: &Groups, picture: &Picture, heats: &Heats, excess: &[u64]) -> Figures {
    let group = |(group, load): (&groups::Group, &picture::Load)| GroupFigures {
        cpus: group.cpus.clone(),
        load: load.all(),
        idle: load.idle,
        foreign: load.foreign,
        capacity: load.capacity,
        hot: heats.get(&group.id()).is_some_and(|heat| heat.hot),
    };
    Figures {
        imbalance: u32::try_from(excess.iter().copied().max().unwrap_or(0)).unwrap_or(u32::MAX),
        objective: picture.objective(groups),
        groups: groups.list().iter().zip(&picture.loads).map(group).collect(),
    }
}

#[cfg(test)]
mod tests;
