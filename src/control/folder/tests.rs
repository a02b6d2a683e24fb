//! The folder as people and tools treat it.

use super::*;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::thread::sleep;

struct World {
    dir: tempfile::TempDir,
    folder: Folder,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifests");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let own = fs::metadata(&path).unwrap().uid();
    World { folder: Folder::new(path, Trust::new(own, &[], None)), dir }
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        if let Some(parent) = self.path(name).parent() {
            fs::create_dir_all(parent).unwrap();
        }
        fs::write(self.path(name), text).unwrap();
    }

    /// The files as `path: names it wants, ! if broken`, and the remarks.
    fn scan(&mut self) -> String {
        let scan = self.folder.scan().unwrap();
        let file = |(path, parsed): (&String, &Arc<Parsed>)| {
            let names: Vec<&str> = parsed.workloads.iter().map(|(spec, _)| spec.name.as_str()).collect();
            let settling = if scan.settling.contains(path) { " settling" } else { "" };
            format!("{path}: {}{}{settling}\n", names.join(" "), if parsed.broken { "!" } else { "" })
        };
        let remarks = scan.remarks.iter().map(|remark| format!("{}: {}\n", remark.path, remark.message));
        scan.files.iter().map(file).chain(remarks).collect()
    }
}

#[test]
fn manifests_are_found_one_level_deep_and_litter_is_not() {
    let mut world = world();
    for name in ["web.yaml", "db.yml", "team/api.yaml"] {
        world.write(name, "command: x");
    }
    for name in [
        ".web.yaml.swp",
        "web.yaml~",
        ".web.yaml.Xy12ab",
        "web.yaml.tmp",
        "web.yaml-bak",
        "web.yaml.bak",
        "#web.yaml#",
        "4913",
        "README",
        "team/deeper/no.yaml",
        ".git/config.yaml",
    ] {
        world.write(name, "command: litter");
    }
    assert_eq!(world.scan(), "db.yml: db\nteam/api.yaml: api\nweb.yaml: web\n");
}

#[test]
fn an_edit_is_seen_at_once_and_a_deletion_settles() {
    let mut world = world();
    world.write("web.yaml", "name: a\ncommand: x");
    assert_eq!(world.scan(), "web.yaml: a\n");
    world.write("web.yaml", "name: b\ncommand: x");
    assert_eq!(world.scan(), "web.yaml: b\n");
    fs::remove_file(world.path("web.yaml")).unwrap();
    assert_eq!(world.scan(), "web.yaml: b settling\n");
    world.write("web.yaml", "name: b\ncommand: x");
    assert_eq!(world.scan(), "web.yaml: b\n", "it came back");
    fs::remove_file(world.path("web.yaml")).unwrap();
    let scan = world.folder.scan().unwrap();
    sleep(scan.again_in.unwrap());
    assert_eq!(world.scan(), "");
}

#[test]
fn an_edit_that_keeps_size_and_time_of_day_is_not_missed() {
    let mut world = world();
    for round in 0..50 {
        world.write("web.yaml", &format!("name: a{}\ncommand: x", round % 10));
        assert_eq!(world.scan(), format!("web.yaml: a{}\n", round % 10), "round {round}");
    }
}

#[test]
fn a_file_that_is_being_written_is_left_as_it_was() {
    let mut world = world();
    let mut new = File::create(world.path("new.yaml")).unwrap();
    new.write_all(b"command: x").unwrap();
    assert_eq!(world.scan(), "new.yaml: !\n", "held, not read");
    drop(new);
    assert_eq!(world.scan(), "new.yaml: new\n");
    let mut again = File::options().append(true).open(world.path("new.yaml")).unwrap();
    again.write_all(b"\nname: half").unwrap();
    assert_eq!(world.scan(), "new.yaml: new\n", "half an edit");
    assert!(world.folder.scan().unwrap().again_in.is_some());
    again.write_all(b"-done").unwrap();
    drop(again);
    assert_eq!(world.scan(), "new.yaml: half-done\n");
}

#[test]
fn pipes_sockets_and_devices_are_never_opened() {
    let mut world = world();
    nix::unistd::mkfifo(&world.path("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(world.path("socket.yaml")).unwrap();
    symlink("/dev/zero", world.path("zero.yaml")).unwrap();
    symlink("nothing", world.path("dangling.yaml")).unwrap();
    world.write("web.yaml", "command: x");
    assert_eq!(
        world.scan(),
        "web.yaml: web\n\
         dangling.yaml: is a link to nothing, and is ignored\n\
         pipe.yaml: is a pipe, not a file, and is ignored\n\
         socket.yaml: is a socket, not a file, and is ignored\n\
         zero.yaml: is a device, not a file, and is ignored\n"
    );
}

#[test]
fn a_link_to_the_outside_counts_only_if_root_laid_it() {
    let mut world = world();
    fs::write(world.dir.path().join("outside.yaml"), "name: out\ncommand: x").unwrap();
    symlink("../outside.yaml", world.path("a.yaml")).unwrap();
    symlink("../outside.yaml", world.path("b.yaml")).unwrap();
    std::os::unix::fs::lchown(world.path("b.yaml"), Some(4242), None).unwrap();
    world.write("real.yaml", "name: in\ncommand: x");
    symlink("real.yaml", world.path("c.yaml")).unwrap();
    std::os::unix::fs::lchown(world.path("c.yaml"), Some(4242), None).unwrap();
    assert_eq!(
        world.scan(),
        "a.yaml: out\nc.yaml: in\nreal.yaml: in\nb.yaml: is a link of uid 4242 that leads out of the folder, and is ignored\n"
    );
}

#[test]
fn a_file_or_sub_folder_that_others_can_write_is_refused_and_what_it_had_is_held() {
    let mut world = world();
    world.write("web.yaml", "command: x");
    world.write("team/api.yaml", "command: x");
    assert_eq!(world.scan(), "team/api.yaml: api\nweb.yaml: web\n");
    fs::set_permissions(world.path("web.yaml"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(world.path("team"), fs::Permissions::from_mode(0o777)).unwrap();
    let shown = world.scan();
    assert!(shown.starts_with("team/api.yaml: !\nweb.yaml: !\nteam: "), "{shown}");
    let refused = &world.folder.scan().unwrap().files["web.yaml"].diagnostics[0];
    assert!(refused.help.starts_with("chmod go-w "), "{refused}");
}

#[test]
fn a_folder_that_cannot_be_trusted_or_read_is_an_error_that_says_how_to_mend_it() {
    let mut world = world();
    let path = world.path("");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
    let error = world.folder.scan().unwrap_err().to_string();
    assert!(error.contains("mode 0775") && error.contains("help: chmod go-w"), "{error}");
    fs::remove_dir(&path).unwrap();
    let error = world.folder.scan().unwrap_err().to_string();
    assert!(error.contains("help: mkdir -p"), "{error}");
}

#[test]
fn a_file_beyond_all_measure_is_refused_unread() {
    let mut world = world();
    let file = File::create(world.path("huge.yaml")).unwrap();
    file.set_len(1 << 40).unwrap();
    drop(file);
    let begun = Instant::now();
    assert_eq!(world.scan(), "huge.yaml: !\n");
    assert!(begun.elapsed() < Duration::from_secs(1));
}
