//! Recorded trees of real machines, each beside what hwloc 2.9 says of it, are read to the same answer.
//!
//! The trees are not part of this repository: they are looked for in `../shared/topologies` beside it, or where `TOPOLOGIES` says.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and one without trees says so"
)]

use containerctl::host::topology::{allowed, read};
use containerctl::model::topology::Topology;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

/// Where we say something else than hwloc, and why.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    (
        "fakeheterocpunuma",
        "numa",
        "hwloc lays a node without CPUs around the nodes its distances are shortest to; here it has no CPUs",
    ),
    (
        "nvidiagpunumanodes",
        "usable",
        "hwloc takes `cpuset.cpus`, which was asked for; the kernel gives `cpuset.effective_cpus`, half of it",
    ),
];
/// The longest a tree may take to read, at its fastest of several tries, in processor time: files of sysfs wait for no disk, and what
/// other tests do meanwhile is not the reader's.
const READ_MAX: Duration = Duration::from_millis(10);

fn trees() -> Vec<PathBuf> {
    let folder = env::var_os("TOPOLOGIES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/topologies"), PathBuf::from);
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut trees: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(".tar.bz2")).collect();
    trees.sort();
    if trees.is_empty() {
        eprintln!("NOT RUN: no recorded trees in {}", folder.display());
    }
    trees
}

fn name_of(archive: &Path) -> String {
    archive.file_name().unwrap().to_string_lossy().trim_end_matches(".tar.bz2").to_owned()
}

fn unpacked(archive: &Path) -> tempfile::TempDir {
    // In memory where there is such a folder: sysfs is no disk either.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-xjf").arg(archive).arg("--strip-components=1").arg("-C").arg(folder.path());
    let done = tar.status().unwrap();
    assert!(done.success(), "cannot unpack {}: are tar and bzip2 installed?", archive.display());
    folder
}

fn machine(root: &Path) -> Topology {
    read(root, allowed(root).as_ref()).unwrap()
}

fn set(lists: &Value) -> BTreeSet<String> {
    lists.as_array().unwrap().iter().map(|list| list.as_str().unwrap().to_owned()).collect()
}

/// What we say in hwloc's words, and what it says, of one thing each.
fn answers(topology: &Topology, hwloc: &Value) -> Vec<(&'static str, Value, Value)> {
    let ours = serde_json::to_value(topology).unwrap();
    let all = &hwloc["all"];
    let sets = ["packages", "dies", "llc", "cores"].map(|what| (what, json!(set(&ours[what])), json!(set(&all[what]))));
    let kinds = |of: &Value| -> BTreeSet<String> {
        of["kinds"].as_array().unwrap().iter().map(|kind| kind["cpus"].as_str().unwrap().to_owned()).collect()
    };
    let mut answers = Vec::from(sets);
    answers.push(("numa", ours["numa"].clone(), all["numa"].clone()));
    answers.push(("kinds", json!(kinds(&ours)), json!(kinds(all))));
    answers.push(("online", ours["online"].clone(), all["machine"].clone()));
    answers.push(("usable", ours["usable"].clone(), hwloc["usable"]["machine"].clone()));
    answers
}

#[test]
fn recorded_machines_are_read_as_hwloc_reads_them() {
    let mut differing = Vec::new();
    for archive in trees() {
        let name = name_of(&archive);
        let hwloc = fs::read(archive.with_file_name(format!("{name}.json"))).unwrap();
        let hwloc: Value = serde_json::from_slice(&hwloc).unwrap();
        let root = unpacked(&archive);
        for (what, ours, theirs) in answers(&machine(root.path()), &hwloc) {
            let known = DIFFERENCES.iter().any(|(tree, about, _)| *tree == name && *about == what);
            if (ours != theirs) != known {
                differing.push(format!("{name}: {what} {ours}, hwloc {theirs}, known to differ: {known}"));
            }
        }
    }
    assert_eq!(differing, Vec::<String>::new());
}

#[test]
fn recorded_machines_show_which_of_their_cpus_are_off() {
    let offline: Vec<(String, String)> = trees()
        .iter()
        .map(|archive| (name_of(archive), machine(unpacked(archive).path()).offline.to_string()))
        .filter(|(_, offline)| !offline.is_empty())
        .collect();
    if !trees().is_empty() {
        let known = [
            ("16amd64-8n2c-cpusets", "4"),
            ("16em64t-4s2c2t-offlines", "2,5,13-14"),
            ("offline-cpu0-node0", "0-3,21-23"),
        ];
        for (name, cpus) in known {
            assert!(offline.contains(&(name.to_owned(), cpus.to_owned())), "{name}: {offline:?}");
        }
        assert_eq!(offline.len(), known.len(), "{offline:?}");
    }
}

#[test]
fn a_recorded_machine_is_read_in_ten_milliseconds() {
    for archive in trees() {
        let root = unpacked(&archive);
        let timed = || {
            let began = clock_gettime(ClockId::ThreadCPUTime);
            machine(root.path());
            Duration::try_from(clock_gettime(ClockId::ThreadCPUTime) - began).unwrap()
        };
        // The fastest says what the work is; the others say what else the machine is doing.
        let fastest = (0..24).map(|_| timed()).min().unwrap();
        assert!(fastest < READ_MAX, "{} took {fastest:?}", name_of(&archive));
    }
}
