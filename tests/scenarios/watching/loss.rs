//! The folder, or word of it, lost: what runs goes on, and the folder is taken up again when it is back.

use super::{running, sleeper, soon, soon_cpu, soon_running, tool, watching};
use crate::world::{World, signal};
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A controller whose manifests lie in a tmpfs that only it sees, and the folder as it sees it.
fn on_tmpfs() -> (World, PathBuf) {
    let mut world = World::new();
    let manifests = world.manifests();
    let mount = format!("mount -t tmpfs -o mode=755 manifests {}", manifests.display());
    world.start_in_own_mounts(&mount, &["--resync", "1h"]);
    let seen = seen_by(&world, &manifests);
    (world, seen)
}

pub fn seen_by(world: &World, path: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", world.controller_pid(), path.display()))
}

pub fn in_its_mounts(world: &World, program: &str, args: &[&str]) {
    let pid = world.controller_pid().to_string();
    tool("nsenter", &[&["-t", pid.as_str(), "-m", program], args].concat(), Path::new("/"));
}

#[test]
fn umount_of_the_file_system_that_held_the_folder() {
    let (world, manifests) = on_tmpfs();
    for name in ["a", "b"] {
        fs::write(manifests.join(format!("{name}.yaml")), sleeper(500)).unwrap();
    }
    let before = soon_running(&world, "both run", &["a", "b"]);
    let path = world.manifests().display().to_string();
    in_its_mounts(&world, "umount", &["--lazy", &path]);
    soon(&world, "the loss is told", || world.log().contains("is another one than before, and holds no manifest"));
    sleep(Duration::from_secs(2));
    assert_eq!(running(&world), before);
    assert_eq!(world.ctl(&["wait", "--for", "converged", "--timeout", "300ms"]).code, 1);
    in_its_mounts(&world, "mount", &["-t", "tmpfs", "-o", "mode=755", "manifests", &path]);
    let [a, b] = ["a", "b"].map(|name| manifests.join(format!("{name}.yaml")));
    fs::write(a, sleeper(300)).unwrap();
    fs::write(b, sleeper(500)).unwrap();
    soon_cpu(&world, "a", 300);
    sleep(Duration::from_secs(2));
    assert_eq!(running(&world), before);
}

#[test]
fn a_folder_that_is_deleted_and_made_anew() {
    let world = watching();
    for name in ["a", "b"] {
        world.put(&format!("{name}.yaml"), &sleeper(500));
    }
    let before = soon_running(&world, "both run", &["a", "b"]);
    // With the folder that holds it, too.
    fs::remove_dir_all(world.manifests()).unwrap();
    soon(&world, "the loss is told", || world.log().contains("cannot read the manifests folder"));
    sleep(Duration::from_secs(2));
    assert_eq!(running(&world), before);
    fs::create_dir(world.manifests()).unwrap();
    sleep(Duration::from_secs(2));
    assert_eq!(running(&world), before, "an empty folder in its place is no wish");
    world.put("a.yaml", &sleeper(300));
    world.put("b.yaml", &sleeper(500));
    soon_cpu(&world, "a", 300);
    assert_eq!(running(&world), before);
    fs::remove_file(world.manifests().join("b.yaml")).unwrap();
    soon_running(&world, "a deletion in the folder that came back", &["a"]);
}

