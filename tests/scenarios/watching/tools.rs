//! Tools that write into the folder, each in its own way.

use super::{kernel, running, sleeper, soon, soon_cpu, soon_running, tool, watching};
use crate::world::World;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Folders of the tools' own, beside the watched one and on the same file system.
fn beside(world: &World, name: &str) -> PathBuf {
    let path = world.path(name);
    fs::create_dir_all(&path).unwrap();
    path
}

/// `a` and `b` run, the tool may do with `b` as it likes.
fn two(world: &World) -> BTreeMap<String, (u64, u64)> {
    world.put("a.yaml", &sleeper(500));
    world.put("b.yaml", &sleeper(500));
    soon_running(world, "both run", &["a", "b"])
}

#[test]
fn mv_into_over_within_and_out_of_the_folder() {
    let world = watching();
    let before = two(&world);
    let aside = beside(&world, "aside.d");
    fs::write(aside.join("c.yaml"), format!("name: c\n{}", sleeper(500))).unwrap();
    let manifests = world.manifests();
    tool("mv", &[aside.join("c.yaml").to_str().unwrap(), "."], &manifests);
    let with_c = soon_running(&world, "mv into the folder", &["a", "b", "c"]);
    fs::write(aside.join("b.yaml"), sleeper(300)).unwrap();
    tool("mv", &[aside.join("b.yaml").to_str().unwrap(), "."], &manifests);
    soon_cpu(&world, "b", 300);
    // A file that names its workload may be called and lie as it likes.
    fs::create_dir(manifests.join("team")).unwrap();
    for (from, to, group) in [("c.yaml", "d.yml", ""), ("d.yml", "team/", "team"), ("team/d.yml", "c.yaml", "")] {
        tool("mv", &[from, to], &manifests);
        let path = if to.ends_with('/') { format!("{to}{from}") } else { to.to_owned() };
        soon(&world, &format!("mv {from} {to}"), || world.status("c")["manifest"] == *path);
        assert_eq!(world.status("c")["group"], group);
        assert_eq!(running(&world), with_c);
    }
    tool("mv", &["c.yaml", aside.to_str().unwrap()], &manifests);
    assert_eq!(soon_running(&world, "mv out of the folder", &["a", "b"]), before);
}

