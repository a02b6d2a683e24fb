//! A directory as the root: what is seen in it, what may be changed, where changes go, and that no link in it leads out.

use super::box_::inside;
use super::kernel;
use super::world::{PROGRAM, Said, World, clear_cgroups, eventually, in_repository};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A root directory with a busybox and nothing else, on a file system that can show it through a user namespace.
struct Root {
    place: tempfile::TempDir,
}

const PROGRAMS: [&str; 15] =
    ["sh", "cat", "ls", "touch", "sleep", "id", "stat", "mkdir", "rm", "mv", "grep", "chown", "cp", "dd", "wc"];

impl Root {
    fn new() -> Root {
        let place = tempfile::tempdir_in(in_repository("target")).unwrap();
        // The other folders of a distribution, and what a box mounts on.
        for folder in ["bin", "etc", "srv", "var", "dev", "proc", "sys", "tmp", "run"] {
            fs::create_dir_all(place.path().join("root").join(folder)).unwrap();
        }
        let root = Root { place };
        fs::set_permissions(root.path("/"), fs::Permissions::from_mode(0o755)).unwrap();
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| fs::exists(path).unwrap());
        fs::copy(busybox.expect("apt-get install busybox-static"), root.path("/bin/busybox")).unwrap();
        for program in PROGRAMS {
            symlink("busybox", root.path("/bin").join(program)).unwrap();
        }
        fs::write(root.path("/etc/release"), "tiny\n").unwrap();
        root
    }

    /// Where a path of the root is on the host.
    fn path(&self, inside: &str) -> PathBuf {
        self.place.path().join("root").join(inside.trim_start_matches('/'))
    }

    fn at(&self) -> String {
        self.path("/").display().to_string()
    }

    fn read_only(&self) -> String {
        format!("rootfs: {}", self.at())
    }

    fn discarding(&self) -> String {
        format!("rootfs: {}\nsecurity: {{readOnlyRootfs: false}}", self.at())
    }

    fn keeping(&self) -> String {
        format!("rootfs: {{path: {}, persist: true}}", self.at())
    }

    /// Every file of it with owner, mode and size, to see that nothing changes.
    fn listing(&self) -> String {
        let output = Command::new("find").arg(self.path("/")).args(["-printf", "%P %y %U %G %m %s %T@\\n"]).output();
        let mut lines: Vec<String> =
            String::from_utf8(output.unwrap().stdout).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        assert!(lines.len() > 20, "{lines:?}");
        lines.join("\n")
    }
}

fn service(fields: &str, script: &str) -> String {
    format!("{fields}\ncommand: [sh, -c, {}]", serde_json::to_string(script).unwrap())
}

fn exec(world: &World, name: &str, script: &str) -> String {
    let mut command = Command::new(PROGRAM);
    command.args(["exec", name, "--runtime-dir"]).arg(world.path("run")).args(["--", "sh", "-c", script]);
    let said: Said = command.stdin(Stdio::null()).output().unwrap().into();
    assert_eq!(said.code, 0, "{said:?}");
    said.out
}

/// Why a start was refused.
fn refusal(world: &World, name: &str, fields: &str) -> String {
    world.put(&format!("{name}.yaml"), &format!("command: sleep 1000\nrestart: never\n{fields}"));
    world.wait_phase(name, "Failed")["lastExit"]["message"].as_str().unwrap().to_owned()
}

const WRITES: &str = "for place in / /etc /bin /srv /sys /proc/sys/kernel /dev; do
        touch $place/was-here 2>/dev/null && echo wrote $place
    done; for place in /tmp /run /dev/shm; do touch $place/x && echo private $place; done
    rm /etc/release 2>/dev/null; cat /etc/release; id -u; stat -c '%u %g' / /etc/release; echo $HOME";

