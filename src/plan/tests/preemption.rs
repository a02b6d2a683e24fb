//! Who has to leave for a newcomer of a higher priority.

use super::World;
use crate::model::name::Name;
use crate::plan::Act;

fn stops(world: &World) -> Vec<String> {
    let work = world.plan().work.into_iter();
    work.filter(|work| matches!(work.act, Act::Stop { .. })).map(|work| work.name.to_string()).collect()
}

fn record<'a>(world: &'a World, name: &str) -> &'a crate::model::record::Record {
    &world.records[&name.parse::<Name>().unwrap()]
}

#[test]
fn a_higher_priority_has_a_job_stopped_which_goes_back_to_the_queue_without_a_failure() {
    let mut world = World::new(4);
    world.file("victim.yaml", "kind: job\ncommand: a\nretries: 0\nrestart: never\nmemory: {request: 10Gi}").settle();
    world.after(5000).file("urgent.yaml", "command: b\npriority: 5\nmemory: {request: 8Gi}");
    let mut shown = world.pass();
    assert_eq!(stops(&world), [""; 0], "once");
    world.after(500).exit_code("victim", 143);
    shown += &world.settle();
    insta::assert_snapshot!(shown, @"
    victim: stop { signal: signal(15) } (makes room for urgent, whose priority 5 is above its 0)
    urgent: remember (memory.request 8Gi does not fit: 10Gi of 16Gi are set aside for others (victim 10Gi); 6Gi would fit, or stop victim)
      urgent Pending Placed=false InsufficientMemory: memory.request 8Gi does not fit: 10Gi of 16Gi are set aside for others (victim 10Gi); 6Gi would fit, or stop victim; Ready=false NotPlaced: waits for victim to leave, which makes room for it
      victim Stopping Ready=false Preempted: makes room for urgent, whose priority 5 is above its 0
    victim: clear (exited with code 143)
      urgent Pending Placed=false InsufficientMemory: memory.request 8Gi does not fit: 10Gi of 16Gi are set aside for others (victim 10Gi); 6Gi would fit, or stop victim; Ready=false NotPlaced: waits for victim to leave, which makes room for it
      victim Pending Ready=false Ended: exited with code 143
    urgent: start (new; no cpu.limit: all shared CPUs)
    victim: remember (memory.request 10Gi does not fit: 8Gi of 16Gi are set aside for others (urgent 8Gi); 8Gi would fit, or stop urgent)
      urgent Starting Ready=false Starting: being set up
      victim Pending Placed=false InsufficientMemory: memory.request 10Gi does not fit: 8Gi of 16Gi are set aside for others (urgent 8Gi); 8Gi would fit, or stop urgent; Ready=false NotPlaced: waits for room
    ");
    let victim = record(&world, "victim");
    assert_eq!((victim.failed_tries, victim.failures, victim.finished, victim.restarts), (0, 0, false, 0));
    assert!(victim.queued.is_some() && record(&world, "urgent").preempting.is_none());
    // Room again: it is run again, whatever `restart` and `retries` say of runs that fail.
    world.files.remove("urgent.yaml");
    world.pass();
    world.exit_code("urgent", 0);
    assert!(world.settle().contains("victim: start"));
}

#[test]
fn only_jobs_and_idle_work_of_a_lower_priority_give_way() {
    let mut world = World::new(4);
    world.file("service.yaml", "command: a\nmemory: {request: 4Gi}");
    world.file("idle.yaml", "command: a\ncpu: {class: idle}\nmemory: {request: 4Gi}");
    world.file("job.yaml", "kind: job\ncommand: a\npriority: 3\nmemory: {request: 4Gi}");
    world.file("equal.yaml", "kind: job\ncommand: a\npriority: 5\nmemory: {request: 4Gi}").settle();
    world.file("new.yaml", "command: b\npriority: 5\nmemory: {request: 9Gi}");
    assert_eq!(stops(&world), [""; 0], "not even idle and job together make room for 9Gi, so nobody goes");
    world.file("new.yaml", "command: b\npriority: 5\nmemory: {request: 8Gi}");
    assert_eq!(stops(&world), ["job", "idle"]);
    world.file("new.yaml", "command: b\npriority: 5\nmemory: {request: 3Gi}");
    assert_eq!(stops(&world), ["idle"], "the lower of two that would do");
    world.file("new.yaml", "command: b\nmemory: {request: 3Gi}");
    assert_eq!(stops(&world), [""; 0], "equal is not above");
}

#[test]
fn nobody_is_stopped_for_what_is_about_to_fit_anyway() {
    let mut world = World::new(4);
    world.file("going.yaml", "command: a\nmemory: {request: 8Gi}");
    world.file("job.yaml", "kind: job\ncommand: a\nmemory: {request: 8Gi}").settle();
    world.files.remove("going.yaml");
    world.pass();
    world.file("new.yaml", "command: b\npriority: 5\nmemory: {request: 8Gi}");
    assert_eq!(stops(&world), [""; 0]);
    world.exit_code("going", 0);
    let shown = world.settle();
    assert!(shown.contains("new: start") && !shown.contains("job: stop"), "{shown}");
}

#[test]
fn nobody_is_stopped_twice_for_one_newcomer_and_an_edit_is_another() {
    let mut world = World::new(4);
    world.file("a.yaml", "kind: job\ncommand: a\nmemory: {request: 8Gi}");
    world.file("b.yaml", "kind: job\ncommand: a\nmemory: {request: 8Gi}").settle();
    world.file("new.yaml", "command: b\npriority: 5\nmemory: {request: 8Gi}");
    assert_eq!(stops(&world), ["a"]);
    world.pass();
    // Half of the memory is gone as it leaves: what was reckoned does not come true.
    world.machine.memory = crate::model::units::Bytes(12 << 30);
    world.exit_code("a", 143);
    let shown = world.settle();
    assert!(!shown.contains("b: stop") && !shown.contains("new: start"), "{shown}");
    world.file("new.yaml", "command: b\npriority: 5\nmemory: {request: 9Gi}");
    assert_eq!(stops(&world), ["b"], "it asks for something else now");
}

#[test]
fn whoever_lost_its_room_to_another_may_have_others_stopped_after_a_while() {
    let mut world = World::new(4);
    world.file("a.yaml", "kind: job\ncommand: a\nmemory: {request: 8Gi}");
    world.file("b.yaml", "kind: job\ncommand: a\nstop: {grace: 30m}\nmemory: {request: 8Gi}").settle();
    world.file("new.yaml", "command: b\npriority: 5\nmemory: {request: 8Gi}").pass();
    world.file("other.yaml", "command: c\npriority: 9\nmemory: {request: 8Gi}");
    world.exit_code("a", 143);
    assert!(world.settle().contains("other: start"));
    assert_eq!(stops(&world), [""; 0]);
    // An older record has no time: it has from now on.
    world.records.get_mut(&"new".parse::<Name>().unwrap()).unwrap().preempting.as_mut().unwrap().since = None;
    world.settle();
    // Ten minutes after that it is looked at again, and not before; until then nothing is done, and nothing written.
    world.after(599_999);
    assert_eq!(world.plan().work, []);
    assert_eq!(world.plan().wake_at, Some(world.now.plus(std::time::Duration::from_millis(1))));
    world.sleep();
    assert_eq!(stops(&world), ["b"]);
    // Whoever still leaves is waited for, however long its grace is.
    world.pass();
    world.after(700_000).settle();
    assert!(record(&world, "new").preempting.is_some());
    world.machine.memory = crate::model::units::Bytes(15 << 30);
    world.exit_code("b", 143);
    world.settle();
    assert_eq!(record(&world, "new").preempting, None, "nobody is left whom it could have stopped");
}

#[test]
fn what_a_victim_leaves_is_nobody_elses() {
    let mut world = World::new(4);
    world.file("a.yaml", "kind: job\ncommand: a\nmemory: {request: 8Gi}\nstop: {grace: 1m}");
    world.file("b.yaml", "kind: job\ncommand: a\nmemory: {request: 8Gi}\nstop: {grace: 1m}").settle();
    world.file("new.yaml", "command: b\npriority: 5\nmemory: {request: 16Gi}").pass();
    // The first has gone, the second takes its time: neither the first itself nor another moves in.
    world.exit_code("a", 143);
    world.file("c.yaml", "kind: job\ncommand: a\npriority: 4\nmemory: {request: 1Gi}");
    insta::assert_snapshot!(world.settle(), @"
    c: remember (memory.request 1Gi does not fit: 16Gi of 16Gi are set aside for others (a 8Gi, b 8Gi); stop b)
    a: clear (exited with code 143)
      a Pending Ready=false Ended: exited with code 143
      b Stopping Ready=false Preempted: makes room for new, whose priority 5 is above its 0
      c Pending Placed=false InsufficientMemory: memory.request 1Gi does not fit: 16Gi of 16Gi are set aside for others (a 8Gi, b 8Gi); stop b; Ready=false NotPlaced: waits for room
      new Pending Placed=false InsufficientMemory: memory.request 16Gi does not fit: 16Gi of 16Gi are set aside for others (a 8Gi, b 8Gi); stop a and b; Ready=false NotPlaced: waits for a and b to leave, which makes room for it
    a: remember (there is room, but new is before it and waits for memory: it would start by 1970-01-01T00:17:40.000Z at the latest, and only a job whose timeout ends before may go first)
      a Pending Placed=false Queued: there is room, but new is before it and waits for memory: it would start by 1970-01-01T00:17:40.000Z at the latest, and only a job whose timeout ends before may go first; Ready=false NotPlaced: waits for its turn
      b Stopping Ready=false Preempted: makes room for new, whose priority 5 is above its 0
      c Pending Placed=false Queued: there is room, but new is before it and waits for memory: it would start by 1970-01-01T00:17:40.000Z at the latest, and only a job whose timeout ends before may go first; Ready=false NotPlaced: waits for its turn
      new Pending Placed=false InsufficientMemory: memory.request 16Gi does not fit: 8Gi of 16Gi are set aside for others (b 8Gi); 8Gi would fit, or stop b; Ready=false NotPlaced: waits for b to leave, which makes room for it
    ");
    world.exit_code("b", 143);
    assert!(world.settle().contains("new: start"));
}

#[test]
fn a_crash_between_the_records_stops_the_same_ones_and_nobody_else() {
    let mut world = World::new(4);
    world.file("a.yaml", "kind: job\ncommand: a\nmemory: {request: 8Gi}");
    world.file("b.yaml", "kind: job\ncommand: a\nmemory: {request: 8Gi}").settle();
    world.file("new.yaml", "command: b\npriority: 5\nmemory: {request: 8Gi}");
    let plan = world.plan();
    // Only the newcomer's record has reached the disk.
    let work = plan.work.into_iter().find(|work| work.name.as_str() == "new").unwrap();
    world.records.insert(work.name, work.record.unwrap());
    assert_eq!(stops(&world), ["a"]);
    // Only the victim's.
    world.records.remove(&"new".parse::<Name>().unwrap());
    let stop = world.plan().work.into_iter().find(|work| work.name.as_str() == "a").unwrap();
    world.records.insert(stop.name, stop.record.unwrap());
    assert_eq!(stops(&world), ["a"], "the signal that was not sent is, and that is all");
}

#[test]
fn a_job_between_two_tries_is_in_nobodys_way_and_a_service_is() {
    for (kind, starts) in [("job", true), ("service", false)] {
        let mut world = World::new(4);
        let text = format!("kind: {kind}\ncommand: a\npriority: -1000\nmemory: {{request: 12Gi}}");
        world.file("loop.yaml", &text).settle();
        world.exit_code("loop", 1);
        world.settle();
        world.file("web.yaml", "command: b\npriority: 1000\nmemory: {request: 12Gi}");
        assert_eq!(world.settle().contains("web: start"), starts, "{kind}");
    }
}

#[test]
fn devices_are_made_free_too() {
    let mut world = World::new(4);
    world.file("a.yaml", "kind: job\ncommand: a\ngpu: true").after(1000);
    world.settle();
    world.after(1000).file("b.yaml", "kind: job\ncommand: a\ngpu: true").settle();
    world.file("new.yaml", "kind: job\ncommand: b\npriority: 1\ngpu: true");
    insta::assert_snapshot!(world.pass(), @"
    b: stop { signal: signal(15) } (makes room for new, whose priority 1 is above its 0)
    new: remember (1 whole GPU asked for, 0 of 2 suitable are free now; held by a, b; stop a)
      a Running Ready=true Running: pid 100
      b Stopping Ready=false Preempted: makes room for new, whose priority 1 is above its 0
      new Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by a, b; stop a; Ready=false NotPlaced: waits for b to leave, which makes room for it
    ");
}

/// Two shares that lie on a device each, one of which may be started anew, and somebody who wants a whole device.
fn scattered(policy: &str) -> World {
    let mut world = World::new(4);
    world.file("a.yaml", &format!("command: a\ngpu: {{memory: 6Gi, rebalance: {policy}}}")).settle();
    world.file("x.yaml", "kind: job\ncommand: a\ngpu: {memory: 12Gi}").settle();
    world.file("b.yaml", "command: a\ngpu: {memory: 4Gi}").settle();
    world.exit_code("x", 0);
    world.settle();
    world.file("whole.yaml", "command: b\ngpu: true");
    world
}

#[test]
fn a_share_that_may_be_started_anew_is_moved_so_that_a_device_is_whole() {
    let mut world = scattered("restart");
    world.settle();
    assert_eq!(stops(&world), [""; 0], "it has not been there for long");
    let mut shown = world.after(600_000).pass();
    world.exit_code("a", 143);
    shown += &world.settle();
    insta::assert_snapshot!(shown, @"
    a: stop { signal: signal(15) } (moves to other devices so that whole fits (gpu.rebalance: restart))
    whole: remember (1 whole GPU asked for, 0 of 2 suitable are free now; held by a, b; stop a)
      a Stopping Ready=false Preempted: moves to other devices so that whole fits (gpu.rebalance: restart)
      b Running Ready=true Running: pid 100
      whole Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by a, b; stop a; Ready=false NotPlaced: waits for a to leave, which makes room for it
      x Completed Ready=false Finished: exited with code 0
    a: clear (exited with code 143)
    whole: start with GPU-0 (new; no cpu.limit: all shared CPUs)
      a Pending Ready=false Ended: exited with code 143
      b Running Ready=true Running: pid 100
      whole Starting Ready=false Starting: being set up
      x Completed Ready=false Finished: exited with code 0
    a: start with GPU-1 (its last run: exited with code 143; no cpu.limit: all shared CPUs)
      a Starting Ready=false Starting: being set up
      b Running Ready=true Running: pid 100
      whole Running Ready=true Running: pid 100
      x Completed Ready=false Finished: exited with code 0
    ");
    assert_eq!(record(&world, "a").grant.as_ref().unwrap().gpus[0].gpu.0, "GPU-1");
}

#[test]
fn whoever_did_not_say_so_keeps_its_device() {
    for policy in ["never", "on-restart"] {
        let mut world = scattered(policy);
        world.after(600_000).settle();
        assert_eq!(stops(&world), [""; 0], "{policy}");
    }
}

#[test]
fn any_start_is_the_occasion_to_choose_devices_anew_if_the_policy_says_so() {
    for (policy, expected) in [("never", "GPU-0"), ("on-restart", "GPU-1"), ("restart", "GPU-1")] {
        let mut world = scattered(policy);
        world.files.remove("whole.yaml");
        world.settle();
        world.exit_code("a", 1);
        world.settle();
        world.sleep().settle();
        // The other device is the better fit: it has less left.
        assert_eq!(record(&world, "a").grant.as_ref().unwrap().gpus[0].gpu.0, expected, "{policy}");
    }
}
