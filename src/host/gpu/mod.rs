//! Where GPUs come from: providers behind one trait, and what CDI specs say about their devices.
//!
//! | provider | file | devices |
//! |---|---|---|
//! | simulated | `simulated` | those it is told to pretend, alone |
//! | NVML | `nvml`, `nvml::library` | NVIDIA's, MIG instances included |
//! | AMD | `amd` | those of amdgpu, from sysfs |
//!
//! A provider only reads, the drivers' on threads of their own (`patient`). One that fails or does not answer gives what it gave last, each
//! device with the failure as its fault: a driver that hiccups must not look like one whose devices were pulled out. One that has never
//! answered says why. What is given to a workload is decided in `place`, how far a device is trusted in `plan`.

pub mod amd;
pub mod cdi;
pub mod nvml;
mod patient;
pub mod simulated;

#[cfg(test)]
mod tests;

use crate::model::gpu::Gpu;
use crate::model::time::Timestamp;
use patient::Patient;
pub use simulated::Simulated;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Where CDI specs are, by their specification.
pub const CDI_FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// Levels of PCI above a device that are told apart, so that a strange tree stays small.
const BUS_LEVELS_MAX: usize = 4;

/// What offers devices.
pub trait Provider: Send + Sync {
    fn name(&self) -> &'static str;

    /// All of its devices as they are now; none where there is no such hardware.
    fn devices(&self) -> Result<Vec<Gpu>, ProviderError>;
}

/// Why a provider cannot say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    #[error("cannot read {path}: {message}")]
    Read { path: PathBuf, message: String },
    #[error("{path} is no inventory of devices: {message}")]
    Inventory { path: PathBuf, message: String },
    #[error("NVML: {call}: {message}")]
    Nvml { call: String, message: String },
    #[error("{provider}: its driver has not answered since {since}; `dmesg` may say why")]
    Silent { provider: &'static str, since: Timestamp },
    #[error("{provider}: a bug of containerctl's, of which the log tells more")]
    Panicked { provider: &'static str },
    #[error("{provider}: cannot start the thread that asks it: {message}")]
    Thread { provider: &'static str, message: String },
}

/// Which devices a host is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Its own.
    #[default]
    Machine,
    Simulated(Simulated),
}

/// All providers.
pub struct Gpus {
    providers: Vec<Box<dyn Provider>>,
    /// What each gave last, and its trouble if it has some.
    last: Mutex<BTreeMap<&'static str, Last>>,
    cdi: Vec<PathBuf>,
}

#[derive(Debug, Default)]
struct Last {
    gpus: Vec<Gpu>,
    trouble: Option<ProviderError>,
}

impl Gpus {
    pub fn open(source: Source, cdi: Vec<PathBuf>) -> Gpus {
        let root = PathBuf::from("/");
        let providers: Vec<Box<dyn Provider>> = match source {
            Source::Simulated(simulated) => vec![Box::new(simulated::Clocked::new(simulated))],
            Source::Machine => {
                let library = Box::new(nvml::library::OnDemand::default());
                let nvidia = Patient::of(nvml::Nvml::new(library, root.clone()));
                vec![Box::new(Patient::of(amd::Amd { root })), Box::new(nvidia)]
            }
        };
        Gpus::of(providers, cdi)
    }

    pub(crate) fn of(providers: Vec<Box<dyn Provider>>, cdi: Vec<PathBuf>) -> Gpus {
        Gpus { providers, last: Mutex::default(), cdi }
    }

    /// Every device, in the order of their identities; and why a provider cannot say what it has.
    pub fn read(&self) -> (Vec<Gpu>, Vec<String>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut gpus, mut troubles) = (Vec::new(), Vec::new());
        for provider in &self.providers {
            let before = last.entry(provider.name()).or_default();
            match provider.devices() {
                Ok(found) => *before = Last { gpus: found, trouble: None },
                Err(trouble) => {
                    if before.trouble.as_ref() != Some(&trouble) {
                        tracing::warn!(provider = provider.name(), error = %trouble, "cannot read its GPUs");
                    }
                    for gpu in &mut before.gpus {
                        gpu.fault = Some(trouble.to_string());
                    }
                    troubles.push(trouble.to_string());
                    before.trouble = Some(trouble);
                }
            }
            gpus.extend(before.gpus.iter().cloned());
        }
        drop(last);
        gpus.sort_by(|a: &Gpu, b: &Gpu| a.id.cmp(&b.id));
        // Two that claim one identity are one: what is leased by it must not be given twice.
        gpus.dedup_by(|a, b| a.id == b.id);
        cdi::apply(&self.cdi, &mut gpus);
        (gpus, troubles)
    }
}

/// The way to a device over PCI, outermost first, from its folder below `/sys/devices`.
fn bus(device: &Path) -> Vec<String> {
    let Ok(path) = device.canonicalize() else { return Vec::new() };
    let is_address = |part: &&str| part.starts_with("pci") || part.split(':').count() == 3;
    let parts = path.iter().filter_map(|part| part.to_str());
    parts.filter(is_address).take(BUS_LEVELS_MAX).map(str::to_owned).collect()
}

/// The NUMA node of a device; the kernel says -1 for none.
fn node(device: &Path) -> Option<u32> {
    std::fs::read_to_string(device.join("numa_node")).ok()?.trim().parse().ok()
}
