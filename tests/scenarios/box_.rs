//! Inside: what a workload with default isolation sees and can do. (Named `box_` because `box` is a keyword.)

use super::kernel;
use super::world::{World, eventually};
use std::fs;

/// Runs a shell script as a workload to its end; answers what it printed.
pub fn inside(world: &World, name: &str, fields: &str, script: &str) -> String {
    let script = serde_json::to_string(script).unwrap();
    world.put(&format!("{name}.yaml"), &format!("{fields}\nkind: job\nrestart: never\ncommand: [sh, -c, {script}]\n"));
    let status = world.wait_status(name, |status| status["phase"] == "Completed" || status["phase"] == "Failed");
    let said = world.ctl(&["logs", name]);
    assert_eq!(status["phase"], "Completed", "{status:#}\n{}{}", said.out, said.err);
    said.out
}

#[test]
fn the_view_is_read_only_with_a_few_private_places() {
    let world = World::running();
    let script = "
        for path in / /etc /usr /var /sys /proc/sys/kernel /dev; do
            touch $path/containerctl-was-here 2>/dev/null && echo wrote $path
        done
        for path in /tmp /run /dev/shm; do
            touch $path/x && echo private $path: $(ls $path)
        done
        hostname
        ps -e -o comm= | sort -u | tr '\\n' ' '
    ";
    let out = inside(&world, "view", "", script);
    let expected = "private /tmp: x\nprivate /run: lock x\nprivate /dev/shm: x\nview\ncontainerctl-in ps sh sort tr ";
    assert_eq!(out, expected);
    assert!(!fs::exists("/etc/containerctl-was-here").unwrap());
}

