//! A machine of eight caches of eight CPUs, two hundred workloads on it, and what a policy makes of them.
//!
//! What is true here and not measured: a group with more demand than CPUs shares them out in proportion; work of several groups flows to
//! where there is room. Policies see what a sampler would: usage and wait of the last tick, and how busy each CPU was. Their moves are
//! in force from the next tick on.

use super::loads::{Load, Random, TICK_S};
use containerctl::model::balance::{Member, Move, Rung, Sample};
use containerctl::model::cpuset::CpuSet;
use containerctl::model::name::Name;
use containerctl::model::spec::{Align, Cpu, CpuClass};
use containerctl::model::topology::Topology;
use containerctl::model::units::{Bytes, Limit, MilliCpu};
use std::collections::BTreeMap;
use std::time::Duration;

pub const GROUPS: u32 = 8;
pub const GROUP_CPUS: u32 = 8;
pub const WORKLOADS: usize = 200;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Mean demand, in parts of the machine.
    pub utilisation: f64,
    /// The sigma of the workloads' lognormal sizes: how far the largest stand out.
    pub sigma: f64,
    pub hours: f64,
    /// NUMA nodes the groups are spread over.
    pub nodes: u32,
    /// Square waves only.
    pub square: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// The mean over ticks of the fullest group above the mean of all.
    pub imbalance: f64,
    /// The mean over ticks and groups of demand beyond the CPUs there are.
    pub overload: f64,
    pub moves_per_hour: f64,
    /// Moves back to where a workload was less than ten minutes before, an hour, those apart that
    pub returns_per_hour: f64,
    /// were taken back on purpose, because the workload waited more.
    pub reverts_per_hour: f64,
}

/// Other CPUs for a workload.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: Name,
    pub cpus: CpuSet,
    /// Whether it is an earlier move that is taken back, which is counted apart.
    pub is_revert: bool,
}

/// Chooses moves from a sample.
pub trait Policy {
    fn tick(&mut self, machine: &Topology, sample: &Sample) -> Vec<Step>;
}

pub fn machine(nodes: u32) -> Topology {
    let group = |number: u32| (number * GROUP_CPUS..(number + 1) * GROUP_CPUS).collect::<CpuSet>();
    let all: CpuSet = (0..GROUPS * GROUP_CPUS).collect();
    let per_node = GROUPS * GROUP_CPUS / nodes;
    Topology {
        packages: vec![all.clone()],
        nodes: (0..nodes).map(|node| (node, (node * per_node..(node + 1) * per_node).collect())).collect(),
        llcs: (0..GROUPS).map(group).collect(),
        cores: all.iter().map(|cpu| CpuSet::from_iter([cpu])).collect(),
        online: all.clone(),
        usable: all,
        ..Topology::default()
    }
}

struct Running {
    load: Load,
    member: Member,
    demand: f64,
    /// Sets it has left, and when.
    left: Vec<(CpuSet, f64)>,
}

pub struct World {
    pub machine: Topology,
    random: Random,
    running: BTreeMap<Name, Running>,
    case: Case,
    at_s: f64,
    tick: u64,
    moves: u64,
    returns: u64,
    reverts: u64,
    imbalance: f64,
    overload: f64,
}

impl World {
    pub fn new(case: Case, seed: u64) -> World {
        let mut random = Random::new(seed);
        let sizes: Vec<f64> = (0..WORKLOADS).map(|_| (case.sigma * random.normal()).exp()).collect();
        let total = case.utilisation * f64::from(GROUPS * GROUP_CPUS);
        let scale = total / sizes.iter().sum::<f64>();
        // As many to each group, whatever they will use: that is what placement by equal claims comes to.
        let mut order: Vec<usize> = (0..WORKLOADS).collect();
        (1..WORKLOADS).rev().for_each(|at| order.swap(at, random.below(at + 1)));
        let mut running = BTreeMap::new();
        for (at, size) in sizes.into_iter().enumerate() {
            let mean = (size * scale).min(f64::from(GROUP_CPUS) / 2.0);
            let group = u32::try_from(order[at]).unwrap() % GROUPS;
            let load = if case.square {
                Load::new(mean, Load::square(&mut random))
            } else {
                Load::mixed(mean, case.hours * 3600.0, &mut random)
            };
            let seat = group * GROUP_CPUS + u32::try_from(random.below(GROUP_CPUS as usize)).unwrap();
            // One in ten is pinned to a CPU, if one is enough.
            let member = if at % 10 == 0 && mean < 0.5 {
                member(CpuClass::Pinned, CpuSet::from_iter([seat]))
            } else {
                member(CpuClass::Shared, (group * GROUP_CPUS..(group + 1) * GROUP_CPUS).collect())
            };
            let name = format!("w{at:03}").parse().unwrap();
            running.insert(name, Running { load, member, demand: 0.0, left: Vec::new() });
        }
        World {
            machine: machine(case.nodes),
            random,
            running,
            case,
            at_s: 0.0,
            tick: 0,
            moves: 0,
            returns: 0,
            reverts: 0,
            imbalance: 0.0,
            overload: 0.0,
        }
    }

    /// Lets a policy have its way for as long as the case lasts.
    pub fn run(mut self, policy: &mut dyn Policy) -> Outcome {
        while self.at_s < self.case.hours * 3600.0 {
            let sample = self.sample();
            for step in policy.tick(&self.machine, &sample) {
                self.set(step);
            }
        }
        self.outcome()
    }

