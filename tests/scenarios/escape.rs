//! Inside a workload with default isolation: what an intruder would try, one test each. All of it has to fail, and the host to stand.
//!
//! A refusal proves something only if the same attempt gets through elsewhere: without the wall in question, or outside the box. Where
//! that harms nothing, a test shows it.

#![allow(unsafe_code, reason = "an intruder makes raw system calls")]

use super::box_::inside;
use super::kernel;
use super::world::{World, eventually, signal};
use attempt::{OPEN, UNFILTERED, attempts, is_done, outside, permitted, refused, tries};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

mod attempt;

#[test]
fn the_attempts_would_get_through_if_they_could() {
    // What the filter alone keeps away: each of these is open to everybody where there is none.
    let names = [
        "no-randomisation",
        "read-session-keyring",
        "add-key",
        "request-key",
        "unshare-user",
        "clone-user",
        "clone3",
        "vsock",
        "type-into-terminal",
    ];
    permitted(UNFILTERED, &names);
    // And what takes capabilities over the host. Left out is what would harm it: setting the clock, changing the root or the limits
    // under init.
    let names = [
        "block-device",
        "character-device",
        "ptrace-seize",
        "read-memory:1",
        "take-descriptor:1",
        "kill:1",
        "kill-thread:1",
        "kill-by-descriptor:1",
        "mount-tmpfs",
        "mount-proc",
        "bind",
        "open-tree",
        "fsopen",
        "mount-setattr",
        "move-mount",
        "chroot",
        "init-module",
        "finit-module",
        "delete-module",
        "kexec",
        "bpf",
        "perf",
        "userfaultfd",
        "io-uring",
        "open-by-handle",
        "iopl",
        "acct",
        "swapon",
        "reboot",
        "hostname",
        "kernel-log",
        "negative-niceness",
        "unshare-mount",
        "unshare-net",
        "join-namespace:/proc/self/ns/net",
        "unmount:/dev/shm",
        "raw-socket",
        "packet-socket",
    ];
    permitted(OPEN, &names);
}

