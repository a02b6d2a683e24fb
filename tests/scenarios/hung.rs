//! File systems and workloads that do not answer: they hold up whoever needs them, and nobody else.

use super::kernel;
use super::world::{World, eventually, eventually_or, signal};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A folder behind a user-space file system that can be made to hang, and to answer again.
struct Mount {
    server: Child,
    at: PathBuf,
}

impl Mount {
    fn new(world: &World, name: &str) -> Mount {
        let (behind, at) = (world.path(&format!("{name}-behind")), world.path(name));
        for folder in [&behind, &at] {
            fs::create_dir_all(folder).unwrap();
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir(behind.join("sub")).unwrap();
        let mut bindfs = Command::new("bindfs");
        bindfs.args(["-f", "-o", "allow_other"]).args([&behind, &at]).stdout(Stdio::null());
        let server = bindfs.spawn().expect("bindfs is there");
        eventually("bindfs has mounted", || at.join("sub").exists());
        Mount { server, at }
    }

    fn hang(&self) {
        signal(self.server.id(), Signal::SIGSTOP);
    }

    fn answer(&self) {
        signal(self.server.id(), Signal::SIGCONT);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever waits for it is told that it is gone.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn manifest(field: &str, path: &Path) -> String {
    let path = path.display();
    match field {
        "rootfs" => format!("command: /bin/true\nrootfs: {path}\n"),
        // A user-space file system cannot show owners through a user namespace.
        _ => format!(
            "command: sleep infinity\nsecurity: {{userNamespace: false}}\n\
             volumes: [{{source: {path}, target: /mnt, readOnly: true}}]\n"
        ),
    }
}

/// Why it is not ready.
fn why(status: &Value) -> String {
    status["conditions"].to_string()
}

#[test]
fn a_volume_that_hangs_delays_its_own_workloads_and_no_other() {
    let mut world = World::running();
    let mount = Mount::new(&world, "far");
    world.put("ran.yaml", &manifest("volumes", &mount.at.join("sub")));
    let ran = world.wait_running("ran");
    mount.hang();
    // More than there are workers, by paths of their own, and not only by volumes.
    for number in 0..12 {
        let field = if number % 4 == 0 { "rootfs" } else { "volumes" };
        world.put(&format!("stuck-{number}.yaml"), &manifest(field, &mount.at.join(format!("sub/{number}"))));
    }
    world.wait_status("stuck-0", |status| why(status).contains("has not answered since"));
    let begun = Instant::now();
    world.put("free.yaml", &manifest("volumes", Path::new("/usr")));
    world.wait_running("free");
    world.put("ran.yaml", &format!("{}cpu: 1\n", manifest("volumes", &mount.at.join("sub"))));
    eventually("the limit of what runs is changed", || kernel::cpu_milli(&world.group("ran")) == Some(1000));
    assert!(begun.elapsed() < Duration::from_secs(20), "good ones waited for {:?}", begun.elapsed());
    assert_eq!(world.wait_running("ran"), ran);
    // A controller that begins meanwhile is not held up either.
    world.kill_controller();
    world.start(&[]);
    world.put("later.yaml", &manifest("volumes", Path::new("/usr")));
    world.wait_running("later");
    assert_eq!(world.wait_running("ran"), ran);
    for number in 0..12 {
        fs::create_dir(world.path(&format!("far-behind/sub/{number}"))).unwrap();
    }
    mount.answer();
    for number in [1, 2, 11] {
        world.wait_running(&format!("stuck-{number}"));
    }
}

#[test]
fn a_manifests_folder_that_hangs_keeps_no_workload_from_being_started_again() {
    let mut world = World::new();
    let mount = Mount::new(&world, "manifests");
    world.start(&[]);
    fs::write(mount.at.join("web.yaml"), "command: sleep infinity\nrestart: {initialDelay: 0s}\n").unwrap();
    let web = world.wait_running("web");
    mount.hang();
    // What is remembered of the folder's files is asked for anew.
    sleep(Duration::from_secs(2));
    signal(web, Signal::SIGKILL);
    let again = world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != web);
    assert_eq!(again["restarts"], 1, "{again}");
    mount.answer();
}

#[test]
fn twenty_four_probes_that_hang_leave_a_good_one_asked_each_second() {
    let world = World::running();
    // Connections are taken by the kernel, and never answered.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let hangs = format!(
        "command: sleep infinity\nprobes: {{readiness: {{http: {{port: {port}}}, period: 5s, timeout: 5s}}}}\n"
    );
    for number in 0..24 {
        world.put(&format!("silent-{number}.yaml"), &hangs);
    }
    for number in 0..24 {
        world.wait_status(&format!("silent-{number}"), |status| why(status).contains("no answer within 5s"));
    }
    let data = world.path("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    let good = format!(
        "command: sleep infinity\nvolumes: [{{source: {}, target: /tmp/data}}]\n\
         probes: {{readiness: {{exec: [sh, -c, 'date +%s%3N >> /tmp/data/tries'], period: 1s}}}}\n",
        data.display()
    );
    world.put("good.yaml", &good);
    world.wait_running("good");
    let tries = || -> Vec<u64> {
        let text = fs::read_to_string(data.join("tries")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    eventually_or(|| tries().len() >= 15, || format!("tries at {:?} ms", tries()));
    let tries = tries();
    let longest = tries.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    // A second, and what a busy machine adds; waiting for one that hangs would add up to five.
    assert!(longest < 2500, "asked at {tries:?} ms");
}
