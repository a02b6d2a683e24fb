//! The tree kept as `src/lib.rs` says it is: who may know whom, what every file begins with, how long it may get.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use containerctl::manifest::fields::Schema;
use containerctl::manifest::{io, isolation, job, logs, probes, resources, rootfs, strategy, workload};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer and those it may name.
const LAYERS: [(&str, &[&str]); 10] = [
    ("model", &[]),
    ("manifest", &["model"]),
    ("place", &["model"]),
    ("plan", &["model", "place"]),
    ("init", &[]),
    ("host", &["model", "init"]),
    ("store", &["model"]),
    ("control", &["model", "manifest", "plan", "host", "store"]),
    ("api", &["model", "manifest", "host", "control"]),
    ("cli", &["model", "manifest", "plan", "host", "store", "control", "api"]),
];
/// Layers without I/O, and the words that would bring it in.
const PURE: [&str; 4] = ["model", "manifest", "place", "plan"];
const IMPURE: [&str; 16] = [
    "std::fs",
    "std::process",
    "std::net",
    "std::env",
    "std::thread",
    "std::os",
    "tokio::",
    "nix::",
    "rustix::",
    "libc::",
    "sled::",
    "notify::",
    "procfs::",
    "tracing::",
    "SystemTime",
    "Instant::now",
];
/// Lines of a file. Past about four hundred it wants to be two; a few more, so that the next line is not a crisis.
const LINES_MAX: usize = 420;
/// Files that may be longer, how long, and why.
const LONG: [(&str, usize, &str); 1] =
    [("src/init/sys.rs", 570, "one wrapper a system call; a second file would only hide half of the list")];

fn files(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" => found.push(path.strip_prefix(root).unwrap().to_owned()),
                _ => {}
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{folder} has no Rust files: does this test still look in the right place?");
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The code of a file without comments, and without its tests: those may build what they need with the other layers' help.
fn code(path: &Path) -> String {
    if path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs") {
        return String::new();
    }
    let text = read(path);
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    text[..end].lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

fn layer_of(path: &Path) -> Option<String> {
    let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
    (parts.next()? == "src").then(|| parts.next()).flatten().filter(|part| !part.contains('.'))
}

#[test]
fn layers_know_only_those_below_them() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in files("src") {
        let Some(layer) = layer_of(&path) else { continue };
        seen.insert(layer.clone());
        let (_, allowed) =
            LAYERS.iter().find(|(name, _)| *name == layer).unwrap_or_else(|| panic!("new layer {layer}"));
        let code = code(&path);
        assert!(!code.contains("super::super::"), "{}: name the layer instead of climbing", path.display());
        for (other, _) in LAYERS.iter().filter(|(other, _)| *other != layer && !allowed.contains(other)) {
            if code.contains(&format!("crate::{other}::")) || code.contains(&format!("crate::{{{other}")) {
                wrong.push(format!("{} names {other}", path.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(seen.len(), LAYERS.len(), "{seen:?}");
}

#[test]
fn the_pure_core_does_no_io() {
    let mut wrong = Vec::new();
    for path in
        files("src").into_iter().filter(|path| layer_of(path).is_some_and(|layer| PURE.contains(&layer.as_str())))
    {
        let code = code(&path);
        wrong.extend(
            IMPURE.iter().filter(|word| code.contains(*word)).map(|word| format!("{}: {word}", path.display())),
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn only_the_store_names_the_database() {
    let others = files("src").into_iter().filter(|path| layer_of(path).as_deref() != Some("store"));
    let wrong: Vec<PathBuf> = others.filter(|path| code(path).contains("sled::")).collect();
    assert_eq!(wrong, Vec::<PathBuf>::new());
}

#[test]
fn every_file_says_first_what_it_is() {
    let all = files("src").into_iter().chain(files("tests"));
    let wrong: Vec<PathBuf> = all.filter(|path| !read(path).starts_with("//! ")).collect();
    assert_eq!(wrong, Vec::<PathBuf>::new(), "a file begins with its `//!` documentation");
}

#[test]
fn files_stay_short() {
    let mut wrong = Vec::new();
    for path in files("src").into_iter().chain(files("tests")) {
        let lines = read(&path).lines().count();
        let exception = LONG.iter().find(|(long, ..)| Path::new(long) == path);
        if lines > exception.map_or(LINES_MAX, |(_, lines_max, _)| *lines_max) {
            wrong.push(format!("{} has {lines} lines", path.display()));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn nothing_is_left_for_later_in_the_code() {
    // Put together here, so that this file does not find itself.
    let words =
        [["to", "do!("].concat(), ["unimple", "mented!("].concat(), ["FIX", "ME"].concat(), ["#[ig", "nore"].concat()];
    let mut wrong = Vec::new();
    for path in files("src").into_iter().chain(files("tests")) {
        let text = read(&path);
        wrong
            .extend(words.iter().filter(|word| text.contains(*word)).map(|word| format!("{}: {word}", path.display())));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_example_is_run_by_a_test() {
    let scenarios: String = files("tests/scenarios").iter().map(|path| read(path)).collect();
    let listing = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap();
    let examples: Vec<String> = listing.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(examples.len() > 1, "{examples:?}: does this test still look in the right place?");
    let unused = |file: &&String| !scenarios.contains(&format!("in_repository(\"examples/{file}\")"));
    assert_eq!(examples.iter().filter(unused).collect::<Vec<_>>(), Vec::<&String>::new(), "run it in tests/scenarios");
}

#[test]
fn the_reference_lists_the_fields_that_are_read() {
    let page = read(Path::new("docs/MANIFEST.md"));
    let listed: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |").map(|(field, _)| field.to_owned()))
        .filter(|field| !field.contains(','))
        .collect();
    let schemas: [(&str, &Schema); 16] = [
        ("", &workload::WORKLOAD),
        ("cpu.", &resources::CPU),
        ("memory.", &resources::MEMORY),
        ("gpu.", &resources::GPU),
        ("io.", &io::IO),
        ("volumes.", &isolation::VOLUME),
        ("rootfs.", &rootfs::ROOTFS),
        ("security.", &isolation::SECURITY),
        ("logs.", &logs::LOGS),
        ("restart.", &workload::RESTART),
        ("stop.", &workload::STOP),
        ("schedule.", &job::SCHEDULE),
        ("strategy.", &strategy::STRATEGY),
        ("probes.", &probes::PROBES),
        ("probes.*.", &probes::PROBE),
        ("probes.*.http.", &probes::HTTP),
    ];
    let read: BTreeSet<String> = schemas
        .iter()
        .flat_map(|(prefix, schema)| schema.fields.iter().map(move |field| format!("{prefix}{field}")))
        .collect();
    assert_eq!(listed, read);
}

#[test]
fn the_tests_that_the_security_page_names_exist() {
    let page = read(Path::new("docs/SECURITY.md"));
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| wall"));
    let mut wrong = Vec::new();
    for row in rows {
        let proof = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        let mut module = String::new();
        let names: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            wrong.push(format!("no test: {row}"));
        }
        for name in names {
            let test = match name.split_once("::") {
                Some((file, test)) => {
                    file.clone_into(&mut module);
                    test
                }
                None => name,
            };
            let code = read(Path::new(&format!("tests/scenarios/{module}.rs")));
            let found = match test.strip_suffix("...") {
                Some(begin) => code.contains(&format!("#[test]\nfn {begin}")),
                None => code.contains(&format!("#[test]\nfn {test}()")),
            };
            if !found {
                wrong.push(format!("{module}::{test}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}
