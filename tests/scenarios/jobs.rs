//! Jobs on a real host: how often, how long, when.

use super::kernel;
use super::world::{World, eventually};

/// Jobs start however busy the tests keep the host.
const UNTHROTTLED: [&str; 2] = ["--job-cpu-threshold", "100"];

fn unthrottled() -> World {
    let mut world = World::new();
    world.start(&UNTHROTTLED);
    world
}

#[test]
fn a_job_is_retried_as_often_as_it_says_and_a_completed_one_survives_a_crash() {
    let mut world = unthrottled();
    world
        .put("bad.yaml", "kind: job\nretries: 2\nrestart: {initialDelay: 50ms}\ncommand: [sh, -c, 'echo try; exit 3']");
    world.put("good.yaml", "kind: job\ncommand: [echo, done]");
    let status = world.wait_phase("bad", "Failed");
    assert_eq!(status["restarts"], 2);
    assert_eq!(status["lastExit"]["code"], 3);
    world.wait_phase("good", "Completed");
    assert_eq!(world.logs("bad"), "try\ntry\ntry\n");
    world.kill_controller();
    world.start(&UNTHROTTLED);
    world.wait_phase("bad", "Failed");
    world.wait_phase("good", "Completed");
    assert_eq!(world.ctl(&["wait", "--for", "completed", "good", "--timeout", "5s"]).code, 0);
    assert_eq!((world.logs("bad").as_str(), world.logs("good").as_str()), ("try\ntry\ntry\n", "done\n"));
}

#[test]
fn a_job_that_takes_too_long_is_stopped_with_all_it_started() {
    let world = unthrottled();
    world.put(
        "slow.yaml",
        "kind: job\nretries: 0\ntimeout: 500ms\nstop: {grace: 300ms}\ncommand: [sh, -c, 'trap \"\" TERM; sleep 1000 & sleep 1000; sleep 1000']",
    );
    let status = world.wait_phase("slow", "Failed");
    assert_eq!(status["lastExit"]["message"], "timed out after 500ms");
    assert_eq!(status["lastExit"]["code"], 124);
    assert!(kernel::directories(&world.group("slow")).is_empty());
}

#[test]
fn a_scheduled_job_runs_each_second_and_goes_on_after_a_crash_of_the_controller() {
    let mut world = unthrottled();
    world.put("tick.yaml", "kind: job\nschedule: '* * * * * *'\ncommand: [date, '+%s']");
    let runs = |world: &World| world.logs("tick").lines().map(str::to_owned).collect::<Vec<String>>();
    eventually("it has run twice", || !world.status("tick").is_null() && runs(&world).len() >= 2);
    world.wait_status("tick", |status| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready");
        ready.is_some_and(|ready| {
            ready["reason"] == "Scheduled" && ready["message"].as_str().unwrap_or("").starts_with("next run at 20")
        })
    });
    world.kill_controller();
    let before = runs_in(&world);
    std::thread::sleep(std::time::Duration::from_secs(3));
    world.start(&UNTHROTTLED);
    eventually("it runs again", || runs(&world).len() > before + 1);
    // What was missed is made up for once: no second holds two runs.
    let seconds = runs(&world);
    let mut different = seconds.clone();
    different.dedup();
    assert!(seconds.len() - different.len() <= 1, "{seconds:?}");
}

/// Runs in the log, while no controller answers.
fn runs_in(world: &World) -> usize {
    let text = std::fs::read_dir(world.path("state/logs/tick")).unwrap().flatten();
    text.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).map(|text| text.lines().count()).sum()
}