#[test]
fn a_directory_is_seen_alone_and_read_only() {
    let (world, root) = (World::running(), Root::new());
    let before = root.listing();
    let private = "private /tmp\nprivate /run\nprivate /dev/shm\n";
    let rest = "tiny\n0\n0 0\n0 0\n/root\n";
    assert_eq!(inside(&world, "closed", &root.read_only(), WRITES), format!("{private}{rest}"));
    let host_ids = format!("{}\nsecurity: {{userNamespace: false}}", root.read_only());
    assert_eq!(inside(&world, "plain", &host_ids, WRITES), format!("{private}{rest}"));
    let user = format!("{}\nuser: \"33:33\"", root.read_only());
    let rest = rest.replace("tiny\n0\n", "tiny\n33\n").replace("/root", "/");
    assert_eq!(
        inside(&world, "user", &user, WRITES),
        format!("private /tmp\nprivate /dev/shm\n{rest}").replace("private /run\n", "")
    );
    // Nothing of the host's: neither files nor mounts.
    let out = inside(
        &world,
        "alone",
        &root.read_only(),
        &format!(
            "ls /; ls {} 2>/dev/null; ls -a /../.. | grep -c .; grep -c . /proc/self/mountinfo; ls /usr /home /boot 2>/dev/null; cd /..; ls -d etc",
            env!("CARGO_MANIFEST_DIR")
        ),
    );
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..9], ["bin", "dev", "etc", "proc", "run", "srv", "sys", "tmp", "var"]);
    assert_eq!((lines[9], lines[11]), ("11", "etc"), "{out}");
    assert!(lines[10].parse::<u32>().unwrap() < 40, "{out}");
    assert_eq!(root.listing(), before);
}

#[test]
fn changes_are_the_instances_own_and_gone_with_it() {
    let (world, root) = (World::running(), Root::new());
    let before = root.listing();
    let script = "cat /srv/count 2>/dev/null; echo again >>/srv/count && cat /srv/count && rm /etc/release && mv /bin/wc /bin/cw \
        && mkdir -p /opt/a && chown 33:33 /opt/a && stat -c '%u %g %n' /opt/a /srv/count / && cat /etc/release 2>/dev/null || echo gone; \
        touch /sys/x /proc/sys/x 2>/dev/null || echo closed; grep ' / / ' /proc/self/mountinfo | grep -o 'nosuid,nodev'";
    let expected = "again\n33 33 /opt/a\n0 0 /srv/count\n0 0 /\ngone\nclosed\nnosuid,nodev\n";
    // Nothing but giving files away takes a capability.
    for (name, more) in [("first", ""), ("second", ""), ("plain", ", userNamespace: false")] {
        let fields = root
            .discarding()
            .replace("readOnlyRootfs: false", &format!("readOnlyRootfs: false, capabilities: [CHOWN]{more}"));
        assert_eq!(inside(&world, name, &fields, script), expected, "{name}");
    }
    // Restarted it begins anew.
    world.put("web.yaml", &service(&root.discarding(), "ls /srv; touch /srv/mine; sleep 1000"));
    let pid = world.wait_running("web");
    eventually("it has written", || exec(&world, "web", "ls /srv") == "mine\n");
    world.put("web.yaml", &service(&format!("{}\nenv: {{A: b}}", root.discarding()), "ls /srv; sleep 1000"));
    world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != pid);
    assert_eq!(exec(&world, "web", "ls /srv"), "");
    assert_eq!(root.listing(), before);
}

#[test]
fn what_is_discarded_is_the_workloads_memory() {
    let (world, root) = (World::running(), Root::new());
    let fields = format!("{}\nmemory: 32M\n", root.discarding());
    world.put(
        "full.yaml",
        &format!(
            "{fields}kind: job\nrestart: never\ncommand: [sh, -c, 'exec dd if=/dev/zero of=/srv/big bs=1M count=64']"
        ),
    );
    let status = world.wait_phase("full", "Failed");
    assert!(status["lastExit"]["message"].as_str().unwrap().contains("out of memory"), "{status:#}");
}

