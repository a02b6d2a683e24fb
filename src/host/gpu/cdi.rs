//! Container Device Interface specs (CNCF, cdi 0.3 to 1.0): what their makers say a container needs to use a device.
//!
//! Honoured: device nodes (`path`, `hostPath`), environment, and bind mounts, read-only. All else in the part of a spec that concerns a
//! device is named in [`Exposure::unhonoured`], and makes a workload that is given the device `Degraded`. Hooks above all are not run: they
//! are programs of root's on the host. A spec is taken only from a file that nobody but root, or whoever runs the controller, can write.
//!
//! A spec's device is one of ours if it bears its identity, or if its device nodes have ours and no other's of our devices.

use crate::model::gpu::{Exposure, Gpu, Vendor};
use nix::unistd::geteuid;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// More is no spec of devices.
const SPEC_BYTES_MAX: u64 = 4 << 20;
/// Mounts of one device: what the box has room for beside a manifest's volumes (`host::confine`).
pub const MOUNTS_MAX: usize = 28;
/// Nodes that several devices share.
const SHARED: [&str; 6] =
    ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/kfd", "/dev/dri/card0"];

#[derive(Debug, Deserialize)]
struct Spec {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

#[derive(Debug, Deserialize)]
struct Device {
    name: String,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<Node>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: Option<String>,
    permissions: Option<String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Adds to each device what the specs in these folders say about it.
pub fn apply(folders: &[PathBuf], gpus: &mut [Gpu]) {
    if gpus.is_empty() {
        return;
    }
    let specs: Vec<Spec> = folders.iter().flat_map(|folder| files(folder)).filter_map(|path| read(&path)).collect();
    let own: Vec<Vec<String>> = gpus.iter().map(own_nodes).collect();
    for (at, gpu) in gpus.iter_mut().enumerate() {
        for spec in specs.iter().filter(|spec| is_of(spec, gpu.vendor)) {
            let Some(device) = find(spec, gpu, at, &own) else { continue };
            edit(&spec.edits, &mut gpu.exposure);
            edit(&device.edits, &mut gpu.exposure);
            // What a provider did not know itself, a spec has said now.
            gpu.exposure.unhonoured.retain(|unhonoured| !unhonoured.contains("cdi generate"));
        }
    }
}

/// The nodes of a device that are no other's.
fn own_nodes(gpu: &Gpu) -> Vec<String> {
    gpu.exposure.nodes.values().filter(|path| !SHARED.contains(&path.as_str())).cloned().collect()
}

fn is_of(spec: &Spec, vendor: Vendor) -> bool {
    match vendor {
        Vendor::Nvidia => spec.kind.starts_with("nvidia.com/"),
        Vendor::Amd => spec.kind.starts_with("amd.com/"),
        Vendor::Simulated => true,
    }
}

fn find<'a>(spec: &'a Spec, gpu: &Gpu, at: usize, own: &[Vec<String>]) -> Option<&'a Device> {
    let host_path = |node: &'a Node| node.host_path.as_ref().unwrap_or(&node.path);
    let has = |device: &'a Device, path: &String| device.edits.device_nodes.iter().any(|node| host_path(node) == path);
    let by_nodes = |device: &&'a Device| {
        let ours = own.get(at).is_some_and(|ours| ours.iter().any(|path| has(device, path)));
        let others =
            own.iter().enumerate().any(|(other, paths)| other != at && paths.iter().any(|path| has(device, path)));
        ours && !others
    };
    let mut devices = spec.devices.iter();
    devices.clone().find(|device| device.name == gpu.id.0).or_else(|| devices.find(by_nodes))
}

fn edit(edits: &Edits, exposure: &mut Exposure) {
    let Edits { env, device_nodes, mounts, others } = edits;
    let mut not = |what: String| {
        if !exposure.unhonoured.contains(&what) {
            exposure.unhonoured.push(what);
        }
    };
    for variable in env {
        match variable.split_once('=') {
            Some((key, value)) => drop(exposure.env.insert(key.to_owned(), value.to_owned())),
            None => not(format!("CDI env `{variable}` has no value")),
        }
    }
    for Node { path, host_path, permissions, others } in device_nodes {
        if !path.starts_with("/dev/") || path.contains("/../") {
            not(format!("CDI device node {path} is not below /dev"));
            continue;
        }
        if permissions.as_deref().is_some_and(|permissions| !(permissions.contains('r') && permissions.contains('w'))) {
            not(format!("CDI permissions of {path}: it is open for reading and writing"));
        }
        // Major, minor and type are those of the host's node.
        for key in others.keys().filter(|key| !["type", "major", "minor"].contains(&key.as_str())) {
            not(format!("CDI {key} of {path}: a granted node is open to everybody in the box"));
        }
        exposure.nodes.insert(path.clone(), host_path.as_ref().unwrap_or(path).clone());
    }
    for Mount { host_path, container_path, options, others } in mounts {
        if exposure.mounts.len() >= MOUNTS_MAX && !exposure.mounts.contains_key(container_path) {
            not(format!("CDI mount {container_path}: there is room for {MOUNTS_MAX}"));
            continue;
        }
        for option in options
            .iter()
            .filter(|option| ["rw", "noexec", "suid", "dev", "shared", "rshared"].contains(&option.as_str()))
        {
            not(format!("CDI mount option {option} of {container_path}: it is shown read-only, nosuid, nodev"));
        }
        let kind = others.get("type").and_then(Value::as_str).unwrap_or("bind");
        if kind != "bind" && kind != "none" {
            not(format!("CDI mount of type {kind} at {container_path}"));
            continue;
        }
        exposure.mounts.insert(container_path.clone(), host_path.clone());
    }
    for (key, value) in others {
        match (key.as_str(), value) {
            ("hooks", Value::Array(hooks)) => {
                for hook in hooks {
                    let part = |key: &str| hook.get(key).and_then(Value::as_str).unwrap_or("?").to_owned();
                    not(format!(
                        "CDI hook {} {}: programs of the host are not run for a box",
                        part("hookName"),
                        part("path")
                    ));
                }
            }
            _ => not(format!("CDI {key}")),
        }
    }
}

/// The specs of a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_spec = |path: &PathBuf| path.extension().is_some_and(|end| end == "json" || end == "yaml" || end == "yml");
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_spec).collect();
    found.sort();
    found
}

fn read(path: &Path) -> Option<Spec> {
    match parse(path) {
        Ok(spec) => Some(spec),
        Err(message) => {
            tracing::warn!(path = %path.display(), message, "left out a CDI spec");
            None
        }
    }
}

fn parse(path: &Path) -> Result<Spec, String> {
    let found = fs::metadata(path).map_err(|error| error.to_string())?;
    if found.uid() != 0 && found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err("others than root can write it".to_owned());
    }
    if found.len() > SPEC_BYTES_MAX || !found.is_file() {
        return Err(format!("no file of at most {SPEC_BYTES_MAX} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    // JSON is YAML, but for what YAML readers bound to keep hostile files small.
    if path.extension().is_some_and(|end| end == "json") {
        return serde_json::from_str(&text).map_err(|error| error.to_string());
    }
    serde_saphyr::from_str(&text).map_err(|error| error.to_string())
}
