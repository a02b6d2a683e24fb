//! The folder as people and tools treat it.

use super::*;
use crate::manifest::away::DELETION_SETTLES;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
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
fn a_link_out_of_the_folder_shows_no_file_that_not_everybody_may_read() {
    let mut world = world();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let outside = world.dir.path().join("shadow");
    fs::write(&outside, "root:$6$secret:19000:0:99999:7:::\n").unwrap();
    mode(&outside, 0o640);
    symlink("../shadow", world.path("sh.yaml")).unwrap();
    // In the folder's own tree, as git-sync and ConfigMap volumes lay them, modes are nobody's business.
    fs::create_dir(world.path("..data")).unwrap();
    fs::write(world.path("..data/web.yaml"), "command: x").unwrap();
    mode(&world.path("..data/web.yaml"), 0o600);
    symlink("..data/web.yaml", world.path("web.yaml")).unwrap();
    // A link to a folder shows no more than one to each of its files.
    fs::create_dir(world.dir.path().join("elsewhere")).unwrap();
    for (name, bits) in [("db", 0o644), ("key", 0o600)] {
        let path = world.dir.path().join(format!("elsewhere/{name}.yaml"));
        fs::write(&path, "command: x").unwrap();
        mode(&path, bits);
    }
    symlink("../elsewhere", world.path("team")).unwrap();
    let private =
        |mode| format!("leads out of the folder to a file that not everybody may read (mode {mode}), and is ignored");
    assert_eq!(
        world.scan(),
        format!("team/db.yaml: db\nweb.yaml: web\nsh.yaml: {}\nteam/key.yaml: {}\n", private("0640"), private("0600"))
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

#[test]
fn a_look_after_one_edit_among_many_reads_one_file() {
    let mut world = world();
    for n in 0..200 {
        world.write(&format!("w{n}.yaml"), "command: x");
    }
    assert_eq!(world.folder.scan().unwrap().read, 200);
    sleep(RACY);
    // Once more, because files that are as young as that may change without its showing.
    world.folder.scan().unwrap();
    assert_eq!(world.folder.scan().unwrap().read, 0);
    world.write("w7.yaml", "command: y");
    assert_eq!(world.folder.scan().unwrap().read, 1);
}

#[test]
fn a_folder_that_returns_file_by_file_loses_nothing() {
    let mut world = world();
    for name in ["a", "b", "c"] {
        world.write(&format!("{name}.yaml"), "command: x");
    }
    world.scan();
    fs::remove_dir_all(world.path("")).unwrap();
    world.folder.scan().unwrap_err();
    sleep(DELETION_SETTLES);
    fs::create_dir(world.path("")).unwrap();
    let error = world.folder.scan().unwrap_err().to_string();
    assert!(error.contains("another one than before") && error.contains("help: "), "{error}");
    sleep(DELETION_SETTLES);
    world.write("a.yaml", "command: x");
    assert_eq!(world.scan(), "a.yaml: a\nb.yaml: b settling\nc.yaml: c settling\n");
    sleep(DELETION_SETTLES * 2 / 3);
    world.write("b.yaml", "command: y");
    assert_eq!(world.scan(), "a.yaml: a\nb.yaml: b\nc.yaml: c settling\n");
    sleep(DELETION_SETTLES * 2 / 3);
    assert_eq!(world.scan(), "a.yaml: a\nb.yaml: b\nc.yaml: c settling\n", "not quiet for a second yet");
    sleep(DELETION_SETTLES * 2 / 3);
    assert_eq!(world.scan(), "a.yaml: a\nb.yaml: b\n");
}

#[test]
fn a_broken_link_and_a_sub_folder_that_cannot_be_read_hold_what_they_had() {
    let mut world = world();
    fs::create_dir_all(world.dir.path().join("rev-1")).unwrap();
    fs::write(world.dir.path().join("rev-1/api.yaml"), "command: x").unwrap();
    symlink("../rev-1", world.path("team")).unwrap();
    symlink("../rev-1/api.yaml", world.path("web.yaml")).unwrap();
    assert_eq!(world.scan(), "team/api.yaml: api\nweb.yaml: web\n");
    fs::remove_dir_all(world.dir.path().join("rev-1")).unwrap();
    let held = "team/api.yaml: !\nweb.yaml: !\nteam: is a link to nothing, and is ignored\nweb.yaml: is a link to nothing, and is ignored\n";
    assert_eq!(world.scan(), held);
    sleep(DELETION_SETTLES);
    assert_eq!(world.scan(), held);
    fs::remove_file(world.path("web.yaml")).unwrap();
    assert!(world.scan().contains("web.yaml: web settling"), "a link that is removed is a deletion");
}

#[test]
fn what_links_lead_to_is_watched_too() {
    let mut world = world();
    let outside = world.dir.path().canonicalize().unwrap();
    fs::create_dir_all(outside.join("store/rev-1")).unwrap();
    fs::write(outside.join("store/rev-1/web.yaml"), "command: x").unwrap();
    symlink("rev-1", outside.join("store/current")).unwrap();
    symlink("../store/current/web.yaml", world.path("web.yaml")).unwrap();
    let places = world.folder.scan().unwrap().places;
    assert_eq!(places[&outside.join("store")], Interest::name("current".into()));
    assert_eq!(places[&outside.join("store/rev-1")], Interest::name("web.yaml".into()));
    assert_eq!(places[&world.path("").parent().unwrap().join("manifests")], Interest::Everything);
}

#[test]
fn a_manifest_is_labelled_with_the_revision_of_the_folder_it_came_with() {
    let mut world = world();
    let commit = |digit: &str| format!("{}\n", digit.repeat(40));
    world.write(".git/HEAD", &commit("a"));
    world.write("web.yaml", "command: x");
    let label = |world: &mut World, name: &str| {
        let scan = world.folder.scan().unwrap();
        scan.files[name].workloads[0].1.folder.clone().unwrap_or_default().chars().take(1).collect::<String>()
    };
    assert_eq!(label(&mut world, "web.yaml"), "", "git may be about to move HEAD");
    sleep(world.folder.scan().unwrap().again_in.unwrap());
    sleep(REVISION_FOLLOWS);
    assert_eq!(label(&mut world, "web.yaml"), "a");
    // Git writes the files first.
    world.write("db.yaml", "command: x");
    assert_eq!(label(&mut world, "db.yaml"), "");
    world.write(".git/HEAD", &commit("b"));
    sleep(REVISION_FOLLOWS);
    assert_eq!(label(&mut world, "db.yaml"), "b");
    assert_eq!(label(&mut world, "web.yaml"), "a", "it came with the older one");
}
