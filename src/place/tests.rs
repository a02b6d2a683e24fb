//! Placement as text: a machine, workloads in order, where each goes.

mod properties;

use super::*;
use crate::model::admission::Admission;
use crate::model::cgroup::{Generation, Support};
use crate::model::gpu::{Gpu, GpuId, Vendor};
use crate::model::machine::Ceilings;
use crate::model::topology::Topology;
use crate::model::topology::tests::{flat, two_sockets};
use crate::model::units::Bytes;
use std::fmt::Write;

pub(super) fn machine(topology: Topology) -> Machine {
    let gpu = |index: u32, memory: u64| {
        Gpu::new(GpuId(format!("GPU-{index}")), Vendor::Simulated, "Simulated", Bytes(memory << 30))
    };
    Machine {
        gpu_trouble: Vec::new(),
        topology,
        memory: Bytes(16 << 30),
        gpus: vec![gpu(0, 16), gpu(1, 16), gpu(2, 80)],
        cgroup: Support { generation: Generation::Unified, files: [].into(), nodes: "0".parse().unwrap() },
        boot_id: "boot".to_owned(),
        disks: BTreeMap::new(),
        huge_pages: BTreeSet::new(),
        ceilings: Ceilings::default(),
        admission: Admission::default(),
    }
}

pub(super) fn spec(name: &str, fields: &str) -> Spec {
    let parsed = crate::manifest::parse("x.yaml", format!("name: {name}\ncommand: x\n{fields}\n").as_bytes());
    assert_eq!(parsed.diagnostics, [], "{fields}");
    parsed.workloads.into_iter().next().unwrap().0.as_ref().clone()
}

/// Places workloads one after the other, as far as they fit.
pub(super) fn place_all(machine: &Machine, workloads: &[(&str, &str)]) -> (Ledger, String) {
    let mut ledger = Ledger::of(&machine.topology);
    let mut shown = String::new();
    for (name, fields) in workloads {
        let spec = spec(name, fields);
        match place(machine, &ledger, &Ask::of(&spec, None)) {
            Ok(grant) => {
                write!(shown, "{name}: {}", grant.cpus).unwrap();
                for lease in &grant.gpus {
                    write!(shown, " {lease}").unwrap();
                }
                writeln!(shown, " ({})", grant.reason).unwrap();
                ledger.put(spec.name, Holding { resources: spec.resources, grant });
            }
            Err(refusal) => writeln!(shown, "{name}: {}: {}", refusal.reason, refusal.message).unwrap(),
        }
    }
    (ledger, shown)
}

fn check(topology: Topology, workloads: &[(&str, &str)]) -> String {
    place_all(&machine(topology), workloads).1
}