#[test]
fn cp_of_a_large_file_in_slow_chunks_is_read_when_it_is_whole() {
    let world = watching();
    let before = two(&world);
    let padding = format!("# {}\n", "x".repeat(998)).repeat(40);
    // Each beginning of it is a good manifest, but another one.
    let parts = ["command: sleep infinity\n", &padding, "cpu: 300m\n", &padding, "stop: {grace: 1s}\n", &padding];
    for (name, cpu_before) in [("b", Some(500)), ("new", None)] {
        let pipe = world.path("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let target = world.manifests().join(format!("{name}.yaml"));
        let mut cp = Command::new("cp").arg(&pipe).arg(&target).spawn().unwrap();
        let mut feed = File::options().write(true).open(&pipe).unwrap();
        for part in parts {
            feed.write_all(part.as_bytes()).unwrap();
            sleep(Duration::from_millis(150));
            if cpu_before.is_some() {
                assert_eq!(kernel::cpu_milli(&world.group("b")), cpu_before, "half a file was read");
            }
            assert_eq!(running(&world), before, "half a file was read");
        }
        drop(feed);
        assert!(cp.wait().unwrap().success());
        fs::remove_file(&pipe).unwrap();
        soon(&world, "the file is whole", || world.status(name)["phase"] == "Running");
        soon_cpu(&world, name, 300);
        if name == "b" {
            assert_eq!(running(&world), before);
        }
    }
}

#[test]
fn rsync_with_delete_adds_edits_and_removes() {
    let world = watching();
    let source = beside(&world, "source");
    for name in ["a", "b", "c", "d"] {
        fs::write(source.join(format!("{name}.yaml")), sleeper(500)).unwrap();
    }
    let target = world.manifests();
    let rsync = |more: &[&str]| {
        let from = format!("{}/", source.display());
        let args = [&["-a", "--delete"], more, &[from.as_str(), target.to_str().unwrap()]].concat();
        tool("rsync", &args, &source);
    };
    rsync(&[]);
    let before = soon_running(&world, "rsync of four files", &["a", "b", "c", "d"]);
    fs::remove_file(source.join("d.yaml")).unwrap();
    // Of another size: rsync takes files of one size and time for the same.
    fs::write(source.join("b.yaml"), format!("{}# edited\n", sleeper(300))).unwrap();
    fs::write(source.join("e.yaml"), sleeper(500)).unwrap();
    rsync(&[]);
    soon_cpu(&world, "b", 300);
    let after = soon_running(&world, "rsync with a deletion", &["a", "b", "c", "e"]);
    assert!(["a", "b", "c"].iter().all(|name| before[*name] == after[*name]), "{before:?} {after:?}");
    // Removes first, then writes in place, slowly: the file is missing, then half there.
    fs::write(source.join("b.yaml"), format!("{}{}", sleeper(400), "# padding\n".repeat(3000))).unwrap();
    rsync(&["--inplace", "--delete-before", "--bwlimit=30"]);
    soon_cpu(&world, "b", 400);
    assert_eq!(running(&world), after);
}

#[test]
fn vim_and_sed_edit_in_place_and_nobody_restarts() {
    let world = watching();
    let before = two(&world);
    let manifests = world.manifests();
    // By default vim does not do below /tmp what it does elsewhere.
    let vim = |settings: &str, edit: &str| {
        let args = ["-u", "NONE", "-es", "-c", settings, "-c", edit, "-c", "wq", "b.yaml"];
        tool("vim", &args, &manifests);
    };
    vim("set nobackup writebackup backupcopy=yes backupskip=", "%s/500m/300m/");
    soon_cpu(&world, "b", 300);
    vim("set backup writebackup backupcopy=no backupskip=", "%s/300m/400m/");
    soon_cpu(&world, "b", 400);
    tool("sed", &["-i", "s/400m/600m/", "b.yaml"], &manifests);
    soon_cpu(&world, "b", 600);
    tool("sed", &["-i.yaml-bak", "s/600m/700m/", "b.yaml"], &manifests);
    soon_cpu(&world, "b", 700);
    // What it kept of the one before is no manifest, nor is vim's backup.
    sleep(Duration::from_secs(2));
    assert!(manifests.join("b.yaml~").exists() && manifests.join("b.yaml.yaml-bak").exists());
    assert_eq!(running(&world), before);
    assert!(!world.log().contains("refused"), "{}", world.log());
}

#[test]
fn tar_extracts_over_what_is_there() {
    let world = watching();
    let before = two(&world);
    let source = beside(&world, "source");
    for (name, cpu) in [("a", 500), ("b", 300), ("c", 500)] {
        fs::write(source.join(format!("{name}.yaml")), sleeper(cpu)).unwrap();
    }
    let archive = world.path("all.tar");
    tool("tar", &["cf", archive.to_str().unwrap(), "a.yaml", "b.yaml", "c.yaml"], &source);
    tool("tar", &["xf", archive.to_str().unwrap()], &world.manifests());
    soon_cpu(&world, "b", 300);
    let after = soon_running(&world, "tar x", &["a", "b", "c"]);
    assert_eq!((after["a"], after["b"]), (before["a"], before["b"]));
}

#[test]
fn truncate_leaves_what_runs_and_says_so() {
    let world = watching();
    let before = two(&world);
    for size in ["0", "27"] {
        tool("truncate", &["-s", size, "b.yaml"], &world.manifests());
        soon(&world, &format!("truncate to {size}"), || world.status("b")["conditions"][0]["reason"] == "Refused");
        sleep(Duration::from_millis(1500));
        assert_eq!(running(&world), before);
        assert_eq!(kernel::cpu_milli(&world.group("b")), Some(500));
        world.put("b.yaml", &sleeper(500));
        soon(&world, "mended", || world.status("b")["conditions"][0]["reason"] == "Current");
    }
    assert_eq!(running(&world), before);
}

#[test]
fn git_checkout_between_branches_of_200_files() {
    let world = watching();
    let manifests = world.manifests();
    let git = |args: &[&str]| {
        let me = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"];
        tool("git", &[&me, args].concat(), &manifests);
    };
    // Twelve run, so that the machine is not busy with anything but the files.
    let file = |n: u32, branch: &str| match n {
        0..12 => sleeper(if branch == "next" && n.is_multiple_of(2) { 300 } else { 500 }),
        _ => format!("{}suspend: true\nlabels: {{branch: {branch}}}\n", sleeper(500)),
    };
    git(&["init", "-q", "."]);
    for branch in ["main", "next"] {
        if branch == "next" {
            git(&["checkout", "-q", "-b", "next"]);
        }
        for n in 0..200 {
            fs::write(manifests.join(format!("w{n}.yaml")), file(n, branch)).unwrap();
        }
        if branch == "next" {
            tool("git", &["mv", "w1.yaml", "renamed.yaml"], &manifests);
            fs::write(manifests.join("renamed.yaml"), format!("name: w1\n{}", file(1, branch))).unwrap();
            fs::remove_file(manifests.join("w11.yaml")).unwrap();
            fs::write(manifests.join("added.yaml"), sleeper(500)).unwrap();
        }
        git(&["add", "-A"]);
        git(&["commit", "-q", "-m", branch]);
    }
    let commit = |branch: &str| fs::read_to_string(manifests.join(".git/refs/heads").join(branch)).unwrap();
    git(&["checkout", "-q", "main"]);
    let names: Vec<String> = (0..12).map(|n| format!("w{n}")).collect();
    soon(&world, "twelve run", || running(&world).keys().collect::<Vec<_>>().len() == 12 && world.ps().len() == 200);
    let before = running(&world);
    for (branch, even, other) in [("next", 300, "added"), ("main", 500, "w11"), ("next", 300, "added")] {
        git(&["checkout", "-q", branch]);
        let ours = |name: &String| name != "w11" && name != "added";
        soon(&world, &format!("git checkout {branch}"), || {
            let now = running(&world);
            now.len() == 12 && now.contains_key(other) && world.ps().len() == 200
        });
        for n in (0..11).step_by(2) {
            soon_cpu(&world, &format!("w{n}"), even);
        }
        let now = running(&world);
        for name in names.iter().filter(|name| ours(name)) {
            assert_eq!(now[name], before[name], "{name} was restarted");
        }
        let told = |status: &serde_json::Value| status["folderRevision"] == commit(branch).trim_end();
        soon(&world, "the commit is told", || told(&world.status(other)));
    }
    let health = world.ctl(&["describe", "added"]);
    assert!(health.out.contains(commit("next").trim_end()), "{health:?}");
}

#[test]
fn litter_is_never_a_manifest() {
    let world = watching();
    let before = two(&world);
    let litter = [
        ".c.yaml.swp",
        "c.yaml~",
        "c.yaml.tmp",
        ".c.yaml.Xy12ab",
        "c.yaml-bak",
        "c.yaml.yaml-bak",
        "4913",
        "#c.yaml#",
        ".hidden.yaml",
        "sedAbCdEf",
    ];
    for name in litter {
        fs::write(world.manifests().join(name), "name: litter\ncommand: sleep infinity\n").unwrap();
    }
    world.put("c.yaml", &sleeper(500));
    let after = soon_running(&world, "a manifest among litter", &["a", "b", "c"]);
    assert_eq!((after["a"], after["b"]), (before["a"], before["b"]));
    assert!(!world.log().contains("litter"), "{}", world.log());
}
