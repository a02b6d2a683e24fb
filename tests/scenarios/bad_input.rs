//! Whatever lies in the folder: refused with a place and a next step, and the neighbours do not notice.

use super::kernel;
use super::world::{World, eventually, eventually_or, program};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn a_manifest_broken_on_purpose_changes_nothing_that_runs() {
    let mut world = World::running();
    world.put("web.yaml", "command: sleep infinity\ncpu: 1\n");
    world.put("db.yaml", "command: sleep infinity\n");
    let (web, db) = (world.wait_running("web"), world.wait_running("db"));
    let broken = "command: sleep 5\ncpu:\n  limt: 2\n";
    world.put("web.yaml", broken);
    eventually_or(|| world.log().contains("web.yaml:3:3"), || world.log());
    let log = world.log();
    assert!(log.contains("unknown field cpu.limt") && log.contains("did you mean `limit`?"), "{log}");
    assert_eq!((world.wait_running("web"), world.wait_running("db")), (web, db));
    assert_eq!(kernel::cpu_milli(&world.group("web")), Some(1000));
    let status = world.status("web");
    assert!(status["conditions"].to_string().contains("web.yaml cannot be accepted"), "{status:#}");
    // The same words from validate, with the line they are about.
    let said = program(&["validate", world.manifests().join("web.yaml").to_str().unwrap()]);
    assert_eq!(said.code, 1);
    assert!(
        said.out.contains(
            "web.yaml:3:3: unknown field cpu.limt\n    3 |   limt: 2\n      |   ^\n  help: did you mean `limit`?"
        ),
        "{}",
        said.out
    );
    // A restart while it is broken changes nothing either, nor does half a file, an empty one, or none for a moment.
    world.kill_controller();
    world.start(&[]);
    for text in ["comm", "", "command: \"\u{0}", "\u{feff}["] {
        fs::write(world.manifests().join("web.yaml"), text).unwrap();
        assert_eq!(world.ctl(&["wait", "--for", "converged", "--timeout", "300ms"]).code, 1, "{text:?} was accepted");
        assert_eq!((world.wait_running("web"), world.wait_running("db")), (web, db));
    }
    world.put("web.yaml", "command: sleep infinity\ncpu: 2\n");
    eventually("the mended file is applied", || kernel::cpu_milli(&world.group("web")) == Some(2000));
    assert_eq!(world.wait_running("web"), web);
}

/// Manifests that nobody should accept.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let bomb: String = (b'b'..=b'j')
        .map(|c| {
            format!(
                "{}: &{} [{}]\n",
                char::from(c),
                char::from(c),
                vec![format!("*{}", char::from(c - 1)); 9].join(",")
            )
        })
        .collect();
    vec![
        ("alias bomb", format!("a: &a [x,x,x,x,x,x,x,x,x]\n{bomb}").into_bytes()),
        ("brackets", vec![b'['; 100_000]),
        ("braces", b"{a: ".repeat(100_000)),
        ("two MiB", [b"command: x\n#".to_vec(), vec![b'x'; 2 << 20]].concat()),
        ("NUL bytes", b"command: x\0\0\0\n".to_vec()),
        ("invalid UTF-8", b"command: \xff\xfe\n".to_vec()),
        ("duplicate key", b"command: a\ncommand: b\n".to_vec()),
        ("unknown key", b"comand: a\n".to_vec()),
        ("wrong type", b"command: {a: b}\n".to_vec()),
        ("negative", b"command: x\ncpu: -1\n".to_vec()),
        ("overflow", b"command: x\nmemory: 99999999999999999999999T\n".to_vec()),
        ("traversal", b"name: ../../etc\ncommand: x\n".to_vec()),
        ("absolute name", b"name: /etc/passwd\ncommand: x\n".to_vec()),
        (
            "deep blocks",
            (0..5000).map(|depth| format!("{}a:\n", " ".repeat(depth % 400))).collect::<String>().into_bytes(),
        ),
        ("many keys", (0..40_000).map(|n| format!("k{n}: 1\n")).collect::<String>().into_bytes()),
        ("many documents", b"---\ncommand: x\n".repeat(10_000)),
        ("self reference", b"command: &a [*a]\n".to_vec()),
        ("huge string", format!("command: x\nenv: {{A: \"{}\"}}\n", "y".repeat(900_000)).into_bytes()),
        (
            "merge bomb",
            (0..300).map(|n| format!("a{n}: &a{n} {{<<: *a{}}}\n", n.max(1) - 1)).collect::<String>().into_bytes(),
        ),
        ("tag", b"command: !!python/object/apply:os.system [\"true\"]\n".to_vec()),
        ("binary", (0..=255u8).cycle().take(50_000).collect()),
    ]
}

