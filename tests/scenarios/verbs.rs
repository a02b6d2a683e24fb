//! The command line against a running controller.

use super::kernel;
use super::world::{PROGRAM, World, eventually, program};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

#[test]
fn ps_and_describe_tell_what_there_is() {
    let world = World::running();
    assert_eq!(world.ctl(&["ps", "-o", "json"]).out, "[]\n");
    world.put("team/web.yaml", "command: sleep infinity\ncpu: 1\nmemory: 64Mi\ngpu: true\nlabels: {a: b}");
    let pid = world.wait_running("web");
    let table = world.ctl(&["ps"]).out;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..6], ["NAME", "KIND", "PHASE", "READY", "PID", "RESTARTS"]);
    assert_eq!(rows[1][..6], ["web", "service", "Running", "yes", &pid.to_string(), "0"]);
    let status = world.status("web");
    for (field, value) in [("kind", "service"), ("group", "team"), ("phase", "Running"), ("manifest", "team/web.yaml")]
    {
        assert_eq!(status[field], value);
    }
    for (field, value) in [("memory", 64 << 20), ("restarts", 0), ("generation", 1), ("observedGeneration", 1)] {
        assert_eq!(status[field], value);
    }
    assert_eq!(status["revision"].as_str().unwrap().len(), 12);
    let yaml = world.ctl(&["ps", "-o", "yaml"]).out;
    assert!(yaml.starts_with("- name: web\n"), "{yaml}");
    let text = world.ctl(&["describe", "web"]).out;
    for part in ["Command:    sleep infinity", "a=b", "(whole)", "pids.max", "Ready=true", "team/web.yaml"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&world.ctl(&["describe", "web", "-o", "json"]).out).unwrap();
    assert_eq!(json["name"], "web");
    let said = world.ctl(&["describe", "wep"]);
    assert_eq!(said.code, 1);
    assert_eq!(said.err, "containerctl: no workload is called wep\n  help: known: web\n");
}

#[test]
fn topology_draws_the_machine_and_who_sits_where() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity\ncpu: {request: 1, class: pinned}");
    world.wait_running("web");
    let said = world.ctl(&["topology"]);
    let cpus = world.status("web")["cpus"].as_str().unwrap().to_owned();
    assert!(said.out.starts_with("machine 0") || said.out.starts_with("package 0"), "{}", said.out);
    let seat = said.out.lines().find(|line| line.contains("web")).unwrap_or_else(|| panic!("{}", said.out));
    assert!(seat.contains(&cpus), "{seat} has no {cpus}");
    let json: serde_json::Value = serde_json::from_str(&world.ctl(&["topology", "-o", "json"]).out).unwrap();
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    assert_eq!(json["online"], online.trim());
    let nowhere = world.ctl(&["topology", "--root", "/proc/self"]);
    assert_eq!(nowhere.code, 1);
    let help = "no machine below /proc/self; help: it is the folder that holds its `sys` and `proc`";
    assert!(nowhere.err.contains(help), "{}", nowhere.err);
}

#[test]
fn logs_come_back_as_they_were_written() {
    let world = World::running();
    world.put(
        "talk.yaml",
        "command: [sh, -c, 'echo out; echo err >&2; printf part; sleep 0.2; echo ial; exec sleep infinity']",
    );
    world.wait_running("talk");
    eventually("everything is there", || world.logs("talk") == "out\npartial\n");
    let said = world.ctl(&["logs", "talk"]);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("out\npartial\n", "err\n"));
    let raw = world.ctl(&["logs", "talk", "--raw", "--tail", "1"]).out;
    let fields: Vec<&str> = raw.split(' ').collect();
    assert_eq!(fields[1..], ["stdout", "F", "ial\n"]);
    assert!(fields[0].ends_with('Z') && fields[0].len() == 30, "{raw}");
    let socket = world.socket();
    let mut follower = Command::new(PROGRAM)
        .args(["logs", "-f", "talk", "--socket"])
        .arg(&socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    world.put("talk.yaml", "command: [sh, -c, 'echo more; exec sleep infinity']");
    let mut seen = vec![0; "out\npartial\nmore\n".len()];
    follower.stdout.take().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(seen, b"out\npartial\nmore\n");
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert_eq!(world.ctl(&["logs", "nobody"]).code, 1);
}

