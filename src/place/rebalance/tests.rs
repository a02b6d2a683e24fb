//! What holds for whatever is measured, and what is done in plain cases.

mod aftermath;
mod nodes;
mod seats;

use super::*;
use crate::model::balance::{AdviceReason, Line, Move, Outcome, Rung, Verdict};
use crate::model::spec::{Align, Cpu, CpuClass};
use crate::model::topology::tests::{flat, two_sockets};
use crate::model::units::{Bytes, Limit, MilliCpu};
use proptest::prelude::*;
use std::time::Duration;

fn member(class: CpuClass, cpus: &str, usage: u32) -> Member {
    let cpus: CpuSet = cpus.parse().unwrap();
    let count = u32::try_from(cpus.len()).unwrap();
    let cpu = Cpu {
        request: MilliCpu(0),
        limit: Limit::At(MilliCpu(1000 * count)),
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
        usage: Some(MilliCpu(usage)),
        wait: Some(MilliCpu(0)),
        resident: Some(Bytes(1 << 20)),
        priority: 0,
    }
}

/// A machine, what runs on it, and the rebalancer; moves are in force from the next tick on.
struct Bench {
    machine: Topology,
    members: BTreeMap<Name, Member>,
    balancer: Balancer,
    settings: Settings,
    at_ms: u64,
}

impl Bench {
    fn new(machine: Topology, members: impl IntoIterator<Item = (&'static str, Member)>) -> Bench {
        let members = members.into_iter().map(|(name, member)| (name.parse().unwrap(), member)).collect();
        Bench { machine, members, balancer: Balancer::default(), settings: Settings::default(), at_ms: 0 }
    }

    fn sample(&self) -> Sample {
        Sample { at_ms: self.at_ms, busy: BTreeMap::new(), members: self.members.clone() }
    }

    fn tick(&mut self) -> Decision {
        self.at_ms += self.settings.tick_ms;
        self.balancer.tick(&self.machine, &self.sample(), &self.settings)
    }

    fn apply(&mut self, moves: &[Move]) {
        for made in moves {
            self.members.get_mut(&made.name).unwrap().cpus = made.to.clone();
        }
    }

    /// So many ticks with their moves carried out, told.
    fn run(&mut self, ticks: u64) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..ticks {
            let decision = self.tick();
            for Move { name, from, to, rung, .. } in &decision.moves {
                told.push(format!("{} s: {rung} {name} {from} to {to}", self.at_ms / 1000));
            }
            self.apply(&decision.moves);
        }
        told
    }
}

#[test]
fn load_is_told_by_group_work_of_several_flows_and_strangers_count() {
    let mut bench = Bench::new(
        two_sockets(),
        [
            ("near", member(CpuClass::Shared, "0-1,8-9", 2500)),
            ("wide", member(CpuClass::Shared, "0-15", 3000)),
            ("idle", member(CpuClass::Idle, "0-15", 1600)),
        ],
    );
    // 7100 of ours, 900 of others: what is busy beyond `near` is theirs by 900 of 5500.
    let busy = (0..16).map(|cpu| (cpu, if cpu % 8 < 2 { 875 } else { 375 })).collect();
    let sample = Sample { at_ms: 5_000, busy, ..bench.sample() };
    let figures = bench.balancer.tick(&bench.machine, &sample, &bench.settings).figures;
    let shown =
        |group: &GroupFigures| format!("{}: {} idle {} foreign {}", group.cpus, group.load, group.idle, group.foreign);
    assert_eq!(
        figures.groups.iter().map(shown).collect::<Vec<_>>(),
        [
            "0-1,8-9: 2663 idle 400 foreign 163",
            "2-3,10-11: 1245 idle 400 foreign 245",
            "4-5,12-13: 1245 idle 400 foreign 245",
            "6-7,14-15: 1245 idle 400 foreign 245",
        ]
    );
}

/// Four on the first cache, nothing elsewhere.
fn crowd() -> Bench {
    Bench::new(two_sockets(), ["a", "b", "c", "d"].map(|name| (name, member(CpuClass::Shared, "0-1,8-9", 900))))
}

#[test]
fn a_crowd_is_thinned_out_after_two_ticks_within_its_node_and_then_left_alone() {
    assert_eq!(crowd().run(200), ["10 s: move a 0-1,8-9 to 2-3,10-11", "10 s: move b 0-1,8-9 to 2-3,10-11"]);
}