#[test]
fn there_are_no_capabilities_and_no_way_to_get_any() {
    let world = World::running();
    let out = inside(&world, "caps", "", "grep -E '^(Cap|NoNewPrivs)' /proc/self/status | tr -s '\\t ' ' '");
    let zero = "0000000000000000";
    assert_eq!(
        out,
        format!("CapInh: {zero}\nCapPrm: {zero}\nCapEff: {zero}\nCapBnd: {zero}\nCapAmb: {zero}\nNoNewPrivs: 1\n")
    );
    let out = inside(&world, "tries", "", "
        mount -t tmpfs none /mnt 2>/dev/null && echo mounted
        umount /dev/shm 2>/dev/null && echo unmounted
        mknod /tmp/sda b 8 0 2>/dev/null && echo made a device
        hostname elsewhere 2>/dev/null && echo renamed the host
        chroot /usr /bin/true 2>/dev/null && echo changed root
        echo c > /proc/sysrq-trigger 2>/dev/null && echo crashed
        echo 1 > /proc/sys/vm/drop_caches 2>/dev/null && echo dropped caches
        [ \"$(head -c 1 /proc/kcore 2>/dev/null | wc -c)\" = 0 ] || echo read kcore
        kill -9 1 2>/dev/null; echo init lives
        ls /sys/fs/cgroup 2>/dev/null | grep -v '^cgroup\\.\\|^cpu\\|^memory\\|^io\\|^pids\\|^misc\\|^rdma\\|^hugetlb\\|^irq'
        echo end
    ");
    assert_eq!(out, "init lives\nend\n");
}

#[test]
fn the_user_is_the_one_asked_for() {
    let world = World::running();
    let out = inside(
        &world,
        "user",
        "user: \"4242:4343\"",
        "id -u; id -g; id -G; touch /run/x 2>/dev/null || echo may not; touch /tmp/x && echo may",
    );
    assert_eq!(out, "4242\n4343\n4343\nmay not\nmay\n");
}

#[test]
fn environment_and_working_directory_are_those_of_the_manifest() {
    let world = World::running();
    let out =
        inside(&world, "env", "env: {PORT: 8080, GREETING: 'hello  world'}\nworkdir: /usr/bin", "env | sort; pwd");
    let expected = "GREETING=hello  world\nHOME=/\nLANG=C.UTF-8\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPORT=8080\nPWD=/usr/bin\n/usr/bin\n";
    assert_eq!(out.replace("OLDPWD=/\n", "").replace("SHLVL=0\n", "").replace("_=/usr/bin/env\n", ""), expected);
}

#[test]
fn volumes_are_the_only_way_to_the_hosts_files() {
    let world = World::running();
    fs::create_dir(world.path("data")).unwrap();
    fs::write(world.path("data/in"), "from the host\n").unwrap();
    let data = world.path("data").display().to_string();
    let fields = format!(
        "volumes: [{{source: {data}, target: /mnt}}, {{source: {data}, target: /tmp/deep/ro, readOnly: true}}, {{source: {data}/in, target: /run/file}}]"
    );
    let out = inside(&world, "volumes", &fields, "
        cat /mnt/in /run/file; echo out > /mnt/out; touch /tmp/deep/ro/x 2>/dev/null || echo read-only; grep -c nosuid,nodev /proc/self/mountinfo > /dev/null && echo careful
    ");
    assert_eq!(out, "from the host\nfrom the host\nread-only\ncareful\n");
    assert_eq!(fs::read_to_string(world.path("data/out")).unwrap(), "out\n");
    world.put("nowhere.yaml", "command: sleep 1\nvolumes: [{source: /no/such/folder, target: /mnt}]");
    let status = world.wait_phase("nowhere", "Failed");
    let message = status["lastExit"]["message"].as_str().unwrap();
    assert!(message.contains("/no/such/folder") && message.contains("No such file"), "{message}");
}

#[test]
fn the_controllers_own_folders_are_out_of_sight() {
    let mut world = World::new();
    // Not below /tmp or /run, which are private anyway.
    let place = tempfile::tempdir_in("/var").unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    fs::create_dir(place.path().join("manifests")).unwrap();
    let (manifests, state) = (path("manifests"), path("state"));
    world.start(&["--manifests", &manifests, "--state", &state]);
    fs::write(place.path().join("manifests/spy.yaml"), format!("kind: job\nrestart: never\nenv: {{SECRET: hunter2}}\ncommand: [sh, -c, 'ls -A {manifests} {state} | grep -v : ; echo end']\n")).unwrap();
    world.wait_phase("spy", "Completed");
    assert_eq!(world.logs("spy").replace('\n', ""), "end");
}

#[test]
fn init_is_small_protected_and_passes_signals_on() {
    let world = World::running();
    world.put("web.yaml", "command: [sh, -c, 'trap \"echo usr1\" USR1; echo up; while :; do sleep 0.05; done']");
    let pid = world.wait_running("web");
    let init = kernel::parent(pid);
    eventually("it is up", || world.logs("web") == "up\n");
    assert_eq!(kernel::status(init, "Name"), "containerctl-in", "15 characters of it");
    // Its private memory: pages that no other workload shares.
    let private = kernel::smaps_kib(init, "Private_Clean") + kernel::smaps_kib(init, "Private_Dirty");
    println!("init: {private} KiB private, {} KiB PSS", kernel::smaps_kib(init, "Pss"));
    assert!(private < 64, "{private} KiB");
    super::world::signal(init, nix::sys::signal::Signal::SIGUSR1);
    eventually("the signal arrived", || world.logs("web") == "up\nusr1\n");
    // Nothing but the kill capability is left to it.
    assert_eq!(kernel::status(init, "CapEff"), "0000000000000020");
}

#[test]
fn much_output_is_bounded_on_disk_and_nothing_is_lost_in_between() {
    let world = World::running();
    world.put("chatty.yaml", "kind: job\nrestart: never\ncommand: [sh, -c, 'seq 1 1000000; echo end']");
    world.wait_phase("chatty", "Completed");
    let folder = world.path("state/logs/chatty");
    let sizes: Vec<u64> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size < 11_000_000), "{sizes:?}");
    let tail = world.ctl(&["logs", "chatty", "--tail", "3"]).out;
    assert_eq!(tail, "999999\n1000000\nend\n");
    let kept = world.logs("chatty");
    let numbers: Vec<u32> = kept.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are missing in between");
}

#[test]
fn what_the_controller_was_started_with_reaches_no_workload() {
    let mut world = World::new();
    // A descriptor on the host's root, as a careless supervisor leaves one open, would be a way out.
    world.start_after("exec 7</ 9>/dev/null; ulimit -S -n 1333; ulimit -c unlimited; renice -n 5 -p $$ >/dev/null; taskset -cp 0 $$ >/dev/null");
    let controller = world.controller_pid();
    assert_eq!(kernel::status(controller, "Cpus_allowed_list"), "0", "the test itself is broken");
    // It may have as many descriptors as it is allowed: a thousand workloads need more than the usual 1024.
    let limits = fs::read_to_string(format!("/proc/{controller}/limits")).unwrap();
    let files: Vec<&str> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "soft and hard");
    let out = inside(
        &world,
        "heir",
        "",
        "
        for fd in 0 1 2 4 5 6 7 8 9 10 11 12; do [ -e /proc/$$/fd/$fd ] && echo -n \"$fd \"; done; echo
        ulimit -S -n; ulimit -S -c; ps -o ni= -p $$ | tr -d ' '; cat /proc/self/oom_score_adj
    ",
    );
    assert_eq!(out, "0 1 2 \n1024\n0\n0\n0\n");
    world.put("long.yaml", "command: sleep infinity");
    let pid = world.wait_running("long");
    assert_eq!(kernel::status(pid, "Cpus_allowed_list"), kernel::cpus(&world.group("long")));
    assert_eq!(kernel::status(kernel::parent(pid), "Cpus_allowed_list"), kernel::cpus(&world.group("long")));
}