#[test]
fn logs_of_the_run_before_and_since_a_time_are_told_apart() {
    let world = World::running();
    let script = "if [ -e /mnt/second ]; then echo second; sleep 1000; else touch /mnt/second; echo first; exit 3; fi";
    std::fs::create_dir(world.path("data")).unwrap();
    let data = world.path("data").display().to_string();
    let early = world.ctl(&["logs", "none", "--previous"]);
    assert_eq!((early.code, early.err.contains("no workload is called none")), (1, true), "{}", early.err);
    world.put(
        "twice.yaml",
        &format!(
            "restart: {{initialDelay: 1s}}\nsecurity: {{userNamespace: false}}\nvolumes: [{{source: {data}, target: /mnt}}]\ncommand: [sh, -c, '{script}']"
        ),
    );
    world.wait_status("twice", |status| status["restarts"] == 1 && status["phase"] == "Running");
    eventually("both have spoken", || world.logs("twice") == "first\nsecond\n");
    assert_eq!(world.ctl(&["logs", "twice", "--previous"]).out, "first\n");
    let started = world.status("twice")["started"].as_str().unwrap().to_owned();
    assert_eq!(world.ctl(&["logs", "twice", "--since", &started]).out, "second\n");
    assert_eq!(world.ctl(&["logs", "twice", "--since", "1h", "--tail", "1"]).out, "second\n");
    let wrong = world.ctl(&["logs", "twice", "--since", "yesterday"]);
    assert!(wrong.code != 0 && wrong.err.contains("help: write 10m"), "{}", wrong.err);
    world.put("fresh.yaml", "command: sleep 1000");
    world.wait_running("fresh");
    let none = world.ctl(&["logs", "fresh", "--previous"]);
    assert!(none.err.contains("no run of fresh has ended yet"), "{}", none.err);
}

#[test]
fn plan_says_what_would_happen_before_it_does() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity\ncpu: 1");
    let pid = world.wait_running("web");
    let said = world.ctl(&["plan"]);
    assert_eq!((said.out.as_str(), said.code), ("nothing to do\n", 0));
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("web.yaml"), "command: sleep infinity\ncpu: 2").unwrap();
    std::fs::write(other.path().join("new.yaml"), "command: sleep infinity\ngpu: 3").unwrap();
    let said = world.ctl(&["plan", other.path().to_str().unwrap()]);
    assert_eq!(said.code, 2, "{said:?}");
    let file = if kernel::is_unified() { "cpu.max = 200000 100000" } else { "cpu.cfs_quota_us = 200000" };
    assert!(said.out.contains("resize") && said.out.contains(file), "{}", said.out);
    assert!(said.out.contains("wait") && said.out.contains("3 whole GPUs asked for"), "{}", said.out);
    std::fs::write(other.path().join("web.yaml"), "command: sleep 1000").unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&world.ctl(&["plan", other.path().to_str().unwrap(), "-o", "json"]).out).unwrap();
    assert_eq!(json["steps"][0]["step"], "stop");
    assert_eq!(json["steps"][0]["reason"], "a new command needs a new process");
    assert_eq!(world.wait_running("web"), pid, "a plan acts on nothing");
    assert_eq!(kernel::cpu_milli(&world.group("web")), Some(1000));
}

#[test]
fn a_machine_can_be_made_up_to_plan_for() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("web.yaml"), "command: x\ncpu: 2").unwrap();
    std::fs::write(folder.path().join("db.yaml"), "command: x\ncpu: {class: exclusive, request: 2}").unwrap();
    std::fs::write(folder.path().join("huge.yaml"), "command: x\nmemory: {request: 1Ti}").unwrap();
    let dir = folder.path().to_str().unwrap();
    let shape = "2 packages x 2 cores x 2 threads";
    let said = program(&["plan", dir, "--topology", shape, "--memory", "64Gi"]);
    assert_eq!(said.code, 2, "{said:?}");
    for line in ["db        0,4   class exclusive", "web       1,5   cheapest domain with room", "memory.request 1Ti"] {
        assert!(said.out.contains(line), "{line} is not in\n{}", said.out);
    }
    assert!(said.out.contains("    core 0,4  db\n"), "{}", said.out);
    let wrong = program(&["plan", dir, "--topology", "2 sockets"]);
    assert!(wrong.code == 64 && wrong.err.contains("`2 sockets` is not like"), "{wrong:?}");
}

#[test]
fn validate_reports_every_finding_of_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("good.yaml", "command: x");
    let said = program(&["validate", folder.path().to_str().unwrap()]);
    assert_eq!((said.out.as_str(), said.code), ("1 workload accepted, 0 errors\n", 0));
    write("bad.yaml", "command: x\ncpu: -1\nmemroy: 5\npids: many\n");
    write("warn.yaml", "command: a | b");
    let said = program(&["validate", folder.path().to_str().unwrap()]);
    assert_eq!(said.code, 1);
    for part in [
        "bad.yaml:2:6: cpu is `-1`",
        "bad.yaml:3:1: unknown field memroy",
        "bad.yaml:4:7: pids is `many`",
        "warn.yaml:1:10: warning:",
    ] {
        assert!(said.out.contains(part), "{part} is not in {}", said.out);
    }
    assert!(said.out.ends_with("2 workloads accepted, 3 errors\n"), "{}", said.out);
    let said = program(&["validate", "/no/such/file"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("cannot read /no/such/file"), "{}", said.err);
}