#[test]
fn what_is_not_carried_out_is_proposed_again_and_counts_as_no_move() {
    let mut bench = crowd();
    bench.tick();
    let names = |decision: &Decision| decision.moves.iter().map(|made| made.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&bench.tick()), ["a", "b"]);
    let later: Vec<Vec<String>> = (0..6).map(|_| names(&bench.tick())).collect();
    assert!(later.iter().flatten().any(|name| name == "a"), "{later:?}");
    assert!(bench.balancer.tracks.iter().all(|track| track.history.iter().all(|history| history.past.is_empty())));
}

#[test]
fn a_machine_of_one_group_sees_no_move_but_advice() {
    let mut members: Vec<(&str, Member)> =
        ["a", "b", "c"].map(|name| (name, member(CpuClass::Pinned, "0", 1000))).into_iter().collect();
    members.push(("d", member(CpuClass::Shared, "0-3", 500)));
    let mut bench = Bench::new(flat(4), members);
    for _ in 0..100 {
        let decision = bench.tick();
        assert_eq!(decision.moves, []);
        if bench.at_ms > 10_000 {
            assert_eq!(decision.advice[0].reason, AdviceReason::SharedSeat, "{decision:?}");
        }
    }
}

#[test]
fn pinned_work_that_shares_a_cpu_moves_to_an_empty_one_of_its_group() {
    // Every cache is half full, so that none is to be relieved.
    let hogs = [("a", "0"), ("b", "0"), ("c", "2"), ("d", "3"), ("e", "4"), ("f", "5"), ("g", "6"), ("h", "7")];
    let mut bench = Bench::new(two_sockets(), hogs.map(|(name, cpu)| (name, member(CpuClass::Pinned, cpu, 1000))));
    assert_eq!(bench.run(100), ["10 s: move a 0 to 1"]);
}

#[test]
fn another_node_takes_a_minute_and_little_memory() {
    let mut bench = crowd();
    // The other cache of the node is as full, so that only the other node helps.
    for name in ["e", "f", "g", "h"] {
        bench.members.insert(name.parse().unwrap(), member(CpuClass::Shared, "2-3,10-11", 900));
    }
    for name in ["a", "b", "e", "f"] {
        bench.members.get_mut(&name.parse().unwrap()).unwrap().resident = None;
    }
    let told = bench.run(60);
    // Two of those with little memory; then the node's other cache has room again.
    assert_eq!(
        told[..2],
        ["65 s: move across nodes c 0-1,8-9 to 4-5,12-13", "65 s: move across nodes d 0-1,8-9 to 6-7,14-15"],
        "{told:?}"
    );
    let far = |made: &String| ["a", "b", "e", "f"].iter().any(|name| made.contains(&format!("nodes {name} ")));
    assert!(!told.iter().any(far), "{told:?}");
}

#[test]
fn a_move_that_makes_it_wait_is_taken_back_and_banned() {
    let mut bench = crowd();
    let mut outcomes = Vec::new();
    let mut told = Vec::new();
    for _ in 0..100 {
        let decision = bench.tick();
        outcomes.extend(decision.verdicts.iter().map(|verdict| (verdict.name.to_string(), verdict.outcome)));
        told.extend(decision.moves.iter().map(|made| (bench.at_ms / 1000, made.name.to_string(), made.rung)));
        bench.apply(&decision.moves);
        // Whoever leaves the first cache is disturbed by something that no load tells of.
        for member in bench.members.values_mut() {
            member.wait = Some(MilliCpu(if member.cpus.contains(0) { 9 } else { 200 }));
        }
    }
    assert!(outcomes.contains(&("a".to_owned(), Outcome::Reverted)), "{outcomes:?} {told:?}");
    let taken_back: Vec<_> = told.iter().filter(|(_, _, rung)| *rung == Rung::Revert).collect();
    assert_eq!(taken_back.len(), outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Reverted).count());
    // Within the hour nobody is sent where it was taken back from.
    let mut seen: Vec<(String, u64)> = Vec::new();
    for (at_s, name, rung) in &told {
        assert!(!(seen.iter().any(|(other, _)| other == name) && *rung == Rung::Near), "{told:?}");
        if *rung == Rung::Revert {
            seen.push((name.clone(), *at_s));
        }
    }
}