#[test]
fn kept_changes_outlive_instances_and_controllers_and_end_with_the_manifest() {
    let (mut world, root) = (World::running(), Root::new());
    let before = root.listing();
    let manifest = |value: &str| {
        service(
            &format!("{}\nenv: {{A: {value}}}", root.keeping()),
            "echo $A >>/srv/runs; rm -f /etc/release; sleep 1000",
        )
    };
    world.put("web.yaml", &manifest("one"));
    let pid = world.wait_running("web");
    eventually("it has written", || exec(&world, "web", "cat /srv/runs") == "one\n");
    world.put("web.yaml", &manifest("two"));
    let status = world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != pid);
    eventually("it has written", || exec(&world, "web", "cat /srv/runs; ls /etc") == "one\ntwo\n");
    world.kill_controller();
    world.start(&[]);
    assert_eq!(u64::from(world.wait_running("web")), status["pid"].as_u64().unwrap());
    assert_eq!(exec(&world, "web", "cat /srv/runs"), "one\ntwo\n");
    // On disk it is root's, as it is inside: nothing there belongs to an id of the workload's private range.
    let layer = world.path("state/rootfs/web");
    let made = fs::metadata(layer.join("upper/srv/runs")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0));
    assert_eq!(fs::metadata(layer.join("upper")).unwrap().mode() & 0o7777, 0o755);
    let foreign = Command::new("find").arg(&layer).args(["-uid", "+65535", "-o", "-gid", "+65535"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&foreign.stdout), "");
    assert_eq!(fs::metadata(world.path("state/rootfs/web")).unwrap().mode() & 0o077, 0, "private to root");
    // The same files without a user namespace, and with one again.
    let plain = format!("{}\nsecurity: {{userNamespace: false}}", root.keeping());
    world.put("web.yaml", &service(&plain, "echo three >>/srv/runs; sleep 1000"));
    eventually("it has written", || {
        world.phase("web") == "Running" && exec_or(&world, "web", "cat /srv/runs") == "one\ntwo\nthree\n"
    });
    world.put("web.yaml", &manifest("four"));
    eventually("it has written", || exec_or(&world, "web", "cat /srv/runs") == "one\ntwo\nthree\nfour\n");
    world.delete("web.yaml");
    world.wait_gone("web");
    assert!(!layer.exists());
    assert_eq!(root.listing(), before);
    world.put("web.yaml", &manifest("new"));
    world.wait_running("web");
    eventually("it has written", || exec(&world, "web", "cat /srv/runs") == "new\n");
}

/// The same while it may not be running.
fn exec_or(world: &World, name: &str, script: &str) -> String {
    let mut command = Command::new(PROGRAM);
    command.args(["exec", name, "--runtime-dir"]).arg(world.path("run")).args(["--", "sh", "-c", script]);
    Said::from(command.stdin(Stdio::null()).output().unwrap()).out
}

#[test]
fn ids_stay_a_workloads_own_while_what_it_kept_is_there() {
    let (mut world, root) = (World::running(), Root::new());
    world.put("web.yaml", &service(&root.keeping(), "touch /srv/mine; sleep 1000"));
    let map = |world: &World, name| fs::read_to_string(format!("/proc/{}/uid_map", world.wait_running(name))).unwrap();
    let own = map(&world, "web");
    // Not running, and through a restart of the controller, it keeps its range: nobody else is given it.
    world.put("web.yaml", &service(&format!("{}\nsuspend: true", root.keeping()), "sleep 1000"));
    world.wait_phase("web", "Suspended");
    world.stop_controller();
    world.start(&[]);
    let layer = world.path("state/rootfs/web");
    assert!(layer.join("upper/srv/mine").exists());
    // While its layer cannot be removed it is not forgotten, and neither are its ids.
    let nested = layer.join("upper/held");
    fs::create_dir(&nested).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&nested).status().unwrap();
    assert!(mounted.success());
    world.delete("web.yaml");
    let held = |status: &serde_json::Value| status["conditions"].to_string().contains("state/rootfs/web");
    let status = world.wait_status("web", |status| status.is_null() || held(status));
    Command::new("umount").arg(&nested).status().unwrap();
    assert!(held(&status), "forgotten with its files still there: {status:#}");
    world.wait_gone("web");
    assert!(!layer.exists());
    world.put("web.yaml", &service(&root.keeping(), "sleep 1000"));
    assert_eq!(map(&world, "web"), own);
}

