//! Manifests that are not there when a controller begins to look.

use super::World;

fn away() -> World {
    let mut world = World::new(2);
    world.file("web.yaml", "command: a").file("done.yaml", "kind: job\ncommand: a").settle();
    world.exit_code("done", 0);
    world.settle();
    world.files.clear();
    world.just_begun = true;
    world
}

#[test]
fn what_runs_goes_on_and_what_is_done_stays_done() {
    insta::assert_snapshot!(away().pass(), @"
    done Completed Accepted=false ManifestAway: done.yaml was not there when the controller began to look; it counts as deleted if it stays away; Ready=false Finished: exited with code 0
    web Running Accepted=false ManifestAway: web.yaml was not there when the controller began to look; it counts as deleted if it stays away; Ready=true Running: pid 100
    ");
}

#[test]
fn nothing_is_started_for_a_manifest_that_may_be_gone() {
    let mut world = away();
    world.reboot();
    insta::assert_snapshot!(world.settle(), @"
    web: remember (its manifest was not there when the controller began to look; it is waited for)
      done Completed Accepted=false ManifestAway: done.yaml was not there when the controller began to look; it counts as deleted if it stays away; Ready=false Finished: exited with code 0
      web Pending Accepted=false ManifestAway: web.yaml was not there when the controller began to look; it counts as deleted if it stays away; Ready=false ManifestAway: its manifest was not there when the controller began to look; it is waited for
    ");
    assert!(world.after(60_000).settle().is_empty(), "it waits for the manifest, not for a time");
    world.just_begun = false;
    insta::assert_snapshot!(world.settle(), @"
    web: forget (web.yaml was deleted and nothing of it runs)
    done: forget (done.yaml was deleted and nothing of it runs)
      done Stopping Accepted=false Deleted: done.yaml is gone
      web Stopping Accepted=false Deleted: web.yaml is gone
    ");
}

#[test]
fn a_stop_that_had_begun_is_seen_through() {
    let mut world = away();
    world.just_begun = false;
    assert!(world.pass().contains("web: stop"));
    world.just_begun = true;
    assert_eq!(world.plan().work, []);
    insta::assert_snapshot!(world.after(10_000).pass(), @"
    web: kill (its grace period is over)
      web Stopping Accepted=false ManifestAway: web.yaml was not there when the controller began to look; it counts as deleted if it stays away; Ready=false Killed: web.yaml was deleted; still there after the grace period
    ");
}
