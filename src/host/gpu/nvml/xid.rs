//! Xid errors: what NVIDIA's driver reports of a device that went wrong, as events that come once and are not taken back.
//!
//! Problem: an event says that something happened, the ladder of health asks whether a device is well now.
//! Approach: an error that is the device's counts as a fault for [`HELD`] after the event: long enough to be drained, and short enough that a
//! device which was reset meanwhile comes back by the ladder's own probation. An error that is the program's (a bad address, an assert) is
//! none of the device's: the driver has ended that program, and its neighbours are well.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a reported error counts: past the ladder's wait before workloads leave (20 s), and past the minute in which an operator looks.
const HELD: Duration = Duration::from_mins(5);
/// Errors that programs cause, by NVIDIA's "XID Errors" page, those that its device plugin for Kubernetes leaves out as well: graphics
/// exception, page fault, reset of a channel, ended by a preemptive clean-up, assert of a video decoder, context switch timeout.
const OF_PROGRAMS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// The errors of late, by device.
#[derive(Debug, Default)]
pub struct Errors(Mutex<BTreeMap<String, (u64, Instant)>>);

impl Errors {
    /// Takes in what has been reported since the last look.
    pub fn take(&self, reported: Vec<(String, u64)>, now: Instant) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, (_, at)| now.saturating_duration_since(*at) < HELD);
        for (uuid, xid) in reported {
            if OF_PROGRAMS.contains(&xid) {
                tracing::info!(gpu = uuid, xid, "an error of a program on it, not of the device");
            } else {
                held.insert(uuid, (xid, now));
            }
        }
    }

    /// What is wrong with a device by its errors.
    pub fn fault(&self, uuid: &str) -> Option<String> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(uuid).map(|(xid, _)| format!("Xid {xid}; `dmesg` has the driver's words"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::gpu::nvml::{Answer, Library, Nvml};
    use crate::host::gpu::{Provider, ProviderError};

    /// A library that has errors to report, once.
    struct Reporting(Mutex<Vec<(String, u64)>>);

    impl Library for Reporting {
        fn devices(&self) -> Result<Answer, ProviderError> {
            let text = include_str!("../../../../tests/fixtures/nvml/two-devices.json");
            Ok(Answer { readings: serde_json::from_str(text).unwrap(), unread: Vec::new() })
        }

        fn errors(&self) -> Vec<(String, u64)> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    #[test]
    fn an_error_that_is_reported_once_is_a_fault_of_that_device_at_every_look_after() {
        let library = Reporting(Mutex::default());
        let uuids: Vec<String> = library.devices().unwrap().readings.into_iter().map(|reading| reading.uuid).collect();
        let reports = [(uuids[1].clone(), 79), (uuids[0].clone(), 31), ("GPU-of-nobody".to_owned(), 48)];
        library.0.lock().unwrap().extend(reports);
        let nvml = Nvml::new(Box::new(library), "/nonexistent".into());
        for _ in 0..2 {
            let found = nvml.devices().unwrap();
            let faults: Vec<Option<&str>> = found.iter().map(|gpu| gpu.fault.as_deref()).collect();
            assert_eq!(faults, [None, Some("Xid 79; `dmesg` has the driver's words")], "31 is the program's");
        }
    }

    #[test]
    fn an_error_of_the_device_is_held_against_it_for_a_while_and_one_of_a_program_is_not() {
        let (errors, now) = (Errors::default(), Instant::now());
        errors.take(vec![("a".to_owned(), 79), ("b".to_owned(), 13)], now);
        assert_eq!(errors.fault("a").unwrap(), "Xid 79; `dmesg` has the driver's words");
        assert_eq!(errors.fault("b"), None);
        errors.take(Vec::new(), now + HELD.checked_sub(Duration::from_secs(1)).unwrap());
        assert!(errors.fault("a").is_some(), "an event comes once");
        errors.take(Vec::new(), now + HELD);
        assert_eq!(errors.fault("a"), None);
    }
}
