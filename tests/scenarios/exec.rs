//! `containerctl exec`: a second command in a box that runs.

use super::kernel;
use super::world::{PROGRAM, Said, World, eventually, signal};
use nix::sys::signal::Signal;
use std::process::{Command, Stdio};

fn command(world: &World, name: &str, words: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["exec", name, "--runtime-dir"]).arg(world.path("run")).arg("--").args(words);
    command
}

fn exec(world: &World, name: &str, words: &[&str]) -> Said {
    command(world, name, words).stdin(Stdio::null()).output().unwrap().into()
}

const FACTS: &str = "id -u; hostname; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp|Seccomp_filters):' /proc/self/status; cat /proc/self/uid_map; \
    ulimit -n; ls /sys/class/net; cat /proc/self/oom_score_adj; echo $COLOUR; pwd";

#[test]
fn it_sees_and_may_what_the_workload_does() {
    let world = World::running();
    let fields =
        "env: {COLOUR: red}\nworkdir: /tmp\nuser: \"33:33\"\nnetwork: none\nrlimits: {nofile: 77}\noomScoreAdj: 300";
    world.put(
        "web.yaml",
        &format!("{fields}\ncommand: [sh, -c, {}]", serde_json::to_string(&format!("{FACTS}; sleep 1000")).unwrap()),
    );
    let pid = world.wait_running("web");
    eventually("it has spoken", || world.logs("web").ends_with("/tmp\n"));
    assert_eq!(exec(&world, "web", &["sh", "-c", FACTS]).out, world.logs("web"));
    for kind in ["mnt", "pid", "ipc", "uts", "net", "user", "cgroup"] {
        let inside = exec(&world, "web", &["readlink", &format!("/proc/self/ns/{kind}")]).out;
        assert_eq!(inside.trim(), kernel::namespace(&pid.to_string(), kind), "{kind}");
    }
    // It is in the same cgroup, in every hierarchy.
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut child = command(&world, "web", &["sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
    let sleeper = || {
        kernel::processes(&world.group("web"))
            .into_iter()
            .find(|pid| kernel::status(*pid, "Name") == "sleep" && kernel::parent(kernel::parent(*pid)) == child.id())
    };
    eventually("it sleeps", || sleeper().is_some());
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/cgroup", sleeper().unwrap())).unwrap(), own);
    signal(child.id(), Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(143), "the signal was passed on");
    assert_eq!(world.wait_running("web"), pid, "the workload goes on");
}

#[test]
fn its_code_is_the_commands_and_what_is_wrong_is_said() {
    let world = World::running();
    world.put("web.yaml", "command: sleep 1000");
    world.wait_running("web");
    assert_eq!(exec(&world, "web", &["sh", "-c", "exit 7"]).code, 7);
    let missing = exec(&world, "web", &["no-such-program"]);
    assert_eq!(
        (missing.code, missing.err.contains("command not found: no-such-program")),
        (127, true),
        "{}",
        missing.err
    );
    let nobody = exec(&world, "nobody", &["true"]);
    assert_eq!(
        (nobody.code, nobody.err.contains("no run of nobody") && nobody.err.contains("help:")),
        (125, true),
        "{}",
        nobody.err
    );
    let script = "exec 2>&1; mount -t tmpfs x /tmp && echo ESCAPED; cat /etc/shadow && echo ESCAPED; touch /usr/x && echo ESCAPED; echo end";
    let out = exec(&world, "web", &["sh", "-c", script]).out;
    assert!(!out.contains("ESCAPED") && out.ends_with("end\n"), "{out}");
    assert_eq!(std::fs::read_dir(world.path("run").join("run")).map_or(0, Iterator::count), 0, "nothing is left");
}

#[test]
fn it_is_refused_where_it_would_be_held_to_nothing() {
    let world = World::running();
    world.put("web.yaml", "command: sleep 1000");
    let pid = world.wait_running("web");
    for directory in kernel::directories(&world.group("web")) {
        let outside = directory.parent().unwrap().parent().unwrap().join("cgroup.procs");
        std::fs::write(&outside, pid.to_string()).unwrap();
        let refused = exec(&world, "web", &["true"]);
        let told = refused.err.contains("out of its cgroup (") && refused.err.contains("help:");
        assert_eq!((refused.code, told), (125, true), "{}: {}", directory.display(), refused.err);
        std::fs::write(directory.join("cgroup.procs"), pid.to_string()).unwrap();
        assert_eq!(exec(&world, "web", &["true"]).code, 0);
    }
}

#[test]
fn no_folder_of_the_host_gets_in_as_a_stream() {
    let world = World::running();
    world.put("web.yaml", "command: sleep 1000");
    world.wait_running("web");
    let folder = || std::fs::File::open("/etc").unwrap();
    let given = command(&world, "web", &["ls", "/proc/self/fd/0/"]).stdin(folder()).output().unwrap();
    let said: Said = given.into();
    assert_eq!((said.code, said.out.as_str(), said.err.contains("is a folder")), (125, "", true), "{}", said.err);
}

#[test]
fn it_ends_with_the_workload() {
    let world = World::running();
    world.put("web.yaml", "command: sleep 1000\nstop: {grace: 1s}");
    world.wait_running("web");
    let mut child = command(&world, "web", &["sh", "-c", "trap : TERM; while :; do sleep 1; done"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("both run", || kernel::processes(&world.group("web")).len() >= 4);
    world.delete("web.yaml");
    world.wait_gone("web");
    assert_eq!(child.wait().unwrap().code(), Some(137));
}
