//! Replicas, what starts after what, and what is stopped before what.

use super::World;
use crate::model::observed::{Life, Observed};
use crate::plan::Shutdown;
use std::collections::BTreeMap;

fn runs(world: &World) -> BTreeMap<String, u64> {
    let instance = |seen: &Observed| {
        let instance = seen.instance.as_ref()?;
        matches!(instance.life, Life::Running { .. }).then_some(instance.number)
    };
    world.observed.iter().filter_map(|(name, seen)| Some((name.to_string(), instance(seen)?))).collect()
}

#[test]
fn more_or_fewer_replicas_touch_only_the_difference() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    world.file("web.yaml", "command: a\nreplicas: 4");
    insta::assert_snapshot!(world.settle(), @"
    web: remember (as it should be)
    web.1: start (new; no cpu.limit: all shared CPUs)
    web.2: start (new; no cpu.limit: all shared CPUs)
    web.3: start (new; no cpu.limit: all shared CPUs)
      web Running Ready=true Running: pid 100
      web.1 Starting Ready=false Starting: being set up
      web.2 Starting Ready=false Starting: being set up
      web.3 Starting Ready=false Starting: being set up
    ");
    world.file("web.yaml", "command: a\nreplicas: 2");
    insta::assert_snapshot!(world.pass(), @"
    web.3: stop { signal: signal(15) } (web.yaml asks for 2 of web)
    web.2: stop { signal: signal(15) } (web.yaml asks for 2 of web)
    web: remember (as it should be)
    web.1: remember (as it should be)
      web Running Ready=true Running: pid 100
      web.1 Running Ready=true Running: pid 100
      web.2 Stopping Accepted=false Deleted: web.yaml asks for 2 of web; Ready=false Stopping: web.yaml asks for 2 of web
      web.3 Stopping Accepted=false Deleted: web.yaml asks for 2 of web; Ready=false Stopping: web.yaml asks for 2 of web
    ");
    for name in ["web.2", "web.3"] {
        world.exit_code(name, 0);
    }
    world.settle();
    assert_eq!(runs(&world), [("web".to_owned(), 1), ("web.1".to_owned(), 1)].into());
}

#[test]
fn fewer_replicas_need_nobodys_consent() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nreplicas: 12").settle();
    world.file("web.yaml", "command: a\nreplicas: 1");
    assert_eq!(world.pass().matches(": stop").count(), 11);
}

#[test]
fn a_replica_knows_its_number() {
    let mut world = World::new(4);
    world
        .file("web.yaml", "command: a\nreplicas: 2")
        .file("solo.yaml", "command: a\nenv: {CONTAINERCTL_REPLICA: mine}");
    let numbers: Vec<String> = world
        .plan()
        .work
        .iter()
        .map(|work| match &work.act {
            crate::plan::Act::Start { env, .. } => format!("{} {}", work.name, env["CONTAINERCTL_REPLICA"]),
            _ => String::new(),
        })
        .collect();
    assert_eq!(numbers, ["solo mine", "web 0", "web.1 1"]);
}

