//! What placement promises, whatever is asked for in whatever order.

use super::*;
use proptest::prelude::*;

fn workload() -> impl Strategy<Value = String> {
    prop_oneof![
        (1u32..9).prop_map(|n| format!("cpu: {n}")),
        ("full-core|spread|any", 1u32..9, "preferred|required")
            .prop_map(|(smt, n, align)| format!("cpu: {{class: exclusive, request: {n}, smt: {smt}, align: {align}}}")),
        ("full-core|spread|any", 1u32..5000, "preferred|required")
            .prop_map(|(smt, n, align)| format!("cpu: {{class: pinned, request: {n}m, smt: {smt}, align: {align}}}")),
        (1u32..9, "preferred|required").prop_map(|(n, align)| format!("cpu: {{limit: {n}, align: {align}}}")),
        Just("cpu: {class: idle}".to_owned()),
        Just(String::new()),
        (1u32..3).prop_map(|n| format!("gpu: {n}")),
        (1u32..20).prop_map(|n| format!("gpu: {{memory: {n}Gi}}")),
    ]
}

/// Machines that tell little or are put together oddly: no caches, no cores, no packages, holes in the numbers, nodes of memory alone, CPUs that are
/// off or not for us, two kinds of core, and more than two words of CPUs.
fn odd() -> impl Strategy<Value = Topology> {
    let shape = prop_oneof![Just(0u32), Just(6), Just(130)];
    (shape, any::<[bool; 6]>(), 1u32..4).prop_map(|(flat_cpus, [caches, cores, packages, memory, off, kinds], step)| {
        let plain = if flat_cpus == 0 { two_sockets() } else { flat(flat_cpus) };
        let spread = |set: &CpuSet| set.iter().map(|cpu| cpu * step + step - 1).collect::<CpuSet>();
        let all = |sets: &[CpuSet], told: bool| if told { sets.iter().map(spread).collect() } else { Vec::new() };
        let online = spread(&plain.online);
        let mut topology = Topology {
            packages: all(&plain.packages, packages),
            llcs: all(&plain.llcs, caches),
            cores: all(&plain.cores, cores),
            nodes: plain.nodes.iter().map(|(number, cpus)| (*number, spread(cpus))).collect(),
            usable: online.iter().skip(usize::from(off)).collect(),
            online: online.clone(),
            ..Topology::default()
        };
        if memory {
            topology.nodes.insert(40, CpuSet::new());
        }
        if kinds {
            let kind = |odd: usize| {
                let cpus = online.iter().enumerate().filter(|(at, _)| at % 2 == odd).map(|(_, cpu)| cpu).collect();
                let efficiency = u32::from(odd == 1);
                crate::model::topology::Kind { cpus, efficiency, ..Default::default() }
            };
            topology.kinds = vec![kind(0), kind(1)];
        }
        topology
    })
}

/// Places workloads that hold `before` again, in the order of their names, as a pass does; answers what each holds then.
fn placed_again(machine: &Machine, held: &BTreeMap<Name, Holding>) -> BTreeMap<Name, Grant> {
    let mut ledger = Ledger::of(&machine.topology);
    for (name, holding) in held {
        ledger.put(name.clone(), holding.clone());
    }
    let mut grants = BTreeMap::new();
    for (name, holding) in held {
        let ask = Ask {
            name,
            resources: &holding.resources,
            gpu: None,
            previous: Some(&holding.grant),
            advice: Advice::Wanted,
        };
        let grant = replace_cpus(machine, &ledger, &ask, &holding.grant).unwrap_or_else(|_| holding.grant.clone());
        ledger.put(name.clone(), Holding { resources: holding.resources.clone(), grant: grant.clone() });
        grants.insert(name.clone(), grant);
    }
    grants
}

