//! Policies to compare: none at all, one that chases every tick, one that is calm and knows single moves only, and this program's.

use super::world::{GROUP_CPUS, GROUPS, Policy, Step, groups_of, steps};
use containerctl::model::balance::{Line, Sample, Settings};
use containerctl::model::cpuset::CpuSet;
use containerctl::model::name::Name;
use containerctl::model::topology::Topology;
use containerctl::place::rebalance::Balancer;
use std::collections::BTreeMap;

pub struct Static;

impl Policy for Static {
    fn tick(&mut self, _: &Topology, _: &Sample) -> Vec<Step> {
        Vec::new()
    }
}

/// Every tick, from the fullest group to the emptiest, whatever brings the two together, until nothing does.
pub struct Naive;

impl Policy for Naive {
    fn tick(&mut self, _: &Topology, sample: &Sample) -> Vec<Step> {
        let demands = demands(sample);
        level_out(sample, &demands, 64, |_, _| true)
    }
}

/// Smoothed demand, 15 % for two ticks, two moves a tick, 120 s of rest, 600 s without a return; single moves only.
#[derive(Default)]
pub struct Calm {
    means: BTreeMap<Name, f64>,
    above: u32,
    active: bool,
    moved: BTreeMap<Name, Vec<(u64, usize)>>,
}

impl Policy for Calm {
    fn tick(&mut self, _: &Topology, sample: &Sample) -> Vec<Step> {
        for (name, demand) in demands(sample) {
            let mean = self.means.entry(name).or_insert(demand);
            *mean += (demand - *mean) * 0.109;
        }
        let levels = levels(sample, &self.means);
        let mean = levels.iter().sum::<f64>() / f64::from(GROUPS);
        let excess = (levels.iter().copied().fold(0.0, f64::max) - mean) / f64::from(GROUP_CPUS);
        self.above = if excess >= 0.15 { self.above + 1 } else { 0 };
        self.active = self.above >= 2 || self.active && excess >= 0.08;
        if !self.active {
            return Vec::new();
        }
        let (at_ms, earlier) = (sample.at_ms, &self.moved);
        let may = |name: &Name, to: usize| {
            earlier.get(name).is_none_or(|past| {
                past.iter().all(|(when, from)| at_ms - when >= 120_000 && (at_ms - when >= 600_000 || *from != to))
            })
        };
        let moves = level_out(sample, &self.means, 2, may);
        for Step { name, .. } in &moves {
            let from = groups_of(&sample.members[name].cpus)[0];
            self.moved.entry(name.clone()).or_default().push((at_ms, from));
        }
        moves
    }
}

/// This program.
#[derive(Default)]
pub struct Ours {
    pub balancer: Balancer,
    pub settings: Settings,
    /// A recording of all of it, if one is wanted.
    pub lines: Option<Vec<Line<Balancer>>>,
}

impl Policy for Ours {
    fn tick(&mut self, machine: &Topology, sample: &Sample) -> Vec<Step> {
        let decision = self.balancer.tick(machine, sample, &self.settings);
        if let Some(lines) = &mut self.lines {
            lines.push(Line::Tick { sample: sample.clone(), decision: decision.clone() });
        }
        steps(decision.moves)
    }
}

fn demands(sample: &Sample) -> BTreeMap<Name, f64> {
    let demand = |(name, member): (&Name, &containerctl::model::balance::Member)| {
        let (usage, wait) = (member.usage.unwrap_or_default().0, member.wait.unwrap_or_default().0);
        (name.clone(), f64::from(usage + wait) / 1000.0)
    };
    sample.members.iter().map(demand).collect()
}

fn levels(sample: &Sample, demands: &BTreeMap<Name, f64>) -> Vec<f64> {
    let mut levels = vec![0.0; GROUPS as usize];
    for (name, member) in &sample.members {
        levels[groups_of(&member.cpus)[0]] += demands[name];
    }
    levels
}

/// Single moves from the fullest group to the emptiest, each the one that brings them closest.
fn level_out(
    sample: &Sample,
    demands: &BTreeMap<Name, f64>,
    moves_max: usize,
    may: impl Fn(&Name, usize) -> bool,
) -> Vec<Step> {
    let mut levels = levels(sample, demands);
    let mut places: BTreeMap<&Name, usize> =
        sample.members.iter().map(|(name, member)| (name, groups_of(&member.cpus)[0])).collect();
    let mut moves: BTreeMap<Name, CpuSet> = BTreeMap::new();
    while moves.len() < moves_max {
        let by_level = |a: &usize, b: &usize| levels[*a].total_cmp(&levels[*b]);
        let from = (0..levels.len()).max_by(by_level).unwrap();
        let to = (0..levels.len()).min_by(by_level).unwrap();
        let gap = levels[from] - levels[to];
        let fits =
            |name: &&Name| places[*name] == from && demands[*name] < gap && !moves.contains_key(*name) && may(name, to);
        let miss = |name: &&Name| (demands[*name] - gap / 2.0).abs();
        let Some(best) = sample.members.keys().filter(fits).min_by(|a, b| miss(a).total_cmp(&miss(b))) else { break };
        // Below a tenth of a CPU the fullest hardly gets emptier.
        if demands[best].min(gap - demands[best]) < 0.02 {
            break;
        }
        levels[from] -= demands[best];
        levels[to] += demands[best];
        places.insert(best, to);
        let to = u32::try_from(to).unwrap() * GROUP_CPUS;
        let width = if sample.members[best].cpus.len() == 1 { 1 } else { GROUP_CPUS };
        moves.insert(best.clone(), (to..to + width).collect());
    }
    moves.into_iter().map(|(name, cpus)| Step { name, cpus, is_revert: false }).collect()
}