#[test]
fn what_comes_after_waits_for_every_replica_and_for_jobs_to_complete() {
    let mut world = World::new(4);
    world
        .file("app.yaml", "command: a\nafter: [db, migrate, cache]")
        .file("db.yaml", "command: a\nreplicas: 2")
        .file("migrate.yaml", "command: a\nkind: job\nafter: [db]");
    insta::assert_snapshot!(world.settle(), @"
    app: remember (waits for cache, which no manifest names; add one, or take it out of `after`)
    db: start (new; no cpu.limit: all shared CPUs)
    db.1: start (new; no cpu.limit: all shared CPUs)
    migrate: remember (waits for db to be ready)
      app Pending Ready=false UnknownDependency: waits for cache, which no manifest names; add one, or take it out of `after`
      db Starting Ready=false Starting: being set up
      db.1 Starting Ready=false Starting: being set up
      migrate Pending Ready=false Dependency: waits for db to be ready
    migrate: start (new; no cpu.limit: all shared CPUs)
      app Pending Ready=false UnknownDependency: waits for cache, which no manifest names; add one, or take it out of `after`
      db Running Ready=true Running: pid 100
      db.1 Running Ready=true Running: pid 100
      migrate Starting Ready=false Starting: being set up
    ");
    world.exit_code("migrate", 0);
    world.settle();
    insta::assert_snapshot!(world.pass(), @"
    app Pending Ready=false UnknownDependency: waits for cache, which no manifest names; add one, or take it out of `after`
    db Running Ready=true Running: pid 100
    db.1 Running Ready=true Running: pid 100
    migrate Completed Ready=false Finished: exited with code 0
    ");
    world.file("cache.yaml", "command: a");
    insta::assert_snapshot!(world.settle(), @"
    cache: start (new; no cpu.limit: all shared CPUs)
      app Pending Ready=false Dependency: waits for cache to be ready
      cache Starting Ready=false Starting: being set up
      db Running Ready=true Running: pid 100
      db.1 Running Ready=true Running: pid 100
      migrate Completed Ready=false Finished: exited with code 0
    app: start (new; no cpu.limit: all shared CPUs)
      app Starting Ready=false Starting: being set up
      cache Running Ready=true Running: pid 100
      db Running Ready=true Running: pid 100
      db.1 Running Ready=true Running: pid 100
      migrate Completed Ready=false Finished: exited with code 0
    ");
    // What it came after may go: it goes on.
    world.files.remove("cache.yaml");
    world.exit_code("db", 1);
    world.pass();
    assert!(runs(&world).contains_key("app"));
    insta::assert_snapshot!(world.pass(), @"
    app Running Ready=true Running: pid 100
    cache Stopping Accepted=false Deleted: cache.yaml is gone; Ready=false Stopping: cache.yaml was deleted
    db Pending Ready=false BackOff: exited with code 1; next try at 1970-01-01T00:16:41.139Z
    db.1 Running Ready=true Running: pid 100
    migrate Completed Ready=false Finished: exited with code 0
    ");
}

#[test]
fn a_job_that_failed_for_good_keeps_others_waiting() {
    let mut world = World::new(4);
    world.file("app.yaml", "command: a\nafter: [migrate]").file("migrate.yaml", "command: a\nkind: job\nretries: 0");
    world.settle();
    world.exit_code("migrate", 1);
    world.settle();
    insta::assert_snapshot!(world.pass(), @"
    app Pending Ready=false Dependency: waits for migrate to complete, which has ended for good (exited with code 1); `containerctl describe migrate` tells more, an edit of its manifest tries again
    migrate Failed Ready=false Finished: exited with code 1; 1 failed, retries is 0
    ");
}

#[test]
fn those_that_come_after_are_stopped_first() {
    let mut world = World::new(4);
    world
        .file("db.yaml", "command: a")
        .file("api.yaml", "command: a\nafter: [db]\nstop: {grace: 3s}")
        .file("web.yaml", "command: a\nafter: [api]");
    while world.settle().contains("start") {}
    world.files.clear();
    insta::assert_snapshot!(world.pass(), @"
    web: stop { signal: signal(15) } (web.yaml was deleted)
      api Stopping Accepted=false Deleted: api.yaml is gone; Ready=false Stopping: api.yaml was deleted; waits for web, which comes after it, to end
      db Stopping Accepted=false Deleted: db.yaml is gone; Ready=false Stopping: db.yaml was deleted; waits for api, which comes after it, to end
      web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Stopping: web.yaml was deleted
    ");
    world.exit_code("web", 0);
    insta::assert_snapshot!(world.settle(), @"
    api: stop { signal: signal(15) } (api.yaml was deleted)
    web: clear (exited with code 0)
      api Stopping Accepted=false Deleted: api.yaml is gone; Ready=false Stopping: api.yaml was deleted
      db Stopping Accepted=false Deleted: db.yaml is gone; Ready=false Stopping: db.yaml was deleted; waits for api, which comes after it, to end
      web Pending Accepted=false Deleted: web.yaml is gone; Ready=false Ended: exited with code 0
    web: forget (web.yaml was deleted and nothing of it runs)
      api Stopping Accepted=false Deleted: api.yaml is gone; Ready=false Stopping: api.yaml was deleted
      db Stopping Accepted=false Deleted: db.yaml is gone; Ready=false Stopping: db.yaml was deleted; waits for api, which comes after it, to end
      web Stopping Accepted=false Deleted: web.yaml is gone
    ");
    // It does not end: its grace is the bound.
    insta::assert_snapshot!(world.after(3000).pass(), @"
    api: kill (its grace period is over)
      api Stopping Accepted=false Deleted: api.yaml is gone; Ready=false Killed: api.yaml was deleted; still there after the grace period
      db Stopping Accepted=false Deleted: db.yaml is gone; Ready=false Stopping: db.yaml was deleted; waits for api, which comes after it, to end
    ");
    insta::assert_snapshot!(world.settle(), @"
    db: stop { signal: signal(15) } (db.yaml was deleted)
    api: clear (killed by SIGKILL)
      api Pending Accepted=false Deleted: api.yaml is gone; Ready=false Ended: killed by SIGKILL
      db Stopping Accepted=false Deleted: db.yaml is gone; Ready=false Stopping: db.yaml was deleted
    api: forget (api.yaml was deleted and nothing of it runs)
      api Stopping Accepted=false Deleted: api.yaml is gone
      db Stopping Accepted=false Deleted: db.yaml is gone; Ready=false Stopping: db.yaml was deleted
    ");
}

#[test]
fn deleting_only_what_others_came_after_waits_for_nobody() {
    let mut world = World::new(4);
    world.file("db.yaml", "command: a").file("api.yaml", "command: a\nafter: [db]");
    while world.settle().contains("start") {}
    world.files.remove("db.yaml");
    insta::assert_snapshot!(world.pass(), @"
    db: stop { signal: signal(15) } (db.yaml was deleted)
      api Running Ready=true Running: pid 100
      db Stopping Accepted=false Deleted: db.yaml is gone; Ready=false Stopping: db.yaml was deleted
    ");
}

#[test]
fn a_controller_that_takes_its_workloads_along_stops_them_in_order_and_they_come_back() {
    let mut world = World::new(4);
    world
        .file("db.yaml", "command: a")
        .file("api.yaml", "command: a\nafter: [db]")
        .file("job.yaml", "command: a\nkind: job\nretries: 0");
    while world.settle().contains("start") {}
    world.shutdown = Some(Shutdown::Graceful);
    insta::assert_snapshot!(world.pass(), @"
    api: stop { signal: signal(15) } (the controller ends, and was told to stop its workloads)
    job: stop { signal: signal(15) } (the controller ends, and was told to stop its workloads)
      api Stopping Ready=false Stopping: the controller ends, and was told to stop its workloads
      db Stopping Ready=false Stopping: the controller ends, and was told to stop its workloads; waits for api, which comes after it, to end
      job Stopping Ready=false Stopping: the controller ends, and was told to stop its workloads
    ");
    // Ended well on request is not completed, and no failure either.
    world.exit_code("job", 0);
    world.exit_code("api", 1);
    insta::assert_snapshot!(world.settle(), @"
    db: stop { signal: signal(15) } (the controller ends, and was told to stop its workloads)
    api: clear (exited with code 1)
    job: clear (exited with code 0)
      api Pending Ready=false Ended: exited with code 1
      db Stopping Ready=false Stopping: the controller ends, and was told to stop its workloads
      job Pending Ready=false Ended: exited with code 0
    api: remember (the controller ends, and was told to stop its workloads)
    job: remember (the controller ends, and was told to stop its workloads)
      api Pending Ready=false Shutdown: the controller ends, and was told to stop its workloads
      db Stopping Ready=false Stopping: the controller ends, and was told to stop its workloads
      job Pending Ready=false Shutdown: the controller ends, and was told to stop its workloads
    ");
    world.exit_code("db", 0);
    insta::assert_snapshot!(world.settle(), @"
    db: clear (exited with code 0)
      api Pending Ready=false Shutdown: the controller ends, and was told to stop its workloads
      db Pending Ready=false Ended: exited with code 0
      job Pending Ready=false Shutdown: the controller ends, and was told to stop its workloads
    db: remember (the controller ends, and was told to stop its workloads)
      api Pending Ready=false Shutdown: the controller ends, and was told to stop its workloads
      db Pending Ready=false Shutdown: the controller ends, and was told to stop its workloads
      job Pending Ready=false Shutdown: the controller ends, and was told to stop its workloads
    ");
    assert_eq!(world.plan().work, []);
    world.shutdown = None;
    while world.settle().contains("start") {}
    assert_eq!(runs(&world).into_keys().collect::<Vec<_>>(), ["api", "db", "job"]);
    assert!(world.records.values().all(|record| record.restarts == 0 && record.failures == 0));
}

#[test]
fn told_twice_it_waits_for_nobody() {
    let mut world = World::new(4);
    world.file("db.yaml", "command: a").file("api.yaml", "command: a\nafter: [db]");
    while world.settle().contains("start") {}
    world.shutdown = Some(Shutdown::Graceful);
    world.pass();
    world.shutdown = Some(Shutdown::AtOnce);
    insta::assert_snapshot!(world.pass(), @"
    api: kill (its grace period is over)
    db: kill (the controller ends, and was told to stop its workloads)
      api Stopping Ready=false Killed: the controller ends, and was told to stop its workloads; still there after the grace period
      db Stopping Ready=false Killed: the controller ends, and was told to stop its workloads
    ");
    insta::assert_snapshot!(world.settle(), @"
    api: clear (killed by SIGKILL)
    db: clear (killed by SIGKILL)
      api Pending Ready=false Ended: killed by SIGKILL
      db Pending Ready=false Ended: killed by SIGKILL
    api: remember (the controller ends, and was told to stop its workloads)
    db: remember (the controller ends, and was told to stop its workloads)
      api Pending Ready=false Shutdown: the controller ends, and was told to stop its workloads
      db Pending Ready=false Shutdown: the controller ends, and was told to stop its workloads
    ");
}

#[test]
fn a_circle_whose_manifests_come_one_after_the_other_is_told_as_one() {
    let mut world = World::new(2);
    world.file("a.yaml", "command: a\nafter: [b]").settle();
    world.file("b.yaml", "command: b\nafter: [a]");
    insta::assert_snapshot!(world.settle() + &world.pass(), @"  a Pending Accepted=false Refused: a.yaml cannot be accepted (revision 54c35a277316): a.yaml:1:1: after of a goes round in a circle: a -> b -> a; generation 1 (revision 54c35a277316) goes on as it was; Ready=false RefusedDependency: waits for b, whose manifest cannot be accepted: b.yaml:1:1: after of b goes round in a circle: b -> a -> b");
    // The same of one that is broken.
    world.file("b.yaml", "name: b\ncomand: b");
    insta::assert_snapshot!(world.settle() + &world.pass(), @"  a Pending Ready=false RefusedDependency: waits for b, whose manifest cannot be accepted: b.yaml:1:1: command is missing");
}