#[test]
fn idle_work_leaves_a_crowd_first() {
    let mut bench = crowd();
    bench.members.insert("z".parse().unwrap(), member(CpuClass::Idle, "0-15", 8000));
    let told = bench.run(2);
    assert_eq!(told[0], "10 s: squeeze idle work z 0-15 to 2-7,10-15", "{told:?}");
}

#[test]
fn idle_work_returns_when_the_crowd_is_over() {
    let mut bench = crowd();
    bench.members.insert("z".parse().unwrap(), member(CpuClass::Idle, "0-15", 8000));
    assert!(bench.run(4)[0].contains("squeeze"));
    for member in bench.members.values_mut() {
        member.usage = Some(MilliCpu(10));
    }
    let told = bench.run(160);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].ends_with("take back z 2-7,10-15 to 0-15"), "{told:?}");
    // Not before it may return at all.
    let at_s: u64 = told[0].split(' ').next().unwrap().parse().unwrap();
    assert!(at_s >= 615, "{told:?}");
}

#[test]
fn what_may_not_move_does_not_and_is_named() {
    let mut bench = crowd();
    for member in bench.members.values_mut() {
        member.fixed = Some("cpu.rebalance is off".to_owned());
    }
    bench.tick();
    let decision = bench.tick();
    assert_eq!(decision.moves, []);
    assert_eq!(
        decision.advice[0].message,
        "CPUs 0-1,8-9 are at 90 %, the mean is 22 %: nothing that may be moved would help; the largest there is a with 900m \
         (cpu.rebalance is off)"
    );
}

#[test]
fn a_recording_is_decided_again_alike_also_from_its_middle() {
    let mut bench = crowd();
    let mut lines = vec![Line::Machine(bench.machine.clone()), Line::Settings(bench.settings)];
    for tick in 0..60 {
        if tick == 30 {
            lines.push(Line::State(bench.balancer.clone()));
        }
        let decision = bench.tick();
        lines.push(Line::Tick { sample: bench.sample(), decision: decision.clone() });
        bench.apply(&decision.moves);
    }
    let written: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
    let read = || written.iter().map(|line| serde_json::from_str(line).unwrap());
    let comparison = replay::replay(read()).unwrap();
    assert_eq!((comparison.ticks, comparison.different, comparison.moves_decided), (60, 0, 2));
    // Another program, or a recording somebody has changed, is told.
    let stricter = Settings { enter_permille: 990, ..bench.settings };
    let mut changed: Vec<Line<Balancer>> = read().collect();
    changed[1] = Line::Settings(stricter);
    let comparison = replay::replay(changed).unwrap();
    assert!(comparison.different >= 1 && comparison.moves_decided == 0, "{comparison:?}");
    assert!(replay::replay(read().skip(1)).is_err());
}

/// Any workload of a machine of 16 CPUs, of which core 7 (7,15) may be exclusive.
fn any_member() -> impl Strategy<Value = Member> {
    let sets = prop_oneof![
        Just("0-1,8-9"),
        Just("2-3,10-11"),
        Just("4-5,12-13"),
        Just("6,14"),
        Just("0,8"),
        Just("3,11"),
        Just("0-3,8-11"),
        Just("0-6,8-14"),
        Just("0"),
        Just("9"),
        Just("2-3"),
        Just("4,12"),
    ];
    let class =
        prop_oneof![Just(CpuClass::Shared), Just(CpuClass::Shared), Just(CpuClass::Pinned), Just(CpuClass::Idle)];
    (sets, class, 0_u32..4000, any::<bool>(), 0_u8..8).prop_map(|(cpus, class, usage, required, odd)| {
        let mut member = member(class, cpus, usage);
        let one_node = member.cpus.iter().all(|cpu| cpu % 8 < 4) || member.cpus.iter().all(|cpu| cpu % 8 >= 4);
        if required && one_node {
            member.cpu.align = Align::Required;
        }
        match odd {
            0 => member.fixed = Some("told so".to_owned()),
            1 => member.resident = None,
            2 => member.within = Some(member.cpus.union(&"0-3".parse().unwrap())),
            3 => member.wait = None,
            _ => {}
        }
        member
    })
}

