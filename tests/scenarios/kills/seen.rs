//! What is seen of workloads from outside: the folders of their groups, and how they ended.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The workloads that have a group here.
pub fn groups(directory: &Path) -> BTreeSet<String> {
    let names = entries(directory).into_iter();
    names.filter_map(|name| name.strip_suffix(".workload").map(str::to_owned)).collect()
}

/// Joined only by those that are held to something there.
pub fn joined_by_need(directory: &Path) -> bool {
    directory.starts_with("/sys/fs/cgroup/blkio")
}

pub fn entries(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Every end that is remembered is one with this code.
pub fn assert_ended_with(status: &Value, code: u64) {
    let earlier = status["earlierExits"].as_array().into_iter().flatten();
    for exit in earlier.chain([&status["lastExit"]]).filter(|exit| !exit.is_null()) {
        assert_eq!(exit["code"].as_u64(), Some(code), "{status:#}");
    }
}