#[test]
fn no_link_in_a_root_leads_out() {
    let (world, root) = (World::running(), Root::new());
    fs::write(root.place.path().join("secret"), "secret").unwrap();
    symlink(root.place.path(), root.path("/srv/absolute")).unwrap();
    symlink("../../../../..", root.path("/srv/up")).unwrap();
    symlink("/proc/1/root", root.path("/srv/init")).unwrap();
    let script = "cat /srv/absolute/secret /srv/up/secret /../secret /srv/init/etc/release 2>/dev/null; ls -d /srv/up/etc; ls /srv/up | wc -l";
    assert_eq!(inside(&world, "links", &root.read_only(), script), "/srv/up/etc\n9\n");
    // A working directory that is a link to a descriptor, whichever init may have open on the host.
    for fd in 3..12 {
        symlink(format!("/proc/self/fd/{fd}"), root.path(&format!("/srv/fd{fd}"))).unwrap();
        let message = refusal(&world, &format!("fd{fd}"), &format!("{}\nworkdir: /srv/fd{fd}", root.read_only()));
        assert!(message.contains("cannot enter workdir"), "{message}");
    }
    // Nor is anything made or mounted through one.
    let data = root.place.path().join("data");
    fs::create_dir(&data).unwrap();
    for fd in 3..8 {
        let volume = format!("volumes: [{{source: {}, target: /srv/fd{fd}/new}}]", data.display());
        let message = refusal(&world, &format!("volume{fd}"), &format!("{}\n{volume}", root.discarding()));
        assert!(message.contains(&format!("/srv/fd{fd}")), "{message}");
    }
    let stray = Command::new("find").arg(world.path("run")).arg(world.path("state")).args(["-name", "new"]).output();
    assert_eq!(String::from_utf8_lossy(&stray.unwrap().stdout), "");
    // What the box mounts on has to be a folder of the root's own.
    fs::remove_dir(root.path("/run")).unwrap();
    symlink("/srv", root.path("/run")).unwrap();
    let message = refusal(&world, "mountpoint", &root.read_only());
    assert!(message.contains("find the folder /run in the root directory"), "{message}");
}

#[test]
fn what_is_no_root_is_refused_by_name() {
    let (world, root) = (World::running(), Root::new());
    let missing = root.place.path().join("gone");
    let message = refusal(&world, "missing", &format!("rootfs: {}", missing.display()));
    assert!(message.contains(&format!("{}/: No such file", missing.display())), "{message}");
    let message = refusal(&world, "file", &format!("rootfs: {}/etc/release", root.at()));
    assert!(message.contains("etc/release/: Not a directory"), "{message}");
    fs::remove_dir(root.path("/proc")).unwrap();
    let message = refusal(&world, "bare", &root.read_only());
    assert!(message.contains("the folder /proc") && message.contains("readOnlyRootfs: false"), "{message}");
    // Where it may be changed, what is missing is made.
    assert_eq!(inside(&world, "made", &root.discarding(), "ls /proc/self/comm"), "/proc/self/comm\n");
    // A file system that cannot show owners through a user namespace.
    let message = refusal(&world, "kernel", "rootfs: /proc/fs");
    assert!(message.contains("show the owners of /proc/fs") && message.contains("userNamespace: false"), "{message}");
    // The controller's own.
    world.put("own.yaml", &format!("command: sleep 1\nrootfs: {}", world.path("state").display()));
    world.wait_status("own", |status| status["conditions"].to_string().contains("a folder of the controller"));
}

