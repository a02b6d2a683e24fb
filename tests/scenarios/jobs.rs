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
    eventually("its group is gone", || kernel::directories(&world.group("slow")).is_empty());
}

#[test]
fn a_scheduled_job_runs_on_time_and_goes_on_after_a_crash_of_the_controller() {
    let mut world = unthrottled();
    world.put("tick.yaml", "kind: job\nschedule: '*/3 * * * * *'\ncommand: [date, '+%s']");
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

#[test]
fn more_or_fewer_replicas_leave_the_others_their_processes() {
    let world = World::running();
    world.put("web.yaml", "replicas: 2\ncommand: sleep infinity");
    let (first, second) = (world.wait_running("web"), world.wait_running("web.1"));
    world.put("web.yaml", "replicas: 3\ncommand: sleep infinity");
    let third = world.wait_running("web.2");
    for (pid, number) in [(first, 0), (second, 1), (third, 2)] {
        assert!(kernel::environment(pid).contains(&format!("CONTAINERCTL_REPLICA={number}")));
    }
    world.put("web.yaml", "replicas: 1\ncommand: sleep infinity");
    world.wait_gone("web.2");
    world.wait_gone("web.1");
    assert_eq!(world.wait_running("web"), first);
    assert!(!kernel::is_alive(second) && !kernel::is_alive(third));
}

#[test]
fn a_start_waits_for_what_it_comes_after_and_a_circle_is_named() {
    let world = unthrottled();
    world.put("app.yaml", "after: [migrate]\ncommand: sleep infinity");
    let waits = |status: &serde_json::Value, text: &str| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["message"].as_str().is_some_and(|message| message.contains(text)))
    };
    world.wait_status("app", |status| waits(status, "waits for migrate, which no manifest names"));
    world.put("migrate.yaml", "kind: job\ncommand: sleep 1");
    world.wait_status("app", |status| waits(status, "waits for migrate to complete"));
    let pid = world.wait_running("app");
    assert_eq!(world.phase("migrate"), "Completed");
    world.put("migrate.yaml", "kind: job\nafter: [app]\ncommand: sleep 1");
    eventually("the circle is named", || world.log().contains("goes round in a circle: app -> migrate -> app"));
    assert_eq!(world.wait_running("app"), pid, "what runs goes on");
    let said = super::world::program(&["validate", world.manifests().to_str().unwrap()]);
    assert!(said.out.contains("app -> migrate -> app") && said.code == 1, "{said:?}");
}

#[test]
fn a_controller_told_to_takes_its_workloads_along_dependants_first() {
    let mut world = World::new();
    world.start(&["--stop-workloads"]);
    let says = |word: &str| {
        format!("command: [sh, -c, 'trap \"sleep 0.3; date +%s%N; exit 0\" TERM; echo {word}; sleep infinity & wait']")
    };
    world.put("db.yaml", &says("up"));
    world.put("api.yaml", &format!("after: [db]\n{}", says("up")));
    let pids = [world.wait_running("db"), world.wait_running("api")];
    eventually("both have set their traps", || world.logs("db") == "up\n" && world.logs("api") == "up\n");
    assert_eq!(world.stop_controller(), 0);
    assert!(pids.iter().all(|pid| !kernel::is_alive(*pid)));
    assert!(["db", "api"].iter().all(|name| kernel::directories(&world.group(name)).is_empty()));
    // They come back, and were not taken for failed.
    world.start(&[]);
    world.wait_running("api");
    assert_eq!(world.status("db")["restarts"], 0);
    let ended = |name: &str| world.logs(name).lines().nth(1).and_then(|line| line.parse::<u64>().ok()).unwrap();
    assert!(ended("api") + 200_000_000 < ended("db"), "api {} db {}", ended("api"), ended("db"));
}

