//! Who has room on a real host, who has to leave for whom, and that it is told.

use crate::world::{World, eventually_or};
use std::fs;

const ONE_GPU: [&str; 4] = ["--simulate-gpus", "1x16Gi", "--job-cpu-threshold", "100"];

const VICTIM: &str = "kind: job\nretries: 0\nrestart: never\ngpu: true\ncommand: [sleep, '1000']";
const URGENT: &str = "priority: 5\ngpu: true\ncommand: [sleep, '1000']";

#[test]
fn a_higher_priority_is_planned_to_preempt_does_so_and_the_job_comes_back() {
    let mut world = World::new();
    world.start(&ONE_GPU);
    world.put("victim.yaml", VICTIM);
    world.wait_running("victim");
    // Shown before it happens.
    fs::create_dir(world.path("next")).unwrap();
    fs::write(world.path("next/victim.yaml"), VICTIM).unwrap();
    fs::write(world.path("next/urgent.yaml"), URGENT).unwrap();
    let plan = world.ctl(&["plan", world.path("next").to_str().unwrap()]);
    assert_eq!(plan.code, 2, "{}", plan.err);
    assert!(plan.out.contains("makes room for urgent, whose priority 5 is above its 0"), "{}", plan.out);
    assert!(plan.out.contains("waits for victim to leave, which makes room for it"), "{}", plan.out);
    world.wait_running("victim");

    world.put("urgent.yaml", URGENT);
    let urgent = world.wait_running("urgent");
    let victim = world.wait_phase("victim", "Pending");
    assert_eq!((&victim["restarts"], &victim["gpus"]), (&0.into(), &serde_json::json!([])));
    let events = world.ctl(&["events", "victim"]);
    assert!(events.out.contains("Preempted"), "{}", events.out);
    let told = world.ctl(&["explain", "victim"]);
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(
        told.out.contains("1 whole GPU asked for, 0 of 1 suitable are free now; held by urgent; stop urgent"),
        "{}",
        told.out
    );
    assert!(told.out.contains("makes room for urgent"), "{}", told.out);

    // The controller is killed: whoever was preempted still waits, nobody is stopped again.
    world.kill_controller();
    world.start(&ONE_GPU);
    assert_eq!(world.wait_running("urgent"), urgent);
    world.wait_phase("victim", "Pending");
    world.delete("urgent.yaml");
    world.wait_gone("urgent");
    world.wait_running("victim");
    let told = world.ctl(&["explain", "victim"]);
    assert!(told.out.contains("(whole) by this rule: the only one that suits; what keeps it to that"), "{}", told.out);
}

#[test]
fn memory_that_is_reserved_is_promised_to_nobody() {
    let mut world = World::new();
    world.start(&["--reserved-memory", "1Pi", "--job-cpu-threshold", "100"]);
    world.put("none.yaml", "command: [sleep, '1000']");
    world.wait_running("none");
    world.put("some.yaml", "memory: {request: 1Mi}\ncommand: [sleep, '1000']");
    world.wait_phase("some", "Pending");
    let told = world.ctl(&["explain", "some"]);
    assert!(told.out.contains("memory.request 1Mi does not fit: 0 of 0 ("), "{}", told.out);
    // Twice nothing is nothing; without the reserve it fits.
    world.kill_controller();
    world.start(&["--overcommit", "memory=2"]);
    world.wait_running("some");
    // As what happened it is still told, and so it should be.
    let told = || world.ctl(&["explain", "some"]).out;
    let is_told = || told().lines().take_while(|line| *line != "lately:").any(|line| line.contains("does not fit"));
    eventually_or(|| !is_told(), || format!("it is still told as if it were so:\n{}", told()));
    let unknown = world.ctl(&["explain", "nobody"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.err.contains("no workload is called nobody"), "{}", unknown.err);
}
