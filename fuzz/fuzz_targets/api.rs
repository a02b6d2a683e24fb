//! Any request to the API of a controller with a host full of workloads: an answer, no panic and no wait.
//!
//! The controller is a real one on the simulated host of tests/simulation, after a storm: workloads run, wait, are held and refused, and it
//! does what it is asked. The input is a method in a line, a path with its query in another, and a body.
#![no_main]
#![allow(dead_code, reason = "stories and their laws are for tests/simulation")]

#[path = "../../tests/simulation/census.rs"]
mod census;
#[path = "../../tests/simulation/disk.rs"]
mod disk;
#[path = "../../tests/simulation/folder.rs"]
mod folder;
#[path = "../../tests/simulation/happenings.rs"]
mod happenings;
#[path = "../../tests/simulation/health.rs"]
mod health;
#[path = "../../tests/simulation/host.rs"]
mod host;
#[path = "../../tests/simulation/incarnation.rs"]
mod incarnation;
#[path = "../../tests/simulation/kernel.rs"]
mod kernel;
#[path = "../../tests/simulation/laws/mod.rs"]
mod laws;
#[path = "../../tests/simulation/life.rs"]
mod life;
#[path = "../../tests/simulation/prober.rs"]
mod prober;
#[path = "../../tests/simulation/rng.rs"]
mod rng;
#[path = "../../tests/simulation/story.rs"]
mod story;
#[path = "../../tests/simulation/vocabulary.rs"]
mod vocabulary;
#[path = "../../tests/simulation/witness.rs"]
mod witness;
#[path = "../../tests/simulation/world.rs"]
mod world;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use containerctl::api::{Api, router};
use containerctl::control::Input;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use std::{env, fs, process};
use story::STORM_MAX;
use tower::ServiceExt;
use world::Sim;

/// The first story at whose end there is much to be asked about.
const WORKLOADS_MIN: usize = 8;
/// How long a command may take, in virtual milliseconds: a look at the folder, and the pass behind it.
const OBEYED: u64 = 2_000;
/// Of an answer that is not followed.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The host, and a folder with a log of each of its workloads.
static HOST: LazyLock<(Arc<Sim>, PathBuf)> = LazyLock::new(|| {
    let tell = |seed| {
        let sim = Sim::new(seed, false);
        sim.until(STORM_MAX);
        sim.calm_down();
        sim.until(STORM_MAX + 10_000);
        sim
    };
    let is_full = |sim: &Arc<Sim>| {
        let known = sim.controller().as_ref().map_or(0, |known| known.snapshots().borrow().statuses.len());
        known >= WORKLOADS_MIN
    };
    let sim = (0..).map(tell).find(is_full).expect("some story ends so");
    let logs = env::temp_dir().join(format!("containerctl-fuzz-{}", process::id()));
    let snapshots = sim.controller().as_ref().expect("the storm is over").snapshots();
    for name in snapshots.borrow().statuses.keys() {
        let folder = logs.join(name.as_str());
        fs::create_dir_all(&folder).expect("a temporary folder");
        let line = "2026-11-23T20:13:00.000000000Z stdout F up\n";
        fs::write(folder.join("log"), line.repeat(50)).expect("a temporary file");
    }
    (sim, logs)
});

fuzz_target!(|input: &[u8]| {
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (method, path, body) = (line(), line(), line());
    let (Ok(method), Ok(path)) = (str::from_utf8(method), str::from_utf8(path)) else { return };
    let path = format!("/v1/{}", path.trim_start_matches('/'));
    let follows = path.contains("follow");
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let Ok(request) = request.body(Body::from(body.to_vec())) else { return };
    let (sim, logs) = &*HOST;
    let (mut asked, handle) = sim.controller().as_ref().expect("a controller").handle();
    // Time passes when there is nothing else to do: a wait of a day is over at once.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let answer = router(Api::new(handle, logs.clone())).oneshot(request);
        let mut answer = std::pin::pin!(tokio::time::timeout(Duration::from_hours(25), answer));
        let answer = loop {
            tokio::select! {
                answer = &mut answer => break answer,
                Some(command) = asked.recv() => {
                    sim.turn(Input::Command(command));
                    let now = sim.world().now;
                    sim.until(now + OBEYED);
                }
            }
        };
        let answer = answer.expect("an answer in a day").expect("the router cannot fail");
        assert!(answer.status().as_u16() >= 200);
        if !follows {
            to_bytes(answer.into_body(), ANSWER_BYTES_MAX).await.expect("all of the answer");
        }
    });
    assert_eq!(sim.world().violation, None);
    runtime.shutdown_background();
});
