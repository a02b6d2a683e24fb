//! The library itself, loaded when the controller starts. A host without it has no NVIDIA devices, and that is no error.

use super::{Instance, Library, Reading};
use crate::host::gpu::ProviderError;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The name it has wherever there is a driver; the one without a number comes with development packages only.
const NAME: &str = "libnvidia-ml.so.1";

/// Events that are taken at one look, so that a device in a storm of them holds nobody up; the rest come with the next.
const EVENTS_MAX: usize = 64;

struct Loaded {
    /// For as long as the program runs: those who listen borrow it.
    nvml: &'static Nvml,
    /// Who listens for errors of a device, by its identity. A set each: one that cannot be listened to spoils no other.
    listening: Mutex<BTreeMap<String, Option<EventSet<'static>>>>,
}

/// Loads it; why not, in words.
pub fn open() -> Result<Box<dyn Library>, String> {
    open_named(NAME)
}

fn open_named(name: &str) -> Result<Box<dyn Library>, String> {
    match Nvml::builder().lib_path(name.as_ref()).init() {
        Ok(nvml) => Ok(Box::new(Loaded { nvml: Box::leak(Box::new(nvml)), listening: Mutex::default() })),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

impl Library for Loaded {
    fn devices(&self) -> Result<Vec<Reading>, ProviderError> {
        let count = self.nvml.device_count().map_err(failed("nvmlDeviceGetCount"))?;
        let mut devices = Vec::new();
        for index in 0..count {
            match self.nvml.device_by_index(index) {
                Ok(device) => devices.push(device),
                // It fell off the bus: the others are none the worse, and one that is missed is seen to be missing.
                Err(NvmlError::GpuLost) => {}
                Err(error) => return Err(failed("nvmlDeviceGetHandleByIndex")(error)),
            }
        }
        self.listen(&devices);
        let mut readings = Vec::new();
        for device in &devices {
            match reading(device, &devices) {
                Err(NvmlError::GpuLost) => {}
                read => readings.push(read.map_err(failed("nvmlDevice"))?),
            }
        }
        Ok(readings)
    }

    fn errors(&self) -> Vec<(String, u64)> {
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut errors = Vec::new();
        for (uuid, set) in listening.iter().filter_map(|(uuid, set)| Some((uuid, set.as_ref()?))) {
            // Waits for nothing: what has not come yet comes with the next look.
            let events = (0..EVENTS_MAX).map_while(|_| set.wait(0).ok());
            errors.extend(events.filter_map(|event| match event.event_data? {
                XidError::Value(xid) => Some((uuid.clone(), xid)),
                XidError::Unknown => Some((uuid.clone(), XID_UNKNOWN)),
            }));
        }
        errors
    }
}

/// The number that stands for an error which the library has no number for (nvml.h, `nvmlEventData_t`).
const XID_UNKNOWN: u64 = 999;

impl Loaded {
    /// Listens for the errors of devices that are new. One that cannot say (a virtual one, an old one) is not asked again.
    fn listen(&self, devices: &[Device<'static>]) {
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        for device in devices {
            let Ok(uuid) = device.uuid() else { continue };
            listening.entry(uuid).or_insert_with(|| {
                let set = self.nvml.create_event_set().ok()?;
                device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok()
            });
        }
    }
}

fn failed(call: &'static str) -> impl Fn(NvmlError) -> ProviderError {
    move |error| ProviderError::Nvml { call, message: error.to_string() }
}

fn reading(device: &Device<'_>, all: &[Device<'_>]) -> Result<Reading, NvmlError> {
    let memory = device.memory_info()?;
    let mut links = Vec::new();
    for other in all {
        // A device that cannot say has no link; with itself there is no status.
        if matches!(device.p2p_status(other, P2pCapabilitiesIndex::NvLink), Ok(P2pStatus::Ok)) {
            links.push(other.uuid()?);
        }
    }
    let mig_enabled = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    let mut instances = Vec::new();
    if mig_enabled {
        for index in 0..device.mig_device_count()? {
            match device.mig_device_by_index(index) {
                Ok(part) => instances.push(instance(&part)?),
                // The count is of places; not each has an instance.
                Err(NvmlError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let uuid = device.uuid()?;
    links.retain(|other| *other != uuid);
    Ok(Reading {
        name: device.name()?,
        minor: device.minor_number()?,
        bus_id: device.pci_info()?.bus_id,
        memory_total: memory.total,
        memory_used: memory.used,
        links,
        mig_enabled,
        instances,
        // Memory it has given up on until the next reset; devices without such a count do not say.
        fault: matches!(device.are_pages_pending_retired(), Ok(true))
            .then(|| "memory pages wait to be retired; reset it".to_owned()),
        uuid,
    })
}

fn instance(part: &Device<'_>) -> Result<Instance, NvmlError> {
    let memory = part.memory_info()?;
    Ok(Instance { uuid: part.uuid()?, name: part.name()?, memory_total: memory.total, memory_used: memory.used })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_library_is_told_why_it_has_no_devices() {
        let absent = open_named("libnvidia-ml.so.none").err().unwrap();
        assert!(absent.starts_with("libnvidia-ml.so.none: "), "{absent}");
    }

    #[test]
    fn a_library_that_is_another_is_no_nvml() {
        assert!(open_named("libc.so.6").is_err());
    }
}
