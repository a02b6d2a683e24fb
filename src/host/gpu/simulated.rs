//! Devices without hardware: scheduled and granted like real ones. Written in a word (`2x16Gi`), or as an inventory with a script of what
//! happens to them.
//!
//! ```yaml
//! devices:
//! - {id: GPU-a, memory: 16Gi, model: Simulated H100, node: 0, deviceNodes: [/dev/null]}
//! - {memory: 80Gi}
//! events:                              # each from `at` on, counted from the controller's start
//! - {at: 10s, device: GPU-a, fault: fell off the bus}
//! - {at: 20s, device: GPU-a, recovered: true}
//! - {at: 30s, device: GPU-a, usedByOthers: 4Gi}
//! - {at: 40s, device: GPU-a, present: false}
//! ```
//! The file is read again at every look, so that editing it is another way to make things happen. One that cannot be read any more is a
//! fault of all its devices, as a driver that fails would be.

use super::{Provider, ProviderError};
use crate::model::gpu::{Gpu, GpuId, Vendor};
use crate::model::units::{Bytes, parse_duration};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Devices one machine may be said to have.
const GPUS_MAX: u32 = 64;
/// Happenings of one script.
const EVENTS_MAX: usize = 10_000;

/// What to pretend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Simulated {
    devices: Vec<Gpu>,
    events: Vec<Event>,
    file: Option<PathBuf>,
}

/// Something that happens to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    at: Duration,
    device: GpuId,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Fault(Option<String>),
    UsedByOthers(Bytes),
    Present(bool),
}

/// Why a text describes no simulated devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSimulation {
    #[error(
        "`{text}` is not like `2x16Gi`: a number of devices from 1 to {GPUS_MAX}, `x`, the memory of each; nor the path of an inventory, \
         which has a `/` or ends in .yaml"
    )]
    Word { text: String },
    #[error(transparent)]
    File(#[from] ProviderError),
}

impl Simulated {
    /// The devices as they are so long after the beginning.
    pub fn at(&self, since: Duration) -> Vec<Gpu> {
        let mut gpus = self.devices.clone();
        let mut away: BTreeSet<&GpuId> = BTreeSet::new();
        for Event { device, what, .. } in self.events.iter().filter(|event| event.at <= since) {
            let Some(gpu) = gpus.iter_mut().find(|gpu| gpu.id == *device) else { continue };
            match what {
                What::Fault(fault) => gpu.fault.clone_from(fault),
                What::UsedByOthers(bytes) => gpu.foreign = *bytes,
                What::Present(true) => drop(away.remove(device)),
                What::Present(false) => drop(away.insert(device)),
            }
        }
        gpus.retain(|gpu| !away.contains(&gpu.id));
        gpus
    }

    fn read(path: &Path) -> Result<Simulated, ProviderError> {
        let text = fs::read_to_string(path)
            .map_err(|error| ProviderError::Read { path: path.to_owned(), message: error.to_string() })?;
        let mut read =
            inventory(&text).map_err(|message| ProviderError::Inventory { path: path.to_owned(), message })?;
        read.file = Some(path.to_owned());
        Ok(read)
    }
}

impl FromStr for Simulated {
    type Err = InvalidSimulation;

    /// Reads `2x16Gi`, or several such, separated by commas, or an inventory file.
    fn from_str(text: &str) -> Result<Simulated, InvalidSimulation> {
        let is_file = |ending: &str| Path::new(text).extension().is_some_and(|found| found == ending);
        if text.contains('/') || is_file("yaml") || is_file("yml") {
            return Ok(Simulated::read(Path::new(text))?);
        }
        let invalid = || InvalidSimulation::Word { text: text.to_owned() };
        let mut memories = Vec::new();
        for part in text.split(',') {
            let (count, memory) = part.split_once('x').ok_or_else(invalid)?;
            let count: u32 = count.parse().map_err(|_| invalid())?;
            let memory: Bytes = memory.parse().map_err(|_| invalid())?;
            if !(1..=GPUS_MAX).contains(&count) || memory.0 == 0 {
                return Err(invalid());
            }
            memories.extend((0..count).map(|_| memory));
        }
        if memories.len() > GPUS_MAX as usize {
            return Err(invalid());
        }
        let device = |(index, memory)| Gpu::new(numbered(index), Vendor::Simulated, MODEL, memory);
        Ok(Simulated { devices: memories.into_iter().enumerate().map(device).collect(), ..Simulated::default() })
    }
}