#[test]
fn hostile_files_are_refused_quickly_in_little_memory_and_with_a_place() {
    let mut world = World::running();
    world.put("good.yaml", "command: sleep infinity");
    let good = world.wait_running("good");
    let idle_kib = kernel::status(world.controller_pid(), "VmHWM");
    let kib = |text: &str| text.trim_end_matches(" kB").trim().parse::<u64>().unwrap();
    for (what, bytes) in hostile() {
        let path = world.path("hostile.yaml");
        fs::write(&path, &bytes).unwrap();
        // The command line in a process of its own: its whole life is measured.
        let begun = Instant::now();
        let said = program(&["validate", path.to_str().unwrap()]);
        let took = begun.elapsed();
        assert_eq!(said.code, 1, "{what} was accepted: {said:?}");
        let place =
            said.out.strip_prefix(&format!("{}:", path.display())).unwrap_or_else(|| panic!("{what}: {}", said.out));
        let numbers: Vec<&str> = place.splitn(3, ':').collect();
        assert!(
            numbers[0].parse::<u64>().is_ok() && numbers[1].parse::<u64>().is_ok(),
            "{what} has no place: {}",
            said.out
        );
        assert!(said.out.contains("help: "), "{what}: {}", said.out);
        assert!(took < allowed(), "{what} took {took:?}");
        fs::rename(&path, world.manifests().join(format!("{}.yaml", what.replace(' ', "-")))).unwrap();
    }
    // All of them at once, in the running controller.
    assert_eq!(world.ctl(&["wait", "--for", "converged", "--timeout", "10s"]).code, 1);
    let after_kib = kernel::status(world.controller_pid(), "VmHWM");
    let grown = kib(&after_kib) - kib(&idle_kib);
    assert!(grown < 64 * 1024, "the controller grew by {grown} KiB");
    assert_eq!(world.wait_running("good"), good);
    assert_eq!(world.ps().len(), 1, "{:?}", world.ps());
    world.put("late.yaml", "command: sleep infinity");
    world.wait_running("late");
    world.kill_controller();
    world.start(&[]);
    assert_eq!(world.wait_running("good"), good);
}

/// The bound is 200 ms for a release build on real hardware; debug code and emulated CPUs get a multiple.
fn allowed() -> Duration {
    let slow = if cfg!(debug_assertions) { 10 } else { 1 };
    let emulated = if fs::read_to_string("/proc/cpuinfo").unwrap().contains("QEMU") { 20 } else { 1 };
    Duration::from_millis(200) * slow * emulated
}

#[test]
fn two_files_with_one_name_leave_it_to_the_one_that_has_it() {
    let world = World::running();
    world.put("b.yaml", "name: web\ncommand: sleep infinity");
    let web = world.wait_running("web");
    world.put("a.yaml", "name: web\ncommand: sleep 1000");
    eventually_or(|| world.log().contains("name web is taken by b.yaml:1"), || world.log());
    assert_eq!(world.wait_running("web"), web);
    assert_eq!(world.status("web")["manifest"], "b.yaml");
    let said = program(&["validate", world.manifests().to_str().unwrap()]);
    assert_eq!(said.code, 1);
    assert!(said.out.contains("a.yaml") && said.out.contains("b.yaml"), "{}", said.out);
    // A rename moves the name along, and the process stays.
    world.delete("a.yaml");
    fs::rename(world.manifests().join("b.yaml"), world.manifests().join("c.yaml")).unwrap();
    eventually("c.yaml owns it", || world.status("web")["manifest"] == "c.yaml");
    assert_eq!(world.wait_running("web"), web);
}

#[test]
fn pipes_sockets_devices_and_foreign_links_are_ignored_with_a_warning() {
    let world = World::running();
    nix::unistd::mkfifo(&world.manifests().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.manifests().join("socket.yaml")).unwrap();
    symlink("/dev/zero", world.manifests().join("device.yaml")).unwrap();
    fs::write(world.path("outside.yaml"), "command: sleep infinity").unwrap();
    symlink(world.path("outside.yaml"), world.manifests().join("root.yaml")).unwrap();
    symlink(world.path("outside.yaml"), world.manifests().join("foreign.yaml")).unwrap();
    std::os::unix::fs::lchown(world.manifests().join("foreign.yaml"), Some(4242), None).unwrap();
    world.wait_running("root");
    world.put("web.yaml", "command: sleep infinity");
    world.wait_running("web");
    let names: Vec<String> = world.ps().iter().map(|status| status["name"].to_string()).collect();
    assert_eq!(names, ["\"root\"", "\"web\""]);
    eventually_or(
        || {
            ["is a pipe", "is a socket", "is a device", "link of uid 4242"]
                .iter()
                .all(|word| world.log().contains(word))
        },
        || world.log(),
    );
}

#[test]
fn a_folder_that_others_can_write_is_refused_at_start_with_the_fix() {
    let world = World::new();
    let refused = |mode: u32, owner: u32, more: &[&str]| {
        fs::set_permissions(world.manifests(), fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(world.manifests(), Some(owner), None).unwrap();
        // One that is accepted runs until it is ended; one that is refused ends by itself.
        let mut command = Command::new("timeout");
        let inner = world.command(more);
        command.arg("2").arg(inner.get_program()).args(inner.get_args()).env_remove("SUDO_UID");
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), error)
    };
    for mode in [0o775, 0o757, 0o777] {
        let (code, error) = refused(mode, 0, &[]);
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(&format!("help: chmod go-w {}", world.manifests().display())), "{error}");
    }
    let (code, error) = refused(0o755, 4242, &[]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("uid 4242") && error.contains("--trust-owner"), "{error}");
    let (code, error) = refused(0o755, 4242, &["--trust-owner", "4242"]);
    assert_eq!(code, Some(124), "accepted, and ended by timeout: {error}");
    let (code, error) = refused(0o755, 0, &[]);
    assert_eq!(code, Some(124), "{error}");
    // The user behind sudo is believed, with a warning.
    std::os::unix::fs::chown(world.manifests(), Some(4242), None).unwrap();
    let inner = world.command(&[]);
    let output = Command::new("timeout")
        .arg("2")
        .arg(inner.get_program())
        .args(inner.get_args())
        .env("SUDO_UID", "4242")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(124), "{error}");
    assert!(error.contains("WARN") && error.contains("user behind sudo"), "{error}");
}

#[test]
fn one_bad_manifest_never_delays_a_good_one() {
    let world = World::running();
    for n in 0..20 {
        world.put(&format!("bad{n}.yaml"), "command: [");
        world.put(&format!("missing{n}.yaml"), "command: no-such-program");
    }
    world.put("good.yaml", "command: sleep infinity");
    world.wait_running("good");
}
