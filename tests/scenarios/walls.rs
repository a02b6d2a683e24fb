//! The walls one by one: what each setting of `security`, `network`, `rlimits` and `volumes` does inside.

use super::box_::inside;
use super::kernel;
use super::world::{World, eventually_or, in_repository};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

fn status(world: &World, name: &str, fields: &str) -> String {
    inside(
        world,
        name,
        fields,
        "grep -E '^(CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Uid):' /proc/self/status | tr -s '\\t ' ' '",
    )
}

#[test]
fn root_inside_is_nobody_outside_and_each_workload_has_ids_of_its_own() {
    let world = World::running();
    for name in ["a", "b"] {
        world.put(&format!("{name}.yaml"), "command: sleep 1000");
    }
    let map = |name| fs::read_to_string(format!("/proc/{}/uid_map", world.wait_running(name))).unwrap();
    let (a, b) = (map("a"), map("b"));
    let first = |map: &str| map.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap();
    assert!(first(&a) >= 65536 && first(&b) >= 65536, "{a}{b}");
    assert!(first(&a).abs_diff(first(&b)) >= 65536, "{a}{b}");
    let pid = world.wait_running("a");
    assert_eq!(kernel::status(pid, "Uid").split_whitespace().next().unwrap(), first(&a).to_string());
    assert_ne!(kernel::namespace(&pid.to_string(), "user"), kernel::namespace("self", "user"));
    // Deleted and put back it has the same ids again: whatever it left behind is its own.
    world.delete("a.yaml");
    world.wait_gone("a");
    world.put("a.yaml", "command: sleep 1000");
    assert_eq!(map("a"), a);
}

#[test]
fn capabilities_are_the_granted_ones_whatever_the_user() {
    let world = World::running();
    let granted = "0000000000000401";
    let expected = |uid: &str| {
        format!(
            "Uid: {uid} {uid} {uid} {uid}\nCapEff: {granted}\nCapBnd: {granted}\nCapAmb: {granted}\nNoNewPrivs: 1\nSeccomp: 2\n"
        )
    };
    let fields = "capabilities: [CHOWN, CAP_NET_BIND_SERVICE]";
    assert_eq!(status(&world, "root", &format!("security: {{{fields}}}")), expected("0"));
    assert_eq!(status(&world, "user", &format!("user: \"33:33\"\nsecurity: {{{fields}}}")), expected("33"));
    let host = format!("user: \"33:33\"\nsecurity: {{{fields}, userNamespace: false}}");
    assert_eq!(status(&world, "host", &host), expected("33"));
}

#[test]
fn privileges_can_be_left_open_by_word_only() {
    let world = World::running();
    let out = status(&world, "open", "security: {noNewPrivileges: false, seccomp: unconfined}");
    assert!(out.contains("NoNewPrivs: 0\nSeccomp: 0\n"), "{out}");
    let out = status(&world, "filtered", "security: {noNewPrivileges: false}");
    assert!(out.contains("NoNewPrivs: 0\nSeccomp: 2\n"), "{out}");
}

#[test]
fn a_seccomp_profile_in_dockers_format_is_in_force() {
    let world = World::running();
    let profile = world.path("profile.json");
    let rules = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    fs::write(&profile, rules).unwrap();
    let fields = format!("security: {{seccomp: {}}}", profile.display());
    let out = inside(
        &world,
        "profiled",
        &fields,
        "mkdir /tmp/x 2>&1 | grep -o 'No space left on device'; touch /tmp/y && echo fine",
    );
    assert_eq!(out, "No space left on device\nfine\n");
    fs::write(&profile, "{").unwrap();
    world.put("broken.yaml", &format!("command: sleep 1000\nrestart: never\n{fields}"));
    let status = world.wait_status("broken", |status| status["conditions"].to_string().contains("profile.json"));
    assert!(status["conditions"].to_string().contains("not in Docker's format"), "{status:#}");
}