const MODEL: &str = "Simulated GPU";

/// The form of NVIDIA's identities, with zeros no real device has.
fn numbered(index: usize) -> GpuId {
    GpuId(format!("GPU-00000000-0000-0000-0000-{index:012x}"))
}

/// A simulation and when it began.
pub struct Clocked {
    simulated: Simulated,
    began: Instant,
}

impl Clocked {
    pub fn new(simulated: Simulated) -> Clocked {
        Clocked { simulated, began: Instant::now() }
    }
}

impl Provider for Clocked {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn devices(&self) -> Result<Vec<Gpu>, ProviderError> {
        let since = self.began.elapsed();
        match &self.simulated.file {
            Some(path) => Ok(Simulated::read(path)?.at(since)),
            None => Ok(self.simulated.at(since)),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInventory {
    devices: Vec<RawDevice>,
    #[serde(default)]
    events: Vec<RawEvent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawDevice {
    id: Option<String>,
    memory: String,
    model: Option<String>,
    node: Option<u32>,
    #[serde(default)]
    bus: Vec<String>,
    #[serde(default)]
    links: BTreeSet<String>,
    #[serde(default)]
    device_nodes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawEvent {
    at: String,
    device: String,
    fault: Option<String>,
    recovered: Option<bool>,
    used_by_others: Option<String>,
    present: Option<bool>,
}

/// Reads an inventory; what is wrong with it, in words.
fn inventory(text: &str) -> Result<Simulated, String> {
    let raw: RawInventory = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if raw.devices.len() > GPUS_MAX as usize || raw.events.len() > EVENTS_MAX {
        return Err(format!("more than {GPUS_MAX} devices or {EVENTS_MAX} events"));
    }
    let mut devices: Vec<Gpu> = Vec::new();
    for (index, raw) in raw.devices.into_iter().enumerate() {
        let gpu = device(index, raw)?;
        if devices.iter().any(|other| other.id == gpu.id) {
            return Err(format!("the device {} is there twice", gpu.id));
        }
        devices.push(gpu);
    }
    let mut events = Vec::new();
    for raw in raw.events {
        let event = event(raw)?;
        if !devices.iter().any(|gpu| gpu.id == event.device) {
            return Err(format!("an event is for {}, which is no device of it", event.device));
        }
        events.push(event);
    }
    // The order in which they happen; of those at one time the later line counts.
    events.sort_by_key(|event| event.at);
    Ok(Simulated { devices, events, file: None })
}

fn device(index: usize, raw: RawDevice) -> Result<Gpu, String> {
    let RawDevice { id, memory, model, node, bus, links, device_nodes } = raw;
    let memory: Bytes = memory.parse().map_err(|_| format!("memory is `{memory}`, expected for example 16Gi"))?;
    if memory.0 == 0 {
        return Err("a device without memory".to_owned());
    }
    let id = id.map_or_else(|| numbered(index), GpuId);
    let mut gpu = Gpu::new(id, Vendor::Simulated, model.unwrap_or_else(|| MODEL.to_owned()), memory);
    gpu.node = node;
    gpu.bus = bus;
    gpu.links = links.into_iter().map(GpuId).collect();
    for path in device_nodes {
        let name = Path::new(&path).file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| path.starts_with('/')) else {
            return Err(format!("the device node `{path}` is no absolute path"));
        };
        // Wherever it is on the host, in the box it is directly below /dev.
        gpu.exposure.nodes.insert(format!("/dev/{name}"), path.clone());
    }
    Ok(gpu)
}

fn event(raw: RawEvent) -> Result<Event, String> {
    let RawEvent { at, device, fault, recovered, used_by_others, present } = raw;
    let wrong =
        || format!("the event at {at} for {device} has to say one of fault, recovered: true, usedByOthers, present");
    let what = match (fault, recovered, used_by_others, present) {
        (Some(fault), None, None, None) => What::Fault(Some(fault)),
        (None, Some(true), None, None) => What::Fault(None),
        (None, None, Some(bytes), None) => What::UsedByOthers(bytes.parse().map_err(|_| wrong())?),
        (None, None, None, Some(present)) => What::Present(present),
        _ => return Err(wrong()),
    };
    let at = parse_duration(&at).map_err(|_| format!("at is `{at}`, expected for example 10s"))?;
    Ok(Event { at, device: GpuId(device), what })
}
