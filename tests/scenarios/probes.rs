//! Probes of real workloads: who is asked, where, and what comes of it.

use super::kernel;
use super::world::{World, eventually};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// The inside half of a workload that serves: 200 while a file is there, 503 otherwise; outside it has nothing to do.
#[test]
fn serve() {
    let Ok(order) = std::env::var("SERVE") else { return };
    let (port, file) = order.split_once(' ').unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).unwrap();
    for mut stream in listener.incoming().flatten() {
        let mut request = [0; 1024];
        let _ = stream.read(&mut request);
        let status = if Path::new(file).exists() { "200 Good" } else { "503 Bad" };
        let _ =
            stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes());
    }
}

/// A folder that workloads see as `/data`.
fn data(world: &World) -> PathBuf {
    let data = world.path("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    data
}

/// The manifest of a workload that serves `/data/ok` on a port.
fn server(data: &Path, port: u16, fields: &str) -> String {
    let program = std::env::current_exe().unwrap().display().to_string();
    format!(
        "command: /run/serve --exact probes::serve --nocapture\nenv: {{SERVE: {port} /data/ok}}\n{fields}\nvolumes:\n\
         - {{source: {program}, target: /run/serve, readOnly: true}}\n- {{source: {}, target: /tmp/data, readOnly: true}}\n",
        data.display()
    )
    .replace("/data/ok", "/tmp/data/ok")
}

/// The manifest of a workload that sleeps and sees `/tmp/data`.
fn sleeper(data: &Path, fields: &str) -> String {
    let volume = format!("volumes: [{{source: {}, target: /tmp/data, readOnly: true}}]", data.display());
    format!("command: sleep infinity\n{volume}\n{fields}\n")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The condition `Ready` as its word and its message.
fn ready(status: &Value) -> (String, String) {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready").unwrap_or(Value::Null);
    let text = |key: &str| ready[key].as_str().unwrap_or("").to_owned();
    (text("reason"), text("message"))
}

fn wait_reason(world: &World, name: &str, reason: &str) -> Value {
    world.wait_status(name, |status| ready(status).0 == reason)
}

/// Every process of a workload, those of its probes included.
fn everything(world: &World, name: &str) -> BTreeSet<u32> {
    let group = world.group(name);
    let groups = ["", "/probe-startup", "/probe-readiness", "/probe-liveness"];
    groups.iter().flat_map(|below| kernel::processes(&format!("{group}{below}"))).collect()
}

fn pid(status: &Value) -> u64 {
    status["pid"].as_u64().unwrap_or(0)
}

#[test]
fn readiness_follows_what_is_served_on_either_network() {
    let world = World::running();
    let data = data(&world);
    let probe = "probes: {readiness: {http: {port: PORT, path: /healthz}, period: 100ms, failureThreshold: 1}}";
    for (name, network, port) in [("open", "host", free_port()), ("alone", "none", 80)] {
        let fields = format!("network: {network}\n{}", probe.replace("PORT", &port.to_string()));
        world.put(&format!("{name}.yaml"), &server(&data, port, &fields));
    }
    for name in ["open", "alone"] {
        let status = world.wait_status(name, |status| ready(status).1.contains("answered 503"));
        assert_eq!((&status["phase"], &status["ready"]), (&"Running".into(), &false.into()), "{status}");
    }
    let before = ["open", "alone"].map(|name| pid(&world.status(name)));
    fs::write(data.join("ok"), "").unwrap();
    for name in ["open", "alone"] {
        let said = world.ctl(&["wait", name, "--for", "ready", "--timeout", "60s"]);
        assert_eq!(said.code, 0, "{said:?}");
        assert_eq!(ready(&world.status(name)).0, "ProbesSucceed");
    }
    fs::remove_file(data.join("ok")).unwrap();
    for name in ["open", "alone"] {
        wait_reason(&world, name, "NotReady");
    }
    assert_eq!(["open", "alone"].map(|name| pid(&world.status(name))), before, "readiness ends nobody");
    let described = world.ctl(&["describe", "alone"]).out;
    assert!(described.contains("http :80/healthz every 100ms: answered 503"), "{described}");
}

#[test]
fn a_loopback_of_its_own_is_not_the_hosts() {
    let world = World::running();
    let data = data(&world);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let fields = format!("probes: {{readiness: {{tcp: {{port: {port}}}, period: 100ms, failureThreshold: 1}}}}");
    world.put("open.yaml", &sleeper(&data, &fields));
    world.put("alone.yaml", &sleeper(&data, &format!("{fields}\nnetwork: none")));
    wait_reason(&world, "open", "ProbesSucceed");
    let status = wait_reason(&world, "alone", "NotReady");
    assert!(ready(&status).1.contains("connection refused"), "{status}");
}

#[test]
fn until_it_has_come_up_nobody_asks_whether_it_is_alive() {
    let world = World::running();
    let data = data(&world);
    let probes = "probes:\n  startup: {exec: test -e /tmp/data/up, period: 100ms, failureThreshold: 10000}\n  \
         readiness: {exec: 'true', period: 100ms}\n  liveness: {exec: 'false', period: 100ms, failureThreshold: 1}";
    world.put("web.yaml", &sleeper(&data, &format!("{probes}\nrestart: {{initialDelay: 1h, maxDelay: 1h}}")));
    let first = world.wait_running("web");
    sleep(Duration::from_secs(2));
    let status = world.status("web");
    assert_eq!((pid(&status), ready(&status).0.as_str()), (u64::from(first), "Probing"), "{status}");
    assert!(ready(&status).1.contains("startup probe has not succeeded yet"), "{status}");
    fs::write(data.join("up"), "").unwrap();
    let status = wait_reason(&world, "web", "BackOff");
    assert!(
        status["lastExit"]["message"].as_str().unwrap().starts_with("its liveness probe failed 1 times"),
        "{status}"
    );
}

#[test]
fn what_does_not_come_up_or_is_not_alive_is_ended_and_waits_like_any_failure() {
    let world = World::running();
    let data = data(&world);
    fs::write(data.join("ok"), "").unwrap();
    let slow = "probes: {startup: {exec: sh -c 'echo not yet; exit 9', period: 100ms, failureThreshold: 3}}";
    world.put("slow.yaml", &sleeper(&data, &format!("{slow}\nrestart: {{initialDelay: 20ms, maxDelay: 1h}}")));
    let alive = "probes: {liveness: {http: {port: 80}, period: 100ms, initialDelay: 1s}}";
    let restart = "restart: {initialDelay: 1s, maxDelay: 1h}\nstop: {grace: 1s}";
    world.put("web.yaml", &server(&data, 80, &format!("network: none\n{alive}\n{restart}")));
    let first = world.wait_running("web");
    let said = world.ctl(&["wait", "web", "--for", "ready", "--timeout", "60s"]);
    assert_eq!(said.code, 0, "without a readiness probe it is ready when it runs: {said:?}");
    sleep(Duration::from_secs(2));
    assert_eq!(world.wait_running("web"), first, "what answers goes on");
    fs::remove_file(data.join("ok")).unwrap();
    let status = wait_reason(&world, "web", "BackOff");
    assert!(
        ready(&status).1.contains("its liveness probe failed 3 times in a row: answered 503; next try at"),
        "{status}"
    );
    assert!(!kernel::is_alive(first));
    let status = world.wait_status("slow", |status| status["restarts"].as_u64() >= Some(2));
    assert_eq!(status["lastExit"]["message"], "its startup probe failed 3 times in a row: exited with code 9: not yet");
    // Each further failure in a row waits twice as long, from a second on.
    let status =
        world.wait_status("web", |status| status["restarts"].as_u64() >= Some(1) && ready(status).0 == "BackOff");
    let least = Duration::from_millis(950) * (1 << status["restarts"].as_u64().unwrap());
    let exit: containerctl::model::status::LastExit = serde_json::from_value(status["lastExit"].clone()).unwrap();
    let message = ready(&status).1;
    let next = containerctl::model::time::Timestamp::parse(message.rsplit(' ').next().unwrap()).unwrap();
    assert!(next.since(exit.at) >= least, "{status}");
}

#[test]
fn an_exec_probe_is_inside_the_box() {
    let world = World::running();
    let data = data(&world);
    let fields = "env: {COLOUR: red}\nuser: \"33:34\"\nnetwork: none\nworkdir: /tmp";
    let script = "echo $(hostname) $(id -u):$(id -g) $COLOUR $(pwd) $(ls /sys/class/net) $(readlink /proc/self/ns/user) \
                  $(cat /proc/1/comm) $(grep NoNewPrivs /proc/self/status) >/dev/stderr; mount -t tmpfs x /tmp && echo ESCAPED; exit 3";
    let probes = format!(
        "probes: {{readiness: {{exec: {}, failureThreshold: 1, timeout: 30s}}}}",
        serde_json::to_string(&["sh", "-c", script]).unwrap()
    );
    world.put("web.yaml", &sleeper(&data, &format!("{fields}\n{probes}")));
    let status = wait_reason(&world, "web", "NotReady");
    let namespace = kernel::namespace(&pid(&status).to_string(), "user");
    let message = ready(&status).1;
    let expected =
        format!("exited with code 3: web 33:34 red /tmp lo {namespace} containerctl-in NoNewPrivs: 1 mount:");
    assert!(message.contains(&expected) && !message.contains("ESCAPED"), "{message}\nexpected {expected}");
}

#[test]
fn an_exec_probe_leaves_nothing_behind_however_it_ends() {
    let world = World::running();
    let data = data(&world);
    let hangs = "sleep 1001 & setsid sleep 1002 & (setsid sh -c 'trap \"\" TERM; sleep 1003 & sleep 1004' &); wait";
    let probes = format!(
        "probes:\n  readiness: {{exec: {}, timeout: 300ms, period: 300ms, failureThreshold: 1}}\n  liveness: {{exec: [sh, -c, setsid sleep 1005 & true], period: 300ms, timeout: 30s}}",
        serde_json::to_string(&["sh", "-c", hangs]).unwrap()
    );
    world.put("web.yaml", &sleeper(&data, &probes));
    let web = world.wait_running("web");
    let status = world.wait_status("web", |status| ready(status).1.contains("no answer within 300ms"));
    assert_eq!(pid(&status), u64::from(web));
    let mut most = 0;
    for _ in 0..40 {
        most = most.max(everything(&world, "web").len());
        sleep(Duration::from_millis(50));
    }
    // The workload's two; of each probe an init, its shell and at most six more, and as many that are just being ended.
    assert!((3..=34).contains(&most), "{most} processes at once");
    world.put("web.yaml", &sleeper(&data, ""));
    eventually("only the workload is left", || everything(&world, "web").len() == 2);
    assert_eq!(world.wait_running("web"), web, "an edit of probes is no reason to end it");
    let open = fs::read_dir(format!("/proc/{}/fd", world.controller_pid())).unwrap().count();
    assert!(open < 60, "{open} descriptors are open");
    world.delete("web.yaml");
    world.wait_gone("web");
    assert_eq!(kernel::directories(&world.group("web")), Vec::<PathBuf>::new());
}

#[test]
fn a_readiness_that_flaps_is_held_down() {
    let world = World::running();
    let data = data(&world);
    let probe = "{http: {port: 80}, period: 100ms, failureThreshold: 1}";
    world.put("web.yaml", &server(&data, 80, &format!("network: none\nprobes: {{readiness: {probe}}}")));
    let web = world.wait_running("web");
    for fall in 1..=4 {
        fs::write(data.join("ok"), "").unwrap();
        wait_reason(&world, "web", "ProbesSucceed");
        fs::remove_file(data.join("ok")).unwrap();
        wait_reason(&world, "web", if fall <= 3 { "NotReady" } else { "Flapping" });
    }
    fs::write(data.join("ok"), "").unwrap();
    sleep(Duration::from_secs(3));
    let status = world.status("web");
    assert_eq!((ready(&status).0.as_str(), pid(&status)), ("Flapping", u64::from(web)), "{status}");
    assert!(ready(&status).1.contains("held down until its probe has been good for 1m"), "{status}");
    assert!(
        world.ctl(&["describe", "web"]).out.contains("every 100ms: good"),
        "the last answers are shown none the less"
    );
}

#[test]
fn an_adopted_workload_is_asked_anew_before_it_is_ready_and_not_ended() {
    let mut world = World::running();
    let data = data(&world);
    fs::write(data.join("ok"), "").unwrap();
    let probes = "probes:\n  startup: {exec: test -e /tmp/data/up, period: 100ms, failureThreshold: 2}\n  readiness: {http: {port: 80}, period: 1s}";
    fs::write(data.join("up"), "").unwrap();
    world.put("web.yaml", &server(&data, 80, &format!("network: none\n{probes}")));
    wait_reason(&world, "web", "ProbesSucceed");
    let before = pid(&world.status("web"));
    // As long as its startup probe would have had: two tries of a second each at the most.
    sleep(Duration::from_secs(3));
    world.kill_controller();
    // It has long come up: what told so then may be gone.
    fs::remove_file(data.join("up")).unwrap();
    fs::remove_file(data.join("ok")).unwrap();
    world.start(&[]);
    let status = wait_reason(&world, "web", "NotReady");
    assert_eq!((pid(&status), &status["ready"]), (before, &false.into()), "{status}");
    fs::write(data.join("ok"), "").unwrap();
    let status = wait_reason(&world, "web", "ProbesSucceed");
    sleep(Duration::from_secs(2));
    assert_eq!((pid(&status), pid(&world.status("web"))), (before, before));
}

/// CPU time a process has used, and how often its log says that the loop went round.
fn cost(world: &World) -> (Duration, usize) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", world.controller_pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    (Duration::from_millis(ticks * 10), world.log().matches(" pass").count())
}

#[test]
fn answers_that_change_nothing_wake_nobody() {
    let mut world = World::new();
    // A log of passes, and no resync that would be one.
    world.start_after_with("export RUST_LOG=debug", &["--resync", "1h"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().for_each(drop));
    for n in 0..50 {
        let probes = format!(
            "probes: {{readiness: {{tcp: {{port: {port}}}, period: 1s}}, liveness: {{tcp: {{port: {port}}}, period: 1s}}}}"
        );
        world.put(&format!("w{n}.yaml"), &format!("command: sleep infinity\n{probes}"));
    }
    // One after the other: fifty starts take an emulated machine more than a minute.
    for n in 0..50 {
        wait_reason(&world, &format!("w{n}"), "ProbesSucceed");
    }
    let tries = || {
        let described: Value = serde_json::from_str(&world.ctl(&["describe", "w7", "-o", "json"]).out).unwrap();
        described["probes"][0]["tries"].as_u64().unwrap()
    };
    sleep(Duration::from_secs(3));
    let (asked, begun) = (tries(), Instant::now());
    let (busy, passes) = cost(&world);
    sleep(Duration::from_secs(5));
    let (busy_then, passes_then) = cost(&world);
    let (asked_then, took) = (tries(), begun.elapsed());
    assert!(asked_then - asked >= 4, "w7 was asked {} times in {took:?}", asked_then - asked);
    assert_eq!(passes_then, passes, "the loop went round for nothing:\n{}", world.log());
    // 50 x 2 tries a second. Five milliseconds of CPU time for each would be half a CPU; a real one takes a fifth of one.
    let busy = busy_then.saturating_sub(busy);
    println!("100 tries a second took {busy:?} of CPU time in {took:?}");
    assert!(busy < took / 2, "{busy:?} of CPU time in {took:?}");
}
