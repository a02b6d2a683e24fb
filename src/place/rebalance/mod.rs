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
//! * Exclusive CPUs, and what is exclusive, never change.
//! * A machine of one group sees no move.

pub mod groups;
mod picture;
mod smooth;
mod track;

use crate::model::balance::{Decision, Figures, GroupFigures, Sample, Settings};
use crate::model::cpuset::CpuSet;
use crate::model::topology::Topology;
use groups::Groups;
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
        let figures = figures(groups, &picture);
        Decision { figures, ..Decision::default() }
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

fn figures(groups: &Groups, picture: &Picture) -> Figures {
    let group = |(group, load): (&groups::Group, &picture::Load)| GroupFigures {
        cpus: group.cpus.clone(),
        load: load.all(),
        idle: load.idle,
        foreign: load.foreign,
        capacity: load.capacity,
        hot: false,
    };
    Figures { imbalance: 0, objective: 0, groups: groups.list().iter().zip(&picture.loads).map(group).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::balance::Member;
    use crate::model::spec::{Align, Cpu, CpuClass};
    use crate::model::topology::tests::two_sockets;
    use crate::model::units::{Limit, MilliCpu};
    use std::time::Duration;

    fn member(class: CpuClass, cpus: &str, usage: u32) -> Member {
        let cpu = Cpu {
            request: MilliCpu(0),
            limit: Limit::Max,
            weight: 100,
            burst: Duration::ZERO,
            class,
            smt: None,
            align: Align::Preferred,
        };
        Member {
            cpu,
            cpus: cpus.parse().unwrap(),
            fenced: CpuSet::new(),
            within: None,
            fixed: None,
            usage: Some(MilliCpu(usage)),
            wait: None,
            resident: None,
            priority: 0,
        }
    }

    #[test]
    fn load_is_told_by_group_work_of_several_flows_and_strangers_count() {
        let members = [
            ("near", member(CpuClass::Shared, "0-1,8-9", 2500)),
            ("wide", member(CpuClass::Shared, "0-15", 3000)),
            ("idle", member(CpuClass::Idle, "0-15", 1600)),
        ];
        // 7100 of ours, 900 of others: what is busy beyond `near` is theirs by 900 of 5500.
        let busy = (0..16).map(|cpu| (cpu, if cpu % 8 < 2 { 875 } else { 375 })).collect();
        let sample = Sample {
            at_ms: 5_000,
            busy,
            members: members.map(|(name, member)| (name.parse().unwrap(), member)).into(),
        };
        let decision = Balancer::default().tick(&two_sockets(), &sample, &Settings::default());
        let shown: Vec<String> = decision
            .figures
            .groups
            .iter()
            .map(|group| format!("{}: {} idle {} foreign {}", group.cpus, group.load, group.idle, group.foreign))
            .collect();
        assert_eq!(
            shown,
            [
                "0-1,8-9: 2663 idle 400 foreign 163",
                "2-3,10-11: 1245 idle 400 foreign 245",
                "4-5,12-13: 1245 idle 400 foreign 245",
                "6-7,14-15: 1245 idle 400 foreign 245",
            ]
        );
    }
}
