//! A folder on a file system that does not answer: it holds up its own looks, and nothing else.

use super::loss::Bindfs;
use super::{kernel, running, sleeper, soon, soon_cpu, soon_running, within};
use crate::world::{World, signal};
use nix::sys::signal::Signal;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Within which anything that does not ask the folder has to be answered. It takes milliseconds on a host; a look that hangs takes for ever.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A service that is started again at once, and one that is only there, in a folder on a file system in user space.
fn on_bindfs() -> Option<(World, PathBuf, Bindfs)> {
    let mut world = World::new();
    let source = world.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a.yaml"), sleeper(500)).unwrap();
    fs::write(source.join("dies.yaml"), "restart: {initialDelay: 10ms}\ncommand: sleep infinity\n").unwrap();
    world.start_in_own_mounts(":", &["--resync", "1s"]);
    let bindfs = Bindfs::over_the_folder_of(&world, &source)?;
    soon_running(&world, "both run", &["a", "dies"]);
    Some((world, source, bindfs))
}

fn unsettled(world: &World) -> String {
    world.ask("/v1/health").map(|health| health["unsettled"].to_string()).unwrap_or_default()
}

/// Everything that does not need the folder goes on.
fn everything_else_goes_on(world: &World) {
    let dies = running(world)["dies"];
    signal(u32::try_from(dies.0).unwrap(), Signal::SIGKILL);
    soon(world, "what crashes is started again", || running(world).get("dies").is_some_and(|run| *run != dies));
    for args in [&["ps"][..], &["plan"], &["wait", "a", "--for", "ready", "--timeout", "30s"], &["approve"]] {
        let begun = Instant::now();
        let said = world.ctl(args);
        assert!(said.code == 0 && begun.elapsed() < AT_ONCE, "{args:?}: {said:?} after {:?}", begun.elapsed());
    }
    let quota = if kernel::is_unified() { "10000 100000" } else { "10000" };
    kernel::write(&world.group("a"), &["cpu.max", "cpu.cfs_quota_us"], quota);
    soon_cpu(world, "a", 500);
}

#[test]
fn a_folder_that_does_not_answer_is_told_and_holds_up_nothing_else() {
    let Some((world, source, bindfs)) = on_bindfs() else { return };
    let before = running(&world);
    signal(bindfs.pid(), Signal::SIGSTOP);
    within(&world, AT_ONCE, "it is told", || unsettled(&world).contains("has not answered for 3 s"));
    assert!(world.log().contains("has not answered for 3 s"), "{}", world.log());
    fs::write(source.join("a.yaml"), sleeper(300)).unwrap();
    everything_else_goes_on(&world);
    soon(&world, "for how long", || unsettled(&world).contains("has not answered for 6 s"));
    assert_eq!(world.log().matches("has not answered for").count(), 1, "once is enough: {}", world.log());
    signal(bindfs.pid(), Signal::SIGCONT);
    soon_cpu(&world, "a", 300);
    soon(&world, "all is well", || unsettled(&world) == "[]");
    assert!(world.log().contains("the manifests folder answers again"), "{}", world.log());
    assert_eq!(running(&world)["a"], before["a"]);
}

#[test]
fn a_controller_starts_and_ends_beside_a_folder_that_does_not_answer() {
    let Some((mut world, source, bindfs)) = on_bindfs() else { return };
    let before = running(&world);
    world.kill_controller();
    signal(bindfs.pid(), Signal::SIGSTOP);
    let begun = Instant::now();
    world.start_after_with(&format!("exec nsenter -t {} -m \"$@\"", bindfs.pid()), &["--resync", "1s"]);
    within(&world, AT_ONCE * 2, "it is told", || unsettled(&world).contains("has not answered for 3 s"));
    assert!(begun.elapsed() < AT_ONCE * 2, "{:?}", begun.elapsed());
    assert_eq!(running(&world), before);
    everything_else_goes_on(&world);
    // It ends with a look under way, and the next one finds the folder as it ever was.
    let begun = Instant::now();
    assert_eq!(world.stop_controller(), 0);
    assert!(begun.elapsed() < AT_ONCE * 2, "{:?}", begun.elapsed());
    signal(bindfs.pid(), Signal::SIGCONT);
    fs::write(source.join("a.yaml"), sleeper(300)).unwrap();
    world.start_after_with(&format!("exec nsenter -t {} -m \"$@\"", bindfs.pid()), &["--resync", "1s"]);
    soon_cpu(&world, "a", 300);
    assert_eq!(running(&world)["a"], before["a"]);
}