proptest! {
    #[test]
    fn what_is_granted_keeps_the_promises(fields in proptest::collection::vec(workload(), 1..12), topology in odd(), ratio in "1|1[.]5|2[.]25|10") {
        let mut machine = machine(topology);
        machine.admission.overcommit = format!("cpu={ratio}").parse().unwrap();
        let names: Vec<String> = (0..fields.len()).map(|n| format!("w{n}")).collect();
        let workloads: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(fields.iter().map(String::as_str)).collect();
        let (ledger, shown) = place_all(&machine, &workloads);
        prop_assert_eq!(&shown, &place_all(&machine, &workloads).1, "not deterministic");
        let fenced: Vec<(&Name, CpuSet)> = ledger.holdings.iter().map(|(name, holding)| (name, holding.grant.fenced.clone())).collect();
        let all_fenced = fenced.iter().fold(CpuSet::new(), |all, (_, set)| all.union(set));
        prop_assert!(all_fenced.len() < machine.topology.usable.len(), "nothing is left to share");
        let promised: u64 = ledger.holdings.values().filter(|held| held.grant.fenced.is_empty()).map(|held| u64::from(held.grant.requested.cpu.0)).sum();
        let pool = machine.topology.usable.len() - all_fenced.len();
        let most = machine.admission.cpu_milli(pool);
        prop_assert!(promised <= most, "{}m are promised of {} CPUs, {} times", promised, pool, ratio);
        for (name, holding) in &ledger.holdings {
            let in_force = cpus_in_force(&machine, &ledger, name, &holding.grant);
            prop_assert!(!in_force.is_empty() && in_force.is_subset(&machine.topology.usable));
            for (other, set) in fenced.iter().filter(|(other, _)| *other != name) {
                prop_assert!(in_force.is_disjoint(set), "{} runs on CPUs of {}", name, other);
            }
            if holding.grant.fenced.is_empty() {
                let pool = machine.topology.usable.len() - all_fenced.len();
                prop_assert!(holding.resources.cpu.request.cpus_ceil() <= pool, "{} was promised more than is left", name);
            }
            if holding.resources.cpu.align == Align::Required {
                prop_assert!(machine.topology.nodes.values().any(|node| holding.grant.cpus.is_subset(node)), "{}", name);
            }
            let ask = Ask { name, resources: &holding.resources, gpu: None, previous: None, advice: Advice::Wanted };
            if is_counted(holding.resources.cpu.class) {
                // Pinned ones make way for exclusive ones.
                let stays = cpu::still_good(&machine, &ledger, &ask, &holding.grant, None);
                prop_assert!(stays || holding.resources.cpu.class == CpuClass::Pinned, "{} has to move at once", name);
                prop_assert_eq!(holding.grant.cpus.len(), holding.resources.cpu.request.cpus_ceil());
            }
        }
        for gpu in &machine.gpus {
            let leases: Vec<_> = ledger.holdings.values().flat_map(|holding| &holding.grant.gpus).filter(|lease| lease.gpu == gpu.id).collect();
            let whole = leases.iter().any(|lease| lease.share == crate::model::gpu::Share::Whole);
            prop_assert!(!whole || leases.len() == 1, "{} is whole and shared", gpu.id);
            let used: u64 = leases.iter().map(|lease| match lease.share {
                crate::model::gpu::Share::Whole => 0,
                crate::model::gpu::Share::Memory(Bytes(memory)) => memory,
            }).sum();
            prop_assert!(used <= gpu.memory.0);
        }
    }
    #[test]
    fn who_comes_or_goes_moves_nobody_else(fields in proptest::collection::vec(workload(), 2..12), leaving in 0usize..12, newcomer in workload(), sockets in any::<bool>()) {
        let machine = machine(if sockets { two_sockets() } else { flat(6) });
        let names: Vec<String> = (0..fields.len()).map(|n| format!("w{n}")).collect();
        let workloads: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(fields.iter().map(String::as_str)).collect();
        let (ledger, _) = place_all(&machine, &workloads);
        // What an exclusive neighbour has cut short is placed again first; then everything stands.
        let mut held = ledger.holdings.clone();
        for (name, grant) in placed_again(&machine, &held) {
            held.get_mut(&name).unwrap().grant = grant;
        }
        let standing: BTreeMap<Name, Grant> = held.iter().map(|(name, holding)| (name.clone(), holding.grant.clone())).collect();
        prop_assert_eq!(&placed_again(&machine, &held), &standing, "an idle pass moved somebody");
        if let Some(name) = held.keys().nth(leaving).cloned() {
            let mut held = held.clone();
            let left = held.remove(&name).unwrap();
            for (name, grant) in placed_again(&machine, &held) {
                // A sharer that had to make do with less than it can use gets what an exclusive neighbour leaves.
                let widens = !left.grant.fenced.is_empty() && !is_counted(held[&name].resources.cpu.class);
                prop_assert!(widens || standing[&name] == grant, "{} moved to {:?}, was {:?}", name, grant, standing[&name]);
            }
        }
        let spec = spec("new", &newcomer);
        let mut ledger = Ledger::of(&machine.topology);
        for (name, holding) in &held {
            ledger.put(name.clone(), holding.clone());
        }
        if let Ok(grant) = place(&machine, &ledger, &Ask::of(&spec, None)) {
            let fenced = grant.fenced.clone();
            held.insert(spec.name.clone(), Holding { resources: spec.resources, grant });
            for (name, grant) in placed_again(&machine, &held) {
                let moved = standing.get(&name).is_some_and(|before| *before != grant);
                prop_assert!(!moved || !standing[&name].cpus.is_disjoint(&fenced), "{} moved, and nobody took its CPUs", name);
            }
        }
    }

    #[test]
    fn cpus_that_go_away_leave_nobody_without_one(fields in proptest::collection::vec(workload(), 1..12), off in proptest::collection::btree_set(0u32..16, 1..16), sockets in any::<bool>()) {
        let whole = machine(if sockets { two_sockets() } else { flat(6) });
        let names: Vec<String> = (0..fields.len()).map(|n| format!("w{n}")).collect();
        let workloads: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(fields.iter().map(String::as_str)).collect();
        let (ledger, _) = place_all(&whole, &workloads);
        let mut less = whole.clone();
        less.topology.usable = less.topology.usable.difference(&off.into_iter().collect());
        less.topology.online = less.topology.usable.clone();
        let in_force = |machine: &Machine, holdings: &BTreeMap<Name, Holding>| {
            let mut ledger = Ledger::of(&machine.topology);
            for (name, holding) in holdings {
                ledger.put(name.clone(), holding.clone());
            }
            let sets = holdings.iter().map(|(name, holding)| (name.clone(), cpus_in_force(machine, &ledger, name, &holding.grant)));
            sets.collect::<BTreeMap<Name, CpuSet>>()
        };
        let before = in_force(&whole, &ledger.holdings);
        // At once, with the grants of before, and after a pass has placed everybody again.
        let mut held = ledger.holdings.clone();
        for placed in [false, true] {
            if placed {
                for (name, grant) in placed_again(&less, &held) {
                    held.get_mut(&name).unwrap().grant = grant;
                }
            }
            for (name, cpus) in in_force(&less, &held) {
                prop_assert!(!cpus.is_empty(), "{} has no CPU", name);
                prop_assert!(less.topology.usable.is_empty() || cpus.is_subset(&less.topology.usable), "{} is on {}", name, cpus);
            }
        }
        prop_assert_eq!(in_force(&whole, &ledger.holdings), before, "who was not placed again is where it was when they are back");
    }

    #[test]
    fn sums_are_as_if_those_who_left_had_never_come(fields in proptest::collection::vec(workload(), 1..12), leaving in proptest::collection::vec(any::<bool>(), 12)) {
        let machine = machine(two_sockets());
        let names: Vec<String> = (0..fields.len()).map(|n| format!("w{n}")).collect();
        let workloads: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(fields.iter().map(String::as_str)).collect();
        let (mut ledger, _) = place_all(&machine, &workloads);
        let all = ledger.holdings.clone();
        let mut fresh = Ledger::of(&machine.topology);
        for ((name, holding), leaves) in all.iter().zip(&leaving) {
            if *leaves { ledger.remove(name) } else { fresh.put(name.clone(), holding.clone()) }
        }
        prop_assert_eq!(format!("{ledger:?}"), format!("{fresh:?}"));
        // Whoever asks sees the others alone, whether it is in the ledger or not.
        for (name, holding) in &ledger.holdings.clone() {
            let ask = Ask { name, resources: &holding.resources, gpu: None, previous: None, advice: Advice::Wanted };
            let within = cpu::place(&machine, &ledger, &ask);
            let mut without = ledger.clone();
            without.remove(name);
            prop_assert_eq!(within, cpu::place(&machine, &without, &ask));
        }
    }
}
