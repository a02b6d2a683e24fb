//! Which ids of the host a workload's user namespace maps.
//!
//! Approach: a workload's name says where to look first, so that the same workload gets the same ids even when everything that was
//! remembered is lost; the next free range is taken where two names collide.
//! Guarantee: no two workloads of one controller share an id, for as long as the one is known.

use super::{Ledger, Refusal};
use crate::model::isolation::{IDS, IdRange};
use crate::model::name::Name;

/// The ids set aside for containers by systemd's allotment ("Users, Groups, UIDs and GIDs on systemd systems") end at 0x6FFF_FFFF;
/// login users and `/etc/subuid` begin far below. Controllers take 8192 ranges of its upper part, foreground runs the 4096 behind them.
const FIRST: u32 = 0x4000_0000;
const RANGES: u32 = 8192;
const FOREGROUND_FIRST: u32 = FIRST + RANGES * IDS;
const FOREGROUND_RANGES: u32 = 4096;

/// A range nobody else has.
pub fn choose(ledger: &Ledger, name: &Name) -> Result<IdRange, Refusal> {
    let start = crc32fast::hash(name.as_str().as_bytes()) % RANGES;
    let ranges = (0..RANGES).map(|step| IdRange { first: FIRST + (start + step) % RANGES * IDS });
    let mut free = ranges.filter(|range| !ledger.has_ids(*range));
    free.next().ok_or_else(|| Refusal {
        reason: "NoIds",
        message: format!(
            "all {RANGES} ranges of user ids are taken; delete a workload, or run one without userNamespace"
        ),
    })
}

/// A range for a run in the foreground. Two at once share one only if their pids differ by a multiple of 4096, and leave nothing behind.
pub fn foreground(pid: u32) -> IdRange {
    IdRange { first: FOREGROUND_FIRST + pid % FOREGROUND_RANGES * IDS }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topology::Topology;

    #[test]
    fn ranges_are_disjoint_stable_and_below_the_reserved_ones() {
        let mut ledger = Ledger::of(&Topology::default());
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..RANGES {
            let name: Name = format!("w{number}").parse().unwrap();
            let range = choose(&ledger, &name).unwrap();
            assert!(range.first.is_multiple_of(IDS) && range.first >= FIRST && range.first < FOREGROUND_FIRST);
            assert!(seen.insert(range), "{range} was given twice");
            ledger.put_ids(range);
        }
        assert_eq!(choose(&ledger, &"one-more".parse().unwrap()).unwrap_err().reason, "NoIds");
        let empty = Ledger::of(&Topology::default());
        let web: Name = "web".parse().unwrap();
        assert_eq!(choose(&empty, &web), choose(&empty, &web));
        assert!(foreground(u32::MAX).first.checked_add(IDS).unwrap() <= 0x7000_0000);
    }
}