#[test]
fn files_of_the_host_that_only_root_may_read_stay_shut() {
    let secret = tempfile::tempdir_in("/var").unwrap();
    let [path, open] = ["secret", "open"].map(|name| secret.path().join(name));
    fs::set_permissions(secret.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (path, mode) in [(&path, 0o600), (&open, 0o644)] {
        fs::write(path, "hunter2").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    // The open one beside it can be read: the place is in the view, and the mode is what keeps the other shut.
    tries(&format!(
        "[ \"$(cat {open})\" = hunter2 ] || echo ESCAPED? the test itself is broken
         cat {path} && echo ESCAPED
         (echo x >>{path}) && echo ESCAPED
         (echo x >>{open}) && echo ESCAPED
         cat /etc/shadow >/dev/null && echo ESCAPED
         ls /root && echo ESCAPED
         cat /proc/1/environ && echo ESCAPED
         chmod 644 {path} && echo ESCAPED
         chown 0 {path} && echo ESCAPED",
        path = path.display(),
        open = open.display(),
    ));
    assert!(is_done(&outside(&[&format!("read:{}", path.display())])));
    assert_eq!(fs::read_to_string(open).unwrap(), "hunter2");
}

#[test]
fn the_hosts_root_is_not_behind_proc_1() {
    tries(
        "ls /proc/1/root/ && echo ESCAPED
         ls /proc/1/cwd/ && echo ESCAPED
         ls /proc/1/fd/ && echo ESCAPED
         ls /proc/1/map_files/ && echo ESCAPED
         cat /proc/1/root/etc/hostname && echo ESCAPED
         ls /proc/self/root/ >/dev/null || echo ESCAPED? the test itself is broken",
    );
    refused(&["join-namespace:/proc/1/ns/mnt", "join-namespace:/proc/1/ns/pid", "join-namespace:/proc/1/ns/user"]);
}

#[test]
fn init_is_not_traced() {
    tries("dd if=/proc/1/mem bs=1 count=1 skip=4194304 of=/tmp/mem && echo ESCAPED");
    let names =
        ["ptrace-attach", "ptrace-seize", "read-memory:1", "take-descriptor:1", "limit-init", "write:/proc/1/mem"];
    refused(&names);
}

#[test]
fn the_init_program_is_not_rewritten() {
    tries(
        "cat /proc/1/exe >/tmp/exe && echo ESCAPED
         (: >>/proc/1/exe) && echo ESCAPED
         (exec 9</proc/1/exe) && echo ESCAPED",
    );
    refused(&["read:/proc/1/exe", "write:/proc/1/exe"]);
    // Nor by somebody with every right over it: not while it runs, nor later by a descriptor kept until then.
    let outcomes =
        attempts(&World::running(), OPEN, &["read:/proc/1/exe", "unsealed:/proc/1/exe", "write:/proc/1/exe"]);
    assert_eq!(outcomes.values().collect::<Vec<_>>(), ["done", "EPERM", "ETXTBSY"], "{outcomes:?}");
}

#[test]
fn no_device_is_made() {
    tries(
        "mknod /tmp/disk b 254 0 && echo ESCAPED
         mknod /dev/disk b 254 0 && echo ESCAPED
         mknod /tmp/kmsg c 1 11 && echo ESCAPED
         for disk in /dev/vda /dev/sda /dev/nvme0n1 /dev/mem /dev/kvm /dev/fuse; do [ ! -e $disk ] || echo ESCAPED $disk; done",
    );
    refused(&["block-device", "character-device"]);
    // Whoever may make one still cannot open it, where there is place to make it.
    let outcomes = attempts(&World::running(), OPEN, &["character-device", "read:/tmp/kmsg", "write:/tmp/kmsg"]);
    assert_eq!(outcomes.values().collect::<Vec<_>>(), ["done", "EACCES", "EACCES"], "{outcomes:?}");
}

#[test]
fn nothing_is_mounted_or_unmounted() {
    tries(
        "mount -t tmpfs none /tmp && echo ESCAPED
         mount --bind /tmp /etc && echo ESCAPED
         mount -o remount,rw / && echo ESCAPED
         mount -o remount,rw /proc/sys && echo ESCAPED
         mount -t proc proc /tmp && echo ESCAPED
         umount /proc/kcore && echo ESCAPED
         umount -l /sys && echo ESCAPED",
    );
    let calls =
        ["mount-tmpfs", "mount-proc", "bind", "remount:/", "remount:/proc/sys", "unmount:/dev/shm", "unmount:/sys"];
    let newer = ["open-tree", "fsopen", "mount-setattr", "move-mount", "pivot-root", "chroot"];
    refused(&[&calls[..], &newer].concat());
    // The kernel says no as well, where there is no filter.
    let outcomes = attempts(&World::running(), UNFILTERED, &[&calls[..], &newer].concat());
    assert!(outcomes.values().all(|outcome| outcome == "EPERM"), "{outcomes:#?}");
}

#[test]
fn no_kernel_module_is_loaded() {
    tries(
        "(echo /tmp/evil >/proc/sys/kernel/modprobe) && echo ESCAPED
         (echo '|/tmp/evil' >/proc/sys/kernel/core_pattern) && echo ESCAPED",
    );
    refused(&["init-module", "finit-module", "delete-module", "kexec"]);
}

#[test]
fn the_kernel_is_not_programmed_traced_or_administered() {
    refused(&[
        "bpf",
        "perf",
        "userfaultfd",
        "io-uring",
        "open-by-handle",
        "iopl",
        "acct",
        "swapon",
        "reboot",
        "set-clock",
    ]);
    refused(&["hostname", "kernel-log", "no-randomisation", "negative-niceness"]);
}

#[test]
fn no_namespace_brings_capabilities_back() {
    refused(&[
        "unshare-user",
        "unshare-mount",
        "unshare-net",
        "clone-user",
        "clone3",
        "join-namespace:/proc/self/ns/net",
    ]);
    tries("unshare -r true && echo ESCAPED; unshare -m true && echo ESCAPED");
}

#[test]
fn keyrings_are_out_of_reach() {
    refused(&["add-key", "request-key", "read-session-keyring"]);
    // The controller's session has a secret. Without the filter there are keyrings inside, but not that one.
    let secret = format!("containerctl-test-{}", std::process::id());
    let key = attempt::secret_key(&secret);
    let names = ["find-key", "read-key", "link-key", "describe-key"];
    let names = names.map(|kind| if kind == "find-key" { format!("{kind}:{secret}") } else { format!("{kind}:{key}") });
    let [find, rest @ ..] = names.each_ref().map(String::as_str);
    let all = [&[find, "read-session-keyring"][..], &rest].concat();
    assert!(is_done(&outside(&all)), "whoever shares the session has it");
    let outcomes = attempts(&World::running(), UNFILTERED, &all);
    assert_eq!(outcomes["read-session-keyring"], "done", "one of its own");
    assert_eq!(outcomes[find], "ENOKEY", "{outcomes:?}");
    assert!(rest.iter().all(|name| outcomes[*name] == "EACCES"), "{outcomes:?}");
}

#[test]
fn sockets_that_reach_around_the_network_are_not_made() {
    refused(&["vsock", "raw-socket", "packet-socket", "type-into-terminal"]);
}

#[test]
fn processes_of_the_host_are_not_signalled() {
    let world = World::running();
    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    world.put("neighbour.yaml", "command: sleep 1000");
    let neighbour = world.wait_running("neighbour");
    let others = [sleeper.id(), neighbour, kernel::parent(neighbour), world.controller_pid()];
    // No number of theirs is one inside.
    let kinds = ["kill", "kill-thread", "kill-by-descriptor"];
    let at = |pid: i64| kinds.map(|kind| format!("{kind}:{pid}"));
    let calls: Vec<String> = others.iter().flat_map(|pid| at(i64::from(*pid))).collect();
    let outcomes = attempts(&world, "", &calls.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(outcomes.values().all(|outcome| outcome == "ESRCH"), "{outcomes:#?}");
    // Init has another user. Where it has the same it may be signalled, and the kernel does not let it end by what comes from inside.
    refused(&at(1).each_ref().map(String::as_str));
    for fields in ["", OPEN] {
        let script = "sleep 1000 & victim=$!; kill -9 1 2>/dev/null; kill -9 -1; wait $victim; echo $?";
        assert_eq!(inside(&world, "killer", &format!("labels: {{n: n{}}}\n{fields}", fields.len()), script), "137\n");
        assert!(sleeper.try_wait().unwrap().is_none(), "it was ended");
        assert!(others.iter().all(|pid| kernel::is_alive(*pid)), "{others:?}");
        world.delete("killer.yaml");
        world.wait_gone("killer");
    }
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn no_cgroup_file_is_written() {
    let script = "exec 2>/dev/null; tried=0
        for file in $(find /sys/fs/cgroup -type f); do tried=$((tried+1)); (echo max >$file) && echo ESCAPED $file; done
        mkdir /sys/fs/cgroup/mine && echo ESCAPED
        (echo 0 >/sys/fs/cgroup/cgroup.procs) && echo ESCAPED
        grep -q '/\\.\\.' /proc/self/cgroup && echo ESCAPED to above
        for mount in $(grep ' - cgroup' /proc/self/mountinfo | cut -d' ' -f5 | sort -u); do
            [ -e $mount/cgroup.procs ] && echo in sight: $mount
        done
        echo $tried";
    let out = inside(&World::running(), "intruder", "", script);
    assert!(!out.contains("ESCAPED"), "{out}");
    if kernel::is_unified() {
        let tried = out.strip_prefix("in sight: /sys/fs/cgroup\n").unwrap();
        assert!(tried.trim().parse::<u32>().unwrap() >= 20, "its own group's files were there to try: {out}");
    } else {
        assert_eq!(out, "0\n", "no hierarchy is in sight");
    }
    refused(&["mount-cgroup", "remount:/sys/fs/cgroup"]);
}

#[test]
fn kernel_memory_log_and_switches_stay_shut() {
    let secrets = ["read:/dev/kmsg", "read:/proc/kcore", "read:/proc/kmsg", "read:/proc/keys", "read:/proc/timer_list"];
    let switches =
        ["write:/proc/sysrq-trigger", "write:/proc/sys/vm/drop_caches", "write:/proc/irq/default_smp_affinity"];
    let names = [&secrets[..], &switches].concat();
    let outcomes = attempts(&World::running(), "", &names);
    // Masked: there is nothing, or nothing in it. Read-only, or not of this user.
    let masked = |name: &&str| ["ENODATA", "ENOENT", "EACCES"].contains(&outcomes[*name].as_str());
    let shut = |name: &&str| ["EROFS", "ENOENT", "EACCES"].contains(&outcomes[*name].as_str());
    assert!(secrets.iter().all(masked) && switches.iter().all(shut), "{outcomes:#?}");
    // Nor where it is root's that asks: it is the mounts that keep them.
    let outcomes = attempts(&World::running(), OPEN, &names);
    let masked = |name: &&str| ["ENODATA", "ENOENT"].contains(&outcomes[*name].as_str());
    let shut = |name: &&str| ["EROFS", "ENOENT"].contains(&outcomes[*name].as_str());
    assert!(secrets.iter().all(masked) && switches.iter().all(shut), "{outcomes:#?}");
    let outcomes = outside(&names);
    let here = outcomes.values().filter(|outcome| *outcome == "done").count();
    assert!(here >= 4, "few of them are here at all: {outcomes:#?}");
    refused(&["kernel-log"]);
    tries(
        "dmesg | grep . && echo ESCAPED
         [ -z \"$(head -c 1 /proc/interrupts; ls /sys/devices/system/cpu/cpu*/thermal_throttle/* 2>/dev/null)\" ] || echo ESCAPED counts
         for place in debug tracing security bpf; do [ -z \"$(ls /sys/kernel/$place 2>/dev/null)\" ] || echo ESCAPED $place; done",
    );
}

#[test]
fn abstract_sockets_of_others_are_out_of_reach() {
    let name = format!("containerctl-test-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let attempt = format!("abstract:{name}");
    assert!(is_done(&outside(&[&attempt])), "it listens");
    // In a network namespace of its own there is none of that name.
    let world = World::running();
    assert_eq!(attempts(&world, "network: none", &[&attempt])[&attempt], "ECONNREFUSED");
    // On the host's network Landlock keeps it away, where the kernel has that (6.12); before, docs/SECURITY.md says that it is open.
    let expected = if kernel::release() >= (6, 12) { "EPERM" } else { "done" };
    assert_eq!(attempts(&World::running(), "", &[&attempt])[&attempt], expected);
}

#[test]
fn without_a_network_nobody_is_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    let world = World::running();
    let reach = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}' 2>/dev/null && echo reached");
    assert_eq!(inside(&world, "beside", "", &reach), "reached\n", "on the host's network it is");
    let facts = "cat /sys/class/net/lo/flags; wc -l </proc/net/dev; cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let script = format!("ls /sys/class/net; {reach}; {facts}");
    assert_eq!(inside(&world, "alone", "network: none", &script), "lo\n0x9\n3\n0\n", "with its loopback up (1)");
}

/// The host can do what it did: start processes, and workloads.
fn the_host_stands(world: &World) {
    for _ in 0..20 {
        assert!(Command::new("true").status().unwrap().success());
    }
    world.put("good.yaml", "command: sleep 1000");
    world.wait_running("good");
}

#[test]
fn a_fork_bomb_ends_at_the_workloads_own_limit() {
    let world = World::running();
    let bomb = "(while :; do sleep 1000 & done) & exec sleep 1000";
    world.put("bomb.yaml", &format!("pids: 40\nrestart: never\ncommand: [sh, -c, '{bomb}']"));
    let pid = world.wait_running("bomb");
    let group = world.group("bomb");
    let refusals = || kernel::read(&group, &["pids.events"]).split_whitespace().nth(1).unwrap().parse::<u32>().unwrap();
    // All of them stay but the one that was refused.
    eventually("the kernel refuses it more", || refusals() > 0);
    let count = kernel::processes(&group).len();
    assert!((38..=40).contains(&count), "{count}");
    the_host_stands(&world);
    assert!(kernel::is_alive(pid) && kernel::processes(&group).len() >= 38, "the bomb lasted until here");
    world.delete("bomb.yaml");
    world.wait_gone("bomb");
}

#[test]
fn a_memory_bomb_ends_itself_alone() {
    let world = World::running();
    world.put("good.yaml", "command: sleep 1000");
    let pid = world.wait_running("good");
    world.put("bomb.yaml", "memory: 32Mi\nrestart: never\ncommand: [sh, -c, 'x=x; while :; do x=$x$x; done']");
    let status = world.wait_phase("bomb", "Failed");
    assert_eq!(status["lastExit"]["message"], "killed: out of memory within its limit");
    assert_eq!((world.wait_running("good"), kernel::is_alive(pid)), (pid, true));
}

#[test]
fn descriptors_end_at_the_workloads_own_limit() {
    let world = World::running();
    let count =
        "i=3; while (eval \"exec $i</dev/null\") 2>/dev/null; do eval \"exec $i</dev/null\"; i=$((i+1)); done; echo $i";
    let script =
        format!("ulimit -n; ulimit -Hn; ulimit -n 65 2>/dev/null || echo no more; {count}; exec 9<&-; sleep 1000");
    let script = serde_json::to_string(&script).unwrap();
    world.put("many.yaml", &format!("rlimits: {{nofile: 64}}\ncommand: [bash, -c, {script}]"));
    let pid = world.wait_running("many");
    eventually("it has as many as it can", || world.logs("many") == "64\n64\nno more\n64\n");
    // One was closed, for the shell to start its sleep with.
    let held = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!((60..=64).contains(&held), "{held}");
    the_host_stands(&world);
    // Init has a limit of its own, or it could not do its work.
    signal(pid, nix::sys::signal::Signal::SIGKILL);
    world.wait_status("many", |status| status["restarts"].as_u64() > Some(0));
}

#[test]
fn a_tmpfs_ends_at_its_size_or_the_memory_limit() {
    let world = World::running();
    let fields = "memory: 64Mi\nvolumes: [{tmpfs: 1Mi, target: /mnt}]";
    let script = "head -c 4M /dev/zero >/mnt/x 2>/dev/null || echo full; stat -c %s /mnt/x; df -k /mnt | tail -1 | tr -s ' ' | cut -d' ' -f2";
    assert_eq!(inside(&world, "small", fields, script), "full\n1048576\n1024\n");
    // Those every box has are bounded even where its memory is not: each may take a fifth of the machine's.
    let script = "grep MemTotal /proc/meminfo | tr -dc 0-9; for place in /tmp /run /dev/shm; do df -k $place | tail -1 | tr -s ' ' | cut -d' ' -f2 | tr '\\n' ' ' | sed 's/^/ /'; done";
    let out = inside(&world, "sizes", "", script);
    let sizes: Vec<u64> = out.split_whitespace().map(|size| size.parse().unwrap()).collect();
    assert!(sizes.len() == 4 && sizes[1..].iter().all(|size| *size > 0 && *size <= sizes[0] / 5 + 4), "{sizes:?}");
    for place in ["/tmp", "/run", "/dev/shm"] {
        let name = format!("filler{}", place.replace('/', "-"));
        let script = format!("exec head -c 512M /dev/zero >{place}/x");
        world.put(&format!("{name}.yaml"), &format!("memory: 32Mi\nrestart: never\ncommand: [sh, -c, '{script}']"));
        let status = world.wait_status(&name, |status| status["phase"] == "Failed" || status["phase"] == "Completed");
        assert_eq!(status["lastExit"]["message"], "killed: out of memory within its limit", "{status:#}");
        eventually("what filled it is gone", || kernel::processes(&world.group(&name)).is_empty());
    }
    the_host_stands(&world);
}
