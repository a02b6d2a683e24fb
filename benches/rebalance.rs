//! `cargo bench --bench rebalance`: every policy on every case, and how long a decision takes on a large machine.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on fails, and it has figures to tell"
)]

#[path = "../tests/rebalance/loads.rs"]
mod loads;
#[path = "../tests/rebalance/policies.rs"]
mod policies;
#[path = "../tests/rebalance/world.rs"]
mod world;

use containerctl::model::balance::{Sample, Settings};
use containerctl::model::cpuset::CpuSet;
use containerctl::model::spec::CpuClass;
use containerctl::model::topology::Topology;
use containerctl::model::units::MilliCpu;
use containerctl::place::rebalance::Balancer;
use policies::{Calm, Naive, Ours, Static};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use world::{Case, Outcome, Policy, World};

const SEEDS: u64 = 10;

fn main() {
    let base = Case { utilisation: 0.6, sigma: 1.3, hours: 4.0, nodes: 1, square: false };
    for (title, case) in [
        ("60 %", base),
        ("60 %, two NUMA nodes", Case { nodes: 2, ..base }),
        ("60 %, square waves only", Case { square: true, ..base }),
        ("85 %", Case { utilisation: 0.85, sigma: 1.35, ..base }),
        ("85 %, sizes as at 60 %", Case { utilisation: 0.85, ..base }),
    ] {
        println!(
            "{title}\n{:8} {:>9} {:>8} {:>8} {:>8} {:>10}",
            "", "imbalance", "overload", "moves/h", "A-B-A/h", "reverts/h"
        );
        compare("static", case, || Box::new(Static));
        compare("naive", case, || Box::new(Naive));
        compare("calm", case, || Box::<Calm>::default());
        compare("ours", case, || Box::<Ours>::default());
    }
    decision_time();
}

fn compare(name: &str, case: Case, policy: impl Fn() -> Box<dyn Policy>) {
    let mut sum = Outcome::default();
    for seed in 1..=SEEDS {
        let outcome = World::new(case, seed).run(policy().as_mut());
        sum.imbalance += outcome.imbalance;
        sum.overload += outcome.overload;
        sum.moves_per_hour += outcome.moves_per_hour;
        sum.returns_per_hour += outcome.returns_per_hour;
        sum.reverts_per_hour += outcome.reverts_per_hour;
    }
    #[expect(clippy::cast_precision_loss, reason = "ten")]
    let seeds = SEEDS as f64;
    let Outcome { imbalance, overload, moves_per_hour, returns_per_hour, reverts_per_hour } = sum;
    let all = [imbalance, overload, moves_per_hour, returns_per_hour, reverts_per_hour];
    let [imbalance, overload, moves, returns, reverts] = all.map(|sum| sum / seeds);
    println!("{name:8} {imbalance:9.3} {overload:8.4} {moves:8.1} {returns:8.2} {reverts:10.2}");
}

/// 128 caches of 8 CPUs in 8 nodes, 10,000 workloads: four in five in one cache, the others on a CPU, in a node or anywhere.
fn decision_time() {
    const CPUS: u32 = 1024;
    let all: CpuSet = (0..CPUS).collect();
    let sets =
        |width: u32| (0..CPUS / width).map(|at| (at * width..(at + 1) * width).collect::<CpuSet>()).collect::<Vec<_>>();
    let machine = Topology {
        packages: sets(512),
        nodes: (0..).zip(sets(128)).collect(),
        llcs: sets(8),
        cores: sets(1),
        online: all.clone(),
        usable: all.clone(),
        ..Topology::default()
    };
    let mut random = loads::Random::new(1);
    let mut member = |at: usize| {
        let cache = u32::try_from(random.below(128)).unwrap() * 8;
        let (class, cpus) = match at % 20 {
            0 => (CpuClass::Pinned, CpuSet::from_iter([cache])),
            1 => (CpuClass::Shared, (cache / 128 * 128..(cache / 128 + 1) * 128).collect()),
            2 => (CpuClass::Idle, all.clone()),
            3 => (CpuClass::Shared, all.clone()),
            _ => (CpuClass::Shared, (cache..cache + 8).collect()),
        };
        (format!("workload-{at:05}").parse().unwrap(), world::member(class, cpus))
    };
    let mut members: std::collections::BTreeMap<_, _> = (0..10_000).map(&mut member).collect();
    let (mut balancer, mut times) = (Balancer::default(), Vec::new());
    let mut moves = 0;
    for tick in 1..=60 {
        for member in members.values_mut() {
            member.usage = Some(MilliCpu(u32::try_from(random.below(123)).unwrap()));
            member.wait = Some(MilliCpu(u32::try_from(random.below(10)).unwrap()));
        }
        let busy = (0..CPUS).map(|cpu| (cpu, 600)).collect();
        let sample = Sample { at_ms: tick * 5_000, busy, members: std::mem::take(&mut members) };
        // Processor time: what else runs on the machine is no part of a decision.
        let began = clock_gettime(ClockId::ThreadCPUTime);
        let decision = balancer.tick(&machine, &sample, &Settings::default());
        times.push(Duration::try_from(clock_gettime(ClockId::ThreadCPUTime) - began).unwrap());
        members = sample.members;
        moves += decision.moves.len();
        for made in decision.moves {
            members.get_mut(&made.name).unwrap().cpus = made.to;
        }
    }
    let first = times[0];
    times.sort_unstable();
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    println!(
        "1,024 CPUs, 10,000 workloads, 60 ticks, {moves} moves: first {:.2} ms, median {:.2} ms, worst {:.2} ms (bound 2 ms)",
        millis(first),
        millis(times[30]),
        millis(times[59])
    );
}
