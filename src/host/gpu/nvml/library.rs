//! The library itself, loaded when devices are looked for. A host without it has no NVIDIA devices, and that is no error; one whose library
//! does not work with its driver has devices of which nothing is known, and that is told until it does.

use super::{Answer, Instance, Library, Reading};
use crate::host::gpu::ProviderError;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The name it has wherever there is a driver; the one without a number comes with development packages only.
const NAME: &str = "libnvidia-ml.so.1";

/// Events that are taken at one look, so that a device in a storm of them holds nobody up; the rest come with the next.
const EVENTS_MAX: usize = 64;

/// The number that stands for an error which the library has no number for (nvml.h, `nvmlEventData_t`).
const XID_UNKNOWN: u64 = 999;

/// There while the driver's module is loaded.
const DRIVER: &str = "/proc/driver/nvidia/version";

struct Loaded {
    /// For as long as the program runs: those who listen borrow it.
    nvml: &'static Nvml,
    /// Who listens for errors of a device, by its identity. A set each: one that cannot be listened to spoils no other.
    listening: Mutex<BTreeMap<String, Option<EventSet<'static>>>>,
}

/// The library, loaded with the first look that finds it, and looked for again with each until then: drivers are installed, updated and
/// loaded while the controller runs.
#[derive(Default)]
pub struct OnDemand {
    loaded: OnceLock<Loaded>,
    /// Whether it has been tried.
    tried: AtomicBool,
}

/// Why it cannot be loaded.
enum Absent {
    /// There is none.
    Library(String),
    /// There is, and no driver for it.
    Driver,
    Broken(ProviderError),
}

impl OnDemand {
    /// It, if there is one.
    fn loaded(&self) -> Result<Option<&Loaded>, ProviderError> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(Some(loaded));
        }
        // Where no driver is loaded the library has one loaded, by a program of its own: once is enough.
        if self.tried.swap(true, Ordering::Relaxed) && !Path::new(DRIVER).exists() {
            return Ok(None);
        }
        match open(NAME) {
            Ok(loaded) => Ok(Some(self.loaded.get_or_init(|| loaded))),
            Err(Absent::Library(reason)) => {
                tracing::debug!(reason, "no NVIDIA devices");
                Ok(None)
            }
            Err(Absent::Driver) if !Path::new(DRIVER).exists() => Ok(None),
            Err(Absent::Driver) => Err(failed("nvmlInit")(NvmlError::DriverNotLoaded)),
            Err(Absent::Broken(error)) => Err(error),
        }
    }
}

fn open(name: &str) -> Result<Loaded, Absent> {
    match Nvml::builder().lib_path(name.as_ref()).init() {
        Ok(nvml) => Ok(Loaded { nvml: Box::leak(Box::new(nvml)), listening: Mutex::default() }),
        Err(NvmlError::LibloadingError(error)) => Err(Absent::Library(format!("{name}: {error}"))),
        Err(NvmlError::DriverNotLoaded) => Err(Absent::Driver),
        Err(error) => Err(Absent::Broken(failed("nvmlInit")(error))),
    }
}

impl Library for OnDemand {
    fn devices(&self) -> Result<Answer, ProviderError> {
        self.loaded()?.map_or_else(|| Ok(Answer::default()), Loaded::devices)
    }

    fn errors(&self) -> Vec<(String, u64)> {
        self.loaded.get().map(Loaded::errors).unwrap_or_default()
    }
}

impl Loaded {
    fn devices(&self) -> Result<Answer, ProviderError> {
        let count = self.nvml.device_count().map_err(failed("nvmlDeviceGetCount"))?;
        let (mut devices, mut answer) = (Vec::new(), Answer::default());
        for index in 0..count {
            match self.nvml.device_by_index(index) {
                Ok(device) => devices.push((index, device)),
                // It fell off the bus: the others are none the worse, and one that is missed is seen to be missing.
                Err(NvmlError::GpuLost) => {}
                Err(error) => answer.unread.push(failed(&format!("device {index}: nvmlDeviceGetHandleByIndex"))(error)),
            }
        }
        let all: Vec<&Device<'static>> = devices.iter().map(|(_, device)| device).collect();
        self.listen(&all);
        for (index, device) in &devices {
            match reading(device, &all) {
                Ok(reading) => answer.readings.push(reading),
                Err((_, NvmlError::GpuLost)) => {}
                Err((call, error)) => answer.unread.push(failed(&format!("device {index}: {call}"))(error)),
            }
        }
        Ok(answer)
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

    /// Listens for the errors of devices that are new. One that cannot say (a virtual one, an old one) is not asked again.
    fn listen(&self, devices: &[&Device<'static>]) {
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

fn failed(call: &str) -> impl Fn(NvmlError) -> ProviderError {
    move |error| ProviderError::Nvml { call: call.to_owned(), message: error.to_string() }
}

/// What could not be read, by the call's name.
type Unread = (&'static str, NvmlError);

fn named(call: &'static str) -> impl Fn(NvmlError) -> Unread {
    move |error| (call, error)
}

fn reading(device: &Device<'_>, all: &[&Device<'_>]) -> Result<Reading, Unread> {
    let uuid = device.uuid().map_err(named("nvmlDeviceGetUUID"))?;
    let memory = device.memory_info().map_err(named("nvmlDeviceGetMemoryInfo"))?;
    // A device that cannot say has no link; with itself there is no status.
    let is_linked =
        |other: &&&Device<'_>| matches!(device.p2p_status(other, P2pCapabilitiesIndex::NvLink), Ok(P2pStatus::Ok));
    let mut links: Vec<String> = all.iter().filter(is_linked).filter_map(|other| other.uuid().ok()).collect();
    links.retain(|other| *other != uuid);
    let mig_enabled = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    let mut instances = Vec::new();
    if mig_enabled {
        for index in 0..device.mig_device_count().map_err(named("nvmlDeviceGetMaxMigDeviceCount"))? {
            match device.mig_device_by_index(index) {
                Ok(part) => instances.push(instance(&part)?),
                // The count is of places; not each has an instance.
                Err(NvmlError::NotFound) => {}
                Err(error) => return Err(("nvmlDeviceGetMigDeviceHandleByIndex", error)),
            }
        }
    }
    Ok(Reading {
        name: device.name().map_err(named("nvmlDeviceGetName"))?,
        minor: device.minor_number().map_err(named("nvmlDeviceGetMinorNumber"))?,
        bus_id: device.pci_info().map_err(named("nvmlDeviceGetPciInfo"))?.bus_id,
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

fn instance(part: &Device<'_>) -> Result<Instance, Unread> {
    let memory = part.memory_info().map_err(named("nvmlDeviceGetMemoryInfo of an instance"))?;
    let uuid = part.uuid().map_err(named("nvmlDeviceGetUUID of an instance"))?;
    let name = part.name().map_err(named("nvmlDeviceGetName of an instance"))?;
    Ok(Instance { uuid, name, memory_total: memory.total, memory_used: memory.used })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_library_has_no_devices_and_no_trouble() {
        let Err(Absent::Library(reason)) = open("libnvidia-ml.so.none") else { panic!("there is one") };
        assert!(reason.starts_with("libnvidia-ml.so.none: "), "{reason}");
    }

    #[test]
    fn a_library_that_is_another_is_trouble() {
        let Err(Absent::Broken(error)) = open("libc.so.6") else { panic!("it is no library of devices") };
        assert!(error.to_string().starts_with("NVML: nvmlInit: "), "{error}");
    }
}
