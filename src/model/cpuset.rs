//! Sets of CPUs (or of NUMA nodes) and the kernel's list notation for them: `0-3,8`.

use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};
use std::str::FromStr;

/// Numbers beyond this are refused: twice the most CPUs a kernel can be configured for (`NR_CPUS`, 8192 on x86-64), so that a text such
/// as `0-4294967295` costs nothing.
pub const CPU_MAX: u32 = 16_383;

/// A set of CPU numbers. Shown and parsed in the list format of cpuset(7), always sorted and with the longest ranges.
///
/// Kept as bits, 64 a word, the last word never zero: placement asks millions of times what two sets have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSet(Vec<u64>);

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
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, cpu: u32) -> bool {
        self.0.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    pub fn insert(&mut self, cpu: u32) {
        let word = cpu as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (cpu % 64);
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).step_by(64).zip(&self.0).flat_map(|(first, &word)| {
            let next = |rest: &u64| Some(rest & (rest - 1)).filter(|rest| *rest != 0);
            std::iter::successors(Some(word).filter(|word| *word != 0), next)
                .map(move |rest| first + rest.trailing_zeros())
        })
    }

    #[must_use]
    pub fn union(&self, other: &CpuSet) -> CpuSet {
        let (longer, shorter) = if self.0.len() >= other.0.len() { (self, other) } else { (other, self) };
        let mut words = longer.0.clone();
        for (word, more) in words.iter_mut().zip(&shorter.0) {
            *word |= more;
        }
        CpuSet(words)
    }

    #[must_use]
    pub fn intersection(&self, other: &CpuSet) -> CpuSet {
        CpuSet::of_words(self.0.iter().zip(&other.0).map(|(one, other)| one & other).collect())
    }

    #[must_use]
    pub fn difference(&self, other: &CpuSet) -> CpuSet {
        let others = other.0.iter().copied().chain(std::iter::repeat(0));
        CpuSet::of_words(self.0.iter().zip(others).map(|(word, other)| word & !other).collect())
    }

    pub fn is_subset(&self, other: &CpuSet) -> bool {
        self.0.len() <= other.0.len() && self.0.iter().zip(&other.0).all(|(word, other)| word & !other == 0)
    }

    pub fn is_disjoint(&self, other: &CpuSet) -> bool {
        self.0.iter().zip(&other.0).all(|(word, other)| word & other == 0)
    }

    fn of_words(mut words: Vec<u64>) -> CpuSet {
        while words.last() == Some(&0) {
            words.pop();
        }
        CpuSet(words)
    }

    /// The kernel's other notation, as [`CpuSet::from_mask`] reads it.
    pub fn to_mask(&self) -> String {
        let words: Vec<u64> = self.0.iter().flat_map(|word| [word & u64::from(u32::MAX), word >> 32]).collect();
        let used = words.iter().rposition(|word| *word != 0).unwrap_or(0);
        let first = words.get(used).copied().unwrap_or(0);
        let rest = words.iter().take(used).rev().map(|word| format!(",{word:08x}"));
        rest.fold(format!("{first:x}"), |text, word| text + &word)
    }

    /// Reads the kernel's other notation (Documentation/core-api/printk-formats.rst, `%*pb`): words of eight hexadecimal digits, the
    /// highest first, as in `00000000,0000ffff`; a word may be shorter than that. None if the text is no such mask.
    pub fn from_mask(text: &str) -> Option<CpuSet> {
        let words: Option<Vec<u32>> = text.trim().split(',').map(|word| u32::from_str_radix(word, 16).ok()).collect();
        let words = words.filter(|words| words.len() * 32 <= CPU_MAX as usize + 1)?;
        let pairs = words.rchunks(2).map(|pair| pair.iter().fold(0, |high, word| high << 32 | u64::from(*word)));
        Some(CpuSet::of_words(pairs.collect()))
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> CpuSet {
        let mut set = CpuSet::new();
        for cpu in cpus {
            set.insert(cpu);
        }
        set
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut text, mut cpus) = (String::new(), self.iter().peekable());
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            let comma = if text.is_empty() { "" } else { "," };
            if first == last {
                write!(text, "{comma}{first}")?;
            } else {
                write!(text, "{comma}{first}-{last}")?;
            }
        }
        f.pad(&text)
    }
}

impl FromStr for CpuSet {
    type Err = InvalidCpuList;

    /// Reads a list; an empty or blank one is the empty set, as in the kernel's files.
    fn from_str(text: &str) -> Result<CpuSet, InvalidCpuList> {
        let mut cpus = CpuSet::new();
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
            (first..=last).for_each(|cpu| cpus.insert(cpu));
        }
        Ok(cpus)
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
    use std::collections::BTreeSet;

    #[test]
    fn lists_are_written_with_the_longest_ranges() {
        let set: CpuSet = "3,0-1,2,8".parse().unwrap();
        assert_eq!(set.to_string(), "0-3,8");
        assert_eq!("\n".parse::<CpuSet>().unwrap(), CpuSet::new());
    }

    #[test]
    fn masks_are_read_from_their_last_word() {
        let read = |text: &str| CpuSet::from_mask(text).map(|set| set.to_string());
        assert_eq!(read("00000001,0000ffff\n"), Some("0-15,32".to_owned()));
        assert_eq!(read("ff"), Some("0-7".to_owned()));
        assert_eq!(read("0"), Some(String::new()));
        for nonsense in ["", "x", "1,,2", "0-3", "100000000", &"ffffffff,".repeat(600)] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
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
            prop_assert_eq!(CpuSet::from_mask(&set.to_mask()), Some(set.clone()));
            prop_assert_eq!(set.to_string().parse::<CpuSet>(), Ok(set));
        }

        #[test]
        fn sets_of_bits_are_as_sets_of_numbers(one: BTreeSet<u8>, other: BTreeSet<u8>) {
            let bits = |set: &BTreeSet<u8>| set.iter().map(|cpu| u32::from(*cpu)).collect::<CpuSet>();
            let (a, b) = (bits(&one), bits(&other));
            prop_assert_eq!(a.union(&b), bits(&(&one | &other)));
            prop_assert_eq!(a.intersection(&b), bits(&(&one & &other)));
            prop_assert_eq!(a.difference(&b), bits(&(&one - &other)));
            prop_assert_eq!(a.is_subset(&b), one.is_subset(&other));
            prop_assert_eq!(a.is_disjoint(&b), one.is_disjoint(&other));
            prop_assert_eq!((a.len(), a.is_empty()), (one.len(), one.is_empty()));
            prop_assert!(a.iter().eq(one.iter().map(|cpu| u32::from(*cpu))));
            prop_assert!((0..300).all(|cpu| a.contains(cpu) == u8::try_from(cpu).is_ok_and(|cpu| one.contains(&cpu))));
        }
    }
}
