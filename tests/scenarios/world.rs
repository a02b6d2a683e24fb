//! One host under test: folders, a controller, and the means to look at both. Everything it made is gone when it is dropped.

use super::kernel;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take before a test fails: the virtual machine is emulated, and may share two busy cores.
pub const PATIENCE: Duration = Duration::from_mins(3);

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_containerctl");

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct World {
    dir: tempfile::TempDir,
    pub parent: String,
    controller: Option<Child>,
}

/// What the program printed and how it ended.
#[derive(Debug)]
pub struct Said {
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl World {
    /// Folders, and no controller yet.
    pub fn new() -> World {
        assert!(nix::unistd::geteuid().is_root(), "these tests make cgroups and namespaces: run them as root");
        let dir = tempfile::tempdir().unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let parent = format!("ctltest-{}-{number}", std::process::id());
        let world = World { dir, parent, controller: None };
        fs::create_dir(world.manifests()).unwrap();
        fs::set_permissions(world.manifests(), fs::Permissions::from_mode(0o755)).unwrap();
        world
    }

    /// Folders and a running controller.
    pub fn running() -> World {
        let mut world = World::new();
        world.start(&[]);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn manifests(&self) -> PathBuf {
        self.path("manifests")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/containerctl.sock")
    }

    /// The controller's command line.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("controller");
        for (option, path) in [("--manifests", "manifests"), ("--state", "state"), ("--runtime-dir", "run")] {
            if !more.contains(&option) {
                command.arg(option).arg(self.path(path));
            }
        }
        // How busy others keep this host is not what is tested.
        if !more.contains(&"--job-cpu-threshold") {
            command.args(["--job-cpu-threshold", "100"]);
        }
        if !more.contains(&"--simulate-gpus") {
            command.args(["--simulate-gpus", "2x16Gi"]);
        }
        command.args(["--cgroup-parent", &self.parent]).args(more);
        command.env_remove("SUDO_UID").stdin(Stdio::null());
        command
    }

    /// Starts the controller and waits until it answers.
    pub fn start(&mut self, more: &[&str]) {
        self.start_as(self.command(more));
    }

    /// Starts the controller from a shell that does something to itself first.
    pub fn start_after(&mut self, script: &str) {
        self.start_after_with(script, &[]);
    }

    /// The same, with more options.
    pub fn start_after_with(&mut self, script: &str, more: &[&str]) {
        let controller = self.command(more);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{script}; exec \"$@\""), "sh"]).arg(controller.get_program());
        command.args(controller.get_args()).env_remove("SUDO_UID").stdin(Stdio::null());
        self.start_as(command);
    }

    /// Starts the controller under strace, which lets some of its system calls fail. Its pid is the controller's all the same.
    pub fn start_traced(&mut self, strace: &[&str], more: &[&str]) {
        let controller = self.command(more);
        let mut command = Command::new("strace");
        // As a grandchild of ours, so that killing the controller is killing the controller.
        command.args(["--daemonize", "-qqq", "-o", "/dev/null"]).args(strace);
        command.arg(controller.get_program()).args(controller.get_args());
        command.env_remove("SUDO_UID").stdin(Stdio::null());
        self.start_as(command);
    }

    /// Starts the controller in a mount namespace of its own, in which a script has mounted something first.
    pub fn start_in_own_mounts(&mut self, script: &str, more: &[&str]) {
        let controller = self.command(more);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &format!("{script}; exec \"$@\""), "sh"]);
        command.arg(controller.get_program()).args(controller.get_args());
        command.env_remove("SUDO_UID").stdin(Stdio::null());
        self.start_as(command);
    }

    /// A controller that need not get as far as to answer.
    pub fn begin(&mut self, mut command: Command) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.controller = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn start_as(&mut self, command: Command) {
        self.begin(command);
        // An answer, not a connection: the socket of one that was killed may live on in a child of it for a moment.
        let ready = || self.ask("/v1/health").is_some();
        eventually_or(ready, || format!("the controller does not answer: {}", self.log()));
    }

    /// Takes over a controller that was started by hand.
    pub fn adopt(&mut self, controller: Child) {
        self.controller = Some(controller);
    }

    pub fn controller_pid(&self) -> u32 {
        self.controller.as_ref().unwrap().id()
    }

    /// `kill -9`, and reaped.
    pub fn kill_controller(&mut self) {
        let mut controller = self.controller.take().unwrap();
        controller.kill().unwrap();
        controller.wait().unwrap();
    }

    /// SIGTERM, and its exit code.
    pub fn stop_controller(&mut self) -> i32 {
        let mut controller = self.controller.take().unwrap();
        signal(controller.id(), nix::sys::signal::Signal::SIGTERM);
        controller.wait().unwrap().code().unwrap_or(-1)
    }

    /// What the controller has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Puts a manifest into the folder the way careful tools do: written aside, then renamed.
    pub fn put(&self, name: &str, text: &str) {
        let aside = self.path("aside");
        fs::write(&aside, text).unwrap();
        let target = self.manifests().join(name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::rename(aside, target).unwrap();
    }

    pub fn delete(&self, name: &str) {
        fs::remove_file(self.manifests().join(name)).unwrap();
    }

    /// Runs a verb that talks to the controller.
    pub fn ctl(&self, args: &[&str]) -> Said {
        let socket = self.socket();
        let output =
            Command::new(PROGRAM).args(args).arg("--socket").arg(socket).stdin(Stdio::null()).output().unwrap();
        output.into()
    }

    /// What the controller answers to a GET, without the cost of a program in between; none if it does not answer.
    pub fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| serde_json::from_str(body).unwrap())
    }

    /// `ps -o json`.
    pub fn ps(&self) -> Vec<Value> {
        let said = self.ctl(&["ps", "-o", "json"]);
        assert_eq!(said.code, 0, "{said:?}\n{}", self.log());
        serde_json::from_str(&said.out).unwrap()
    }

    /// What `ps` says of one workload, null if it knows none of that name.
    pub fn status(&self, name: &str) -> Value {
        self.ps().into_iter().find(|status| status["name"] == name).unwrap_or(Value::Null)
    }

    pub fn phase(&self, name: &str) -> String {
        self.status(name)["phase"].as_str().unwrap_or("").to_owned()
    }

    /// Waits until the workload is in this phase, and answers its status.
    pub fn wait_phase(&self, name: &str, phase: &str) -> Value {
        self.wait_status(name, |status| status["phase"] == phase)
    }

    /// Waits until its command runs under the latest manifest, one that was put a moment ago included; answers its pid.
    pub fn wait_running(&self, name: &str) -> u32 {
        let patience = format!("{}s", PATIENCE.as_secs());
        let said = self.ctl(&["wait", name, "--for", "running", "--timeout", &patience]);
        assert_eq!(said.code, 0, "{said:?}\n{}", self.log());
        let status = self.wait_status(name, |status| status["phase"] == "Running");
        u32::try_from(status["pid"].as_u64().unwrap()).unwrap()
    }

    pub fn wait_status(&self, name: &str, good: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.status(name);
            if good(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{name} stays {status:#}\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `ps` knows these workloads and no others.
    pub fn wait_until_known(&self, names: &std::collections::BTreeSet<String>) {
        let shown = || -> std::collections::BTreeSet<String> {
            self.ps().iter().map(|status| status["name"].as_str().unwrap().to_owned()).collect()
        };
        eventually_or(|| shown() == *names, || format!("{:?}, expected {names:?}\n{}", shown(), self.log()));
    }

    pub fn wait_gone(&self, name: &str) {
        eventually_or(|| self.status(name).is_null(), || format!("{name} is still there: {}", self.log()));
    }

    /// The workload's cgroup, below the hierarchies' roots.
    pub fn group(&self, name: &str) -> String {
        format!("/{}/{name}.workload", self.parent)
    }

    pub fn logs(&self, name: &str) -> String {
        let said = self.ctl(&["logs", name]);
        assert_eq!(said.code, 0, "{said:?}");
        said.out
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut controller) = self.controller.take() {
            let _ = controller.kill();
            let _ = controller.wait();
        }
        if std::thread::panicking() {
            println!("--- log of the controller\n{}", self.log());
        }
        clear_cgroups(&self.parent);
    }
}

/// Kills what runs below a parent group, and removes it.
pub fn clear_cgroups(parent: &str) {
    let begun = Instant::now();
    while !kernel::directories(parent).is_empty() && begun.elapsed() < Duration::from_secs(10) {
        for directory in kernel::directories(parent) {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let _ = fs::write(entry.path().join("cgroup.kill"), "1");
                for probe in ["probe-startup", "probe-readiness", "probe-liveness"] {
                    let _ = fs::remove_dir(entry.path().join(probe));
                }
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(&directory);
        }
        sleep(Duration::from_millis(10));
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { out: text(&output.stdout), err: text(&output.stderr), code: output.status.code().unwrap_or(-1) }
    }
}

/// Runs the program.
pub fn program(args: &[&str]) -> Said {
    Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().unwrap().into()
}

pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// Waits until something is so.
pub fn eventually(what: &str, good: impl Fn() -> bool) {
    eventually_or(good, || what.to_owned());
}

pub fn eventually_or(good: impl Fn() -> bool, complaint: impl Fn() -> String) {
    let begun = Instant::now();
    while !good() {
        assert!(begun.elapsed() < PATIENCE, "{}", complaint());
        sleep(Duration::from_millis(10));
    }
}

/// The path of a file of the repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
