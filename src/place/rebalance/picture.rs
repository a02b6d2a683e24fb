//! Where the load is: demand of every workload, and what others use, group by group.
//!
//! Approach: what lies in one group is that group's. Work of several groups flows to where there is room, as the kernel lets it: it is
//! poured onto the lowest of its groups until they stand level, the work of the fewest groups first. What others use is what CPUs were
//! busy with beyond our own usage; where it sits among work of ours that may be anywhere is told by how the rest is spread.

use super::groups::{Group, Groups, Place};
use super::smooth::{self, Kept, Smooth};
use super::track::Track;
use crate::model::balance::Sample;
use crate::model::cpuset::CpuSet;
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
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
        let load = |(group, foreign): (&Group, u64)| Load {
            own: foreign,
            foreign,
            capacity: 1000 * group.cpus.len() as u64,
            ..Load::default()
        };
        let foreign = foreign.iter().copied().chain(std::iter::repeat(0));
        let loads = groups.list().iter().zip(foreign).map(load).collect();
        let mut picture = Picture { loads, seats: Vec::new(), pools: BTreeMap::new() };
        for (track, member) in tracks.iter().zip(sample.members.values()) {
            if let Some(place) = &track.place {
                picture.shift(member.cpu.class, &member.cpus, place, track.demand(), Way::In);
            }
        }
        picture.pour();
        picture
    }

    /// What those kept to single CPUs ask of this one.
    pub fn seat_of(&self, cpu: u32) -> u64 {
        self.seats.get(cpu as usize).copied().unwrap_or(0)
    }

    /// The sum of load^2/capacity, CPU by CPU where some are kept to single ones and the rest flows around them.
    pub fn objective(&self, groups: &Groups) -> u64 {
        let of_group = |(group, load): (&Group, &Load)| self.square(group, load);
        groups.list().iter().zip(&self.loads).map(of_group).sum()
    }

    fn square(&self, group: &Group, load: &Load) -> u64 {
        let fullest = group.cpus.iter().map(|cpu| self.seat_of(cpu)).max().unwrap_or(0);
        // Idle work disturbs what shares its cache, less than other work, as it yields: it counts where it is crowded, by a quarter.
        let all = load.all() + load.idle / 4;
        if fullest <= 1000 * all / load.capacity.max(1) {
            return all * all / load.capacity.max(1);
        }
        let mut seats: Vec<u64> = group.cpus.iter().map(|cpu| self.seat_of(cpu)).collect();
        seats.sort_unstable_by(|one, other| other.cmp(one));
        // Full seats stand above what flows; the rest of the load is level on the other CPUs.
        let (mut rest, mut cpus, mut sum) = (all, seats.len() as u64, 0);
        for seat in seats {
            if cpus == 0 || seat * cpus <= rest {
                break;
            }
            sum += seat * seat / 1000;
            rest = rest.saturating_sub(seat);
            cpus -= 1;
        }
        if cpus > 0 { sum + rest * rest / (1000 * cpus) } else { sum }
    }

    /// Takes a workload's demand out of where it is, or puts it in.
    pub fn shift(&mut self, class: CpuClass, cpus: &CpuSet, place: &Place, demand: u64, way: Way) {
        let change = |value: &mut u64, by: u64| match way {
            Way::In => *value += by,
            Way::Out => *value = value.saturating_sub(by),
        };
        match (class, place) {
            (CpuClass::Exclusive, _) | (_, Place::Nowhere) => {}
            (CpuClass::Idle, Place::Whole(group) | Place::Seats(group)) => change(&mut self.loads[*group].idle, demand),
            // Idle groups are levelled by the number of their threads, whatever else runs there, so theirs is spread evenly.
            (CpuClass::Idle, Place::Several(list)) => {
                let capacity: u64 = list.iter().map(|group| self.loads[*group].capacity).sum();
                for group in list {
                    let load = &mut self.loads[*group];
                    change(&mut load.idle, demand * load.capacity / capacity.max(1));
                }
            }
            (_, Place::Whole(group)) => change(&mut self.loads[*group].own, demand),
            (_, Place::Seats(group)) => {
                change(&mut self.loads[*group].own, demand);
                let share = demand / cpus.len().max(1) as u64;
                cpus.iter().for_each(|cpu| change(self.seat(cpu), share));
            }
            (_, Place::Several(list)) => match self.pools.get_mut(list) {
                Some(pool) => change(pool, demand),
                None if way == Way::In => _ = self.pools.insert(list.clone(), demand),
                None => {}
            },
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
