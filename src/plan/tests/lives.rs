//! What becomes of one workload: starts, edits, ends, deletions.

use super::World;
use crate::model::clock::Steady;
use crate::model::exit::Outcome;
use crate::plan::Setback;
use std::fmt::Write as _;

#[test]
fn a_new_manifest_is_started_and_then_left_alone() {
    let mut world = World::new(4);
    world.file("web.yaml", "cpu: 2\nmemory: 512M\ngpu: true\ncommand: stress --cpu 2");
    insta::assert_snapshot!(world.pass(), @"
    web: start with GPU-0 (new; cheapest domain with room: machine 0-3, 0m of 4 CPUs claimed by others)
      web Starting Ready=false Starting: being set up
    ");
    insta::assert_snapshot!(world.pass(), @"  web Running Ready=true Running: pid 100");
    assert_eq!(world.plan().work, []);
    assert_eq!(world.plan().wake_at, None, "an idle host wakes for nothing");
}

#[test]
fn new_limits_resize_and_a_new_command_replaces() {
    let mut world = World::new(4);
    world.file("web.yaml", "cpu: 2\nmemory: 512M\ncommand: a").settle();
    world.file("web.yaml", "cpu: 1\nmemory: 256M\ncommand: a");
    insta::assert_snapshot!(world.pass(), @"
    web: resize (cpu.max 200000 100000 -> 100000 100000, memory.max 512000000 -> 256000000)
      web Running Ready=true Running: pid 100
    ");
    assert_eq!(world.plan().verdicts.values().next().unwrap().observed_generation, 2);
    world.file("web.yaml", "cpu: 1\nmemory: 256M\ncommand: b\nstop: {signal: SIGINT, grace: 2s}");
    insta::assert_snapshot!(world.pass(), @"
    web: stop { signal: signal(15) } (a new command needs a new process)
      web Stopping Ready=false Stopping: a new command needs a new process
    ");
    insta::assert_snapshot!(world.after(1000).pass(), @"  web Stopping Ready=false Stopping: a new command needs a new process");
    world.exit_code("web", 0);
    insta::assert_snapshot!(world.settle(), @"
    web: clear (exited with code 0)
      web Pending Ready=false Ended: exited with code 0
    web: start (its last run ended; cheapest domain with room: machine 0-3, 0m of 4 CPUs claimed by others)
      web Starting Ready=false Starting: being set up
    ");
    assert_eq!(world.records[&"web".parse().unwrap()].restarts, 0, "a replacement is no restart");
}

#[test]
fn a_step_that_fails_for_ever_does_not_keep_it_from_being_stopped() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nmemory: 200M\nstop: {grace: 3s}").settle();
    world.file("web.yaml", "command: a\nmemory: 50M\nstop: {grace: 3s}");
    let retry_at = Steady(i64::MAX);
    let setback = Setback { message: "busy".to_owned(), failures: 9, retry_at };
    world.setbacks.insert("web".parse().unwrap(), setback);
    assert!(!world.pass().contains("resize"), "it waits");
    world.files.clear();
    let shown = world.pass();
    assert!(shown.contains("web: stop {"), "{shown}");
    let shown = world.after(3000).pass();
    assert!(shown.contains("web: kill (its grace period is over)"), "{shown}");
    assert!(!world.after(10).pass().contains(": kill ("), "not again before a second is over");
}

#[test]
fn the_last_ends_are_remembered_and_no_more() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: {initialDelay: 1ms, maxDelay: 1s}").settle();
    for code in 1..=14 {
        world.exit_code("web", code);
        world.settle();
        world.after(2000).settle();
    }
    let record = &world.records[&"web".parse().unwrap()];
    let codes: Vec<i32> = record.earlier_exits.iter().map(|exit| exit.outcome.code()).collect();
    assert_eq!((codes, record.last_exit.as_ref().unwrap().outcome.code()), ((5..=13).collect(), 14));
}

#[test]
fn what_somebody_has_taken_from_a_running_workload_is_put_back() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\ncpu: 1").settle();
    let name = "web".parse().unwrap();
    world.strays.insert(name, [17, 18].into());
    insta::assert_snapshot!(world.pass(), @"
    web: restore (pid 17, 18 is outside its cgroup)
      web Running Ready=true Running: pid 100
    ");
    let name: crate::model::name::Name = "web".parse().unwrap();
    world.observed.get_mut(&name).unwrap().group.as_mut().unwrap().frozen = true;
    let settings = &mut world.observed.get_mut(&name).unwrap().group.as_mut().unwrap().settings;
    let others = settings.iter().filter(|(file, _)| *file != "pids.max");
    *settings = others.map(|(file, value)| (file.to_owned(), value)).collect();
    insta::assert_snapshot!(world.pass(), @"
    web: restore (it is frozen, its cgroup with pids.max is gone)
      web Running Ready=true Running: pid 100
    ");
    world.observed.get_mut(&name).unwrap().group = None;
    insta::assert_snapshot!(world.pass(), @"
    web: restore (its cgroup is gone)
      web Running Ready=true Running: pid 100
    ");
    assert_eq!(world.plan().work, []);
    // A workload that is asked to end is thawed too: frozen it could not follow.
    world.files.clear();
    world.pass();
    world.observed.get_mut(&name).unwrap().group.as_mut().unwrap().frozen = true;
    insta::assert_snapshot!(world.pass(), @"
    web: restore (it is frozen)
      web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Stopping: web.yaml was deleted
    ");
}

#[test]
fn whoever_ignores_the_signal_is_killed_after_the_grace() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nstop: {grace: 3s}").settle();
    world.files.clear();
    insta::assert_snapshot!(world.pass(), @"
    web: stop { signal: signal(15) } (web.yaml was deleted)
      web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Stopping: web.yaml was deleted
    ");
    insta::assert_snapshot!(world.after(2999).pass(), @"  web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Stopping: web.yaml was deleted");
    insta::assert_snapshot!(world.after(1).settle(), @"
    web: kill (its grace period is over)
      web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Killed: web.yaml was deleted; still there after the grace period
    web: clear (killed by SIGKILL)
      web Pending Accepted=false Deleted: web.yaml is gone; Ready=false Ended: killed by SIGKILL
    web: forget (web.yaml was deleted and nothing of it runs)
      web Stopping Accepted=false Deleted: web.yaml is gone
    ");
    assert_eq!((world.records.len(), world.observed.len()), (0, 0));
}

#[test]
fn a_stop_is_seen_through_even_if_the_file_comes_back() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    world.files.clear();
    world.pass();
    world.file("web.yaml", "command: a");
    insta::assert_snapshot!(world.pass(), @"
    web: remember (as it should be)
      web Stopping Ready=false Stopping: web.yaml was deleted
    ");
    world.exit_code("web", 0);
    insta::assert_snapshot!(world.settle(), @"
    web: clear (exited with code 0)
      web Pending Ready=false Ended: exited with code 0
    web: start (its last run ended; no cpu.limit: all shared CPUs)
      web Starting Ready=false Starting: being set up
    ");
}

#[test]
fn a_broken_manifest_changes_nothing_that_runs() {
    let mut world = World::new(4);
    world.file("web.yaml", "cpu: 2\ncommand: a").settle();
    world.file("web.yaml", "cpu: [2\ncommand: b");
    insta::assert_snapshot!(world.pass(), @"  web Running Accepted=false Refused: web.yaml cannot be accepted (revision 751e2f0a0c61): web.yaml:2:8: is not readable YAML: illegal placement of ':' indicator; generation 1 (revision 01a4fc9d48d6) goes on as it was; Ready=true Running: pid 100");
    // Not even when it ends: what was good runs again.
    world.exit_code("web", 1);
    world.settle();
    insta::assert_snapshot!(world.after(2000).settle(), @r"
    web: start (its last run: exited with code 1; cheapest domain with room: machine 0-3, 0m of 4 CPUs claimed by others)
      web Starting Accepted=false Refused: web.yaml cannot be accepted (revision 751e2f0a0c61): web.yaml:2:8: is not readable YAML: illegal placement of ':' indicator; generation 1 (revision 01a4fc9d48d6) goes on as it was; Ready=false Starting: being set up
    ");
}

#[test]
fn a_service_that_ends_is_started_again_later_and_later() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    let mut shown = String::new();
    for wait in [1, 2000, 4000] {
        world.after(wait).exit_code("web", 3);
        shown += &world.settle();
        world.sleep();
        shown += &world.settle();
    }
    insta::assert_snapshot!(shown, @"
    web: clear (exited with code 3)
      web Pending Ready=false Ended: exited with code 3
    web: start (its last run: exited with code 3; no cpu.limit: all shared CPUs)
      web Starting Ready=false Starting: being set up
    web: clear (exited with code 3)
      web Pending Ready=false Ended: exited with code 3
    web: start (its last run: exited with code 3; no cpu.limit: all shared CPUs)
      web Starting Ready=false Starting: being set up
    web: clear (exited with code 3)
      web Pending Ready=false Ended: exited with code 3
    web: start (its last run: exited with code 3; no cpu.limit: all shared CPUs)
      web Starting Ready=false Starting: being set up
    ");
    world.after(600_000).exit_code("web", 3);
    world.settle();
    assert_eq!(world.records[&"web".parse().unwrap()].failures, 1, "ten good minutes are forgiveness");
}

#[test]
fn a_job_that_succeeds_is_never_run_again_unless_its_process_changes() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a\ngpu: true").settle();
    world.exit_code("job", 0);
    insta::assert_snapshot!(world.settle(), @"
    job: clear (exited with code 0)
      job Completed Ready=false Ended: exited with code 0
    ");
    assert_eq!(world.records[&"job".parse().unwrap()].grant, None, "a finished job holds nothing");
    world.file("job.yaml", "kind: job\ncommand: a\ngpu: true\nmemory: 1Gi\nlabels: {a: b}");
    world.settle();
    assert_eq!(world.observed.values().next().unwrap().instance, None);
    world.file("job.yaml", "kind: job\ncommand: b");
    insta::assert_snapshot!(world.settle(), @"
    job: start (its last run ended; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    ");
}

#[test]
fn restart_policies_decide_what_an_end_means() {
    let mut shown = String::new();
    for (policy, code) in [("never", 0), ("never", 1), ("on-failure", 0), ("on-failure", 1), ("always", 0)] {
        let mut world = World::new(4);
        world.file("web.yaml", &format!("command: a\nrestart: {policy}")).settle();
        world.exit_code("web", code);
        world.settle();
        write!(shown, "{policy} {code}: {}", world.pass()).unwrap();
    }
    insta::assert_snapshot!(shown, @"
    never 0:   web Completed Ready=false Finished: exited with code 0
    never 1:   web Failed Ready=false Finished: exited with code 1
    on-failure 0:   web Completed Ready=false Finished: exited with code 0
    on-failure 1:   web Pending Ready=false BackOff: exited with code 1; next try at 1970-01-01T00:16:41.165Z
    always 0:   web Pending Ready=false BackOff: exited with code 0; next try at 1970-01-01T00:16:41.165Z
    ");
}

#[test]
fn a_command_that_does_not_exist_is_failed_and_tried_again_at_length() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: stress").settle();
    world.exit("web", Outcome::NotFound { command: "stress".to_owned() });
    world.settle();
    insta::assert_snapshot!(world.pass(), @"  web Failed Ready=false NotStarted: command not found: stress; next try at 1970-01-01T00:20:50.223Z");
    world.file("web.yaml", "command: sleep 1");
    insta::assert_snapshot!(world.settle(), @"
    web: start (its last run: command not found: stress; no cpu.limit: all shared CPUs)
      web Starting Ready=false Starting: being set up
    ");
}

#[test]
fn suspended_workloads_stop_and_resume() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    world.file("web.yaml", "command: a\nsuspend: true");
    world.pass();
    world.exit_code("web", 0);
    insta::assert_snapshot!(world.settle(), @"
    web: clear (exited with code 0)
      web Pending Ready=false Ended: exited with code 0
    web: remember (suspended)
      web Suspended Ready=false Suspended: its manifest says suspend
    ");
    world.file("web.yaml", "command: a");
    insta::assert_snapshot!(world.settle(), @"
    web: start (its last run ended; no cpu.limit: all shared CPUs)
      web Starting Ready=false Starting: being set up
    ");
}

#[test]
fn new_bounds_of_a_log_wait_for_the_next_start_and_say_so() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    world.file("web.yaml", "command: a\nlogs: {maxSize: 1M, maxFiles: 2}");
    let shown = world.pass();
    assert!(
        shown.contains("web Running Degraded=true NextStart: logs stay at {maxSize: 10M, maxFiles: 3} until"),
        "{shown}"
    );
    assert_eq!(world.plan().work, [], "nothing is done to what runs");
    world.exit_code("web", 1);
    world.settle();
    let shown = world.after(600_000).settle();
    assert!(!shown.contains("NextStart"), "{shown}");
}

#[test]
fn an_edit_that_waits_for_a_step_under_way_is_not_told_as_in_force() {
    let mut world = World::new(2);
    world.file("web.yaml", "command: a").settle();
    world.file("web.yaml", "command: a\ncpu: 100m");
    let told = |world: &World| {
        let verdict = &world.plan().verdicts[&"web".parse().unwrap()];
        (verdict.generation, verdict.observed_generation)
    };
    // Somebody is looking at it: the edit is not recorded yet, and whoever waits for it must not take the old limits for the new ones.
    world.busy.insert("web".parse().unwrap());
    assert_eq!(told(&world), (2, 0));
    world.busy.clear();
    assert_eq!(told(&world), (2, 0));
    world.settle();
    assert_eq!(told(&world), (2, 2));
}