    fn outcome(&self) -> Outcome {
        #[expect(clippy::cast_precision_loss, reason = "counts of some thousands")]
        let per = |count: u64, unit: f64| count as f64 / unit;
        #[expect(clippy::cast_precision_loss, reason = "counts of some thousands")]
        let ticks = self.tick.max(1) as f64;
        Outcome {
            imbalance: self.imbalance / ticks,
            overload: self.overload / ticks,
            moves_per_hour: per(self.moves, self.at_s / 3600.0),
            returns_per_hour: per(self.returns, self.at_s / 3600.0),
            reverts_per_hour: per(self.reverts, self.at_s / 3600.0),
        }
    }

    /// One more tick passes.
    fn sample(&mut self) -> Sample {
        for running in self.running.values_mut() {
            running.demand = running.load.over_tick(self.at_s, &mut self.random);
        }
        self.at_s += TICK_S;
        self.tick += 1;
        let levels = self.levels();
        let capacity = f64::from(GROUP_CPUS);
        let mean = levels.iter().sum::<f64>() / f64::from(GROUPS) / capacity;
        let fullest = levels.iter().copied().fold(0.0, f64::max) / capacity;
        self.imbalance += fullest - mean;
        self.overload += levels.iter().map(|level| (level / capacity - 1.0).max(0.0)).sum::<f64>() / f64::from(GROUPS);
        self.measured(&levels)
    }

    fn set(&mut self, Step { name, cpus, is_revert }: Step) {
        let at_s = self.at_s;
        let running = self.running.get_mut(&name).unwrap();
        assert!(cpus != running.member.cpus && !cpus.is_empty(), "{name} to {cpus}");
        let gained = cpus.difference(&running.member.cpus);
        running.left.retain(|(_, left_s)| at_s - left_s < 600.0);
        let is_back = |(left, _): &(CpuSet, f64)| *left == cpus || !left.is_disjoint(&gained);
        self.returns += u64::from(!is_revert && running.left.iter().any(is_back));
        self.reverts += u64::from(is_revert);
        self.moves += 1;
        let from = std::mem::replace(&mut running.member.cpus, cpus);
        running.left.push((from, at_s));
    }

    /// Demand in each group, in CPUs.
    fn levels(&self) -> Vec<f64> {
        let mut levels = vec![0.0; GROUPS as usize];
        let mut wide: Vec<(Vec<usize>, f64)> = Vec::new();
        for running in self.running.values() {
            match groups_of(&running.member.cpus).as_slice() {
                [one] => levels[*one] += running.demand,
                several => wide.push((several.to_vec(), running.demand)),
            }
        }
        for (groups, demand) in wide {
            flow(&mut levels, &groups, demand);
        }
        levels
    }

    fn measured(&self, levels: &[f64]) -> Sample {
        let capacity = f64::from(GROUP_CPUS);
        let mut members = BTreeMap::new();
        for (name, running) in &self.running {
            let groups = groups_of(&running.member.cpus);
            let level = groups.iter().map(|group| levels[*group]).fold(f64::MAX, f64::min) / capacity;
            // Beyond the CPUs there are everybody waits; before that, the more the fuller (eight servers).
            let share = if level > 1.0 { 1.0 / level } else { 1.0 };
            let wait = running.demand * (1.0 - share) + running.demand * 0.2 * level.min(1.0).powi(8);
            let mut member = running.member.clone();
            member.usage = Some(milli(running.demand * share));
            member.wait = Some(milli(wait));
            members.insert(name.clone(), member);
        }
        let busy = (0..GROUPS * GROUP_CPUS)
            .map(|cpu| (cpu, milli(levels[(cpu / GROUP_CPUS) as usize] / capacity).0.min(1000)));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "hours, in milliseconds")]
        let at_ms = (self.at_s * 1000.0) as u64;
        Sample { at_ms, busy: busy.collect(), members }
    }
}

/// Fills the lowest of some groups.
fn flow(levels: &mut [f64], groups: &[usize], demand: f64) {
    let mut order = groups.to_vec();
    order.sort_by(|a, b| levels[*a].total_cmp(&levels[*b]));
    let (mut sum, mut count) = (demand, 0.0);
    let mut filled = Vec::new();
    for group in order {
        if count > 0.0 && levels[group] * count >= sum {
            break;
        }
        sum += levels[group];
        count += 1.0;
        filled.push(group);
    }
    for group in filled {
        levels[group] = sum / count;
    }
}

pub fn groups_of(cpus: &CpuSet) -> Vec<usize> {
    let mut groups: Vec<usize> = cpus.iter().map(|cpu| (cpu / GROUP_CPUS) as usize).collect();
    groups.dedup();
    groups
}

fn milli(cpus: f64) -> MilliCpu {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some CPUs, in thousandths")]
    let milli = (cpus * 1000.0).round() as u32;
    MilliCpu(milli)
}

pub fn member(class: CpuClass, cpus: CpuSet) -> Member {
    let count = u32::try_from(cpus.len()).unwrap();
    let cpu = Cpu {
        request: MilliCpu(0),
        limit: Limit::At(MilliCpu(count * 1000)),
        weight: 100,
        burst: Duration::ZERO,
        class,
        smt: None,
        align: Align::Preferred,
    };
    Member {
        cpu,
        cpus,
        fenced: CpuSet::new(),
        within: None,
        fixed: None,
        usage: None,
        wait: None,
        resident: Some(Bytes(64 << 20)),
        priority: 0,
    }
}

/// A decision's moves as the world takes them.
pub fn steps(moves: Vec<Move>) -> Vec<Step> {
    let step = |made: Move| Step { name: made.name, cpus: made.to, is_revert: made.rung == Rung::Revert };
    moves.into_iter().map(step).collect()
}
