//! Updates that reach replicas one after the other, and those that are taken back.

use super::World;
use crate::model::exit::Outcome;

const OLD: &str = "command: old\nreplicas: 3\nstrategy: rolling";
const NEW: &str = "command: new\nreplicas: 3\nstrategy: {type: rolling, progressDeadline: 1m}";

/// Three replicas that run and have arrived.
fn three() -> World {
    let mut world = World::new(4);
    world.file("web.yaml", OLD).settle();
    world.after(5000).settle();
    world
}

/// The command each replica runs, or nothing.
fn commands(world: &World) -> String {
    let name = |index: usize| if index == 0 { "web".to_owned() } else { format!("web.{index}") };
    let command = |index| {
        let seen = world.observed.get(&name(index).parse().unwrap())?;
        Some(seen.instance.as_ref()?.record.as_ref()?.spec.process.command[0].clone())
    };
    (0..3).map(|index| command(index).unwrap_or_else(|| "-".to_owned())).collect::<Vec<_>>().join(" ")
}

/// Lets whoever was asked to end do so, and passes until nothing is left to do.
fn turn(world: &mut World) -> String {
    let mut shown = String::new();
    for _ in 0..10 {
        let plan = world.pass();
        for line in plan.lines().filter(|line| line.contains(": stop")) {
            world.exit_code(line.split(':').next().unwrap(), 0);
        }
        shown += &plan;
        if world.plan().work.is_empty() {
            break;
        }
    }
    shown
}

