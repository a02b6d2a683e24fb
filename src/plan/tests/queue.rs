//! Whose turn it is to have room, and who may pass.

use super::World;
use crate::model::name::Name;
use crate::model::observed::{Instance, Life};
use proptest::prelude::*;
use std::fmt::Write;

fn runs(world: &World, name: &str) -> bool {
    let seen = world.observed.get(&name.parse::<Name>().unwrap());
    matches!(seen.and_then(|seen| seen.instance.as_ref()), Some(Instance { life: Life::Running { .. }, .. }))
}

/// Ends what runs one after the other, in the order of its names, and says who starts in its place.
fn turns(world: &mut World) -> String {
    let mut shown = String::new();
    for _ in 0..20 {
        let names: Vec<Name> = world.observed.keys().cloned().collect();
        let Some(name) = names.iter().find(|name| runs(world, name.as_str())) else { return shown };
        world.after(1000).exit_code(name.as_str(), 0);
        let told = world.settle();
        let started: Vec<&str> =
            told.lines().filter_map(|line| line.split_once(": start ").map(|(who, _)| who)).collect();
        let started = if started.is_empty() { "nobody".to_owned() } else { started.join(" ") };
        writeln!(shown, "{name} -> {started}").unwrap();
    }
    shown
}

const JOB: &str = "kind: job\ncommand: a\nmemory: {request: 12Gi}\n";

