//! Seeded stories of a whole host: the real loop, planner, bookkeeping, records and manifests on a simulated kernel, disk, folder and
//! clock, with faults and crashes at every host and store call.
//!
//! `SEEDS=10000 cargo test --test simulation` tells as many stories; a broken law prints the command that tells that story again, line by
//! line: `SEED=123 cargo test --test simulation replay -- --nocapture`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod disk;
mod folder;
mod happenings;
mod host;
mod incarnation;
mod kernel;
mod laws;
mod life;
mod rng;
mod vocabulary;
mod witness;
mod world;

use std::collections::BTreeSet;
use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use world::{CrashPoint, Sim};

/// Stories of a plain `cargo test`; tests/run asks for 10,000.
const SEEDS: u64 = 60;

/// From so many stories on the crash points are counted: of so many distinct ones a thousand stories have gone through 115.
const MANY: u64 = 1000;
const CRASH_POINTS_MIN: usize = 100;

fn number(variable: &str) -> Option<u64> {
    env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, expected a number")))
}

fn replay_command(seed: u64) -> String {
    format!("SEED={seed} cargo test --test simulation replay -- --nocapture")
}

#[test]
fn whatever_happens_the_laws_hold() {
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let work = || {
        let (mut points, mut broken) = (BTreeSet::new(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return (points, broken);
            }
            match Sim::new(seed, false).tell() {
                Ok(more) => points.extend(more),
                Err(what) => broken.push((seed, what)),
            }
        }
    };
    let (mut points, mut broken): (BTreeSet<CrashPoint>, Vec<(u64, String)>) = Default::default();
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (more, worse) = worker.join().unwrap();
            points.extend(more);
            broken.extend(worse);
        }
    });
    broken.sort();
    for (seed, what) in broken.iter().take(20) {
        println!("seed {seed}: {what}\n  {}", replay_command(*seed));
    }
    println!("{seeds} seeds, {} broke a law, {} distinct crash points", broken.len(), points.len());
    if seeds >= MANY {
        assert!(
            points.len() >= CRASH_POINTS_MIN,
            "{} distinct crash points, expected {CRASH_POINTS_MIN}",
            points.len()
        );
    }
    assert_eq!(broken.len(), 0, "the first: {}", replay_command(broken[0].0));
}

#[test]
fn replay() {
    let seed = number("SEED").unwrap_or(1);
    // The controller's own log, between the lines of the story. Its times are of no use here.
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stdout);
    log.without_time().with_target(false).with_ansi(false).init();
    if let Err(what) = Sim::new(seed, true).tell() {
        panic!("{what}\n  {}", replay_command(seed));
    }
}
