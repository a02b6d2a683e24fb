//! Disks that are full, read-only or damaged: what runs goes on, the controller says what is wrong, and mends it when it can.
//!
//! The small disks are mounted in the controller's own mount namespace and are reached through `/proc/PID/root`, so nothing of them is
//! left on the machine.

mod folders;

use super::kernel;
use super::world::{World, eventually, eventually_or, signal};
use nix::sys::signal::Signal;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// A controller with file systems of its own for some of its folders.
struct Host {
    world: World,
}

impl Host {
    /// `mounts` are folders and their size in bytes.
    fn with(mounts: &[(&str, u32)]) -> Host {
        let mut host = Host { world: World::new() };
        host.start(mounts, "true");
        host
    }

    /// `then` is done in the controller's mount namespace before it starts.
    fn start(&mut self, mounts: &[(&str, u32)], then: &str) {
        let mount = |(folder, bytes): &(&str, u32)| {
            fs::create_dir_all(self.world.path(folder)).unwrap();
            format!("mount -t tmpfs -o mode=700,size={bytes} tmpfs {} && ", self.world.path(folder).display())
        };
        let mounts: String = mounts.iter().map(mount).collect();
        self.world.start_after(&format!("exec unshare --mount sh -c '{mounts}{then} && exec \"$@\"' sh \"$@\""));
    }

    /// A path as the controller sees it.
    fn inside(&self, path: &str) -> PathBuf {
        let path = self.world.path(path);
        PathBuf::from(format!("/proc/{}/root", self.world.controller_pid())).join(path.strip_prefix("/").unwrap())
    }

    /// Writes into a folder until nothing more fits.
    fn fill(&self, folder: &str) {
        let mut file = fs::File::create(self.inside(folder).join("filler")).unwrap();
        for chunk in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![b'x'; chunk]).is_ok() {}
        }
    }

    fn make_room(&self, folder: &str) {
        fs::remove_file(self.inside(folder).join("filler")).unwrap();
    }

    /// Starts it with an ext4 of its own for a folder, which is to fail later.
    fn failing_ext4(&mut self, image: &Path, folder: &Path) -> FailingDisk {
        fs::File::create(image).unwrap().set_len(16 << 20).unwrap();
        assert!(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(image).status().unwrap().success());
        self.start(&[], &format!("mount -o loop,errors=remount-ro {} {}", image.display(), folder.display()));
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.world.controller_pid())).unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == folder.to_str()).unwrap();
        FailingDisk { device: line.split(' ').next().unwrap().trim_start_matches("/dev/").to_owned() }
    }

    /// Puts another disk in the place of one.
    fn mount_over(&self, folder: &str) {
        let pid = self.world.controller_pid().to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-m", "mount", "-t", "tmpfs", "-o", "mode=700,size=4m", "tmpfs"]);
        assert!(command.arg(self.world.path(folder)).status().unwrap().success());
    }

    fn converged(&self) -> super::world::Said {
        self.world.ctl(&["wait", "--for", "converged", "--timeout", "300ms"])
    }

    /// Waits until the trouble is told where people look, with what to do about it.
    fn wait_told(&self, words: &str) {
        let told = || self.world.log().contains("the state cannot be saved");
        eventually_or(told, || self.world.log());
        let said = self.converged();
        for text in [&said.err, &self.world.log()] {
            assert!(text.contains(words) && text.contains("help: "), "{text}");
        }
    }

    fn wait_mended(&self) {
        eventually_or(|| self.world.log().contains("the state is saved again"), || self.world.log());
        eventually_or(|| self.converged().code == 0, || format!("{:?}", self.converged()));
    }
}

struct FailingDisk {
    device: String,
}

impl FailingDisk {
    /// As ext4 does when the disk gives it nonsense.
    fn fail(&self) {
        fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", self.device), "test").unwrap();
    }
}

