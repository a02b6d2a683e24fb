//! Where the load is: demand of every workload, and what others use, group by group.
//!
//! Approach: what lies in one group is that group's. Work of several groups flows to where there is room, as the kernel lets it: it is
//! poured onto the lowest of its groups until they stand level, the work of the fewest groups first. What others use is what CPUs were
//! busy with beyond our own usage; where it sits among work of ours that may be anywhere is told by how the rest is spread.

use super::groups::{Groups, Place};
use super::smooth::{self, Kept, Smooth};
use super::track::Track;
use crate::model::balance::{Member, Sample};
use crate::model::spec::CpuClass;
use std::collections::BTreeMap;

/// Loads of one moment, in thousandths of a CPU.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub loads: Vec<Load>,
    /// By CPU number, what those kept to single CPUs ask of each.
    pub seats: Vec<u64>,
    /// Demand of work of several groups, by its groups.
    pub pools: BTreeMap<Vec<usize>, u64>,
}

/// One group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Of those in this group alone, foreign work included.
    pub own: u64,
    /// What flows here of the work of several groups.
    pub wide: u64,
    /// Of idle work, which yields to all other and is no load.
    pub idle: u64,
    /// Of nobody's workload.
    pub foreign: u64,
    pub capacity: u64,
}

impl Load {
    pub fn all(&self) -> u64 {
        self.own + self.wide
    }

    /// Load on each thousand of capacity.
    pub fn level(&self) -> u64 {
        1000 * self.all() / self.capacity.max(1)
    }
}

impl Picture {
    /// What the tracks ask for, beside `foreign` work by group.
    pub fn of(groups: &Groups, tracks: &[Track], sample: &Sample, foreign: &[u64]) -> Picture {
        let load = |(group, foreign): (&super::groups::Group, u64)| Load {
            own: foreign,
            foreign,
            capacity: 1000 * group.cpus.len() as u64,
            ..Load::default()
        };
        let foreign = foreign.iter().copied().chain(std::iter::repeat(0));
        let loads = groups.list().iter().zip(foreign).map(load).collect();
        let mut picture = Picture { loads, seats: Vec::new(), pools: BTreeMap::new() };
        for (track, member) in tracks.iter().zip(sample.members.values()) {
            picture.put(track, member);
        }
        picture.pour();
        picture
    }

    fn put(&mut self, track: &Track, member: &Member) {
        let demand = track.demand();
        match (member.cpu.class, track.place.as_ref()) {
            (CpuClass::Exclusive, _) | (_, None | Some(Place::Nowhere)) => {}
            (CpuClass::Idle, Some(Place::Whole(group) | Place::Seats(group))) => self.loads[*group].idle += demand,
            (CpuClass::Idle, Some(Place::Several(list))) => self.spread_idle(list, demand),
            (_, Some(Place::Whole(group))) => self.loads[*group].own += demand,
            (_, Some(Place::Seats(group))) => {
                self.loads[*group].own += demand;
                let cpus = member.cpus.len() as u64;
                for cpu in member.cpus.iter() {
                    *self.seat(cpu) += demand / cpus;
                }
            }
            (_, Some(Place::Several(list))) => match self.pools.get_mut(list) {
                Some(pool) => *pool += demand,
                None => {
                    self.pools.insert(list.clone(), demand);
                }
            },
        }
    }

    /// Idle groups are levelled by the number of their threads, whatever else runs there, so theirs is spread evenly.
    fn spread_idle(&mut self, list: &[usize], demand: u64) {
        let capacity: u64 = list.iter().map(|group| self.loads[*group].capacity).sum();
        for group in list {
            let load = &mut self.loads[*group];
            load.idle += demand * load.capacity / capacity.max(1);
        }
    }

    fn seat(&mut self, cpu: u32) -> &mut u64 {
        let at = cpu as usize;
        if self.seats.len() <= at {
            self.seats.resize(at + 1, 0);
        }
        &mut self.seats[at]
    }

    /// Lets the work of several groups flow to where there is room.
    pub fn pour(&mut self) {
        self.loads.iter_mut().for_each(|load| load.wide = 0);
        let mut pools: Vec<(&Vec<usize>, u64)> = self.pools.iter().map(|(list, demand)| (list, *demand)).collect();
        pools.sort_by_key(|(list, _)| list.len());
        for (list, demand) in pools {
            let mut order: Vec<usize> = list.clone();
            order.sort_by_key(|group| (self.loads[*group].level(), *group));
            // The longest run of lowest groups that the demand lifts to one level at least as high as each of theirs.
            let (mut load, mut capacity, mut count) = (demand, 0, 0);
            for group in &order {
                let next = &self.loads[*group];
                if count > 0
                    && u128::from(next.all()) * u128::from(capacity) >= u128::from(load) * u128::from(next.capacity)
                {
                    break;
                }
                (load, capacity, count) = (load + next.all(), capacity + next.capacity, count + 1);
            }
            for group in &order[..count] {
                let here = &mut self.loads[*group];
                here.wide += (load * here.capacity / capacity.max(1)).saturating_sub(here.all());
            }
        }
    }
}

/// What others use in each group, smoothed. Remembered by the lowest CPU of a group, so that it outlives a change of other groups.
pub fn foreign(
    groups: &Groups,
    tracks: &[Track],
    sample: &Sample,
    before: &mut BTreeMap<u32, Smooth>,
    kept: Kept,
) -> Vec<u64> {
    let mut busy = vec![0_u64; groups.count()];
    for (cpu, permille) in &sample.busy {
        if let Some(group) = groups.of_cpu(*cpu) {
            busy[group] += u64::from(*permille);
        }
    }
    let mut wide = 0;
    for (track, member) in tracks.iter().zip(sample.members.values()) {
        let usage = member.usage.map_or(0, |usage| u64::from(usage.0));
        match &track.place {
            Some(Place::Whole(group) | Place::Seats(group)) => busy[*group] = busy[*group].saturating_sub(usage),
            Some(Place::Several(_)) => wide += usage,
            None | Some(Place::Nowhere) => {}
        }
    }
    let rest: u64 = busy.iter().sum();
    let others = rest.saturating_sub(wide);
    let mut means = BTreeMap::new();
    for (group, busy) in groups.list().iter().zip(busy) {
        let now = busy * others / rest.max(1);
        let mut mean = before.get(&group.id()).copied();
        smooth::add(&mut mean, now, kept);
        means.extend(mean.map(|mean| (group.id(), mean)));
    }
    *before = means;
    groups.list().iter().map(|group| before.get(&group.id()).map_or(0, |mean| mean.get())).collect()
}