#[test]
fn a_folder_that_is_away_when_the_controller_starts() {
    let mut world = watching();
    world.put("a.yaml", &sleeper(500));
    let before = soon_running(&world, "it runs", &["a"]);
    world.kill_controller();
    fs::rename(world.manifests(), world.path("away")).unwrap();
    world.start(&["--resync", "1h"]);
    soon(&world, "the loss is told", || world.log().contains("cannot read the manifests folder"));
    assert_eq!(running(&world), before);
    fs::rename(world.path("away"), world.manifests()).unwrap();
    world.put("a.yaml", &sleeper(300));
    soon_cpu(&world, "a", 300);
    assert_eq!(running(&world), before);
    // A controller that remembers nothing has the wrong folder.
    let other = World::new();
    let output = other.command(&["--manifests", "/no/such/folder"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("help: mkdir -p /no/such/folder"), "{error}");
}

#[test]
fn a_full_queue_of_events_loses_no_change() {
    let world = watching();
    world.put("a.yaml", &sleeper(500));
    world.put("b.yaml", &sleeper(500));
    let before = soon_running(&world, "both run", &["a", "b"]);
    // It looks again at what it read a moment ago; from then on only the kernel's word wakes it.
    sleep(Duration::from_secs(3));
    let events_max: u32 = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    signal(world.controller_pid(), Signal::SIGSTOP);
    // Reading is no news, so that none of these wakes the loop; two files in turn, or the kernel merges an event with its neighbour.
    for n in 0..2 * events_max {
        fs::File::open(world.manifests().join(["a.yaml", "b.yaml"][n as usize % 2])).unwrap();
    }
    world.put("a.yaml", &sleeper(300));
    world.put("c.yaml", &sleeper(500));
    world.delete("b.yaml");
    signal(world.controller_pid(), Signal::SIGCONT);
    soon_cpu(&world, "a", 300);
    let after = soon_running(&world, "what the kernel did not tell", &["a", "c"]);
    assert_eq!(after["a"], before["a"]);
}

/// A controller for which the kernel has no inotify instance to spare: that many calls of inotify_init1(2) fail as they do then.
fn without_inotify(calls: &str, resync: &str) -> World {
    let mut world = World::new();
    let inject = format!("inject=inotify_init1:error=EMFILE:when={calls}");
    world.start_traced(&["-e", "trace=inotify_init1", "-e", &inject], &["--resync", resync]);
    world
}

#[test]
fn exhausted_inotify_instances_make_it_look_now_and_then() {
    let world = without_inotify("1+", "1h");
    assert!(
        world.log().contains("cannot watch for changes") && world.log().contains("max_user_instances"),
        "{}",
        world.log()
    );
    world.put("a.yaml", &sleeper(500));
    let before = soon_running(&world, "a look without an event", &["a"]);
    world.put("a.yaml", &sleeper(300));
    soon_cpu(&world, "a", 300);
    assert_eq!(running(&world), before);
}

#[test]
fn an_inotify_instance_that_becomes_free_is_taken() {
    let world = without_inotify("1..3", "500ms");
    soon(&world, "a watch", || world.log().contains("watching for changes again"));
    world.put("a.yaml", &sleeper(500));
    soon_running(&world, "it runs", &["a"]);
}

/// A FUSE file system in the controller's mount namespace, run by a process of ours.
pub struct Bindfs(Child);

impl Bindfs {
    /// Shows `source` where a controller with mounts of its own has its manifests; none where this machine has no FUSE.
    pub fn over_the_folder_of(world: &World, source: &Path) -> Option<Bindfs> {
        if !Path::new("/dev/fuse").exists() {
            println!("NOT TESTED: this machine has no /dev/fuse");
            return None;
        }
        let pid = world.controller_pid().to_string();
        let mut bindfs = Command::new("nsenter");
        bindfs.args(["-t", &pid, "-m", "bindfs", "-f", "-o", "attr_timeout=0,entry_timeout=0"]).arg(source);
        let bindfs = bindfs.arg(world.manifests()).stdin(Stdio::null()).spawn().expect("tests/run installs bindfs");
        Some(Bindfs(bindfs))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_user_space_file_system_is_polled_and_may_die() {
    let mut world = World::new();
    let source = world.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a.yaml"), sleeper(500)).unwrap();
    fs::write(source.join("b.yaml"), sleeper(500)).unwrap();
    world.start_in_own_mounts(":", &["--resync", "1h"]);
    let Some(bindfs) = Bindfs::over_the_folder_of(&world, &source) else { return };
    // Mounted over the folder, which nothing but the table of mounts tells.
    let before = soon_running(&world, "a mount over the folder", &["a", "b"]);
    // Changed behind it, which inotify does not tell.
    fs::write(source.join("a.yaml"), sleeper(300)).unwrap();
    soon_cpu(&world, "a", 300);
    drop(bindfs);
    soon(&world, "the loss is told", || world.log().contains("the manifests folder cannot be used"));
    sleep(Duration::from_secs(2));
    assert_eq!(running(&world), before);
}
