//! `containerctl run`: one workload, no controller.

use super::kernel;
use super::terminal::Terminal;
use super::world::{PROGRAM, Said, clear_cgroups, eventually, in_repository, signal};
use nix::sys::signal::Signal;
use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static COUNT: AtomicU32 = AtomicU32::new(0);

struct Foreground {
    dir: tempfile::TempDir,
    parent: String,
}

impl Foreground {
    fn new() -> Foreground {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Foreground { dir: tempfile::tempdir().unwrap(), parent: format!("ctltest-run-{}-{number}", std::process::id()) }
    }

    fn command(&self, file: &Path) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(["run", "--cgroup-parent", &self.parent, "--runtime-dir"])
            .arg(self.dir.path().join("run"))
            .arg(file);
        command
    }

    fn manifest(&self, text: &str) -> std::path::PathBuf {
        let path = self.dir.path().join("task.yaml");
        fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, text: &str) -> Said {
        self.command(&self.manifest(text)).stdin(Stdio::null()).output().unwrap().into()
    }

    /// Starts it, and waits until its command runs.
    fn spawn(&self, text: &str) -> (Child, u32) {
        let child = self.command(&self.manifest(text)).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        self.running(child)
    }

    /// The same on a terminal, in a session of its own.
    fn spawn_on(&self, terminal: &Terminal, text: &str) -> (Child, u32) {
        let inner = self.command(&self.manifest(text));
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(inner.get_program()).args(inner.get_args());
        command.stdin(terminal.stdio()).stdout(terminal.stdio()).stderr(terminal.stdio());
        self.running(command.spawn().unwrap())
    }

    fn running(&self, child: Child) -> (Child, u32) {
        let group = self.group(&child);
        let command = Cell::new(None);
        eventually("its command runs", || {
            let mut pids = kernel::processes(&group).into_iter();
            // Not PID 1 inside, whatever it is called before it has given itself its name; and not what has ended while we looked.
            let inner =
                |pid: &u32| kernel::status(*pid, "NSpid").split_whitespace().nth(1).is_some_and(|pid| pid != "1");
            let named = |pid: &u32| !["", "containerctl-in"].contains(&kernel::status(*pid, "Name").as_str());
            command.set(pids.find(|pid| inner(pid) && named(pid)));
            command.get().is_some()
        });
        (child, command.get().unwrap())
    }

    /// A command that no signal ends but SIGKILL, and a child that does not either.
    fn spawn_deaf(&self, grace: &str, terminal: Option<&Terminal>) -> (Child, u32) {
        let command = r#"[sh, -c, 'trap "" TERM INT HUP QUIT USR1; sleep infinity & sleep infinity']"#;
        let text = format!("stop: {{grace: {grace}}}\ncommand: {command}");
        let (child, command) = match terminal {
            Some(terminal) => self.spawn_on(terminal, &text),
            None => self.spawn(&text),
        };
        // It was called `sh` before it ignored anything; once it has a child, it does.
        eventually("it ignores signals", || kernel::processes(&self.group(&child)).len() >= 3);
        (child, command)
    }

    fn group(&self, child: &Child) -> String {
        format!("/{}/{}/task.workload", self.parent, child.id())
    }

    /// Whether nothing is left of any run.
    fn is_clean(&self) -> bool {
        let groups = kernel::directories(&self.parent);
        let empty = |path: &Path| fs::read_dir(path).unwrap().flatten().all(|entry| !entry.path().is_dir());
        groups.iter().all(|path| empty(path))
            && fs::read_dir(self.dir.path().join("run/run")).is_ok_and(|mut runs| runs.next().is_none())
    }
}

/// The code that it ends with, which it has to within the patience of a test.
fn exit_code(child: &mut Child) -> i32 {
    let code = Cell::new(None);
    let ended = RefCell::new(child);
    eventually("it ends", || {
        code.set(ended.borrow_mut().try_wait().unwrap().and_then(|status| status.code()));
        code.get().is_some()
    });
    code.get().unwrap()
}