/// Everything there is to go wrong with a state folder that takes nothing, until `mend`.
fn lives_through(host: &mut Host, spoil: impl Fn(&Host), mend: impl Fn(&Host), words: &str) {
    let count = host.world.path("scratch");
    fs::create_dir_all(&count).unwrap();
    let job = |text: &str| {
        let volume = format!("volumes: [{{source: {}, target: /mnt}}]", count.display());
        format!("kind: job\n{volume}\ncommand: [sh, -c, '{text}']")
    };
    host.world.put("web.yaml", "cpu: 1\ncommand: sleep infinity");
    host.world.put("dies.yaml", "restart: {initialDelay: 10ms}\ncommand: sleep infinity");
    host.world.put("goes.yaml", "command: sleep infinity");
    host.world.put("job.yaml", &job("until [ -e /mnt/go ]; do sleep 0.05; done; echo ran >> /mnt/ran"));
    let pids = ["web", "dies", "goes", "job"].map(|name| host.world.wait_running(name));
    eventually("all is settled", || host.converged().code == 0);
    spoil(host);

    // Each is something to remember.
    let world = &host.world;
    world.put("web.yaml", "cpu: 300m\ncommand: sleep infinity");
    eventually("it is resized", || kernel::cpu_milli(&world.group("web")) == Some(300));
    host.wait_told(words);
    signal(pids[1], Signal::SIGKILL);
    let again = world.wait_status("dies", |status| status["phase"] == "Running" && status["pid"] != pids[1]);
    assert_eq!(again["lastExit"]["code"], 137);
    world.delete("goes.yaml");
    let gone = || !kernel::is_alive(pids[2]) && kernel::directories(&world.group("goes")).is_empty();
    eventually("it is stopped", gone);
    fs::write(count.join("go"), "").unwrap();
    world.wait_phase("job", "Completed");
    assert_eq!(world.wait_running("web"), pids[0]);
    let told = |status: &serde_json::Value| status["conditions"].to_string().contains("NotSaved");
    world.wait_status("web", told);
    let shown = world.ctl(&["ps"]).out;
    assert!(shown.contains("kept in memory only") && shown.contains(words), "{shown}");

    // A controller that starts meanwhile knows what runs and what is not to run again.
    let dies = world.wait_running("dies");
    mend(host);
    host.wait_mended();
    let world = &host.world;
    world.wait_status("web", |status| !told(status));
    world.wait_gone("goes");
    assert_eq!((world.wait_running("web"), world.wait_running("dies")), (pids[0], dies));
    assert_eq!(fs::read_to_string(count.join("ran")).unwrap(), "ran\n", "the job has run again");
}

/// After the state folder's trouble all is there for the next controller.
fn is_saved(host: &mut Host) {
    let (web, dies) = (host.world.wait_running("web"), host.world.wait_running("dies"));
    let restarts = host.world.status("dies")["restarts"].clone();
    // The file system is the namespace's, which ends with the last process in it: the copy is what the next controller gets.
    let kept = host.inside("state/db");
    let copied = Command::new("cp").arg("-a").arg(kept).arg(host.world.path("db")).status().unwrap();
    assert!(copied.success());
    host.world.kill_controller();
    fs::create_dir_all(host.world.path("state")).unwrap();
    fs::rename(host.world.path("db"), host.world.path("state/db")).unwrap();
    host.world.start(&[]);
    assert_eq!((host.world.wait_running("web"), host.world.wait_running("dies")), (web, dies));
    assert_eq!(host.world.phase("job"), "Completed");
    assert_eq!(host.world.status("dies")["restarts"], restarts);
    let ran = fs::read_to_string(host.world.path("scratch/ran")).unwrap();
    assert_eq!(ran, "ran\n", "the job has run again");
}

#[test]
fn a_full_state_folder_stops_nothing_forgets_nothing_and_is_mended_by_room() {
    let mut host = Host::with(&[("state", 4 << 20)]);
    let spoil = |host: &Host| {
        host.fill("state");
        // More than the rest of the last segment of the database has room for.
        let text = "x".repeat(100_000);
        host.world.put("big.yaml", &format!("command: sleep infinity\nenv: {{TEXT: {text}}}"));
        host.world.wait_running("big");
    };
    lives_through(&mut host, spoil, |host| host.make_room("state"), "No space left on device");
    is_saved(&mut host);
}

#[test]
fn a_disk_that_fails_and_turns_read_only_stops_nothing_and_is_mended_by_another() {
    let mut host = Host { world: World::new() };
    let (image, state) = (host.world.path("image"), host.world.path("state"));
    fs::create_dir(&state).unwrap();
    let disk = host.failing_ext4(&image, &state);
    let spoil = |_: &Host| disk.fail();
    let mend = |host: &Host| host.mount_over("state");
    lives_through(&mut host, spoil, mend, "Read-only file system");
    is_saved(&mut host);
}

