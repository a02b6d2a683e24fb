//! What a controller holds once much has changed.

use super::world::World;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How soon what large edits took is to be given back; some seconds are usual.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(30);

/// Private memory of the controller, in MiB.
fn anonymous_mib(world: &World) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", world.controller_pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn large_edits_are_given_back_once_they_are_over() {
    let mut world = World::new();
    world.start(&["--resync", "1s"]);
    let before = anonymous_mib(&world);
    for edit in 0..80 {
        let large: String = (0..8).map(|at| format!("  TEXT_{at}: '{edit}{}'\n", "x".repeat(100_000))).collect();
        world.put("web.yaml", &format!("command: sleep infinity\nrestart: {{initialDelay: 0s}}\nenv:\n{large}"));
        sleep(Duration::from_millis(100));
    }
    world.wait_running("web");
    // Eighty edits of 800 KB in workers' heaps of their own were 66 MiB more, for ever; shared and given back they are some 20, most of which
    // is what the database keeps of its log and pages.
    let begun = Instant::now();
    loop {
        let more = anonymous_mib(&world).saturating_sub(before);
        if more <= 40 {
            return;
        }
        assert!(begun.elapsed() < GIVEN_BACK_WITHIN, "{more} MiB more than before");
        sleep(Duration::from_millis(500));
    }
}
