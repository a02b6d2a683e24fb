//! One placement on a machine of 1,024 CPUs that has 10,000 workloads.

use super::cases::{machine, spec};
use super::percentile;
use containerctl::model::shape::Shape;
use containerctl::model::spec::Spec;
use containerctl::place::{Ask, Holding, Ledger, cpu, place};
use rustix::time::{ClockId, clock_gettime};
use std::env;
use std::hint::black_box;
use std::time::Duration;

const WORKLOADS: usize = 10_000;
/// The 99th percentile, in processor time, for a build without optimisation, where a placement takes some twenty times as long as it should.
/// `tests/run` builds with it and asks for 2,000 us by `PLACEMENT_US_MAX`, ten times what was measured: caches and frequency are others'
/// too. The goal of 50 us holds for all kinds but exclusive ones with `smt: any` (decision 17). What is added up over workloads by mistake takes
/// far longer.
const PLACEMENT_US_MAX: u64 = 5_000;
/// What is there already, in turn.
const RESIDENTS: [&str; 8] = [
    "cpu: 100m",
    "cpu: 500m",
    "cpu: 2",
    "",
    "cpu: {class: idle}",
    "cpu: {class: pinned, request: 100m}",
    "cpu: {class: pinned, request: 200m}",
    "cpu: {limit: 1, align: required}",
];
/// Who comes, in turn.
const NEWCOMERS: [&str; 9] = [
    "cpu: 2",
    "cpu: 500m",
    "cpu: {limit: 20, align: required}",
    "cpu: {class: idle}",
    "cpu: {class: pinned, request: 2}",
    "cpu: {class: pinned, request: 14, smt: full-core}",
    "cpu: {class: exclusive, request: 4}",
    "cpu: {class: exclusive, request: 4, smt: spread, align: required}",
    "cpu: {class: exclusive, request: 3, smt: any}",
];

#[test]
fn one_placement_among_ten_thousand_on_a_thousand_cpus_takes_microseconds() {
    let shape: Shape = "2 packages x 4 numa x 8 llc x 8 cores x 2 threads".parse().unwrap();
    let machine = machine(shape.topology());
    let residents: Vec<_> = RESIDENTS.iter().map(|fields| spec("w", fields)).collect();
    let mut ledger = Ledger::of(&machine.topology);
    let mut took_ns = Vec::new();
    for number in 0..WORKLOADS {
        let kind = &residents[number % residents.len()];
        let spec = Spec { name: format!("w{number}").parse().unwrap(), ..kind.as_ref().clone() };
        let grant = place(&machine, &ledger, &Ask::of(&spec, None)).unwrap();
        ledger.put(spec.name, Holding { resources: spec.resources, grant });
    }
    let newcomers: Vec<_> = NEWCOMERS.iter().map(|fields| spec("new", fields)).collect();
    for spec in (0..500).flat_map(|_| &newcomers) {
        let began = clock_gettime(ClockId::ThreadCPUTime);
        let placed = cpu::place(&machine, &ledger, &Ask::of(spec, None));
        let took = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime) - began).unwrap();
        assert!(black_box(placed).is_ok(), "{:?}", spec.resources.cpu);
        took_ns.push(u64::try_from(took.as_nanos()).unwrap());
    }
    let by_kind = |at: usize| {
        let mut own: Vec<u64> = took_ns.iter().copied().skip(at).step_by(newcomers.len()).collect();
        own.sort_unstable();
        format!("  {:>7} ns  {}", percentile(&own, 50), NEWCOMERS[at])
    };
    let medians: Vec<String> = (0..newcomers.len()).map(by_kind).collect();
    took_ns.sort_unstable();
    let (median, worst) = (percentile(&took_ns, 50), percentile(&took_ns, 99));
    println!(
        "one placement of {WORKLOADS} workloads: median {median} ns, 99th percentile {worst} ns; medians by kind:"
    );
    println!("{}", medians.join("\n"));
    let bound_us = env::var("PLACEMENT_US_MAX").map_or(PLACEMENT_US_MAX, |bound| bound.parse().unwrap());
    assert!(worst <= bound_us * 1000, "{worst} ns, at most {bound_us} us");
}