#[test]
fn replicas_are_replaced_one_after_the_other_while_the_others_are_ready() {
    let mut world = three();
    world.file("web.yaml", NEW);
    insta::assert_snapshot!(turn(&mut world), @"
    web.2: stop { signal: signal(15) } (a new command needs a new process)
      web Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.1 Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.2 Stopping Ready=false Stopping: a new command needs a new process
    web.2: clear (exited with code 0)
      web Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.1 Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.2 Pending Ready=false Ended: exited with code 0
    web.2: start (its last run ended; no cpu.limit: all shared CPUs)
      web Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.1 Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.2 Starting Ready=false Starting: being set up
    ");
    let mut seen = vec![commands(&world)];
    for _ in 0..2 {
        // The next one is not touched before this one has lasted.
        turn(world.after(2900));
        assert_eq!(commands(&world), *seen.last().unwrap());
        turn(world.after(100));
        seen.push(commands(&world));
    }
    assert_eq!(seen, ["old old new", "old new new", "new new new"]);
    turn(world.after(3000));
    assert!(world.records.values().all(|record| record.rollout.is_none() && record.refused.is_none()));
    assert_eq!(world.plan().work, []);
}

#[test]
fn one_that_fails_is_put_back_and_the_rest_is_not_touched() {
    let mut world = three();
    world.file("web.yaml", NEW);
    turn(&mut world);
    turn(world.after(3000));
    assert_eq!(commands(&world), "old new new");
    world.exit_code("web.1", 1);
    insta::assert_snapshot!(turn(&mut world), @"
    web.1: clear (exited with code 1)
      web Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.1 Pending Ready=false Ended: exited with code 1
      web.2 Running Ready=true Running: pid 100
    web.1: start (its last run: exited with code 1; no cpu.limit: all shared CPUs)
      web Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.1 Starting Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.1 exited with code 1; revision d9ef306fe671 goes on until the manifest changes; Ready=false Starting: being set up
      web.2 Running Ready=true Running: pid 100
    web: remember (as it should be)
    web.2: remember (as it should be)
      web Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.1 exited with code 1; revision d9ef306fe671 goes on until the manifest changes; Ready=true Running: pid 100
      web.1 Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.1 exited with code 1; revision d9ef306fe671 goes on until the manifest changes; Ready=true Running: pid 100
      web.2 Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.1 exited with code 1; it goes back to revision d9ef306fe671 in its turn; Ready=true Running: pid 100
    ");
    // web.2 has moved before and goes back when web.1 has arrived again.
    assert_eq!(commands(&world), "old old new");
    turn(world.after(3000));
    assert_eq!(commands(&world), "old old old");
    turn(world.after(3000));
    insta::assert_snapshot!(world.pass(), @"
    web Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.1 exited with code 1; revision d9ef306fe671 goes on until the manifest changes; Ready=true Running: pid 100
    web.1 Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.1 exited with code 1; revision d9ef306fe671 goes on until the manifest changes; Ready=true Running: pid 100
    web.2 Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.1 exited with code 1; revision d9ef306fe671 goes on until the manifest changes; Ready=true Running: pid 100
    ");
    assert_eq!(world.plan().work, []);
    // Not again after a day, nor by a new replica; an edit is another chance.
    world.file("web.yaml", &NEW.replace("replicas: 3", "replicas: 4"));
    turn(world.after(86_400_000));
    assert_eq!(commands(&world), "old old old");
    let fourth = &world.observed[&"web.3".parse().unwrap()].instance.as_ref().unwrap().record.as_ref().unwrap().spec;
    assert_eq!(fourth.process.command, ["old"]);
    world.file("web.yaml", &NEW.replace("new", "newer"));
    turn(world.after(4000));
    assert_eq!(commands(&world), "old old newer");
}

#[test]
fn one_that_does_not_become_ready_in_time_is_put_back() {
    let mut world = three();
    world.file("web.yaml", NEW);
    turn(&mut world);
    // Looked at, but never seen ready: as with a readiness probe that does not succeed.
    let instance = world.observed.get_mut(&"web.2".parse().unwrap()).unwrap().instance.as_mut().unwrap();
    instance.life = crate::model::observed::Life::Starting;
    assert!(world.after(59_999).pass().lines().all(|line| line.starts_with(' ')), "nobody else is touched meanwhile");
    insta::assert_snapshot!(turn(world.after(1)), @"
    web.2: stop { signal: signal(15) } (a new command needs a new process)
      web Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.1 Running Accepted=false RollingOut: web.yaml (revision 22ff77b2e1db) waits for its turn; generation 1 goes on until the others are ready; Ready=true Running: pid 100
      web.2 Stopping Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.2 was not ready within 1m; revision d9ef306fe671 goes on until the manifest changes; Ready=false Stopping: a new command needs a new process
    web: remember (as it should be)
    web.1: remember (as it should be)
    web.2: clear (exited with code 0)
      web Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.2 was not ready within 1m; revision d9ef306fe671 goes on until the manifest changes; Ready=true Running: pid 100
      web.1 Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.2 was not ready within 1m; revision d9ef306fe671 goes on until the manifest changes; Ready=true Running: pid 100
      web.2 Pending Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.2 was not ready within 1m; revision d9ef306fe671 goes on until the manifest changes; Ready=false Ended: exited with code 0
    web.2: start (its last run ended; no cpu.limit: all shared CPUs)
      web Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.2 was not ready within 1m; revision d9ef306fe671 goes on until the manifest changes; Ready=true Running: pid 100
      web.1 Running Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.2 was not ready within 1m; revision d9ef306fe671 goes on until the manifest changes; Ready=true Running: pid 100
      web.2 Starting Accepted=false RolledBack: web.yaml (revision 22ff77b2e1db) was taken back: web.2 was not ready within 1m; revision d9ef306fe671 goes on until the manifest changes; Ready=false Starting: being set up
    ");
    assert_eq!(commands(&world), "old old old");
}

#[test]
fn a_command_that_cannot_be_started_is_taken_back_at_once() {
    let mut world = three();
    world.file("web.yaml", NEW);
    turn(&mut world);
    world.exit("web.2", Outcome::NotFound { command: "new".to_owned() });
    turn(&mut world);
    assert_eq!(commands(&world), "old old old");
}

#[test]
fn what_is_taken_back_by_hand_may_be_tried_again() {
    let mut world = three();
    world.file("web.yaml", NEW);
    turn(&mut world);
    world.exit_code("web.2", 1);
    turn(&mut world);
    world.file("web.yaml", OLD);
    turn(world.after(4000));
    assert!(world.records.values().all(|record| record.refused.is_none()));
    world.file("web.yaml", NEW);
    turn(world.after(4000));
    assert_eq!(commands(&world), "old old new");
}

#[test]
fn a_refusal_outlives_the_controller_and_limits_reach_all_at_once() {
    let mut world = three();
    world.file("web.yaml", NEW);
    turn(&mut world);
    world.exit_code("web.2", 1);
    turn(&mut world);
    // What was kept is read back as it was written, by the next controller.
    for record in world.records.values_mut() {
        *record = crate::model::codec::decode(&crate::model::codec::encode(record).unwrap()).unwrap();
    }
    turn(world.after(60_000));
    assert_eq!(commands(&world), "old old old");
    world.file("web.yaml", &format!("{OLD}\nmemory: 1Gi"));
    let resized = world.pass().lines().filter(|line| line.contains(": resize")).count();
    assert_eq!(resized, 3);
}

#[test]
fn a_run_whose_beginning_is_not_known_yet_has_not_lasted() {
    let mut world = three();
    world.file("web.yaml", NEW);
    turn(&mut world);
    world.observed.get_mut(&"web.2".parse().unwrap()).unwrap().instance.as_mut().unwrap().started = None;
    turn(world.after(100));
    assert_eq!(commands(&world), "old old new");
    turn(world.after(3000));
    assert_eq!(commands(&world), "old new new");
}

#[test]
fn a_controller_that_has_asked_nobody_yet_goes_on_with_one_that_is_down() {
    let manifest = |command: &str| {
        format!("command: {command}\nreplicas: 3\nstrategy: rolling\nprobes: {{readiness: {{tcp: {{port: 1}}}}}}")
    };
    let mut world = World::new(4);
    world.file("web.yaml", &manifest("old")).settle();
    // The lowest is down, and the record that an update took it down went with a crash.
    world.observed.remove(&"web".parse().unwrap());
    world.after(5000).file("web.yaml", &manifest("new"));
    assert_eq!(turn(&mut world).matches(": stop").count(), 0);
    assert_eq!(commands(&world), "new old old");
}

#[test]
fn a_reboot_in_the_middle_of_an_update_speaks_against_nothing() {
    let mut world = three();
    world.file("web.yaml", NEW);
    turn(&mut world);
    turn(world.after(3000));
    assert_eq!(commands(&world), "old new new");
    for _ in 0..3 {
        // Down for longer than an update may take.
        world.after(600_000).reboot();
        turn(&mut world);
        assert_eq!(commands(&world), "old new new", "each is started as it was");
        assert!(world.records.values().all(|record| record.refused.is_none()));
    }
    turn(world.after(2999));
    assert_eq!(commands(&world), "old new new");
    turn(world.after(1));
    assert_eq!(commands(&world), "new new new");
    turn(world.after(3000));
    assert!(world.records.values().all(|record| record.rollout.is_none()));
}

#[test]
fn what_fails_after_a_reboot_or_had_failed_before_it_is_put_back() {
    for before in [true, false] {
        let mut world = three();
        world.file("web.yaml", NEW);
        turn(&mut world);
        if before {
            // Seen by the next controller, in the next boot.
            world.exit_code("web.2", 1);
            let clear = world.plan().work.into_iter().find(|work| work.name.as_str() == "web.2").unwrap();
            world.records.insert(clear.name, clear.record.unwrap());
            world.reboot();
        } else {
            turn(world.reboot());
            world.exit_code("web.2", 1);
        }
        turn(&mut world);
        assert_eq!(commands(&world), "old old old", "before the reboot: {before}");
        let refused = world.records.values().find_map(|record| record.refused.clone()).unwrap();
        assert_eq!(refused.reason, "web.2 exited with code 1");
    }
}

#[test]
fn after_a_reboot_an_update_has_its_whole_time_again_and_no_more() {
    let mut world = three();
    world.file("web.yaml", NEW);
    turn(&mut world);
    world.after(59_000).reboot().settle();
    let unready = |world: &mut World| {
        let instance = world.observed.get_mut(&"web.2".parse().unwrap()).unwrap().instance.as_mut().unwrap();
        instance.life = crate::model::observed::Life::Starting;
    };
    unready(&mut world);
    // The host has been up for 20 s.
    turn(world.after(39_999));
    assert_eq!(commands(&world), "old old new");
    turn(world.after(1));
    assert_eq!(commands(&world), "old old old");
}

#[test]
fn whoever_is_suspended_in_the_middle_of_an_update_has_nothing_to_go_back_to() {
    let mut world = three();
    world.file("web.yaml", NEW);
    turn(&mut world);
    assert_eq!(world.records.values().filter(|record| record.rollout.is_some()).count(), 1);
    world.file("web.yaml", &format!("{NEW}\nsuspend: true"));
    turn(&mut world);
    assert!(world.records.values().all(|record| record.rollout.is_none()));
    // What runs from now on is what the next update goes back to.
    world.file("web.yaml", NEW);
    turn(&mut world);
    assert_eq!(commands(&world), "new new new");
    turn(world.after(5000));
    world.file("web.yaml", &NEW.replace("new", "bad"));
    turn(&mut world);
    assert_eq!(commands(&world), "new new bad");
    world.exit_code("web.2", 1);
    turn(&mut world);
    assert_eq!(commands(&world), "new new new");
}

#[test]
fn a_new_replica_of_a_new_command_is_judged_like_those_that_get_it_in_their_turn() {
    let more = |text: &str| text.replace("replicas: 3", "replicas: 5");
    let all = |world: &World| {
        let spec = |record: &crate::model::record::Record| record.spec.process.command[0].clone();
        world.records.values().map(spec).collect::<Vec<_>>().join(" ")
    };
    // Good: the others follow when the new ones have arrived.
    let mut world = three();
    world.file("web.yaml", &more(NEW));
    turn(&mut world);
    assert_eq!(all(&world), "old old old new new");
    for expected in ["old old new new new", "old new new new new", "new new new new new"] {
        turn(world.after(3000));
        assert_eq!(all(&world), expected);
    }
    turn(world.after(3000));
    assert!(world.records.values().all(|record| record.rollout.is_none()));
    // Bad: no old one is touched, and the new ones get what those have.
    for fails in [true, false] {
        let mut world = three();
        world.file("web.yaml", &more(NEW));
        turn(&mut world);
        for name in ["web.3", "web.4"] {
            if fails {
                world.exit_code(name, 1);
            } else {
                let instance = world.observed.get_mut(&name.parse().unwrap()).unwrap().instance.as_mut().unwrap();
                instance.life = crate::model::observed::Life::Starting;
            }
        }
        turn(world.after(60_000));
        turn(world.after(3000));
        assert_eq!(all(&world), "old old old old old", "fails: {fails}");
        assert!(world.records.values().all(|record| record.instance == 1 || record.spec.name.as_str() > "web.2"));
        turn(world.after(3000));
        assert_eq!(world.plan().work, []);
        assert!(world.records.values().all(|record| record.rollout.is_none() && record.refused.is_some()));
    }
}
