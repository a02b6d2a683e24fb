//! Clocks that are set while something waits: nothing is over sooner, and nothing later. And what a reboot makes of a wait.

use super::World;
use crate::model::clock::Moment;
use crate::model::probe::Standing;
use crate::model::record::Record;
use crate::model::time::Timestamp;
use crate::plan::Act;
use std::time::Duration;

/// Clocks somebody may set: back to 1970, as they are, and on by ten years.
const SET_TO: [Option<Timestamp>; 3] = [Some(Timestamp(0)), None, Some(Timestamp(315_576_000_000))];

/// Does `check` on a world whose clock is set at once, for each way to set it.
fn however_it_is_set(begin: impl Fn(&mut World), check: impl Fn(&mut World)) {
    for to in SET_TO {
        let mut world = World::new(4);
        begin(&mut world);
        if let Some(to) = to {
            world.set_clock(to);
        }
        check(&mut world);
    }
}

/// What is done about the only workload, `millis` later and a moment before that.
fn due_after(world: &mut World, millis: u64) -> Option<Act> {
    let plan = world.plan();
    assert_eq!(plan.wake_at, Some(world.now.plus(Duration::from_millis(millis))));
    world.after(millis - 1).pass();
    let early = world.plan().work;
    assert!(early.is_empty(), "{early:?}");
    world.after(1).plan().work.pop().map(|work| work.act)
}

fn record(world: &World) -> &Record {
    world.records.values().next().unwrap()
}

#[test]
fn a_grace_is_as_long_as_its_manifest_says() {
    let begin = |world: &mut World| {
        world.file("web.yaml", "command: a\nstop: {grace: 10s}").settle();
        world.files.clear();
        world.pass();
    };
    however_it_is_set(begin, |world| assert_eq!(due_after(world, 10_000), Some(Act::Kill)));
}

#[test]
fn a_second_kill_comes_after_a_second() {
    let begin = |world: &mut World| {
        world.file("web.yaml", "command: a\nstop: {grace: 0s}").settle();
        world.files.clear();
        world.pass();
        let kill = world.plan().work.remove(0);
        assert_eq!(kill.act, Act::Kill);
        world.records.insert(kill.name, kill.record.unwrap());
    };
    however_it_is_set(begin, |world| assert_eq!(due_after(world, 1000), Some(Act::Kill)));
}

#[test]
fn a_timeout_is_as_long_as_its_manifest_says() {
    let begin = |world: &mut World| {
        world.file("job.yaml", "kind: job\ncommand: a\ntimeout: 1h").settle();
    };
    however_it_is_set(begin, |world| {
        assert!(matches!(due_after(world, 3_600_000), Some(Act::Stop { .. })));
    });
}

#[test]
fn a_backoff_is_as_long_as_it_was_meant_to_be_and_is_told_by_the_new_clock() {
    let begin = |world: &mut World| {
        world.file("web.yaml", "command: a\nrestart: {initialDelay: 40s, maxDelay: 40s}").settle();
        world.exit_code("web", 1);
        world.settle();
    };
    however_it_is_set(begin, |world| {
        let told = world.pass();
        let delay = crate::plan::backoff::last(&record(world).spec.restart, 1, &"web".parse().unwrap(), 0);
        assert!(delay > Duration::from_secs(30) && delay < Duration::from_secs(40), "{delay:?}");
        let at = world.now.plus(delay);
        assert!(told.contains(&format!("next try at {at}")), "{told}");
        assert!(world.plan().work.is_empty(), "remembered once");
        assert!(matches!(due_after(world, u64::try_from(delay.as_millis()).unwrap()), Some(Act::Start { .. })));
    });
}

#[test]
fn a_failed_step_is_tried_again_when_it_was_meant_to_be() {
    let begin = |world: &mut World| {
        let retry_at = world.steady.plus(Duration::from_secs(1));
        let setback = crate::plan::Setback { message: "no".to_owned(), failures: 1, retry_at };
        world.setbacks.insert("web".parse().unwrap(), setback);
        world.file("web.yaml", "command: a");
    };
    however_it_is_set(begin, |world| assert!(matches!(due_after(world, 1000), Some(Act::Start { .. }))));
}

