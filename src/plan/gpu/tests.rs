//! The ladder as text: seconds and what is found, and where the device stands then.

use super::*;
use crate::model::time::Timestamp;

fn gpu(fault: Option<&str>, used: u64) -> Gpu {
    let mut gpu = Gpu::new(GpuId("GPU-0".to_owned()), Vendor::Simulated, "x", Bytes(16));
    gpu.fault = fault.map(str::to_owned);
    gpu.foreign = Bytes(used);
    gpu
}

fn at(seconds: u64) -> Time {
    let since = Duration::from_secs(1_000_000 + seconds);
    // On a wall that is set about at every look: it has no say.
    let wall = Timestamp::default().plus(Duration::from_hours(if seconds.is_multiple_of(2) { 0 } else { 100_000 }));
    Time { wall, steady: Steady::default().plus(since) }
}

/// `ok`, `bad` or `gone` at each second; where it stands after each.
fn story(looks: &[(u64, &str)], leased: &Leased) -> Vec<String> {
    let mut ladder = Ladder::default();
    let stands = |(second, look): &(u64, &str)| {
        let found = match *look {
            "ok" => vec![gpu(None, 0)],
            "bad" => vec![gpu(Some("Xid 79"), 0)],
            _ => vec![],
        };
        let gpus = ladder.take((found, &[]), leased, leased, at(*second));
        gpus.first().map_or_else(|| "forgotten".to_owned(), |gpu| gpu.health.to_string())
    };
    looks.iter().map(stands).collect()
}

#[test]
fn one_bad_look_only_makes_a_device_suspect() {
    let none = Leased::new();
    assert_eq!(story(&[(0, "ok"), (5, "bad"), (10, "ok")], &none), ["healthy", "suspect: Xid 79", "healthy"]);
}

#[test]
fn trouble_that_lasts_drains_and_the_way_back_is_long() {
    let looks = [
        (0, "bad"),
        (19, "bad"),
        (20, "bad"),
        (30, "ok"),
        (60, "bad"),
        (70, "ok"),
        (129, "ok"),
        (130, "ok"),
        (729, "ok"),
        (730, "ok"),
    ];
    let expected = [
        "suspect: Xid 79",
        "suspect: Xid 79",
        "draining: Xid 79",
        "draining: Xid 79",
        "draining: Xid 79",
        "draining: Xid 79",
        "draining: Xid 79",
        "on probation",
        "on probation",
        "healthy",
    ];
    assert_eq!(story(&looks, &Leased::new()), expected);
}

#[test]
fn on_probation_one_bad_look_is_enough() {
    let looks = [(0, "bad"), (20, "bad"), (21, "ok"), (81, "ok"), (90, "bad")];
    assert_eq!(story(&looks, &Leased::new())[3..], ["on probation", "draining: Xid 79"]);
}

#[test]
fn a_device_that_flaps_is_drained() {
    let looks = [(0, "bad"), (1, "ok"), (100, "bad"), (101, "ok"), (200, "bad")];
    let last = story(&looks, &Leased::new()).pop().unwrap();
    assert_eq!(last, "draining: Xid 79, the 3rd time in a few minutes");
    // An hour apart they are other errors.
    let looks = [(0, "bad"), (1, "ok"), (3600, "bad"), (3601, "ok"), (7200, "bad")];
    assert_eq!(story(&looks, &Leased::new()).pop().unwrap(), "suspect: Xid 79");
}

#[test]
fn a_device_that_is_gone_is_remembered_while_somebody_holds_it() {
    let held: Leased = [(GpuId("GPU-0".to_owned()), Lease::Whole)].into();
    let gone = "draining: its driver does not know it any more";
    let looks = [(0, "ok"), (1, "gone"), (30, "gone"), (9000, "gone")];
    assert_eq!(story(&looks, &held)[2..], [gone, gone]);
    assert_eq!(story(&looks, &Leased::new())[2..], [gone, "forgotten"]);
    // Held by a run of an earlier controller, never seen by this one.
    assert_eq!(story(&[(0, "gone"), (30, "gone")], &held)[1], gone);
}

#[test]
fn nobody_leaves_a_device_of_which_nothing_can_be_known() {
    let held: Leased = [(GpuId("GPU-0".to_owned()), Lease::Whole)].into();
    let mut ladder = Ladder::default();
    let trouble = ["NVML: nvmlInit: version mismatch".to_owned()];
    let mut stands = |second, trouble: &[String]| {
        ladder.take((vec![], trouble), &held, &held, at(second)).remove(0).health.to_string()
    };
    for second in [0, 30, 90_000] {
        assert_eq!(stands(second, &trouble), "suspect: NVML: nvmlInit: version mismatch");
    }
    // It is known of all others now, and not of this one.
    assert_eq!(stands(90_010, &[]), "suspect: its driver does not know it any more");
    assert_eq!(stands(90_030, &[]), "draining: its driver does not know it any more");
}

#[test]
fn only_memory_no_lease_explains_is_foreign() {
    let id = GpuId("GPU-0".to_owned());
    let share = |bytes| Leased::from([(id.clone(), Lease::Memory(Bytes(bytes)))]);
    let foreign = |used, before: &Leased, after: &Leased| {
        Ladder::default().take((vec![gpu(None, used)], &[]), before, after, at(0)).remove(0).foreign.0
    };
    let none = Leased::new();
    assert_eq!(foreign(9, &none, &none), 9);
    assert_eq!(foreign(9, &share(4), &share(4)), 5);
    assert_eq!(foreign(3, &share(4), &share(4)), 0);
    // It ended while the device was looked at.
    assert_eq!(foreign(4, &share(4), &none), 0);
    assert_eq!(foreign(16, &Leased::from([(id.clone(), Lease::Whole)]), &none), 0);
}