#[test]
fn a_controller_starts_on_a_full_disk_with_all_it_knew() {
    let mut host = Host { world: World::new() };
    host.start(&[], "true");
    host.world.put("web.yaml", "command: sleep infinity");
    host.world.put("job.yaml", "kind: job\ncommand: [sh, -c, 'exit 0']");
    let web = host.world.wait_running("web");
    host.world.wait_phase("job", "Completed");
    host.world.stop_controller();
    let state = host.world.path("state");
    // The same folder on a disk of its own without room, and then on one that is read-only.
    let move_in = format!("cp -a {0} {0}.kept && mount -t tmpfs -o mode=700,size=4m tmpfs {0}", state.display());
    let full = format!("{move_in} && cp -a {0}.kept/. {0} && ! cat /dev/zero 2>/dev/null >{0}/filler", state.display());
    let again = format!("rm -r {0}.kept && {full} && mount -o remount,ro {0}", state.display());
    for (script, words) in [(full, "No space left on device"), (again, "Read-only file system")] {
        host.start(&[], &script);
        host.wait_told(words);
        assert_eq!(host.world.wait_running("web"), web);
        host.world.put("later.yaml", "command: sleep infinity");
        host.world.wait_status("later", |status| !status.is_null());
        assert_eq!(host.world.phase("job"), "Completed");
        assert!(!host.world.path("run/state-copy").exists());
        host.mount_over("state");
        host.wait_mended();
        host.world.wait_running("later");
        assert_eq!((host.world.wait_running("web"), host.world.phase("job").as_str()), (web, "Completed"));
        host.world.delete("later.yaml");
        host.world.wait_gone("later");
        host.world.kill_controller();
        fs::write(host.world.path("log"), "").unwrap();
    }
}

#[test]
fn a_consent_that_no_disk_takes_is_refused_and_deletes_nothing() {
    let host = Host::with(&[("state", 8 << 20)]);
    let (world, names) = (&host.world, ["a", "b", "c", "d", "e"]);
    for name in names {
        world.put(&format!("{name}.yaml"), "command: sleep infinity");
    }
    let before = names.map(|name| world.wait_running(name));
    for name in names {
        world.delete(&format!("{name}.yaml"));
    }
    let held = || world.ctl(&["ps"]).out.matches("containerctl approve").count() == names.len();
    eventually("all are held", held);
    host.fill("state");
    // More than the rest of the last segment of the database has room for.
    world.put("big.yaml", &format!("command: sleep infinity\nenv: {{TEXT: {}}}", "x".repeat(100_000)));
    host.wait_told("No space left on device");
    let said = world.ctl(&["approve"]);
    assert!(
        said.code != 0 && said.err.contains("nothing is deleted") && said.err.contains("help: make room"),
        "{said:?}"
    );
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(names.map(|name| world.wait_running(name)), before);
    host.make_room("state");
    eventually("it is taken", || world.ctl(&["approve"]).code == 0);
    for name in names {
        world.wait_gone(name);
    }
}

#[test]
fn a_log_folder_that_cannot_be_made_keeps_only_that_workload_and_only_that_long() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    let web = world.wait_running("web");
    // In the way of a folder of that name.
    fs::write(world.path("state/logs/new"), "").unwrap();
    world.put("new.yaml", "command: sleep infinity");
    let status = world.wait_status("new", |status| status["conditions"].to_string().contains("StepFailed"));
    assert!(status["conditions"].to_string().contains("state/logs/new"), "{status:#}");
    assert_eq!(world.wait_running("web"), web);
    fs::remove_file(world.path("state/logs/new")).unwrap();
    world.wait_running("new");
}

type Damage = fn(&mut Vec<u8>);