#[test]
fn resource_limits_and_oom_score_are_those_of_the_manifest() {
    let world = World::running();
    let fields = "rlimits: {nofile: {soft: 77, hard: 88}, core: 0, stack: 16Mi, rttime: max}\noomScoreAdj: 500";
    let out = inside(&world, "limits", fields, "ulimit -Sn; ulimit -Hn; ulimit -s; cat /proc/self/oom_score_adj");
    assert_eq!(out, "77\n88\n16384\n500\n");
    // Where a hard limit may not be raised that is said, and everything else goes on.
    world.put("high.yaml", "command: sleep 1000\nrlimits: {nofile: 1000000000}");
    let pid = world.wait_running("high");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let degraded = world.status("high")["conditions"].to_string().contains("rlimits.nofile 1000000000 is above");
    assert!(degraded, "{limits}");
}

#[test]
fn owners_of_a_volume_are_the_same_ids_inside() {
    let world = World::running();
    // A place whose file system can do it, as most disks' can.
    let place = tempfile::tempdir_in(in_repository("target")).unwrap();
    let data = place.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&data, Some(33), Some(33)).unwrap();
    let fields = format!("user: \"33:33\"\nvolumes: [{{source: {}, target: /mnt}}]", data.display());
    let out = inside(&world, "owner", &fields, "stat -c '%u %g' /mnt; echo x >/mnt/made; stat -c '%u %g' /mnt/made");
    assert_eq!(out, "33 33\n33 33\n");
    let made = fs::metadata(data.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (33, 33), "on the host too");
}

#[test]
fn a_volume_whose_owners_cannot_be_shown_is_refused_with_the_way_out() {
    let world = World::running();
    world.put("proc.yaml", "command: sleep 1000\nrestart: never\nvolumes: [{source: /proc/fs, target: /mnt}]");
    let status = world.wait_phase("proc", "Failed");
    let message = status["lastExit"]["message"].as_str().unwrap();
    assert!(message.contains("show the owners of /proc/fs") && message.contains("userNamespace: false"), "{message}");
}

#[test]
fn a_tmpfs_volume_is_the_users_own_and_empty() {
    let world = World::running();
    let fields = "user: \"33:33\"\nvolumes: [{tmpfs: 1Mi, target: /mnt}, {tmpfs: 1Mi, target: /tmp/a/b}]";
    let script = "ls -A /mnt; touch /mnt/x /tmp/a/b/x && stat -c '%u %a' /mnt; grep ' /mnt ' /proc/self/mountinfo | grep -o 'nosuid,nodev'";
    assert_eq!(inside(&world, "scratch", fields, script), "33 755\nnosuid,nodev\n");
}

#[test]
fn what_a_mount_lets_through_landlock_still_refuses() {
    let world = World::running();
    // A mount that anybody may write to appears in the box, as a mistake of ours would let it: made from outside, while it runs.
    let script = "until grep -q ' /mnt tmpfs ' /proc/mounts; do sleep 0.05; done; touch /mnt/x && echo wrote; echo x >/tmp/x && echo end; exec sleep 1000";
    let try_there = |name: &str, fields: &str| {
        let command = serde_json::to_string(script).unwrap();
        world.put(&format!("{name}.yaml"), &format!("{fields}\ncommand: [sh, -c, {command}]"));
        let pid = world.wait_running(name).to_string();
        let mount = ["--mount", "mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/mnt"];
        let made = std::process::Command::new("nsenter").args(["--target", &pid]).args(mount).status().unwrap();
        assert!(made.success(), "{made}");
        eventually_or(|| world.logs(name).contains("end\n"), || format!("{:?}", world.ctl(&["logs", name])));
        let said = world.ctl(&["logs", name]);
        (said.out, said.err.contains("Permission denied"))
    };
    // Whoever administers mounts has no such wall, and shows that nothing else was in the way.
    assert_eq!(try_there("open", "security: {capabilities: [SYS_ADMIN]}"), ("wrote\nend\n".to_owned(), false));
    if kernel::release() < (5, 19) {
        println!("NO LANDLOCK on this kernel: what mounts let through goes through, as docs/SECURITY.md says");
        return;
    }
    assert_eq!(try_there("walled", ""), ("end\n".to_owned(), true));
}