impl Drop for Foreground {
    fn drop(&mut self) {
        for directory in kernel::directories(&self.parent) {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir())
            {
                clear_cgroups(&format!("{}/{}", self.parent, entry.file_name().display()));
            }
        }
        clear_cgroups(&self.parent);
    }
}

#[test]
fn its_exit_code_is_the_commands() {
    let run = Foreground::new();
    for (command, code) in [
        ("'true'", 0),
        ("[sh, -c, 'exit 7']", 7),
        ("[sh, -c, 'kill -9 $$']", 137),
        ("no-such-program", 127),
        ("/etc/passwd", 126),
    ] {
        let said = run.run(&format!("command: {command}"));
        assert_eq!(said.code, code, "{command}: {said:?}");
    }
    assert!(run.run("command: no-such-program").err.contains("command not found: no-such-program"));
    assert!(run.is_clean());
}

#[test]
fn it_speaks_on_the_callers_terminal_inside_the_same_box() {
    let run = Foreground::new();
    let said = run.run("cpu: 1\nmemory: 64Mi\nenv: {A: b}\ncommand: [sh, -c, 'echo out; echo err >&2; echo $A; hostname; touch /etc/x 2>/dev/null || echo ro']");
    assert_eq!((said.out.as_str(), said.err.as_str(), said.code), ("out\nb\ntask\nro\n", "err\n", 0));
    let (mut child, command) = run.spawn("cpu: 500m\nmemory: 64Mi\npids: 20\ncommand: sleep infinity");
    let group = run.group(&child);
    assert_eq!((kernel::cpu_milli(&group), kernel::memory_bytes(&group)), (Some(500), 64 << 20));
    assert_ne!(kernel::namespace(&command.to_string(), "pid"), kernel::namespace("self", "pid"));
    signal(child.id(), Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(143), "the command ended by the signal that was passed on");
    assert!(run.is_clean());
}

#[test]
fn a_command_that_ignores_signals_is_killed_when_its_grace_is_over() {
    let run = Foreground::new();
    for ending in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let (mut child, command) = run.spawn_deaf("700ms", None);
        signal(child.id(), Signal::SIGUSR1);
        std::thread::sleep(Duration::from_millis(900));
        assert!(kernel::is_alive(command), "SIGUSR1 does not ask it to end");
        let asked = Instant::now();
        signal(child.id(), ending);
        assert_eq!(exit_code(&mut child), 137, "{ending}");
        assert!(asked.elapsed() >= Duration::from_millis(700), "{ending}: its grace was {:?}", asked.elapsed());
        assert!(!kernel::is_alive(command), "{ending}");
    }
    assert!(run.is_clean());
}

#[test]
fn a_second_signal_is_not_waited_for_but_a_second_hangup_is_no_signal_of_impatience() {
    let run = Foreground::new();
    let (mut child, command) = run.spawn_deaf("1h", None);
    signal(child.id(), Signal::SIGTERM);
    signal(child.id(), Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(500));
    signal(child.id(), Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(500));
    assert!(kernel::is_alive(command), "it still has its grace");
    signal(child.id(), Signal::SIGINT);
    assert_eq!(exit_code(&mut child), 137);
    assert!(run.is_clean());
}

#[test]
fn what_a_terminal_sends_begins_the_grace_too() {
    let run = Foreground::new();
    let mut terminal = Terminal::new();
    let (mut child, command) = run.spawn_deaf("500ms", Some(&terminal));
    terminal.master.write_all(b"\x03").unwrap();
    assert_eq!(exit_code(&mut child), 137);
    assert!(!kernel::is_alive(command));
    assert!(run.is_clean());
}

#[test]
fn killing_it_takes_the_command_along_and_the_next_run_cleans_up() {
    let run = Foreground::new();
    let (mut child, command) =
        run.spawn("command: [sh, -c, 'trap \"\" TERM HUP; sleep infinity & wait; sleep infinity']");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the command died with it", || !kernel::is_alive(command));
    let said = run.run("command: 'true'");
    assert_eq!(said.code, 0, "{said:?}");
    assert!(run.is_clean());
}

