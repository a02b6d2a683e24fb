//! `containerctl exec` and a real terminal: the caller has one of the host's, the command one of its box's.

use super::kernel;
use super::world::{PATIENCE, PROGRAM, World, eventually, eventually_or, signal};
use nix::sys::signal::Signal;
use rustix::fs::fstat;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SIZE: Winsize = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };

/// A terminal of the host's.
pub struct Terminal {
    pub master: File,
    peer: OwnedFd,
}

impl Terminal {
    pub fn new() -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&master).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let peer = ioctl_tiocgptpeer(&master, flags).unwrap();
        tcsetwinsize(&master, SIZE).unwrap();
        Terminal { master: master.into(), peer }
    }

    pub fn stdio(&self) -> Stdio {
        self.peer.try_clone().unwrap().into()
    }

    /// What the caller's shell would find.
    fn settings(&self) -> Termios {
        tcgetattr(&self.peer).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self.settings().local_modes.contains(LocalModes::ICANON)
    }
}

/// Somebody at that terminal, in a session that it controls, who has called the program.
struct Caller {
    terminal: Terminal,
    before: Termios,
    child: Child,
    seen: Arc<Mutex<String>>,
}

impl Caller {
    fn exec(world: &World, options: &[&str], words: &[&str]) -> Caller {
        Caller::exec_with(world, options, words, None)
    }

    /// With an input that is no terminal, it has none that controls it either.
    fn exec_with(world: &World, options: &[&str], words: &[&str], input: Option<Stdio>) -> Caller {
        let terminal = Terminal::new();
        let before = terminal.settings();
        let mut command = Command::new("setsid");
        command.args(input.is_none().then_some("--ctty")).args([PROGRAM, "exec", "web"]).args(options);
        command.arg("--runtime-dir").arg(world.path("run")).arg("--").args(words).env("TERM", "vt220");
        command.stdin(input.unwrap_or_else(|| terminal.stdio())).stdout(terminal.stdio()).stderr(terminal.stdio());
        let child = command.spawn().unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut reader, told) = (terminal.master.try_clone().unwrap(), Arc::clone(&seen));
        // Ends with the test: the terminal stays open until then.
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(len) = reader.read(&mut piece) {
                told.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..len]));
            }
        });
        Caller { terminal, before, child, seen }
    }

    fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    fn types(&mut self, text: &str) {
        self.terminal.master.write_all(text.as_bytes()).unwrap();
    }

    fn sees(&self, text: &str) {
        eventually_or(|| self.seen().contains(text), || format!("{text:?} is not in {:?}", self.seen()));
    }

    /// Types a line, and waits for what it prints; `text` must not be in the line itself, which is echoed.
    fn answers(&mut self, line: &str, text: &str) {
        self.seen.lock().unwrap().clear();
        self.types(&format!("{line}\r"));
        self.sees(text);
    }

    /// Its exit code, and whether the terminal is as it was found.
    fn ends(&mut self) -> i32 {
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "it does not end: {:?}", self.seen());
            std::thread::sleep(Duration::from_millis(10));
        }
        let (now, before) = (self.terminal.settings(), &self.before);
        assert_eq!(format!("{now:?}"), format!("{before:?}"), "the terminal is not as it was");
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn world() -> World {
    let world = World::running();
    world.put("web.yaml", "user: \"33:33\"\ncommand: sleep 1000\nstop: {grace: 1s}");
    world.wait_running("web");
    world
}

/// An interactive shell, told apart from what is echoed by its prompt.
fn shell(world: &World) -> Caller {
    let caller = Caller::exec(world, &[], &["env", "PS1=ready>", "bash", "--norc", "--noprofile", "-i"]);
    caller.sees("ready>");
    caller
}

/// Whether a process of the workload sleeps this long.
fn sleeps(world: &World, seconds: &str) -> bool {
    let line = |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    kernel::processes(&world.group("web")).iter().any(|pid| line(pid) == format!("sleep\0{seconds}\0").into_bytes())
}

#[test]
fn the_terminal_is_the_boxes_own_and_the_hosts_is_out_of_reach() {
    let world = world();
    let script = "tty; stat -Lc 'owner %u device %d' /proc/self/fd/[012]; stty size; echo $TERM; (: <>/dev/tty) && echo own; exit 7";
    let mut caller = Caller::exec(&world, &[], &["sh", "-c", script]);
    assert_eq!(caller.ends(), 7);
    caller.sees("own");
    let seen = caller.seen().replace('\r', "");
    let host = fstat(&caller.terminal.peer).unwrap().st_dev;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!((lines.len(), lines[0]), (7, "/dev/pts/0"), "{seen}");
    for line in &lines[1..4] {
        assert!(line.starts_with("owner 33 device ") && !line.ends_with(&format!(" {host}")), "{line}, host {host}");
    }
    assert_eq!(&lines[4..], ["30 100", "vt220", "own"]);
    assert_eq!(std::fs::read_dir(world.path("run").join("run")).map_or(0, Iterator::count), 0, "nothing is left");
}

