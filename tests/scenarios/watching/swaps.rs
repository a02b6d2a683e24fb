//! Folders that are swapped as a whole, by a link.

use super::{kernel, running, sleeper, soon, soon_cpu, soon_running, tool};
use crate::world::World;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

fn revision(folder: &Path, files: &[(&str, u64)]) {
    fs::create_dir_all(folder).unwrap();
    for (name, cpu) in files {
        fs::write(folder.join(format!("{name}.yaml")), sleeper(*cpu)).unwrap();
    }
}

#[test]
fn ln_swaps_a_link_on_the_way_to_the_folder() {
    let mut world = World::new();
    let deploy = world.path("deploy");
    revision(&deploy.join("rev-1/hosts/manifests"), &[("a", 500), ("b", 500), ("c", 500)]);
    revision(&deploy.join("rev-2/hosts/manifests"), &[("a", 500), ("b", 300), ("d", 500)]);
    symlink("rev-1", deploy.join("current")).unwrap();
    let manifests = deploy.join("current/hosts/manifests");
    world.start(&["--resync", "1h", "--manifests", manifests.to_str().unwrap()]);
    let before = soon_running(&world, "the first revision", &["a", "b", "c"]);
    assert_eq!(world.status("a")["folderRevision"], "rev-1");
    // Not one step but two: for a moment there is no link at all.
    tool("ln", &["-sfn", "rev-2", "current"], &deploy);
    soon_cpu(&world, "b", 300);
    let after = soon_running(&world, "ln -sfn", &["a", "b", "d"]);
    assert_eq!((after["a"], after["b"]), (before["a"], before["b"]));
    assert_eq!(world.status("d")["folderRevision"], "rev-2");
    // A file in the folder that is there now is watched, one in the old folder is not missed.
    fs::remove_dir_all(deploy.join("rev-1")).unwrap();
    fs::write(deploy.join("rev-2/hosts/manifests/e.yaml"), sleeper(500)).unwrap();
    soon_running(&world, "an addition after the swap", &["a", "b", "d", "e"]);
    // A link to nothing is no deletion.
    tool("ln", &["-sfn", "rev-3", "current"], &deploy);
    soon(&world, "the loss is told", || world.log().contains("cannot read the manifests folder"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    revision(&deploy.join("rev-3.new/hosts/manifests"), &[("a", 500), ("b", 400), ("d", 500), ("e", 500)]);
    tool("mv", &["rev-3.new", "rev-3"], &deploy);
    soon_cpu(&world, "b", 400);
    let last = running(&world);
    assert_eq!((last["a"], last["b"], last["d"]), (before["a"], before["b"], after["d"]));
    let health = world.ctl(&["wait", "--for", "converged"]);
    assert_eq!(health.code, 0, "{health:?}");
}

#[test]
fn a_config_map_is_swapped_behind_its_files() {
    let mut world = World::new();
    let manifests = world.manifests();
    revision(&manifests.join("..2026_11_24_1"), &[("a", 500), ("b", 500), ("c", 500)]);
    symlink("..2026_11_24_1", manifests.join("..data")).unwrap();
    for name in ["a", "b", "c"] {
        symlink(format!("..data/{name}.yaml"), manifests.join(format!("{name}.yaml"))).unwrap();
    }
    world.start(&["--resync", "1h"]);
    let before = soon_running(&world, "the first revision", &["a", "b", "c"]);
    assert_eq!(world.status("a")["folderRevision"], "..2026_11_24_1");
    // In the order of Kubernetes' AtomicWriter: the new folder, the link to it, the swap, new names, old names, the old folder.
    revision(&manifests.join("..2026_11_24_2"), &[("a", 500), ("b", 300), ("d", 500)]);
    symlink("..2026_11_24_2", manifests.join("..data_tmp")).unwrap();
    tool("mv", &["-T", "..data_tmp", "..data"], &manifests);
    symlink("..data/d.yaml", manifests.join("d.yaml")).unwrap();
    fs::remove_file(manifests.join("c.yaml")).unwrap();
    fs::remove_dir_all(manifests.join("..2026_11_24_1")).unwrap();
    soon_cpu(&world, "b", 300);
    let after = soon_running(&world, "the swap of ..data", &["a", "b", "d"]);
    assert_eq!((after["a"], after["b"]), (before["a"], before["b"]));
    assert_eq!(world.status("d")["folderRevision"], "..2026_11_24_2");
}

#[test]
fn a_file_behind_a_link_to_elsewhere_is_watched_where_it_lies() {
    let world = super::watching();
    let store = world.path("store");
    revision(&store.join("rev-1"), &[("web", 500)]);
    revision(&store.join("rev-2"), &[("web", 300)]);
    symlink("rev-1", store.join("current")).unwrap();
    symlink(store.join("current/web.yaml"), world.manifests().join("web.yaml")).unwrap();
    let before = soon_running(&world, "a linked file", &["web"]);
    fs::write(store.join("rev-1/web.yaml"), sleeper(400)).unwrap();
    soon_cpu(&world, "web", 400);
    tool("ln", &["-sfn", "rev-2", "current"], &store);
    soon_cpu(&world, "web", 300);
    assert_eq!(running(&world), before);
    assert_eq!(kernel::cpu_milli(&world.group("web")), Some(300));
}