#[test]
fn jobs_go_by_priority_then_by_age_and_services_before_them() {
    let mut world = World::new(4);
    world.file("a-first.yaml", JOB).settle();
    for name in ["late", "early"] {
        world.file(&format!("b-{name}.yaml"), &format!("{JOB}priority: 0"));
    }
    world.files.remove("b-late.yaml");
    world.settle();
    world.after(1000).file("b-late.yaml", JOB).settle();
    world.after(1000).file("a-latest.yaml", JOB).settle();
    world
        .after(1000)
        .file("z-urgent.yaml", &format!("{JOB}priority: 5"))
        .file("x-service.yaml", "command: s\nmemory: {request: 12Gi}")
        .settle();
    // The controller is killed, the database is what it was: who waits keeps its place.
    let waiting = world.records.values().filter(|record| record.queued.is_some()).count();
    assert_eq!(waiting, 4, "jobs remember since when they wait");
    let mut shown = String::new();
    for _ in 0..3 {
        shown += &turns(&mut world);
        world.files.remove("x-service.yaml");
        world.settle();
    }
    insta::assert_snapshot!(shown, @"
    a-first -> z-urgent
    z-urgent -> x-service
    x-service -> nobody
    b-early -> b-late
    b-late -> a-latest
    a-latest -> a-first
    a-first -> nobody
    ");
}

#[test]
fn the_group_whose_jobs_hold_least_goes_next() {
    let mut world = World::new(4);
    world.machine.topology = crate::model::topology::tests::flat(8);
    let job = "kind: job\ncommand: a\ntimeout: 1h\ncpu: {request: 2}";
    for index in 0..4 {
        world.file(&format!("many/m{index}.yaml"), job);
    }
    world.settle();
    for index in 4..8 {
        world.file(&format!("many/m{index}.yaml"), job);
    }
    world.settle();
    world.after(60_000);
    for index in 0..2 {
        world.file(&format!("few/f{index}.yaml"), job);
    }
    world.settle();
    // Those of `many` have waited longer; `few` holds nothing, so its first goes first; then they take turns by what they hold.
    insta::assert_snapshot!(turns(&mut world), @"
    m0 -> f0
    f0 -> f1
    f1 -> m4
    m1 -> m5
    m2 -> m6
    m3 -> m7
    m4 -> nobody
    m5 -> nobody
    m6 -> nobody
    m7 -> nobody
    ");
}

#[test]
fn what_a_group_holds_most_of_counts() {
    // `devices` holds half of the GPUs and little memory, `memory` a quarter of the memory.
    let mut world = World::new(4);
    world.file("devices/d.yaml", "kind: job\ncommand: a\ngpu: true\nmemory: {request: 1Gi}");
    world.file("memory/m.yaml", "kind: job\ncommand: a\nmemory: {request: 4Gi}");
    world.file("full.yaml", "kind: job\ncommand: a\nmemory: {request: 11Gi}").settle();
    world.after(1000).file("devices/d2.yaml", JOB.replace("12Gi", "9Gi").as_str()).settle();
    world.after(1000).file("memory/m2.yaml", JOB.replace("12Gi", "9Gi").as_str()).settle();
    world.exit_code("full", 0);
    let shown = world.settle();
    assert!(shown.contains("m2: start") && !shown.contains("d2: start"), "{shown}");
}

#[test]
fn a_small_job_passes_only_where_it_does_not_delay_the_first() {
    let mut world = World::new(4);
    world.file("runs.yaml", "kind: job\ncommand: a\ntimeout: 1h\nmemory: {request: 10Gi}").settle();
    world.after(1000).file("big.yaml", "kind: job\ncommand: a\nmemory: {request: 12Gi}").settle();
    world.after(1000);
    world.file("cpu.yaml", "kind: job\ncommand: a\ncpu: {request: 1}");
    world.file("endless.yaml", "kind: job\ncommand: a\nmemory: {request: 1Gi}");
    world.file("long.yaml", "kind: job\ncommand: a\ntimeout: 2h\nmemory: {request: 1Gi}");
    world.file("short.yaml", "kind: job\ncommand: a\ntimeout: 30m\nmemory: {request: 1Gi}");
    world.file("service.yaml", "command: a\nmemory: {request: 1Gi}");
    world.file("urgent.yaml", "kind: job\npriority: 1\ncommand: a\nmemory: {request: 1Gi}");
    insta::assert_snapshot!(world.pass(), @"
    urgent: start (new; no cpu.limit: all shared CPUs)
    service: start (new; no cpu.limit: all shared CPUs)
    cpu: start (new; no cpu.limit: all shared CPUs)
    endless: remember (there is room, but big is before it and waits for memory: it would start by 1970-01-01T01:16:50.000Z at the latest, and only a job whose timeout ends before may go first)
    long: remember (there is room, but big is before it and waits for memory: it would start by 1970-01-01T01:16:50.000Z at the latest, and only a job whose timeout ends before may go first)
    short: start (new; no cpu.limit: all shared CPUs)
      big Pending Placed=false InsufficientMemory: memory.request 12Gi does not fit: 12Gi of 16Gi are set aside for others (runs 10Gi, service 1Gi, urgent 1Gi); 4Gi would fit, or stop runs; Ready=false NotPlaced: waits for room
      cpu Starting Ready=false Starting: being set up
      endless Pending Placed=false Queued: there is room, but big is before it and waits for memory: it would start by 1970-01-01T01:16:50.000Z at the latest, and only a job whose timeout ends before may go first; Ready=false NotPlaced: waits for its turn
      long Pending Placed=false Queued: there is room, but big is before it and waits for memory: it would start by 1970-01-01T01:16:50.000Z at the latest, and only a job whose timeout ends before may go first; Ready=false NotPlaced: waits for its turn
      runs Running Ready=true Running: pid 100
      service Starting Ready=false Starting: being set up
      short Starting Ready=false Starting: being set up
      urgent Starting Ready=false Starting: being set up
    ");
}

#[test]
fn a_job_that_always_times_out_delays_nobody_beyond_what_was_told() {
    let mut world = World::new(4);
    world.file("runs.yaml", "kind: job\ncommand: a\ntimeout: 1h\nmemory: {request: 10Gi}").settle();
    world.after(3_000_000);
    world.file("other.yaml", "kind: job\ncommand: a\ntimeout: 30m\nmemory: {request: 3Gi}").settle();
    world.after(1000).file("big.yaml", "kind: job\ncommand: a\nmemory: {request: 14Gi}").settle();
    world.after(599_000).settle();
    world.exit_code("runs", 143);
    world.settle();
    // Its next try has room beside `other`, and would be there for longer than `big` was told to wait.
    assert!(!runs(&world, "runs") && !runs(&world, "big"));
    world.sleep();
    let told = world.settle();
    assert!(told.contains("runs: remember (there is room, but big is before it and waits for memory"), "{told}");
    world.after(1_190_000).exit_code("other", 0);
    world.settle();
    assert!(runs(&world, "big"));
    world.exit_code("big", 0);
    assert!(world.settle().contains("runs: start"));
    assert_eq!(world.records[&"runs".parse::<Name>().unwrap()].restarts, 1);
}

#[test]
fn whoever_waits_for_a_service_to_end_holds_up_nobody() {
    let mut world = World::new(4);
    world.file("service.yaml", "command: a\nmemory: {request: 10Gi}").settle();
    world.file("never.yaml", "kind: job\ncommand: a\nmemory: {request: 8Gi}").settle();
    world.after(1000).file("small.yaml", "kind: job\ncommand: a\nmemory: {request: 4Gi}");
    assert!(world.settle().contains("small: start"));
}

#[test]
fn an_edit_that_asks_for_more_passes_nobody() {
    let mut world = World::new(4);
    world.file("a.yaml", "kind: job\ncommand: a\nmemory: {request: 10Gi}").file("small.yaml", "command: s").settle();
    world.file("head.yaml", JOB).settle();
    world.after(1000).file("small.yaml", "kind: job\ncommand: t\nmemory: {request: 4Gi}").pass();
    world.exit_code("small", 0);
    world.settle();
    assert!(!runs(&world, "small"), "it fits beside a, and would be in the way of head");
    assert_eq!(turns(&mut world), "a -> head small\nhead -> nobody\nsmall -> nobody\n");
}

#[test]
fn who_waits_keeps_its_place_over_reboots_and_gives_it_up_when_suspended() {
    let mut world = World::new(4);
    world.file("a.yaml", JOB).settle();
    world.file("b.yaml", JOB).settle();
    let queued = |world: &World| world.records[&"b".parse::<Name>().unwrap()].queued.clone();
    let since = queued(&world);
    assert!(since.is_some());
    world.after(5000).settle();
    assert_eq!(queued(&world), since, "waiting writes no record");
    world.file("b.yaml", &format!("{JOB}suspend: true")).settle();
    assert_eq!(queued(&world), None);
}

/// A job: memory in Gi, minutes of its timeout, and when it really ends, in hundredths of that.
fn job() -> impl Strategy<Value = (u64, u64, u64)> {
    (1u64..9, 1u64..10, 1u64..100)
}

struct Running {
    name: String,
    length_ms: u64,
    ends: Option<u64>,
}

fn add(world: &mut World, jobs: &mut Vec<Running>, name: String, (memory, minutes, part): (u64, u64, u64)) {
    let text = format!("kind: job\ncommand: a\ntimeout: {minutes}m\nmemory: {{request: {memory}Gi}}");
    world.file(&format!("{name}.yaml"), &text);
    jobs.push(Running { name, length_ms: minutes * 600 * part, ends: None });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// However many small ones come after it, and whenever those in its way end: by their timeouts it starts.
    #[test]
    fn the_head_never_starves(
        before in proptest::collection::vec(job(), 2..6),
        after in proptest::collection::vec(job(), 10..30),
    ) {
        let (mut world, mut jobs) = (World::new(4), Vec::new());
        for (index, job) in before.into_iter().enumerate() {
            add(&mut world, &mut jobs, format!("b{index}"), job);
        }
        world.settle();
        world.after(1).file("head.yaml", "kind: job\ncommand: a\ntimeout: 1h\nmemory: {request: 15Gi}").settle();
        // Those that were there before it may have their whole time, and who passes one of these has ended before that one starts, or
        // takes ten minutes at most.
        let minutes = 10 * (u64::try_from(jobs.len()).unwrap() + 1);
        let deadline = world.now.0 + minutes * 60_000;
        let mut newcomers = after.into_iter().enumerate().cycle();
        while !runs(&world, "head") {
            prop_assert!(world.now.0 < deadline, "the head still waits: {}", world.pass());
            world.after(20_000);
            let now = world.now.0;
            for job in jobs.iter().filter(|job| job.ends.is_some_and(|ends| ends <= now)) {
                world.exit_code(&job.name, 0);
                world.files.remove(&format!("{}.yaml", job.name));
            }
            jobs.retain(|job| job.ends.is_none_or(|ends| ends > now));
            let (index, job) = newcomers.next().unwrap();
            if !jobs.iter().any(|job| job.name == format!("a{index}")) {
                add(&mut world, &mut jobs, format!("a{index}"), job);
            }
            world.settle();
            for job in jobs.iter_mut().filter(|job| job.ends.is_none() && runs(&world, &job.name)) {
                job.ends = Some(now + job.length_ms);
            }
        }
    }
}