#[test]
fn without_one_no_stream_is_a_terminal_and_what_is_shown_is_carried() {
    let world = world();
    let script =
        "tty; cat; echo to >&2; readlink /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2; (: <>/dev/tty) || echo none";
    let mut caller = Caller::exec(&world, &["-T"], &["sh", "-c", script]);
    assert_eq!(caller.ends(), 0);
    caller.sees("none");
    let seen = caller.seen().replace('\r', "");
    assert!(seen.starts_with("not a tty\n") && seen.contains("to\n"), "{seen}");
    assert!(!seen.contains("/dev/pts") && seen.contains("\n/dev/null\npipe:["), "{seen}");
    // Only its input is something else: that is handed over, and the terminal still is not.
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"from a pipe\n").unwrap();
    drop(writer);
    let mut caller = Caller::exec_with(&world, &[], &["sh", "-c", script], Some(reader.into()));
    assert_eq!(caller.ends(), 0);
    caller.sees("none");
    let seen = caller.seen().replace('\r', "");
    assert!(seen.contains("from a pipe\n") && !seen.contains("/dev/pts"), "{seen}");
}

#[test]
fn its_size_follows_the_callers() {
    let world = world();
    let mut caller = shell(&world);
    caller.answers("stty size", "30 100");
    tcsetwinsize(&caller.terminal.master, Winsize { ws_row: 50, ws_col: 132, ..SIZE }).unwrap();
    // The kernel tells the caller, the caller the box.
    eventually("it has the new size", || {
        let output = Command::new(PROGRAM)
            .args(["exec", "web", "--runtime-dir"])
            .arg(world.path("run"))
            .args(["--", "stty", "-F", "/dev/pts/0", "size"])
            .stdin(Stdio::null())
            .output();
        output.unwrap().stdout == b"50 132\n"
    });
    caller.answers("stty size; exit 0", "50 132");
    assert_eq!(caller.ends(), 0);
}

#[test]
fn an_interrupt_ends_the_job_in_front_alone_and_jobs_can_be_stopped() {
    let world = world();
    let mut caller = shell(&world);
    caller.answers("sleep 2001 & set -o | grep monitor", "on");
    eventually("the job behind runs", || sleeps(&world, "2001"));
    caller.types("sleep 2002\r");
    eventually("the job in front runs", || sleeps(&world, "2002"));
    assert!(caller.terminal.is_raw());
    caller.types("\x03");
    eventually("the job in front has ended", || !sleeps(&world, "2002"));
    caller.answers("echo code=$?", "code=130");
    assert!(sleeps(&world, "2001"), "the job behind goes on");
    caller.types("sleep 2003\r");
    eventually("the next job runs", || sleeps(&world, "2003"));
    caller.answers("\x1a", "Stopped");
    caller.answers("jobs -r", "sleep 2001");
    assert!(caller.child.try_wait().unwrap().is_none(), "the caller goes on");
    caller.answers("kill %1 %2; kill -CONT %2; wait; echo en''ded", "ended");
    caller.types("exit 3\r");
    assert_eq!(caller.ends(), 3);
}

#[test]
fn the_callers_terminal_is_put_back_however_it_ends() {
    let world = world();
    let begin = || {
        let caller = Caller::exec(&world, &[], &["sh", "-c", "trap '' TERM; echo up; sleep 2004"]);
        caller.sees("up");
        eventually("it is raw meanwhile", || caller.terminal.is_raw());
        caller
    };
    let mut caller = begin();
    signal(caller.child.id(), Signal::SIGTERM);
    assert_eq!(caller.ends(), 143, "even if the command takes no notice");
    eventually("the line was lost, so it ended", || !sleeps(&world, "2004"));
    let mut caller = begin();
    signal(caller.child.id(), Signal::SIGHUP);
    assert_eq!(caller.ends(), 129);
    let mut caller = begin();
    world.delete("web.yaml");
    assert_eq!(caller.ends(), 137, "it ends with the workload");
}

#[test]
fn a_caller_that_is_killed_hangs_up() {
    let world = world();
    let mut caller = Caller::exec(&world, &[], &["sh", "-c", "echo up; sleep 2005"]);
    caller.sees("up");
    eventually("it runs", || sleeps(&world, "2005"));
    caller.child.kill().unwrap();
    caller.child.wait().unwrap();
    eventually("the command has ended", || kernel::processes(&world.group("web")).len() == 2);
}

#[test]
fn much_output_arrives_whole() {
    let world = world();
    let mut caller = Caller::exec(&world, &[], &["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; printf 'y%s' z"]);
    assert_eq!(caller.ends(), 0);
    caller.sees("yz");
    assert_eq!(caller.seen().len(), 1_000_002);
    // Forced upon a caller without one, its input ends where the caller's does.
    let mut command = Command::new(PROGRAM);
    command.args(["exec", "web", "-t", "--runtime-dir"]).arg(world.path("run")).args([
        "--",
        "sh",
        "-c",
        "tty; stty -echo; cat; exit 4",
    ]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(out.contains("/dev/pts/0\r\n") && out.contains("typed\r\n"), "{out:?}");
    assert_eq!(output.status.code(), Some(4));
}