#[test]
fn only_the_directory_itself_is_shown_and_volumes_lie_on_top() {
    let (world, root) = (World::running(), Root::new());
    let data = root.place.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("x"), "data\n").unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(root.path("/var")).status().unwrap();
    assert!(mounted.success());
    fs::write(root.path("/var/above"), "").unwrap();
    let volume = |target: &str, more: &str| {
        format!("volumes: [{{source: {}, target: {target}{more}}}, {{tmpfs: 1Mi, target: /srv}}]", data.display())
    };
    let script = "ls /var; cat /etc/data/x /mnt/data/x 2>/dev/null; touch /srv/y && ls /srv";
    fs::create_dir(root.path("/etc/data")).unwrap();
    let fields = format!("{}\n{}", root.read_only(), volume("/etc/data", ", readOnly: true"));
    let seen =
        inside(&world, "on-top", &fields, &format!("{script}; touch /etc/data/y 2>/dev/null && echo wrote; true"));
    let fields = format!("{}\n{}", root.discarding(), volume("/mnt/data", ""));
    let made =
        inside(&world, "made", &fields, &format!("{script}; echo more >/mnt/data/y; stat -c %u /mnt /mnt/data/y"));
    Command::new("umount").arg(root.path("/var")).status().unwrap();
    assert_eq!(seen, "data\ny\n");
    assert_eq!(made, "data\ny\n0\n0\n");
    assert_eq!(fs::metadata(data.join("y")).unwrap().uid(), 0);
    assert!(!root.path("/mnt").exists());
}

#[test]
fn another_root_is_another_process_and_exec_joins_it() {
    let (world, root) = (World::running(), Root::new());
    world.put("web.yaml", "command: sleep 1000");
    let first = world.wait_running("web");
    world.put("web.yaml", &format!("command: sleep 1000\n{}", root.read_only()));
    let second = world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != first);
    let second = u32::try_from(second["pid"].as_u64().unwrap()).unwrap();
    assert_eq!(exec(&world, "web", "cat /etc/release; ls /"), "tiny\nbin\ndev\netc\nproc\nrun\nsrv\nsys\ntmp\nvar\n");
    assert_eq!(kernel::status(second, "NoNewPrivs"), "1");
    // Its own root, and not the host's.
    let own = fs::metadata(format!("/proc/{second}/root/etc/release")).unwrap();
    assert_eq!(own.ino(), fs::metadata(root.path("/etc/release")).unwrap().ino());
    world.put("web.yaml", &format!("command: sleep 1000\n{}", root.discarding()));
    world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != second);
    assert_eq!(exec(&world, "web", "echo x >/etc/new && cat /etc/new"), "x\n");
}

#[test]
fn a_run_in_the_foreground_has_a_root_too_and_keeps_nothing() {
    let (place, root) = (tempfile::tempdir().unwrap(), Root::new());
    let before = root.listing();
    let parent = format!("ctltest-rootfs-{}", std::process::id());
    let run = |fields: &str| -> Said {
        let file = place.path().join("task.yaml");
        fs::write(&file, service(fields, "echo x >>/srv/x; cat /srv/x /etc/release")).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--cgroup-parent", &parent, "--runtime-dir"]).arg(place.path().join("run")).arg(&file);
        command.stdin(Stdio::null()).output().unwrap().into()
    };
    for _ in 0..2 {
        let said = run(&root.keeping());
        assert_eq!((said.out.as_str(), said.code), ("x\ntiny\n", 0), "{said:?}");
        assert!(said.err.contains("rootfs.persist: a run in the foreground keeps nothing"), "{said:?}");
    }
    let said = run(&root.read_only());
    assert!(said.out == "tiny\n" && said.err.contains("Read-only file system"), "{said:?}");
    assert_eq!(root.listing(), before);
    assert_eq!(leftovers(place.path()), Vec::<PathBuf>::new());
    clear_cgroups(&parent);
}

/// What runs have left of themselves.
fn leftovers(place: &Path) -> Vec<PathBuf> {
    fs::read_dir(place.join("run/run")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