#[test]
fn sharers_get_the_smallest_domain_with_room_least_loaded_first() {
    insta::assert_snapshot!(check(two_sockets(), &[
        ("a", "cpu: 2"),
        ("b", "cpu: 2"),
        ("c", "cpu: 3"),
        ("d", "cpu: 500m"),
        ("e", "cpu: 8"),
        ("f", ""),
    ]), @"
    a: 0,8 (cheapest domain with room: core 0,8, 0m of 2 CPUs claimed by others)
    b: 1,9 (cheapest domain with room: core 1,9, 0m of 2 CPUs claimed by others)
    c: 2-3,10-11 (cheapest domain with room: last-level cache 2-3,10-11, 0m of 4 CPUs claimed by others)
    d: 2,10 (cheapest domain with room: core 2,10, 1500m of 2 CPUs claimed by others)
    e: 4-7,12-15 (cheapest domain with room: package 4-7,12-15, 0m of 8 CPUs claimed by others)
    f: 0-15 (no cpu.limit: all shared CPUs)
    ");
}

#[test]
fn when_claims_exceed_every_domain_the_pool_is_shared_by_weight() {
    insta::assert_snapshot!(check(flat(2), &[("a", "cpu: 2"), ("b", "cpu: 2"), ("c", "cpu: 64"), ("d", "cpu: 1")]), @"
    a: 0-1 (cheapest domain with room: machine 0-1, 0m of 2 CPUs claimed by others)
    b: 0-1 (no domain has room for 2000m: all shared CPUs)
    c: 0-1 (no domain has room for 64000m: all shared CPUs)
    d: 0-1 (no domain has room for 1000m: all shared CPUs)
    ");
}

#[test]
fn exclusive_cpus_are_whole_cores_that_nobody_else_has() {
    insta::assert_snapshot!(check(two_sockets(), &[
        ("a", "cpu: {class: exclusive, request: 1}"),
        ("b", "cpu: {class: exclusive, request: 4}"),
        ("c", "cpu: {class: pinned, request: 2}"),
        ("d", "cpu: 2"),
        ("e", "cpu: {class: exclusive, request: 12}"),
        ("f", "cpu: {class: idle}"),
    ]), @"
    a: 0 (class exclusive: 0 of core 0,8, fenced 0,8)
    b: 2-3,10-11 (class exclusive: 2-3,10-11 of last-level cache 2-3,10-11, fenced 2-3,10-11)
    c: 1,9 (class pinned: 1,9 of core 1,9)
    d: 4,12 (cheapest domain with room: core 4,12, 0m of 2 CPUs claimed by others)
    e: InsufficientCpu: 12 CPUs asked for exclusively, on whole cores; 10 CPUs open (1,4-7,9,12-15), of which 2 must stay shared; 8 would fit, or stop b
    f: 0-15 (class idle: all shared CPUs)
    ");
}

#[test]
fn counted_cpus_sit_on_cores_as_asked() {
    insta::assert_snapshot!(check(two_sockets(), &[
        ("whole", "cpu: {class: exclusive, request: 3}"),
        ("spread", "cpu: {class: exclusive, request: 2, smt: spread}"),
        ("any", "cpu: {class: exclusive, request: 1, smt: any}"),
        ("beside", "cpu: {class: exclusive, request: 1, smt: any}"),
        ("pin-spread", "cpu: {class: pinned, request: 2, smt: spread}"),
        ("pin-whole", "cpu: {class: pinned, request: 2, smt: full-core}"),
    ]), @"
    whole: 0-1,8 (class exclusive: 0-1,8 of last-level cache 0-1,8-9, fenced 0-1,8-9)
    spread: 2-3 (class exclusive: 2-3 of last-level cache 2-3,10-11, fenced 2-3,10-11)
    any: 4 (class exclusive: 4 of core 4,12, fenced 4)
    beside: 5 (class exclusive: 5 of core 5,13, fenced 5)
    pin-spread: 6-7 (class pinned spread: 6-7 of last-level cache 6-7,14-15)
    pin-whole: 6,14 (class pinned full-core: 6,14 of core 6,14, cores shared with counted CPUs of others: 1)
    ");
}

#[test]
fn more_cpus_than_cores_cannot_be_spread_exclusively() {
    insta::assert_snapshot!(check(two_sockets(), &[
        ("a", "cpu: {class: exclusive, request: 9, smt: spread}"),
        ("b", "cpu: {class: pinned, request: 9, smt: spread}"),
    ]), @"
    a: InsufficientCpu: 9 CPUs asked for exclusively, on whole cores; 16 CPUs open (0-15), of which 1 must stay shared; 7 would fit
    b: 0-7,14 (class pinned spread: 0-7,14 of machine 0-15, last-level caches: 4)
    ");
}

#[test]
fn who_requires_alignment_gets_one_node_or_waits() {
    insta::assert_snapshot!(check(two_sockets(), &[
        ("wide", "cpu: {limit: 12}"),
        ("one-node", "cpu: {limit: 12, align: required}"),
        ("all-of-one", "cpu: {align: required}"),
        ("pinned", "cpu: {class: pinned, request: 9, align: required}"),
        ("exclusive", "cpu: {class: exclusive, request: 9, align: required}"),
        ("idle", "cpu: {class: idle, align: required}"),
    ]), @"
    wide: 0-15 (cheapest domain with room: machine 0-15, 0m of 16 CPUs claimed by others)
    one-node: 0-3,8-11 (no NUMA node has room for 12000m: the least loaded, 0-3,8-11)
    all-of-one: 4-7,12-15 (cheapest domain with room: package 4-7,12-15, 6000m of 8 CPUs claimed by others)
    pinned: InsufficientCpu: 9 CPUs of one NUMA node asked for, 16 CPUs open to sharing (0-15); 8 would fit
    exclusive: InsufficientCpu: 9 CPUs of one NUMA node asked for exclusively, on whole cores; 16 CPUs open (0-15), of which 1 must stay shared; 8 would fit
    idle: 4-7,12-15 (cheapest domain with room: package 4-7,12-15, 6000m of 8 CPUs claimed by others)
    ");
}

#[test]
fn counted_cpus_are_strong_ones_and_sharers_leave_these_free() {
    let mut hybrid = flat(8);
    let kind = |cpus: &str, efficiency| crate::model::topology::Kind {
        cpus: cpus.parse().unwrap(),
        efficiency,
        ..Default::default()
    };
    hybrid.kinds = vec![kind("0-3", 0), kind("4-7", 1)];
    insta::assert_snapshot!(check(hybrid, &[
        ("pinned", "cpu: {class: pinned, request: 2}"),
        ("exclusive", "cpu: {class: exclusive, request: 1}"),
        ("shared", "cpu: 1"),
        ("five", "cpu: {class: pinned, request: 5}"),
    ]), @"
    pinned: 4-5 (class pinned: 4-5 of machine 0-7)
    exclusive: 6 (class exclusive: 6 of core 6, fenced 6)
    shared: 0 (cheapest domain with room: core 0, 0m of 1 CPU claimed by others)
    five: 0-3,7 (class pinned: 0-3,7 of machine 0-5,7)
    ");
}

#[test]
fn an_edit_of_how_cpus_sit_finds_others_only_where_it_has_to() {
    let machine = machine(two_sockets());
    let grant =
        |fields: &str| place(&machine, &Ledger::of(&machine.topology), &Ask::of(&spec("w", fields), None)).unwrap();
    let kept = |held: &str, asked: &str| {
        let asked = spec("w", asked);
        cpu::still_good(&machine, &Ledger::of(&machine.topology), &Ask::of(&asked, None), &grant(held), None)
    };
    let two = |smt: &str| format!("cpu: {{class: exclusive, request: 2, smt: {smt}}}");
    assert!(kept(&two("full-core"), "cpu: {class: exclusive, request: 2}"));
    assert!(!kept(&two("full-core"), &two("spread")));
    assert!(!kept(&two("spread"), &two("full-core")));
    assert!(kept(&two("full-core"), &two("any")), "two threads of one core are all of it");
    assert!(!kept(&two("spread"), &two("any")), "the idle threads are to be given back");
    assert!(kept("cpu: 2", "cpu: {limit: 2, align: required}"));
    assert!(!kept("cpu: 12", "cpu: {limit: 12, align: required}"));
}

#[test]
fn one_core_always_stays_shared() {
    insta::assert_snapshot!(check(flat(2), &[
        ("a", "cpu: {class: exclusive, request: 2}"),
        ("b", "cpu: {class: exclusive, request: 1}"),
        ("c", "cpu: {class: exclusive, request: 1}"),
        ("d", "cpu: {class: pinned, request: 2}"),
    ]), @"
    a: InsufficientCpu: 2 CPUs asked for exclusively, on whole cores; 2 CPUs open (0-1), of which 1 must stay shared; 1 would fit
    b: 0 (class exclusive: 0 of core 0, fenced 0)
    c: InsufficientCpu: 1 CPU asked for exclusively, on whole cores; 1 CPU open (1), of which 1 must stay shared; stop b
    d: InsufficientCpu: cpu.request 2 does not fit: 0 of 1 CPU are set aside for others; 1 would fit
    ");
}

#[test]
fn an_exclusive_newcomer_spares_pinned_neighbours_if_it_can() {
    insta::assert_snapshot!(check(flat(4), &[
        ("pin", "cpu: {class: pinned, request: 1}"),
        ("ex", "cpu: {class: exclusive, request: 2}"),
        ("pin2", "cpu: {class: pinned, request: 2}"),
        ("ex2", "cpu: {class: exclusive, request: 1}"),
    ]), @"
    pin: 0 (class pinned: 0 of core 0)
    ex: 1-2 (class exclusive: 1-2 of machine 0-3, fenced 1-2)
    pin2: InsufficientCpu: cpu.request 2 does not fit: 1 of 2 CPUs are set aside for others (pin 1); 1 would fit, or stop pin
    ex2: 3 (class exclusive: 3 of core 3, fenced 3)
    ");
}

#[test]
fn an_exclusive_newcomer_leaves_one_node_what_an_aligned_neighbour_needs() {
    insta::assert_snapshot!(check(two_sockets(), &[
        ("pin", "cpu: {class: pinned, request: 4, align: required}"),
        ("ex", "cpu: {class: exclusive, request: 5}"),
        ("one-node", "cpu: {class: exclusive, request: 5, smt: any, align: required}"),
        ("any-node", "cpu: {class: exclusive, request: 5, smt: any}"),
    ]), @"
    pin: 0-1,8-9 (class pinned: 0-1,8-9 of last-level cache 0-1,8-9)
    ex: 4,6-7,12,14 (class exclusive: 4,6-7,12,14 of package 4-7,12-15, last-level caches: 2, fenced 4,6-7,12,14-15)
    one-node: InsufficientCpu: 5 CPUs of one NUMA node asked for exclusively; 10 CPUs open (0-3,5,8-11,13), of which 4 must stay shared, 4 of them on one NUMA node; 4 would fit, or stop ex
    any-node: 2-3,5,10,13 (class exclusive: 2-3,5,10,13 of machine 0-3,5,8-11,13, last-level caches: 2, fenced 2-3,5,10,13)
    ");
}

#[test]
fn requests_have_to_fit_the_machine() {
    insta::assert_snapshot!(check(flat(2), &[
        ("a", "memory: {request: 10Gi}"),
        ("b", "memory: {request: 7Gi}"),
        ("c", "cpu: {request: 1500m}"),
        ("d", "cpu: {request: 600m}"),
        ("e", "cpu: {request: 500m}"),
    ]), @"
    a: 0-1 (no cpu.limit: all shared CPUs)
    b: InsufficientMemory: memory.request 7Gi does not fit: 10Gi of 16Gi are set aside for others (a 10Gi); 6Gi would fit, or stop a
    c: 0-1 (no cpu.limit: all shared CPUs)
    d: InsufficientCpu: cpu.request 600m does not fit: 1500m of 2 CPUs are set aside for others (c 1500m); 500m would fit, or stop c
    e: 0-1 (no cpu.limit: all shared CPUs)
    ");
}

#[test]
fn gpus_go_best_fit_whole_and_shared() {
    insta::assert_snapshot!(check(flat(2), &[
        ("share", "gpu: {memory: 4Gi}"),
        ("whole", "gpu: true"),
        ("second-share", "gpu: {memory: 12Gi}"),
        ("big", "gpu: {memory: 40Gi}"),
        ("two", "gpu: 2"),
        ("other-model", "gpu: {model: H200}"),
        ("too-large", "gpu: {memory: 81Gi}"),
        ("many", "gpu: 4"),
    ]), @"
    share: 0-1 GPU-0 (4Gi) (no cpu.limit: all shared CPUs)
    whole: 0-1 GPU-1 (whole) (no cpu.limit: all shared CPUs)
    second-share: 0-1 GPU-0 (12Gi) (no cpu.limit: all shared CPUs)
    big: 0-1 GPU-2 (40Gi) (no cpu.limit: all shared CPUs)
    two: GpuBusy: 2 whole GPUs asked for, 0 of 3 suitable are free now; held by big, second-share, share, whole; stop big and second-share and share
    other-model: NoSuchGpu: 1 whole GPU of model H200 asked for, this host has 0 suitable of 3; there is 2 x Simulated of 16Gi, 1 x Simulated of 80Gi
    too-large: NoSuchGpu: 81Gi on 1 GPU asked for, this host has 0 suitable of 3; there is 2 x Simulated of 16Gi, 1 x Simulated of 80Gi; 40Gi would fit
    many: NoSuchGpu: 4 whole GPUs asked for, this host has 3 suitable of 3; there is 2 x Simulated of 16Gi, 1 x Simulated of 80Gi
    ");
}

#[test]
fn a_grant_is_kept_until_it_no_longer_serves() {
    let machine = machine(two_sockets());
    let (mut ledger, _) = place_all(&machine, &[("web", "cpu: 2")]);
    let web = spec("web", "cpu: 2");
    let grant = ledger.get(&web.name).unwrap().grant.clone();
    assert_eq!(grant.cpus.to_string(), "0,8");
    let good = |ledger: &Ledger, spec: &Spec| {
        let ask = Ask::of(spec, None);
        cpu::still_good(&machine, ledger, &ask, &grant, None) && gpu::still_good(&machine, &ask, &grant)
    };
    assert!(good(&ledger, &web));
    assert!(good(&ledger, &spec("web", "cpu: 1")), "a lower limit needs no move");
    assert!(!good(&ledger, &spec("web", "cpu: {class: exclusive, request: 2}")));
    assert!(!good(&ledger, &spec("web", "cpu: 2\ngpu: true")));
    let mut fence = |cpus: &str| {
        let cpus: CpuSet = cpus.parse().unwrap();
        let hermit = spec("hermit", "cpu: {class: exclusive, request: 1}");
        let fenced = Grant { cpus: cpus.clone(), fenced: cpus, ..Grant::default() };
        ledger.put(hermit.name, Holding { resources: hermit.resources, grant: fenced });
        (good(&ledger, &web), cpus_in_force(&machine, &ledger, &web.name, &grant).to_string())
    };
    assert_eq!(fence("1,9"), (true, "0,8".to_owned()));
    assert_eq!(fence("0"), (false, "8".to_owned()), "one CPU is left of two it can use");
    assert_eq!(fence("0,8"), (false, "1-7,9-15".to_owned()), "until it is placed anew it runs anywhere open");
    assert_eq!(fence("0-7,9-15"), (true, "8".to_owned()), "there is nothing better to move to");
}

#[test]
fn a_refusal_on_trial_gives_no_advice() {
    let machine = machine(flat(4));
    let (ledger, _) = place_all(&machine, &[("held", "gpu: true")]);
    for fields in ["cpu: {class: exclusive, request: 4}", "cpu: {request: 9}", "memory: {request: 17Gi}", "gpu: 3"] {
        let asker = spec("asker", fields);
        let ask = Ask::of(&asker, None);
        let (told, tried) =
            (place(&machine, &ledger, &ask).unwrap_err(), place(&machine, &ledger, &ask.on_trial()).unwrap_err());
        assert_eq!(told.reason, tried.reason, "{fields}");
        assert!(told.message.contains("would fit") && !tried.message.contains("would fit"), "{fields}: {tried:?}");
    }
}
