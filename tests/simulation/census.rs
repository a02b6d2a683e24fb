//! What the stories have told of: words of manifests, happenings, laws, crash points. What no story tells of is not tested.

use crate::laws::LAWS;
use crate::vocabulary::{HAPPENINGS, Happening, WORDS};
use crate::world::CrashPoint;
use std::collections::{BTreeMap, BTreeSet};

/// One thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    /// A manifest of this kind was saved.
    Word(&'static str),
    Happening(Happening),
    /// A law has judged: what it forbids could have happened here.
    Law(&'static str),
}

#[derive(Default)]
pub struct Census {
    counts: BTreeMap<Told, u64>,
    points: BTreeSet<CrashPoint>,
}

impl Census {
    pub fn note(&mut self, what: Told) {
        *self.counts.entry(what).or_insert(0) += 1;
    }

    pub fn crash_at(&mut self, point: CrashPoint) {
        self.points.insert(point);
    }

    pub fn add(&mut self, other: Census) {
        for (what, count) in other.counts {
            *self.counts.entry(what).or_insert(0) += count;
        }
        self.points.extend(other.points);
    }

    pub fn crash_points(&self) -> usize {
        self.points.len()
    }

    /// Everything there is to tell of, and how often it was.
    pub fn everything(&self) -> Vec<(Told, u64)> {
        let words = WORDS.iter().map(|(_, word, _)| Told::Word(word));
        let happenings = HAPPENINGS.iter().map(|(happening, _)| Told::Happening(*happening));
        let laws = LAWS.iter().map(|law| Told::Law(law));
        let count = |told: Told| (told, self.counts.get(&told).copied().unwrap_or(0));
        words.chain(happenings).chain(laws).map(count).collect()
    }
}
