//! The manifests folder as tools treat it. Each test uses the real tool, lets the controller know of nothing but what the kernel tells it
//! (the next resync is an hour away), and holds three things: what should change has changed, soon, and nobody else has noticed.

mod away;
mod hung;
mod loss;
mod scale;
mod swaps;
mod tools;
mod truth;

use super::kernel;
use super::world::World;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How soon a change has to be in force. Measured are 50 to 300 ms on a host, a hundred times that in the emulated machine on a busy one;
/// what is to be told apart from it, the next resync, is an hour away.
const SOON: Duration = Duration::from_mins(3);

/// A controller that is woken by events only.
fn watching() -> World {
    let mut world = World::new();
    world.start(&["--resync", "1h"]);
    world
}

/// Runs a tool; its failure is the test's.
fn tool(program: &str, args: &[&str], place: &Path) {
    let mut command = Command::new(program);
    command.args(args).current_dir(place).stdin(Stdio::null());
    // Git and vim read no settings of whoever runs the tests.
    command.env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1").env("TERM", "dumb");
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{program} {args:?}: {}: {}", output.status, String::from_utf8_lossy(&said));
}

/// Those that run, by name: pid and restarts.
fn running(world: &World) -> BTreeMap<String, (u64, u64)> {
    let runs = |status: &Value| {
        let name = status["name"].as_str().unwrap().to_owned();
        status["pid"].as_u64().map(|pid| (name, (pid, status["restarts"].as_u64().unwrap())))
    };
    world.ps().iter().filter_map(runs).collect()
}

/// Waits until something is so, without asking the controller to look, and says how long it took.
fn soon(world: &World, what: &str, good: impl Fn() -> bool) {
    within(world, SOON, what, good);
}

fn within(world: &World, time: Duration, what: &str, good: impl Fn() -> bool) {
    let begun = Instant::now();
    while !good() {
        assert!(begun.elapsed() < time, "{what}: not within {time:?}\n{:#?}\n{}", world.ps(), world.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("{what}: {:?}", begun.elapsed());
}

/// Waits until exactly these run.
fn soon_running(world: &World, what: &str, names: &[&str]) -> BTreeMap<String, (u64, u64)> {
    soon(world, what, || running(world).keys().eq(names));
    running(world)
}

/// Waits until the kernel holds a workload to so much CPU.
fn soon_cpu(world: &World, name: &str, milli: u64) {
    soon(world, &format!("{name} is held to {milli}m"), || kernel::cpu_milli(&world.group(name)) == Some(milli));
}

fn sleeper(cpu: u64) -> String {
    format!("command: sleep infinity\ncpu: {cpu}m\nstop: {{grace: 1s}}\n")
}
