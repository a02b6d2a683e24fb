//! Counters to rates.

use super::*;
use crate::model::units::Bytes;

fn reading(at_ms: i64, busy: u64, cpu_us: u64, waited_us: Option<u64>, run: u64) -> Reading {
    let at = Steady(at_ms);
    let count = Count { run, at, cpu_us, waited_us, memory: Some(Bytes(7)) };
    let total = u64::try_from(at_ms).unwrap() / 10;
    Reading { cpus: [(3, CpuCount { busy, total })].into(), workloads: [("a".parse().unwrap(), count)].into() }
}

fn shown(rates: &Rates) -> (Option<u32>, Option<u32>, Option<u32>) {
    let known = &rates.known[&"a".parse::<Name>().unwrap()];
    (rates.busy.get(&3).copied(), known.usage.map(|usage| usage.0), known.wait.map(|wait| wait.0))
}

#[test]
fn two_readings_make_a_rate_and_one_makes_none() {
    let mut rates = Rates::default();
    rates.take(reading(10_000, 100, 5_000_000, Some(0), 1));
    assert_eq!(shown(&rates), (None, None, None));
    rates.take(reading(15_000, 475, 7_500_000, Some(1_250_000), 1));
    assert_eq!(shown(&rates), (Some(750), Some(500), Some(250)));
    // A moment later says nothing new, and is not where the next one counts from.
    rates.take(reading(15_300, 505, 7_800_000, Some(1_250_000), 1));
    assert_eq!(shown(&rates), (Some(750), Some(500), Some(250)));
    rates.take(reading(20_000, 475, 8_000_000, Some(1_250_000), 1));
    assert_eq!(shown(&rates), (Some(0), Some(100), Some(0)));
}

#[test]
fn another_run_begins_anew_and_a_wait_that_nobody_counts_is_none() {
    let mut rates = Rates::default();
    rates.take(reading(10_000, 0, 5_000_000, None, 1));
    rates.take(reading(15_000, 0, 6_000_000, None, 1));
    assert_eq!(shown(&rates), (Some(0), Some(200), None));
    rates.take(reading(20_000, 0, 1_000, Some(0), 2));
    assert_eq!(shown(&rates).1, None);
    rates.keep_only(&BTreeMap::<Name, u64>::new());
    assert!(rates.known.is_empty());
}

#[test]
fn a_machine_whose_nodes_are_its_groups_waits_for_no_nearer_way_out() {
    use crate::model::topology::tests::two_sockets;
    let two_caches_a_node = two_sockets();
    assert_eq!(settings(&two_caches_a_node), Settings::default());
    let mut one = two_caches_a_node;
    one.llcs = one.packages.clone();
    assert_eq!(settings(&one), Settings { far_dwell_ms: 5000, ..Settings::default() });
}

#[test]
fn a_cpu_that_goes_offline_is_not_busy_for_ever() {
    let mut rates = Rates::default();
    assert!(rates.is_any_busy(999), "nobody knows yet");
    rates.take(reading(10_000, 0, 0, None, 1));
    rates.take(reading(15_000, 500, 0, None, 1));
    assert!(rates.is_any_busy(999));
    rates.take(Reading::default());
    assert_eq!(rates.busy, BTreeMap::new());
}
