//! What is found after a crash, a loss, drift or a failed step.

use super::World;
use crate::model::clock::Time;
use crate::model::exit::Outcome;
use crate::model::observed::{Group, Observed};
use crate::plan::{Act, Setback};
use std::time::Duration;

#[test]
fn drift_is_written_back() {
    let mut world = World::new(4);
    world.file("web.yaml", "cpu: 2\ncommand: a").settle();
    let group = world.observed.values_mut().next().unwrap().group.as_mut().unwrap();
    group.settings.set("cpu.max", "max 100000");
    group.settings.set("pids.max", "max");
    insta::assert_snapshot!(world.settle(), @"
    web: resize (cpu.max max 100000 -> 200000 100000, pids.max max -> 512)
      web Running Ready=true Running: pid 100
    ");
}

#[test]
fn without_a_database_what_runs_is_adopted_as_it_was_started() {
    let mut world = World::new(4);
    world
        .file("web.yaml", "cpu: 2\ncommand: a")
        .file("x.yaml", "command: x\ncpu: {class: exclusive, request: 1}")
        .settle();
    let before = world.observed.clone();
    world.records.clear();
    insta::assert_snapshot!(world.settle(), @"
    web: remember (as it should be)
    x: remember (as it should be)
      web Running Ready=true Running: pid 100
      x Running Ready=true Running: pid 100; Exclusive=false HostMayRun: no other workload runs on CPUs 0, but the host's own processes may: this kernel has no cpuset.cpus.partition; controller --fence-system keeps them off
    ");
    assert_eq!(world.observed, before, "nothing was touched");
    assert_eq!(world.records.len(), 2);
}

#[test]
fn a_run_the_database_has_not_heard_of_is_adopted() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\ngpu: true").settle();
    let stale = world.records.clone();
    world.exit_code("web", 1);
    world.settle();
    world.sleep();
    world.settle();
    let newer = std::mem::replace(&mut world.records, stale);
    insta::assert_snapshot!(world.settle(), @"
    web: remember (as it should be)
      web Running Ready=true Running: pid 100
    ");
    assert_eq!(world.records, newer, "run, restarts and lease are those of the run that is there");
}

#[test]
fn a_record_that_a_full_disk_has_kept_speaks_for_no_later_life() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\ngpu: true").settle();
    // It runs often, then its manifest goes; the disk still says that it is being stopped, and with which GPU, when it comes back.
    for _ in 0..3 {
        world.exit_code("web", 1);
        world.settle();
        world.sleep().settle();
    }
    world.files.clear();
    world.settle();
    let stale = world.records.clone();
    world.exit_code("web", 0);
    world.settle();
    assert!(world.records.is_empty());
    world.after(1).file("web.yaml", "command: a\ngpu: true").settle();
    let newer = std::mem::replace(&mut world.records, stale);
    insta::assert_snapshot!(world.settle(), @"
    web: remember (as it should be)
      web Running Ready=true Running: pid 100
    ");
    assert_eq!(world.records, newer, "the run that is there is of a later life");
}

#[test]
fn leftovers_of_a_crash_are_cleared_before_a_start() {
    let mut world = World::new(4);
    let mut leave = |name: &str, seen| world.observed.insert(name.parse().unwrap(), seen);
    let populated = Group { populated: true, ..Group::default() };
    leave("old", Observed { group: Some(Group::default()), ..Observed::default() });
    leave("older", Observed { left_traces: true, ..Observed::default() });
    leave("web", Observed { group: Some(populated), left_traces: true, ..Observed::default() });
    world.file("web.yaml", "command: a");
    insta::assert_snapshot!(world.settle(), @"
    old: forget (a leftover that no record and no manifest explains)
    older: forget (a leftover that no record and no manifest explains)
    web: kill (processes without a run of their own are in its cgroup)
      old Stopping 
      older Stopping 
      web Pending Ready=false Leftovers: processes without a run of their own are in its cgroup
    web: clear (an empty cgroup is left from before)
      web Pending Ready=false Leftovers: an empty cgroup is left from before
    web: start (new; no cpu.limit: all shared CPUs)
      web Starting Ready=false Starting: being set up
    ");
}

#[test]
fn a_failed_step_waits_and_hides_nobody_else() {
    let mut world = World::new(4);
    let setback = Setback {
        message: "cannot make the cgroup".to_owned(),
        failures: 1,
        retry_at: world.steady.plus(Duration::from_secs(1)),
    };
    world.setbacks.insert("a".parse().unwrap(), setback);
    world.file("a.yaml", "command: a").file("b.yaml", "command: b");
    insta::assert_snapshot!(world.pass(), @"
    b: start (new; no cpu.limit: all shared CPUs)
      a Failed Ready=false Starting: being set up; Degraded=true StepFailed: cannot make the cgroup
      b Starting Ready=false Starting: being set up
    ");
    insta::assert_snapshot!(world.after(1000).pass(), @"
    a: start (new; no cpu.limit: all shared CPUs)
      a Starting Ready=false Starting: being set up; Degraded=true StepFailed: cannot make the cgroup
      b Running Ready=true Running: pid 100
    ");
}

#[test]
fn a_run_whose_traces_are_lost_goes_on_as_its_record_says() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\ncpu: 2").settle();
    let instance = world.observed.values_mut().next().unwrap().instance.as_mut().unwrap();
    (instance.number, instance.record) = (0, None);
    insta::assert_snapshot!(world.pass(), @"  web Running Degraded=true TracesLost: the traces of its start are lost or unreadable; it is taken for what its record says; Ready=true Running: pid 100");
    world.records.clear();
    insta::assert_snapshot!(world.settle(), @"
    web: remember (as it should be)
      web Running Degraded=true TracesLost: the traces of its start are lost or unreadable; it is taken for what its record says; Ready=true Running: pid 100
    ");
    // Nobody knows any more which device it holds: two workloads on one GPU would be worse than a new start.
    world.file("gpu.yaml", "command: a\ngpu: true").settle();
    let instance = world.observed.get_mut(&"gpu".parse().unwrap()).unwrap().instance.as_mut().unwrap();
    (instance.number, instance.record) = (0, None);
    world.records.remove(&"gpu".parse().unwrap());
    insta::assert_snapshot!(world.pass(), @"
    gpu: stop { signal: signal(15) } (a new gpu lease needs a new process)
      gpu Stopping Degraded=true TracesLost: the traces of its start are lost or unreadable; it is taken for what its record says; Ready=false Stopping: a new gpu lease needs a new process
      web Running Degraded=true TracesLost: the traces of its start are lost or unreadable; it is taken for what its record says; Ready=true Running: pid 100
    ");
}

#[test]
fn nothing_is_done_about_what_cannot_be_looked_at() {
    let mut world = World::new(4);
    world.blind.insert("web".parse().unwrap());
    world.file("web.yaml", "command: a").file("db.yaml", "command: b");
    insta::assert_snapshot!(world.pass(), @"
    db: start (new; no cpu.limit: all shared CPUs)
      db Starting Ready=false Starting: being set up
      web Pending Ready=false Unknown: it cannot be looked at
    ");
}

#[test]
fn a_foreign_process_in_the_group_of_an_ended_run_does_not_keep_it_down() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    world.exit_code("web", 4);
    world.observed.values_mut().next().unwrap().group.as_mut().unwrap().populated = true;
    let retry_at = world.steady.plus(Duration::from_millis(30));
    let clear = world.plan().work.remove(0);
    assert_eq!(clear.act, Act::Clear, "most often what is there is gone in a moment");
    world.records.insert(clear.name.clone(), clear.record.unwrap());
    world.setbacks.insert(clear.name, Setback { message: "busy".to_owned(), failures: 1, retry_at });
    insta::assert_snapshot!(world.after(30).pass(), @"
    web: kill (processes that are not its own keep its cgroup)
      web Pending Ready=false Ended: exited with code 4; Degraded=true StepFailed: busy
    ");
}

#[test]
fn an_end_that_we_forced_is_told_as_that() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nstop: {grace: 1s}").settle();
    world.file("web.yaml", "command: b");
    world.pass();
    world.after(1000);
    let kill = world.plan().work.remove(0);
    world.records.insert(kill.name, kill.record.unwrap());
    // An adopted init is no child of ours, so nothing tells how it ended.
    world.exit("web", Outcome::Lost);
    world.pass();
    let last = world.records.values().next().unwrap().last_exit.clone().unwrap();
    assert_eq!(last.outcome.to_string(), "killed by SIGKILL");
}

#[test]
fn an_edit_replaces_a_run_whose_traces_are_lost() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    let instance = world.observed.values_mut().next().unwrap().instance.as_mut().unwrap();
    (instance.number, instance.record) = (0, None);
    world.file("web.yaml", "command: b");
    let stop = world.plan().work.remove(0);
    assert!(matches!(stop.act, Act::Stop { .. }), "{stop:?}");
    assert_eq!(stop.reason, "a new command needs a new process");
}

/// A run that is to end, as remembered before it is asked to.
fn about_to_be_asked() -> World {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nstop: {grace: 10s}").settle();
    world.files.clear();
    let stop = world.plan().work.remove(0);
    assert!(matches!(stop.act, Act::Stop { .. }), "{stop:?}");
    world.records.insert(stop.name, stop.record.unwrap());
    world
}

#[test]
fn a_controller_that_was_killed_before_it_asked_is_made_up_for() {
    // Down for longer than the grace, too: nobody is killed who was not asked.
    for down_ms in [0, 5000, 3_600_000] {
        let mut world = about_to_be_asked();
        insta::allow_duplicates! {
            insta::assert_snapshot!(world.after(down_ms).pass(), @"
            web: stop { signal: signal(15) } (web.yaml was deleted)
              web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Stopping: web.yaml was deleted
            ");
        }
        assert_eq!(world.plan().work, [], "asked once");
        assert_eq!(world.plan().wake_at, Some(world.now.plus(Duration::from_secs(10))), "with its whole grace");
    }
}

#[test]
fn a_grace_begins_when_it_is_asked_or_first_tried_however_long_that_had_to_wait_for_a_thread() {
    for (was_done, was_refused) in [(true, false), (false, false), (false, true)] {
        let mut world = about_to_be_asked();
        let mut stop = world.plan().work.remove(0);
        world.after(8000);
        let now = Time { wall: world.now, steady: world.steady };
        if was_refused {
            // As it was first decided on, and could not be remembered.
            stop.record.clone_from(&world.records.get(&stop.name).cloned());
            stop.is_refused_at(now);
        } else {
            stop.is_done_at(now);
        }
        let record = stop.afterwards(was_done).unwrap().clone();
        if !was_done {
            let retry_at = world.steady.plus(Duration::from_mins(1));
            world.setbacks.insert(stop.name.clone(), Setback { message: "no".to_owned(), failures: 1, retry_at });
        }
        world.records.insert(stop.name, record);
        assert_eq!(world.plan().wake_at, Some(world.now.plus(Duration::from_secs(10))), "a whole one");
    }
}

#[test]
fn whoever_was_asked_is_not_asked_again_by_the_next_controller() {
    let mut world = about_to_be_asked();
    world.pass();
    for record in world.records.values_mut() {
        *record = crate::model::codec::decode(&crate::model::codec::encode(record).unwrap()).unwrap();
    }
    assert_eq!(world.after(9999).plan().work, []);
    assert_eq!(world.after(1).plan().work[0].act, Act::Kill);
}

#[test]
fn whoever_cannot_be_asked_is_asked_again_and_killed_when_the_first_try_is_a_grace_ago() {
    let mut world = about_to_be_asked();
    let retry_at = world.steady.plus(Duration::from_secs(4));
    world.setbacks.insert("web".parse().unwrap(), Setback { message: "no".to_owned(), failures: 9, retry_at });
    let plan = world.after(3999).plan();
    assert_eq!((plan.work, plan.wake_at), (Vec::new(), Some(world.now.plus(Duration::from_millis(1)))));
    assert!(matches!(world.after(1).plan().work[0].act, Act::Stop { .. }));
    world.setbacks.values_mut().next().unwrap().retry_at = world.steady.plus(Duration::from_mins(1));
    let plan = world.plan();
    assert_eq!((plan.work, plan.wake_at), (Vec::new(), Some(world.now.plus(Duration::from_secs(6)))));
    assert_eq!(world.after(6000).plan().work[0].act, Act::Kill);
}
