//! Seeded stories of a whole host: the real loop, planner, bookkeeping, records and manifests on a simulated kernel, disk, folder and
//! clock, with faults and crashes at every host and store call.
//!
//! `SEEDS=10000 cargo test --test simulation` tells as many stories; a broken law prints the command that tells that story again, line by
//! line: `SEED=123 cargo test --test simulation replay -- --nocapture`. `FIRST_SEED` begins elsewhere than at 0.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod census;
mod disk;
mod folder;
mod happenings;
mod health;
mod host;
mod incarnation;
mod kernel;
mod laws;
mod life;
mod prober;
mod rng;
mod story;
mod vocabulary;
mod witness;
mod world;

use census::Census;
use mimalloc::MiMalloc;
use std::env;
use std::fs;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use world::Sim;

/// Stories are made of millions of small values that soon go: with the C library's allocator they take a sixth more processor time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Stories of a plain `cargo test`; tests/run asks for 10,000.
const SEEDS: u64 = 60;

/// Broken laws that are told: enough to see whether it is one fault or many.
const SHOWN_MAX: usize = 50;

/// From so many stories on it is counted what they tell of: ten thousand have gone through 142 distinct crash points, a
/// thousand through 113, and left out nothing.
const MANY: u64 = 1000;
const CRASH_POINTS_MIN: usize = 100;

/// From so many stories on, optimised, their processor time has a bound, twice what they take on two cores that others keep busy.
const ALL: u64 = 10_000;
const PROCESSOR_MS_MAX: u64 = 420_000;
/// Linux counts processor time in hundredths of a second for everybody who asks (`sysconf(_SC_CLK_TCK)`).
const TICK_MS: u64 = 10;

fn number(variable: &str) -> Option<u64> {
    env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, expected a number")))
}

fn replay_command(seed: u64) -> String {
    format!("SEED={seed} cargo test --test simulation replay -- --nocapture")
}

/// What this process has used of the processors: proc_pid_stat(5), fields 14 and 15, counted behind the name, which may hold anything.
fn processor_ms() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap() * TICK_MS).sum()
}

/// Tells the stories of these seeds on all processors. Answers what they told of, and which broke a law.
fn tell(first: u64, count: u64) -> (Census, Vec<(u64, String)>) {
    let next = AtomicU64::new(first);
    let work = || {
        let (mut census, mut broken) = (Census::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return (census, broken);
            }
            // A panic is a broken law too, and must not hide what other seeds tell.
            match catch_unwind(|| Sim::new(seed, false).tell()) {
                Ok(Ok(more)) => census.add(more),
                Ok(Err(what)) => broken.push((seed, what)),
                Err(_) => broken.push((seed, "it panicked".to_owned())),
            }
        }
    };
    let (mut census, mut broken) = (Census::default(), Vec::new());
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (more, worse) = worker.join().unwrap();
            census.add(more);
            broken.extend(worse);
        }
    });
    broken.sort();
    (census, broken)
}

#[test]
fn whatever_happens_the_laws_hold() {
    let (first, seeds) = (number("FIRST_SEED").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let (census, broken) = tell(first, seeds);
    for (seed, what) in broken.iter().take(SHOWN_MAX) {
        println!("seed {seed}: {what}\n  {}", replay_command(*seed));
    }
    let (points, spent) = (census.crash_points(), processor_ms());
    println!(
        "{seeds} seeds from {first}, {} broke a law, {points} distinct crash points, {} s of processor time",
        broken.len(),
        spent / 1000
    );
    for (told, count) in census.everything().iter().filter(|_| seeds >= MANY) {
        println!("  {count:>8} {told:?}");
    }
    if let Some((seed, _)) = broken.first() {
        panic!("{} broke a law, the first: {}", broken.len(), replay_command(*seed));
    }
    if seeds >= MANY {
        assert!(points >= CRASH_POINTS_MIN, "{points} distinct crash points, expected {CRASH_POINTS_MIN}");
        let untold: Vec<_> = census.everything().into_iter().filter(|(_, count)| *count == 0).collect();
        assert!(untold.is_empty(), "no story tells of {untold:?}");
    }
    if seeds >= ALL {
        assert!(spent <= PROCESSOR_MS_MAX, "took {spent} ms of processor time, expected at most {PROCESSOR_MS_MAX}");
    }
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