#[test]
fn killing_it_at_any_moment_leaves_nothing_running() {
    let run = Foreground::new();
    let manifest = run.manifest("command: sleep 100000");
    for delay_us in (0..12_000).step_by(300) {
        let mut child = run.command(&manifest).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(delay_us));
        child.kill().unwrap();
        child.wait().unwrap();
        let group = run.group(&child);
        eventually("nothing runs", || kernel::processes(&group).is_empty());
    }
    assert_eq!(run.run("command: 'true'").code, 0);
    assert!(run.is_clean());
}

#[test]
fn the_example_of_the_teaching_runtime_runs_as_it_is() {
    let run = Foreground::new();
    let example = in_repository("examples/basic.yaml");
    let mut child = run.command(&example).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let group = format!("/{}/{}/basic.workload", run.parent, child.id());
    eventually("stress runs with its workers", || kernel::processes(&group).len() == 4);
    let environments: Vec<_> = kernel::processes(&group).into_iter().map(kernel::environment).collect();
    assert!(
        environments.iter().any(|set| set.iter().any(|variable| variable.starts_with("CUDA_VISIBLE_DEVICES=GPU-")))
    );
    signal(child.id(), Signal::SIGTERM);
    let mut errors = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut errors).unwrap();
    child.wait().unwrap();
    assert!(errors.contains("simulating 1x16Gi"), "a pretended GPU has to be said: {errors}");
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_run() {
    let run = Foreground::new();
    for (text, word) in [
        ("command: [", "task.yaml:1:10"),
        ("name: a\ncommand: x\n---\nname: b\ncommand: y", "2 workloads, expected one"),
        ("command: x\nreplicas: 3", "replicas: run starts one: "),
        ("command: x\nreplicas: 3", "help: take `replicas` out of the file"),
        ("command: 'true'\nsuspend: true", "suspend: "),
        ("command: 'true'\nsuspend: true", "help: write `suspend: false`"),
        ("command: 'true'\nhosts: {hostname: not.this}", "is for hosts with hostname=not.this; this one has hostname="),
        ("command: 'true'\nhosts: {role: gpu}", "this one has no label role\n  help: take `hosts` out"),
        ("command: x\ngpu: 9", "no room: 9 whole GPUs"),
        ("command: x\nmemory: {request: 900Ti}", "no room: memory.request"),
        ("command: x\nworkdir: /no/such/folder", "cannot enter workdir /no/such/folder"),
    ] {
        let said = run.run(text);
        assert!(said.code == 125 || said.code == 126, "{text:?}: {said:?}");
        assert!(said.err.contains(word), "{text:?}: {said:?}");
    }
    assert!(run.is_clean());
}

#[test]
fn what_only_a_controller_does_is_said_in_a_line_each() {
    let run = Foreground::new();
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let said = |text: &str| {
        let said = run.run(text);
        assert_eq!(said.code, 0, "{said:?}");
        said.err
    };
    let job = "kind: job\ncommand: 'true'\nafter: [db]\nretries: 2\nrestart: on-failure\nschedule: '@daily'\n";
    assert_eq!(
        said(job),
        "containerctl: warning: after is kept by the controller: a run in the foreground waits for nothing\n\
         containerctl: warning: restart is kept by the controller: a run in the foreground ends with its command\n\
         containerctl: warning: retries is kept by the controller: a run in the foreground is tried once\n\
         containerctl: warning: schedule is kept by the controller: a run in the foreground starts now, once\n"
    );
    let service = "command: 'true'\nreplicas: 1\nstrategy: rolling\nrestart: {maxDelay: 5s}\n";
    assert_eq!(
        said(service),
        "containerctl: warning: restart is kept by the controller: a run in the foreground ends with its command\n\
         containerctl: warning: strategy is for updates by a controller: a run in the foreground has none\n"
    );
    // Nothing is left out of these.
    let plain = format!("command: 'true'\nrestart: never\nreplicas: 1\nhosts: {{hostname: {}}}\n", hostname.trim_end());
    assert_eq!(said(&plain) + &said("command: 'true'"), "");
    assert!(run.is_clean());
}
