//! Inside: what a workload with default isolation sees and can do. (Named `box_` because `box` is a keyword.)

use super::kernel;
use super::world::{World, eventually};
use std::fs;

/// Runs a shell script as a workload to its end; answers what it printed.
fn inside(world: &World, name: &str, fields: &str, script: &str) -> String {
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
    let expected = "GREETING=hello  world\nHOME=/root\nLANG=C.UTF-8\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPORT=8080\nPWD=/usr/bin\n/usr/bin\n";
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
    world.put("chatty.yaml", "kind: job\nrestart: never\ncommand: [sh, -c, 'seq 1 3000000; echo end']");
    world.wait_phase("chatty", "Completed");
    let folder = world.path("state/logs/chatty");
    let sizes: Vec<u64> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size < 11_000_000), "{sizes:?}");
    let tail = world.ctl(&["logs", "chatty", "--tail", "3"]).out;
    assert_eq!(tail, "2999999\n3000000\nend\n");
    let kept = world.logs("chatty");
    let numbers: Vec<u32> = kept.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are missing in between");
}