#[test]
fn told_twice_a_controller_waits_for_nobody() {
    let mut world = World::new();
    world.start(&["--stop-workloads"]);
    world.put("db.yaml", "stop: {grace: 1h}\ncommand: [sh, -c, 'trap \"\" TERM; sleep 1000; sleep 1000']");
    let pid = world.wait_running("db");
    super::world::signal(world.controller_pid(), nix::sys::signal::Signal::SIGTERM);
    world.wait_phase("db", "Stopping");
    assert_eq!(world.stop_controller(), 0);
    assert!(!kernel::is_alive(pid));
}

#[test]
fn a_controller_that_cannot_look_at_a_workload_ends_all_the_same_and_takes_it_along_when_told_twice() {
    let mut world = World::new();
    world.start(&["--stop-workloads"]);
    world.put("db.yaml", "cpu: 1\ncommand: sleep infinity");
    let pid = world.wait_running("db");
    let traces = world.path("run/workloads/db/1/box");
    std::fs::remove_file(&traces).unwrap();
    std::fs::create_dir(&traces).unwrap();
    world.put("db.yaml", "cpu: 2\ncommand: sleep infinity");
    world.wait_status("db", |status| status["conditions"].to_string().contains("cannot be looked at"));
    assert_eq!(world.phase("db"), "Running", "what was last seen is told");
    super::world::signal(world.controller_pid(), nix::sys::signal::Signal::SIGTERM);
    eventually("it has begun to end", || world.log().contains("Graceful"));
    assert_eq!(world.stop_controller(), 0);
    assert!(!kernel::is_alive(pid), "{}", world.log());
    assert!(world.log().contains("not all workloads could be stopped"), "{}", world.log());
}

#[test]
fn an_update_rolls_from_replica_to_replica_and_one_that_fails_is_taken_back() {
    let mut world = World::running();
    let manifest = |command: &str| format!("replicas: 2\nstrategy: rolling\ncommand: {command}");
    world.put("web.yaml", &manifest("sleep 1001"));
    let old = (world.wait_running("web"), world.wait_running("web.1"));
    world.put("web.yaml", &manifest("sleep 1002"));
    world.wait_status("web.1", |status| status["phase"] == "Running" && status["pid"] != old.1);
    assert_eq!(world.status("web")["pid"], old.0, "its turn has not come");
    world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != old.0);
    let good = world.wait_running("web");
    // Until the last one has lasted for three seconds, what was before is what is good.
    std::thread::sleep(std::time::Duration::from_secs(5));
    world.put("web.yaml", &manifest("sh -c 'exit 7'"));
    let rolled_back = |status: &serde_json::Value| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["reason"] == "RolledBack")
    };
    let status = world.wait_status("web.1", |status| status["phase"] == "Running" && rolled_back(status));
    assert_eq!(status["command"], serde_json::json!(["sleep", "1002"]));
    let kept = world.wait_status("web", rolled_back);
    assert_eq!(kept["pid"], good, "the rest is not touched");
    // The next controller does not try it again either.
    world.kill_controller();
    world.start(&[]);
    world.wait_status("web.1", |now| rolled_back(now) && now["pid"] == status["pid"]);
}

#[test]
fn a_job_that_waits_for_a_quieter_host_says_so_once_where_people_look() {
    let mut world = World::new();
    world.start(&["--job-cpu-threshold", "1", "--resync", "500ms"]);
    world.put("burn.yaml", "command: [sh, -c, 'while :; do :; done']");
    // Of the time since the controller last looked it has taken more than a hundredth, however many CPUs there are.
    world.wait_status("burn", |status| status["usage"]["cpuUs"].as_u64().is_some_and(|used| used > 2_000_000));
    world.put("job.yaml", "kind: job\ncommand: 'true'");
    let status = world.wait_status("job", |status| status["conditions"].to_string().contains("HostBusy"));
    assert_eq!(status["phase"], "Pending");
    let text = status["conditions"].to_string();
    assert!(text.contains(" % busy, jobs start at 1 % or less (controller --job-cpu-threshold)"), "{text}");
    // The numbers change with each look; what happened does not.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let events = world.ctl(&["events", "job"]).out;
    assert_eq!(events.matches("HostBusy").count(), 1, "{events}");
    assert_eq!(world.phase("job"), "Pending");
}
