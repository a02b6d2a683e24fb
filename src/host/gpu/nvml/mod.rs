//! NVIDIA devices, as NVIDIA's management library (NVML) tells of them.
//!
//! What the library says comes through [`Library`], so that what is made of it is tested with transcripts where there is no such device.
//! A device divided into MIG instances is not offered itself: its instances are, those that exist.

pub mod library;
mod xid;

use super::{Provider, ProviderError, bus, node};
use crate::model::gpu::{Exposure, Gpu, GpuId, Vendor};
use crate::model::units::Bytes;
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Nodes every NVIDIA program opens beside the device's own.
const CONTROL: &str = "/dev/nvidiactl";
/// Unified memory, which CUDA does not start without.
const UVM: &str = "/dev/nvidia-uvm";

/// What is asked of the library.
pub trait Library: Send + Sync {
    fn devices(&self) -> Result<Answer, ProviderError>;

    /// The critical errors (Xid) reported since this was last asked, with the device's identity.
    fn errors(&self) -> Vec<(String, u64)>;
}

/// What the library says of all devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub readings: Vec<Reading>,
    /// Why others cannot be read. One that fell off the bus is not there.
    pub unread: Vec<ProviderError>,
}

/// What the library says of one device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reading {
    pub uuid: String,
    pub name: String,
    /// The number in `/dev/nvidiaN`.
    pub minor: u32,
    /// `domain:bus:device.function`, eight digits for the domain.
    pub bus_id: String,
    pub memory_total: u64,
    pub memory_used: u64,
    /// Devices it reaches by NVLink.
    #[serde(default)]
    pub links: Vec<String>,
    #[serde(default)]
    pub mig_enabled: bool,
    #[serde(default)]
    pub instances: Vec<Instance>,
    /// What is wrong with it.
    #[serde(default)]
    pub fault: Option<String>,
}

/// A MIG instance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Instance {
    pub uuid: String,
    pub name: String,
    pub memory_total: u64,
    pub memory_used: u64,
}

/// The provider; files are read below `root`.
pub struct Nvml {
    library: Box<dyn Library>,
    root: PathBuf,
    errors: xid::Errors,
    last: Mutex<Answer>,
}

impl Provider for Nvml {
    fn name(&self) -> &'static str {
        "nvml"
    }

    fn devices(&self) -> Result<Vec<Gpu>, ProviderError> {
        let answer = self.library.devices()?;
        self.errors.take(self.library.errors(), Instant::now());
        Ok(self.with_unread(answer).iter().flat_map(|reading| self.offered(reading)).collect())
    }
}

impl Nvml {
    pub fn new(library: Box<dyn Library>, root: PathBuf) -> Nvml {
        Nvml { library, root, errors: xid::Errors::default(), last: Mutex::default() }
    }

    /// The readings of this look, and for devices that could not be read those of the last, with the reason as their fault: one sick device
    /// is no trouble of the others. Which one it is may not be said, so all that are missing are doubted.
    fn with_unread(&self, answer: Answer) -> Vec<Reading> {
        let Answer { mut readings, unread } = answer;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !unread.is_empty() {
            let why = unread.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            if last.unread != unread {
                tracing::warn!(error = why, "cannot read an NVIDIA device");
            }
            let is_read = |known: &Reading| readings.iter().any(|reading| reading.uuid == known.uuid);
            let missing: Vec<Reading> = last.readings.iter().filter(|known| !is_read(known)).cloned().collect();
            readings.extend(missing.into_iter().map(|known| Reading { fault: Some(why.clone()), ..known }));
        }
        *last = Answer { readings: readings.clone(), unread };
        readings
    }

    fn offered(&self, reading: &Reading) -> Vec<Gpu> {
        let device = self.root.join("sys/bus/pci/devices").join(pci_address(&reading.bus_id));
        let whole = Gpu {
            foreign: Bytes(reading.memory_used),
            node: node(&device),
            bus: bus(&device),
            links: reading.links.iter().cloned().map(GpuId).collect(),
            fault: reading.fault.clone().or_else(|| self.errors.fault(&reading.uuid)),
            exposure: self.exposure(reading.minor),
            ..Gpu::new(GpuId(reading.uuid.clone()), Vendor::Nvidia, &*reading.name, Bytes(reading.memory_total))
        };
        if !reading.mig_enabled {
            return vec![whole];
        }
        let part = |instance: &Instance| {
            let mut exposure = whole.exposure.clone();
            self.capabilities(reading.minor, &instance.uuid, &mut exposure);
            Gpu {
                id: GpuId(instance.uuid.clone()),
                model: instance.name.clone(),
                memory: Bytes(instance.memory_total),
                foreign: Bytes(instance.memory_used),
                links: [].into(),
                exposure,
                ..whole.clone()
            }
        };
        reading.instances.iter().map(part).collect()
    }

    fn exposure(&self, minor: u32) -> Exposure {
        let mut exposure = Exposure::default();
        for path in [format!("/dev/nvidia{minor}"), CONTROL.to_owned(), UVM.to_owned()] {
            if self.root.join(path.trim_start_matches('/')).exists() {
                exposure.nodes.insert(path.clone(), path);
            } else {
                exposure.unhonoured.push(format!("{path} is not there; `nvidia-modprobe -u -c {minor}` makes it"));
            }
        }
        exposure
    }

    /// The nodes that open one instance. Which they are follows from its numbers, which only the older form of identity has
    /// (`MIG-GPU-<uuid>/<gpu instance>/<compute instance>`); for the newer a CDI spec has to say.
    fn capabilities(&self, minor: u32, uuid: &str, exposure: &mut Exposure) {
        let mut parts = uuid.split('/').skip(1).map(str::parse::<u32>);
        let (Some(Ok(gpu)), Some(Ok(compute))) = (parts.next(), parts.next()) else {
            exposure.unhonoured.push(format!(
                "which nodes open {uuid} is not known; `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` describes it"
            ));
            return;
        };
        let instance = self.root.join(format!("proc/driver/nvidia/capabilities/gpu{minor}/mig/gi{gpu}"));
        for file in [instance.join("access"), instance.join(format!("ci{compute}/access"))] {
            match device_file_minor(&file) {
                Some(minor) => {
                    let path = format!("/dev/nvidia-caps/nvidia-cap{minor}");
                    exposure.nodes.insert(path.clone(), path);
                }
                None => exposure.unhonoured.push(format!("{} does not name a node", file.display())),
            }
        }
    }
}

/// `DeviceFileMinor: 3` out of a file of the driver's.
fn device_file_minor(file: &Path) -> Option<u32> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("DeviceFileMinor:")?.trim().parse().ok())
}

/// The kernel's spelling of a PCI address: at least four digits for the domain, all lower case.
fn pci_address(bus_id: &str) -> String {
    let lower = bus_id.to_lowercase();
    match lower.split_once(':') {
        // Domains that a bridge made up begin at 10000 and have five.
        Some((domain, rest)) if domain.len() > 4 => format!("{:0>4}:{rest}", domain.trim_start_matches('0')),
        _ => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_spelled_as_the_kernel_does() {
        for (told, kernel) in [
            ("00000000:3B:00.0", "0000:3b:00.0"),
            ("00010000:01:00.0", "10000:01:00.0"),
            ("0000000A:01:00.0", "000a:01:00.0"),
            ("0000:AF:00.0", "0000:af:00.0"),
            ("", ""),
        ] {
            assert_eq!(pci_address(told), kernel);
        }
    }
}
