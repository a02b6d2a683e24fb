//! Any text as a cpulist: no panic, and what is accepted is the same after being written and read again.
#![no_main]

use containerctl::model::cpuset::CpuSet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(cpus) = text.parse::<CpuSet>() {
        let shown = cpus.to_string();
        assert_eq!(shown.parse::<CpuSet>().expect("what is shown is a cpulist"), cpus, "{text:?} became {shown:?}");
        assert_eq!(cpus.iter().count(), cpus.len());
    }
});