#[test]
fn validate_opens_no_pipe_that_nobody_writes_to_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("good.yaml"), "command: x").unwrap();
    let pipe = folder.path().join("pipe.yaml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let good = folder.path().join("good.yaml");
    let validate = |paths: &[&std::path::Path]| {
        // Hanging is the fault: it fails with 124 then.
        let said = Command::new("timeout").args(["5", PROGRAM, "validate"]).args(paths).output().unwrap();
        (String::from_utf8(said.stdout).unwrap(), said.status.code())
    };
    let remark = format!("{}:1:1: warning: is a pipe, not a file, and is ignored\n", pipe.display());
    for paths in [&[folder.path()] as &[&std::path::Path], &[pipe.as_path(), good.as_path()]] {
        let (said, code) = validate(paths);
        assert!(said.starts_with(&remark), "{paths:?}: {said}");
        assert!(said.ends_with("1 workload accepted, 0 errors\n"), "{paths:?}: {said}");
        assert_eq!(code, Some(0), "{paths:?}: {said}");
    }
    // A pipe that the caller hands over has a writer.
    let mut reading = Command::new(PROGRAM);
    reading.args(["validate", "/dev/stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut reading = reading.spawn().unwrap();
    reading.stdin.take().unwrap().write_all(b"name: web\ncommand: x").unwrap();
    let said = reading.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "1 workload accepted, 0 errors\n");
}

#[test]
fn names_of_files_reach_the_terminal_as_text() {
    let world = World::running();
    let name = "bad\u{1b}[2J\nworse.yaml";
    world.put(name, "name: web\ncommand: sleep infinity");
    world.wait_running("web");
    world.put(name, "name: web\ncommand: [");
    eventually("it is refused", || world.ctl(&["ps"]).out.contains("cannot be accepted"));
    let folder = world.manifests();
    let validate = program(&["validate", folder.to_str().unwrap()]);
    let file = program(&["validate", folder.join(name).to_str().unwrap()]);
    for said in [validate, file, world.ctl(&["ps"]), world.ctl(&["plan"]), world.ctl(&["describe", "web"])] {
        assert!(said.out.contains("bad\\u{1b}[2J\\nworse.yaml"), "{said:?}");
        assert!(!(said.out + &said.err).contains('\u{1b}'));
    }
}

#[test]
fn wait_returns_when_it_is_so_and_says_what_is_missing_when_it_is_not() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    assert_eq!(world.ctl(&["wait", "--for", "converged", "--timeout", "30s"]).code, 0);
    assert!(kernel::processes(&world.group("web")).len() == 2, "converged means it runs");
    assert_eq!(world.ctl(&["wait", "web", "--for", "running"]).code, 0);
    assert_eq!(world.ctl(&["wait", "web"]).code, 0, "ready by default");
    let said = world.ctl(&["wait", "web", "--for", "completed", "--timeout", "200ms"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("not completed in time") && said.err.contains("web is Running"), "{}", said.err);
    assert!(!said.err.contains("no workload"), "{}", said.err);
    let mut waiting = Command::new(PROGRAM);
    waiting.args(["wait", "late", "--for", "running", "--socket"]).arg(world.socket()).stderr(Stdio::piped());
    let mut waiting = waiting.spawn().unwrap();
    let mut note = String::new();
    BufReader::new(waiting.stderr.take().unwrap()).read_line(&mut note).unwrap();
    assert!(note.contains("no workload is called late yet"), "{note}");
    assert!(waiting.try_wait().unwrap().is_none(), "it may come, so it is waited for");
    world.put("late.yaml", "command: sleep infinity");
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
    world.put("other.yaml", "command: sleep infinity");
    world.wait_running("other");
    world.delete("other.yaml");
    assert_eq!(world.ctl(&["wait", "--for", "converged", "--timeout", "30s"]).code, 0);
    assert!(kernel::directories(&world.group("other")).is_empty(), "converged means that what was deleted is gone");
    world.put("bad.yaml", "command: [");
    let said = world.ctl(&["wait", "--for", "converged", "--timeout", "200ms"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("bad.yaml:1:10"), "{}", said.err);
    assert_eq!(world.ctl(&["wait", "--for", "running"]).code, 1, "a name is missing");
}

#[test]
fn without_a_controller_the_next_step_is_named() {
    let said = program(&["ps", "--socket", "/no/such/socket"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("no controller answers at /no/such/socket") && said.err.contains("help: start it"),
        "{}",
        said.err
    );
    assert_eq!(program(&["ps", "--frob"]).code, 64);
    assert_eq!(program(&["--version"]).code, 0);
}