#[test]
fn a_linked_manifests_folder_works_and_is_hidden_with_its_revisions() {
    let mut world = World::new();
    let place = tempfile::tempdir_in("/var").unwrap();
    let sync = place.path().join("sync");
    for revision in ["rev-1", "rev-2"] {
        fs::create_dir_all(sync.join(revision)).unwrap();
    }
    std::os::unix::fs::symlink("rev-1", sync.join("current")).unwrap();
    let spy = format!(
        "kind: job\nrestart: never\nenv: {{SECRET: a}}\ncommand: [sh, -c, 'ls -A {}; echo end']\n",
        sync.display()
    );
    fs::write(sync.join("rev-1/spy.yaml"), &spy).unwrap();
    fs::write(sync.join("rev-2/spy.yaml"), spy.replace("SECRET: a", "SECRET: b")).unwrap();
    world.start(&["--manifests", &sync.join("current").display().to_string()]);
    world.wait_phase("spy", "Completed");
    std::os::unix::fs::symlink("rev-2", sync.join("next")).unwrap();
    fs::rename(sync.join("next"), sync.join("current")).unwrap();
    world.wait_status("spy", |status| status["phase"] == "Completed" && status["generation"] == 2);
    assert_eq!(world.logs("spy"), "end\nend\n");
}

#[test]
fn a_volume_may_be_mounted_where_a_link_leads() {
    let world = World::running();
    fs::create_dir(world.path("data")).unwrap();
    let fields = format!("volumes: [{{source: {}, target: /var/run}}]", world.path("data").display());
    inside(&world, "linked", &fields, "echo x > /run/out");
    assert_eq!(fs::read_to_string(world.path("data/out")).unwrap(), "x\n");
}

#[test]
fn init_cannot_be_starved_of_descriptors_by_its_workload() {
    let world = World::running();
    world.put("web.yaml", "kind: job\nrestart: never\ncommand: [sh, -c, 'prlimit --pid 1 --nofile=2:2 2>&1 >/dev/null | grep -o \"not permitted\"; exit 3']");
    let status = world.wait_phase("web", "Failed");
    assert_eq!(status["lastExit"]["code"], 3);
    assert_eq!(world.logs("web"), "not permitted\n");
}

#[test]
fn a_script_without_its_interpreter_is_told_from_a_missing_command() {
    let world = World::running();
    fs::create_dir(world.path("bin")).unwrap();
    fs::write(world.path("bin/tool"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(world.path("bin/tool"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let volume = world.path("bin").display().to_string();
    world.put("tool.yaml", &format!("command: /mnt/tool\nvolumes: [{{source: {volume}, target: /mnt}}]"));
    let status = world.wait_phase("tool", "Failed");
    let message = status["lastExit"]["message"].as_str().unwrap();
    assert!(message.contains("cannot execute /mnt/tool: the interpreter"), "{message}");
}

#[test]
fn a_workload_is_refused_at_the_controllers_socket() {
    let mut world = World::new();
    let place = tempfile::tempdir_in("/var").unwrap();
    let socket = place.path().join("s").display().to_string();
    let mut command = world.command(&["--socket", &socket]);
    let log = fs::File::create(world.path("log")).unwrap();
    world.adopt(command.stderr(log).spawn().unwrap());
    eventually("it listens", || fs::exists(&socket).unwrap());
    let program = super::world::PROGRAM;
    // As root of the host: one in a user namespace does not even get this far.
    let fields = format!("security: {{userNamespace: false}}\nvolumes: [{{source: {program}, target: /run/ctl}}]");
    world.put("nosy.yaml", &format!("kind: job\nrestart: never\n{fields}\ncommand: /run/ctl ps --socket {socket}"));
    eventually("it is refused", || world.log().contains("a workload tried to talk to the controller"));
    let said = std::process::Command::new(program).args(["ps", "--socket", &socket]).output().unwrap();
    assert!(said.status.success(), "everybody else is served");
}