#[test]
fn a_run_that_was_long_is_forgiven_and_one_that_was_short_is_not() {
    for (ran_ms, failures) in [(599_999, 2), (600_000, 1)] {
        let begin = |world: &mut World| {
            world.file("web.yaml", "command: a\nrestart: {resetAfter: 10m}").settle();
            world.exit_code("web", 1);
            world.settle();
            world.sleep().settle();
        };
        however_it_is_set(begin, |world| {
            world.after(ran_ms);
            world.exit_code("web", 1);
            world.pass();
            assert_eq!(record(world).failures, failures, "after {ran_ms} ms");
        });
    }
}

const OLD: &str =
    "command: old\nreplicas: 2\nstrategy: {type: rolling, progressDeadline: 1m}\nprobes: {readiness: {exec: [x]}}";

/// Two replicas of which the second has its new process, which is not ready yet.
fn rolling(world: &mut World) {
    world.file("web.yaml", OLD).settle();
    stand(world, "web", true);
    stand(world, "web.1", true);
    world.after(5000).settle();
    world.file("web.yaml", &OLD.replace("old", "new"));
    world.pass();
    world.exit_code("web.1", 0);
    world.settle();
    stand(world, "web.1", false);
    world.settle();
}

fn stand(world: &mut World, name: &str, ready: bool) {
    let name: crate::model::name::Name = name.parse().unwrap();
    let number = world.observed[&name].instance.as_ref().unwrap().number;
    let probes = std::sync::Arc::new(world.records[&name].spec.probes.clone());
    let standing =
        Standing { instance: number, pid: 100, probes, ready, reason: "Test", message: String::new(), failed: None };
    world.standings.insert(name, standing);
}

#[test]
fn an_update_has_as_long_as_its_manifest_says() {
    however_it_is_set(rolling, |world| assert!(matches!(due_after(world, 60_000), Some(Act::Stop { .. }))));
}

#[test]
fn a_replica_has_arrived_when_it_has_lasted() {
    let begin = |world: &mut World| {
        rolling(world);
        stand(world, "web.1", true);
    };
    however_it_is_set(begin, |world| {
        assert!(matches!(due_after(world, 3000), Some(Act::Stop { .. })), "the turn of the other one");
    });
}

#[test]
fn after_a_reboot_a_backoff_goes_on_and_is_not_longer_than_the_longest() {
    let hours = |hours: u64| hours * 3_600_000;
    // On the wall: as it should be, set back (by a battery that is flat), too late.
    for (wall, wait) in [(hours(10), hours(1) - 5_000), (0, hours(2) - 5_000), (hours(13), 0)] {
        let mut world = World::new(4);
        world.set_clock(Timestamp(hours(10)));
        world.file("web.yaml", "command: a\nrestart: {initialDelay: 1h, maxDelay: 2h}").settle();
        world.exit_code("web", 1);
        world.settle();
        let retry_at = record(&world).retry_at.clone().unwrap();
        world.reboot();
        // What has jitter has an end that is known.
        world.set_clock(if wall == hours(10) {
            retry_at.wall.minus(Duration::from_millis(wait))
        } else {
            Timestamp(wall)
        });
        world.steady = crate::model::clock::Steady(5_000);
        world.settle();
        if wait == 0 {
            assert!(world.observed.values().any(|seen| seen.instance.is_some()), "its time has come");
        } else {
            assert!(matches!(due_after(&mut world, wait), Some(Act::Start { .. })), "{wall}");
        }
    }
}

#[test]
fn what_an_older_version_has_remembered_goes_by_the_wall_and_is_bounded() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: {maxDelay: 10s}\nstop: {grace: 10s}").settle();
    world.exit_code("web", 1);
    world.settle();
    let old = |wall| Moment { wall, reading: None };
    for (at, wait) in [(4_000, 4_000), (3_600_000, 10_000)] {
        let wall = world.now.plus(Duration::from_millis(at));
        world.records.values_mut().next().unwrap().retry_at = Some(old(wall));
        world.settle();
        assert_eq!(world.plan().wake_at, Some(world.now.plus(Duration::from_millis(wait))));
    }
    world.sleep().settle();
    world.files.clear();
    for (ago, wait) in [(4_000, 6_000), (-3_600_000, 10_000)] {
        world.pass();
        let stopping = world.records.values_mut().next().unwrap().stopping.as_mut().unwrap();
        stopping.since = old(Timestamp(world.now.0.saturating_add_signed(-ago)));
        world.settle();
        assert_eq!(world.plan().wake_at, Some(world.now.plus(Duration::from_millis(wait))), "{ago}");
    }
}