/// Why a start was refused before it was one.
fn refusal(world: &World, name: &str, fields: &str) -> String {
    world.put(&format!("{name}.yaml"), &format!("command: sleep 1000\nrestart: never\n{fields}"));
    let refused = |status: &serde_json::Value| status["conditions"].to_string().contains("StepFailed");
    world.wait_status(name, refused)["conditions"].to_string()
}

#[test]
fn a_volume_shows_nothing_of_the_controllers_own() {
    let mut world = World::new();
    let place = tempfile::tempdir_in(in_repository("target")).unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    for folder in ["manifests", "deep/down", "other"] {
        fs::create_dir_all(path(folder)).unwrap();
    }
    let state = path("deep/down/state");
    world.start(&["--manifests", &path("manifests"), "--state", &state]);
    fs::write(path("manifests/spy.yaml"), format!(
        "kind: job\nrestart: never\ncommand: [sh, -c, 'cd /mnt && ls && ls -A manifests deep/down/state && touch other/x; touch deep/down/state/x 2>/dev/null || echo shut']\nvolumes: [{{source: {}, target: /mnt}}]",
        place.path().display()
    )).unwrap();
    world.wait_phase("spy", "Completed");
    assert_eq!(world.logs("spy"), "deep\nmanifests\nother\ndeep/down/state:\n\nmanifests:\nshut\n");
    assert!(fs::exists(path("other/x")).unwrap() && fs::exists(format!("{state}/db")).unwrap());
    // Nor are they a volume themselves, by a link or otherwise.
    let link = world.path("link").display().to_string();
    symlink(format!("{state}/logs"), &link).unwrap();
    for source in [&state, &link, &path("manifests")] {
        let fields = format!("command: sleep 1000\nvolumes: [{{source: {source}, target: /mnt}}]");
        fs::write(path("manifests/own.yaml"), fields).unwrap();
        world.wait_status("own", |status| status["conditions"].to_string().contains("a folder of the controller"));
        fs::remove_file(path("manifests/own.yaml")).unwrap();
        world.wait_gone("own");
    }
}

#[test]
fn a_link_that_a_workload_made_leads_no_other_out_of_its_volume() {
    let mut world = World::running();
    let place = tempfile::tempdir_in(in_repository("target")).unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    fs::create_dir_all(path("app/shared")).unwrap();
    fs::create_dir_all(path("secret")).unwrap();
    fs::create_dir_all(path("sync/rev-1")).unwrap();
    fs::write(path("sync/rev-1/file"), "revision 1\n").unwrap();
    symlink("rev-1", path("sync/current")).unwrap();
    let app = format!("volumes: [{{source: {}, target: /mnt}}]", path("app"));
    let script = format!("rmdir /mnt/shared && ln -s {} /mnt/shared && echo swapped; sleep 1000", path("secret"));
    world.put("a.yaml", &format!("{app}\ncommand: [sh, -c, {}]", serde_json::to_string(&script).unwrap()));
    world.wait_running("a");
    super::world::eventually("it is swapped", || world.logs("a") == "swapped\n");
    assert_eq!(fs::symlink_metadata(path("app/shared")).unwrap().uid(), 0, "root's, by the looks of it");
    for (name, fields) in [
        ("volume", format!("volumes: [{{source: {}, target: /mnt}}]", path("app/shared"))),
        ("below", format!("volumes: [{{source: {}/x, target: /mnt, readOnly: true}}]", path("app/shared"))),
        ("root", format!("rootfs: {}", path("app/shared"))),
    ] {
        let said = refusal(&world, name, &fields);
        assert!(said.contains("by way of the link") && said.contains(&path("app/shared")), "{said}");
    }
    // It counts after a restart of the controller, and after the workload has gone.
    world.kill_controller();
    world.start(&[]);
    world.wait_running("a");
    world.delete("a.yaml");
    world.wait_gone("a");
    let said = refusal(&world, "later", &format!("volumes: [{{source: {}, target: /mnt}}]", path("app/shared")));
    assert!(said.contains("by way of the link"), "{said}");
    // Root's own link is followed.
    let fields = format!("volumes: [{{source: {}, target: /mnt}}]", path("sync/current"));
    assert_eq!(inside(&world, "sync", &fields, "cat /mnt/file"), "revision 1\n");
}
