//! Sets of CPUs (or of NUMA nodes) and the kernel's list notation for them: `0-3,8`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Numbers beyond this are refused: twice the most CPUs a kernel can be configured for (`NR_CPUS`, 8192 on x86-64), so that a text such
/// as `0-4294967295` costs nothing.
pub const CPU_MAX: u32 = 16_383;

/// A set of CPU numbers. Shown and parsed in the list format of cpuset(7), always sorted and with the longest ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSet(BTreeSet<u32>);

/// A set of NUMA node numbers; the same notation.
pub type NodeSet = CpuSet;

/// Why a text is no list of CPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCpuList {
    #[error("`{part}` is neither a number nor a range like 0-3")]
    Part { part: String },
    #[error("the range {first}-{last} runs backwards")]
    Backwards { first: u32, last: u32 },
    #[error("{number} is beyond {CPU_MAX}")]
    TooLarge { number: u32 },
}

impl CpuSet {
    pub fn new() -> CpuSet {
        CpuSet::default()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    pub fn insert(&mut self, cpu: u32) {
        self.0.insert(cpu);
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    #[must_use]
    pub fn union(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 | &other.0)
    }

    #[must_use]
    pub fn intersection(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 & &other.0)
    }

    #[must_use]
    pub fn difference(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 - &other.0)
    }

    pub fn is_subset(&self, other: &CpuSet) -> bool {
        self.0.is_subset(&other.0)
    }

    pub fn is_disjoint(&self, other: &CpuSet) -> bool {
        self.0.is_disjoint(&other.0)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> CpuSet {
        CpuSet(cpus.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for cpu in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        let written = |(first, last): &(u32, u32)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        f.pad(&ranges.iter().map(written).collect::<Vec<_>>().join(","))
    }
}

impl FromStr for CpuSet {
    type Err = InvalidCpuList;

    /// Reads a list; an empty or blank one is the empty set, as in the kernel's files.
    fn from_str(text: &str) -> Result<CpuSet, InvalidCpuList> {
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u32>().ok();
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(InvalidCpuList::Part { part: part.to_owned() });
            };
            if last > CPU_MAX {
                return Err(InvalidCpuList::TooLarge { number: last });
            }
            if first > last {
                return Err(InvalidCpuList::Backwards { first, last });
            }
            cpus.extend(first..=last);
        }
        Ok(CpuSet(cpus))
    }
}

impl TryFrom<String> for CpuSet {
    type Error = InvalidCpuList;

    fn try_from(text: String) -> Result<CpuSet, InvalidCpuList> {
        text.parse()
    }
}

impl From<CpuSet> for String {
    fn from(set: CpuSet) -> String {
        set.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_written_with_the_longest_ranges() {
        let set: CpuSet = "3,0-1,2,8".parse().unwrap();
        assert_eq!(set.to_string(), "0-3,8");
        assert_eq!("\n".parse::<CpuSet>().unwrap(), CpuSet::new());
    }

    #[test]
    fn what_is_no_list_says_why() {
        let error = |text: &str| text.parse::<CpuSet>().unwrap_err().to_string();
        assert_eq!(error("a"), "`a` is neither a number nor a range like 0-3");
        assert_eq!(error("3-1"), "the range 3-1 runs backwards");
        assert_eq!(error("0-4294967295"), "4294967295 is beyond 16383");
        assert_eq!(error("0,,1"), "`` is neither a number nor a range like 0-3");
    }

    proptest! {
        #[test]
        fn sets_read_back_as_they_were_written(cpus in proptest::collection::btree_set(0u32..256, 0..64)) {
            let set: CpuSet = cpus.into_iter().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>(), Ok(set));
        }
    }
}
