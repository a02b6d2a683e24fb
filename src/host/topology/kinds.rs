//! Which kinds of core a machine has: performance and efficiency cores, or big and little ones.
//!
//! CPUs are of one kind if they have one capacity, one base frequency, one performance-monitoring unit, and top frequencies within a
//! tenth of each other: processors boost a favoured core or two of one kind a little higher.

use super::{list, number_in, witnesses};
use crate::model::cpuset::CpuSet;
use crate::model::topology::{Kind, KindInfos};
use std::path::Path;

/// Units that tell Intel's kinds apart, as folders of `/sys/devices`.
const UNITS: [&str; 3] = ["cpu_atom", "cpu_lowpower", "cpu_core"];
/// How much more a core may boost than others of its kind, in percent. Twice the 4 % between favoured and other performance cores of
/// the recorded hybrid; a fifth of what lies between the kinds of any recorded machine.
const BOOST_PERCENT: u32 = 10;

pub fn read(root: &Path, online: &CpuSet) -> Vec<Kind> {
    let cpus = root.join("sys/devices/system/cpu");
    let units: Vec<(&str, CpuSet)> = UNITS
        .into_iter()
        .filter_map(|unit| Some((unit, list(&root.join("sys/devices").join(unit).join("cpus"))?)))
        .collect();
    let folder_of = |cpu: u32| cpus.join(format!("cpu{cpu}"));
    let witnesses = witnesses(online);
    let has = |name: &str| witnesses.iter().any(|cpu| folder_of(*cpu).join(name).exists());
    let (has_capacities, has_frequencies) = (has("cpu_capacity"), has("cpufreq"));
    let of = |cpu: u32| {
        let folder = folder_of(cpu);
        let mhz = |file: &str| number_in(&folder.join("cpufreq").join(file)).map(|khz| khz / 1000);
        let max_mhz = if has_frequencies { mhz("cpuinfo_max_freq") } else { None };
        KindInfos {
            capacity: if has_capacities { number_in(&folder.join("cpu_capacity")) } else { None },
            max_mhz,
            base_mhz: max_mhz.and_then(|_| mhz("base_frequency")),
            unit: units.iter().find(|(_, cpus)| cpus.contains(cpu)).map(|(unit, _)| (*unit).to_owned()),
        }
    };
    let mut told: Vec<(KindInfos, u32)> = online.iter().map(|cpu| (of(cpu), cpu)).collect();
    told.retain(|(infos, _)| *infos != KindInfos::default());
    told.sort();
    let mut kinds: Vec<Kind> = Vec::new();
    for (infos, cpu) in told {
        match kinds.iter_mut().find(|kind| is_one(&kind.infos, &infos)) {
            Some(kind) => kind.cpus.insert(cpu),
            None => kinds.push(Kind { cpus: CpuSet::from_iter([cpu]), efficiency: 0, infos }),
        }
    }
    // What the scheduler reckons with comes first; frequencies compare only cores of one design, but are better than nothing.
    kinds.sort_by_key(|Kind { infos, cpus, .. }| (infos.capacity, infos.max_mhz, infos.base_mhz, cpus.iter().next()));
    for (kind, rank) in kinds.iter_mut().zip(0..) {
        kind.efficiency = rank;
    }
    kinds
}

/// Whether these describe one kind, the first with the lower top frequency.
fn is_one(lower: &KindInfos, higher: &KindInfos) -> bool {
    let boosted = match (lower.max_mhz, higher.max_mhz) {
        (Some(lower), Some(higher)) => higher <= lower.saturating_add(lower * BOOST_PERCENT / 100),
        (lower, higher) => lower == higher,
    };
    boosted && KindInfos { max_mhz: higher.max_mhz, ..lower.clone() } == *higher
}