fn check(bench: &Bench, decision: &Decision) -> Result<(), TestCaseError> {
    prop_assert!(decision.moves.len() <= bench.settings.moves_max);
    let fenced = bench.members.values().fold(CpuSet::new(), |all, member| all.union(&member.fenced));
    for made in &decision.moves {
        let member = &bench.members[&made.name];
        prop_assert!(decision.moves.iter().filter(|other| other.name == made.name).count() == 1, "{:?}", decision);
        prop_assert!(made.from == member.cpus && made.to != made.from && !made.to.is_empty(), "{:?}", made);
        prop_assert!(made.to.is_subset(&bench.machine.usable) && made.to.is_disjoint(&fenced), "{:?}", made);
        prop_assert!(member.cpu.class != CpuClass::Exclusive && member.fixed.is_none());
        prop_assert!(member.within.as_ref().is_none_or(|within| made.to.is_subset(within)), "{:?}", made);
        prop_assert!(member.cpu.class != CpuClass::Pinned || made.to.len() == made.from.len(), "{:?}", made);
        prop_assert!(made.rung == Rung::Revert || made.gain > made.cost, "{:?}", made);
        if member.cpu.align == Align::Required {
            let node = bench.machine.nodes.values().find(|node| made.from.is_subset(node)).unwrap();
            prop_assert!(made.to.is_subset(node), "{:?}", made);
        }
        let halves = decision.moves.iter().filter(|other| made.with.as_ref() == Some(&other.name)).count();
        prop_assert!(made.with.is_none() || halves == 1, "half a swap: {:?}", made);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_measured_moves_keep_to_the_rules(
        members in proptest::collection::vec(any_member(), 1..20),
        exclusive: bool,
        factors in proptest::collection::vec(0_u32..3, 1..12),
    ) {
        let mut bench = Bench::new(two_sockets(), []);
        for (at, member) in members.into_iter().enumerate() {
            bench.members.insert(format!("w{at:02}").parse().unwrap(), member);
        }
        if exclusive {
            let mut fenced = member(CpuClass::Exclusive, "7", 1000);
            fenced.fenced = "7,15".parse().unwrap();
            bench.members.insert("x".parse().unwrap(), fenced);
        }
        let usual = bench.members.clone();
        let mut left: Vec<(Name, CpuSet, u64)> = Vec::new();
        for tick in 0..160_usize {
            for (at, (name, member)) in bench.members.iter_mut().enumerate() {
                let factor = factors[(at + tick / 7) % factors.len()];
                member.usage = usual[name].usage.map(|usage| MilliCpu(usage.0 * factor / 2));
            }
            let before = bench.balancer.clone();
            let decision = bench.tick();
            check(&bench, &decision)?;
            // The memory reads back as it was written, and decides the same.
            if tick % 16 == 3 {
                let mut again: Balancer = serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();
                prop_assert_eq!(again.tick(&bench.machine, &bench.sample(), &bench.settings), decision.clone());
            }
            for made in &decision.moves {
                let gained = made.to.difference(&made.from);
                let is_back = |(name, cpus, at_ms): &&(Name, CpuSet, u64)| {
                    *name == made.name && bench.at_ms - at_ms < 600_000 && (*cpus == made.to || !cpus.is_disjoint(&gained))
                };
                prop_assert!(made.rung == Rung::Revert || !left.iter().any(|past| is_back(&past)), "{:?} {:?}", made, left);
                left.push((made.name.clone(), made.from.clone(), bench.at_ms + bench.settings.tick_ms));
            }
            bench.apply(&decision.moves);
        }
    }

    #[test]
    fn under_a_steady_load_every_move_lowers_the_objective_and_there_is_an_end(
        members in proptest::collection::vec(any_member(), 1..24),
    ) {
        let mut bench = Bench::new(two_sockets(), []);
        for (at, member) in members.into_iter().enumerate() {
            bench.members.insert(format!("w{at:02}").parse().unwrap(), member);
        }
        let mut last = None;
        let mut made_at = Vec::new();
        for _ in 0..250 {
            let decision = bench.tick();
            if let Some((before, gain)) = last.take() {
                prop_assert!(decision.figures.objective + gain <= before, "{} after {before} by {gain}", decision.figures.objective);
            }
            // What goes back makes others no better off, nor worse than they may stand.
            let goes_back = decision.moves.iter().any(|made| made.rung == Rung::Revert);
            if let Some(made) = decision.moves.first() && !goes_back {
                // Roundings of shares apart.
                last = Some((decision.figures.objective, made.gain.saturating_sub(8).min(made.gain / 2)));
                made_at.push(bench.at_ms);
            }
            bench.apply(&decision.moves);
        }
        prop_assert!(made_at.iter().all(|at_ms| *at_ms < 1_150_000), "still moving: {:?}", made_at);
    }
}
