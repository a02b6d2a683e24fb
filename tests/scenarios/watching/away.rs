//! Files that are not where they were while a controller starts.

use super::loss::{in_its_mounts, seen_by};
use super::{running, sleeper, soon, soon_cpu, soon_running, watching};
use crate::world::World;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Four services and a job that is done, in files of their own, one of them in a sub-folder; and no controller any more.
fn left_alone() -> (World, std::collections::BTreeMap<String, (u64, u64)>) {
    let mut world = watching();
    for path in ["a.yaml", "b.yaml", "c.yaml", "team/d.yaml"] {
        world.put(path, &sleeper(500));
    }
    world.put("done.yaml", "kind: job\ncommand: 'true'\n");
    let before = soon_running(&world, "all run", &["a", "b", "c", "d"]);
    soon(&world, "the job is done", || world.phase("done") == "Completed");
    world.kill_controller();
    (world, before)
}

#[test]
fn files_that_are_replaced_while_the_controller_starts_stop_nothing() {
    let (mut world, before) = left_alone();
    // As rsync and git do it: removed first, written later, this time with a `kill -9` in between.
    let away = ["a.yaml", "b.yaml", "done.yaml", "team"];
    fs::create_dir(world.path("aside.d")).unwrap();
    for name in away {
        fs::rename(world.manifests().join(name), world.path("aside.d").join(name)).unwrap();
    }
    let started = Instant::now();
    world.start(&["--resync", "1h"]);
    soon(&world, "it is said", || {
        world.log().contains("ManifestAway") || world.ctl(&["ps"]).out.contains("was not there")
    });
    let said = world.ctl(&["wait", "--for", "converged", "--timeout", "10ms"]);
    for name in away {
        fs::rename(world.path("aside.d").join(name), world.manifests().join(name)).unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(1) || said.code == 1, "too slow to tell anything: {said:?}");
    sleep(Duration::from_secs(2));
    assert_eq!(running(&world), before, "{}", world.log());
    assert_eq!((world.phase("done"), world.status("done")["restarts"].as_u64()), ("Completed".to_owned(), Some(0)));
    // And the folder is watched as ever.
    world.put("a.yaml", &sleeper(300));
    soon_cpu(&world, "a", 300);
    world.delete("b.yaml");
    soon_running(&world, "a deletion", &["a", "c", "d"]);
}

#[test]
fn a_file_that_was_deleted_while_no_controller_lived_is_gone_once_that_has_settled() {
    let (mut world, before) = left_alone();
    world.delete("b.yaml");
    fs::remove_dir_all(world.manifests().join("team")).unwrap();
    world.start(&["--resync", "1h"]);
    let started = Instant::now();
    let after = soon_running(&world, "both are gone", &["a", "c"]);
    assert!(started.elapsed() > Duration::from_millis(500), "not settled: {}", world.log());
    assert_eq!((after["a"], after["c"]), (before["a"], before["c"]));
    world.wait_gone("b");
    world.wait_gone("d");
}

#[test]
fn what_was_deleted_before_a_reboot_is_not_started_for_a_second() {
    let (mut world, _) = left_alone();
    crate::world::clear_cgroups(&world.parent);
    fs::remove_dir_all(world.path("run")).unwrap();
    world.delete("b.yaml");
    world.start(&["--resync", "1h"]);
    soon_running(&world, "the others run again", &["a", "c", "d"]);
    world.wait_gone("b");
    let starts = |name: &str| {
        let step = format!("workload={name} step=\"start\"");
        world.log().lines().filter(|line| line.contains(&step)).count()
    };
    assert_eq!((starts("a"), starts("b")), (2, 1), "{}", world.log());
}

#[test]
fn a_sub_folder_that_is_not_mounted_yet_when_the_controller_starts_deletes_nothing() {
    let mut world = World::new();
    let team = world.manifests().join("team");
    fs::create_dir(&team).unwrap();
    let mount = format!("mount -t tmpfs -o mode=755 team {}", team.display());
    world.start_in_own_mounts(&mount, &["--resync", "1h"]);
    // All there is lies in it: the folder itself has no manifest.
    for name in ["a", "b"] {
        fs::write(seen_by(&world, &team).join(format!("{name}.yaml")), sleeper(500)).unwrap();
    }
    let before = soon_running(&world, "both run", &["a", "b"]);
    world.kill_controller();
    // Its mounts went with it: the next one finds the empty folder that they lay over.
    world.start_in_own_mounts(":", &["--resync", "1h"]);
    soon(&world, "the loss is told", || world.log().contains("is on another file system than before, and empty"));
    sleep(Duration::from_millis(2500));
    assert_eq!(running(&world), before, "{}", world.log());
    // Nor is it forgotten by the look that found it empty.
    world.kill_controller();
    world.start_in_own_mounts(":", &["--resync", "1h"]);
    sleep(Duration::from_millis(2500));
    assert_eq!(running(&world), before, "{}", world.log());
    let path = team.display().to_string();
    in_its_mounts(&world, "mount", &["-t", "tmpfs", "-o", "mode=755", "team", &path]);
    for (name, cpu) in [("a", 300), ("b", 500)] {
        fs::write(seen_by(&world, &team).join(format!("{name}.yaml")), sleeper(cpu)).unwrap();
    }
    soon_cpu(&world, "a", 300);
    assert_eq!(running(&world), before);
    // A deletion where it is mounted is one, the last one too.
    fs::remove_file(seen_by(&world, &team).join("a.yaml")).unwrap();
    soon_running(&world, "a deletion", &["b"]);
    fs::remove_file(seen_by(&world, &team).join("b.yaml")).unwrap();
    soon_running(&world, "the last deletion", &[]);
}