#[test]
fn damage_to_any_file_of_the_database_costs_no_process() {
    let mut world = World::running();
    for name in ["a", "b", "c"] {
        world.put(&format!("{name}.yaml"), &format!("command: sleep infinity\nenv: {{TEXT: {}}}", "x".repeat(20_000)));
    }
    let pids = ["a", "b", "c"].map(|name| world.wait_running(name));
    let damages: [(&str, Damage); 3] = [
        ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
        ("zeroed", |bytes| bytes.fill(0)),
        ("flipped", |bytes| bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x10)),
    ];
    for (how, damage) in damages {
        for victim in ["db", "conf", "blobs/"] {
            assert_eq!(world.stop_controller(), 0);
            let folder = world.path("state/db");
            let listing = fs::read_dir(&folder).unwrap().chain(fs::read_dir(folder.join("blobs")).unwrap());
            let paths = listing.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
            let prefix = folder.join(victim).display().to_string();
            let mut hit = 0;
            for path in paths.filter(|path| path.display().to_string().starts_with(&prefix)) {
                let mut bytes = fs::read(&path).unwrap();
                damage(&mut bytes);
                fs::write(path, bytes).unwrap();
                hit += 1;
            }
            assert!(hit > 0, "nothing was {how}: there is no {victim}");
            fs::write(world.path("log"), "").unwrap();
            world.start(&[]);
            for (name, pid) in ["a", "b", "c"].iter().zip(pids) {
                assert_eq!(world.wait_running(name), pid, "{victim} {how} ({hit} files): {name} was started again");
            }
            let log = world.log();
            assert!(!log.contains("panicked"), "{log}");
            if victim == "conf" && how == "zeroed" {
                let named = log.split_once("was set aside as ").and_then(|(_, rest)| rest.split_once(';'));
                assert!(named.is_some_and(|(folder, _)| fs::metadata(folder).unwrap().is_dir()), "{log}");
            }
        }
    }
}

/// A small disk that is there while no controller lives.
struct Held {
    holder: Child,
    /// Its folder as we see it.
    inside: PathBuf,
    /// What a controller's shell does to see it.
    join: String,
}

fn hold(folder: &Path, size: &str) -> Held {
    fs::create_dir_all(folder).unwrap();
    let script = format!("mount -t tmpfs -o mode=700,size={size} tmpfs {} && exec sleep 1000", folder.display());
    let holder = Command::new("unshare").args(["--mount", "sh", "-c", &script]).spawn().unwrap();
    let inside = PathBuf::from(format!("/proc/{}/root", holder.id())).join(folder.strip_prefix("/").unwrap());
    let mounted = || fs::read_to_string(format!("/proc/{}/mounts", holder.id())).unwrap_or_default();
    eventually("it is mounted", || mounted().contains(folder.to_str().unwrap()));
    let join = format!("exec nsenter -t {} -m \"$@\"", holder.id());
    Held { holder, inside, join }
}

#[test]
fn a_scheduled_run_that_a_full_disk_keeps_from_being_saved_is_not_made_twice() {
    let mut host = Host { world: World::new() };
    let Held { mut holder, inside, join } = hold(&host.world.path("state"), "4m");
    host.world.start_after(&join);
    let count = host.world.path("scratch");
    fs::create_dir_all(&count).unwrap();
    // Once, in some seconds; the next time is tomorrow's.
    let soon = Command::new("date").args(["-u", "-d", "+10 seconds", "+%-S %-M %-H * * *"]).output().unwrap();
    let cron = String::from_utf8(soon.stdout).unwrap();
    let job = format!(
        "kind: job\nschedule: '{}'\nvolumes: [{{source: {}, target: /mnt}}]\ncommand: [sh, -c, 'echo ran >> /mnt/ran']",
        cron.trim(),
        count.display()
    );
    host.world.put("job.yaml", &job);
    host.world.wait_status("job", |status| status["conditions"].to_string().contains("Scheduled"));
    let mut filler = fs::File::create(inside.join("filler")).unwrap();
    while filler.write_all(&[b'x'; 512]).is_ok() {}
    drop(filler);
    // More than the rest of the last segment of the database has room for.
    let text = "x".repeat(100_000);
    host.world.put("big.yaml", &format!("command: sleep infinity\nenv: {{TEXT: {text}}}"));
    let big = host.world.wait_running("big");
    let ran = || fs::read_to_string(count.join("ran")).unwrap_or_default();
    let over = |status: &serde_json::Value| {
        status["lastExit"]["code"] == 0 && status["conditions"].to_string().contains("the last one: exited with code 0")
    };
    eventually("it has run", || ran() == "ran\n");
    host.world.wait_status("job", |status| status["lastExit"]["code"] == 0);
    host.wait_told("No space left on device");
    host.world.kill_controller();
    host.world.start_after(&join);
    assert_eq!(host.world.wait_running("big"), big);
    host.world.wait_status("job", |status| status["lastExit"]["code"] == 0);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(ran(), "ran\n", "it has run again");
    fs::remove_file(inside.join("filler")).unwrap();
    host.world.wait_status("job", over);
    host.world.kill_controller();
    host.world.start_after(&join);
    host.world.wait_status("job", over);
    assert_eq!(ran(), "ran\n", "it has run again");
    host.world.kill_controller();
    holder.kill().unwrap();
    holder.wait().unwrap();
}
