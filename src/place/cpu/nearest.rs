//! Counted CPUs that cannot be had: how many could, and who would have to leave.

use super::Search;
use crate::model::name::Name;
use crate::place::admit::{advice, least};
use crate::place::{Advice, Holding};
use std::borrow::Cow;

impl Search<'_> {
    /// What to do where `count` CPUs cannot be had; `finds` says whether so many could, as things are or with other CPUs open. Nothing is said
    /// on trial.
    pub(super) fn nearest(&self, count: usize, finds: impl Fn(&Search<'_>, usize) -> bool) -> String {
        if self.ask.advice == Advice::Spared {
            return String::new();
        }
        let fewer = largest(count, |fewer| finds(self, fewer)).map(|fewer| fewer.to_string());
        let others = self.ledger.others(self.ask.name);
        let mut alone: Vec<(&Name, &Holding)> =
            others.filter(|(_, holding)| !holding.grant.fenced.is_empty()).collect();
        alone.sort_by_key(|(name, holding)| (holding.grant.fenced.len(), *name));
        let holders: Vec<&Name> = alone.iter().map(|(name, _)| *name).collect();
        let to_stop = least(&holders, |gone| {
            let leaving = alone.iter().filter(|(name, _)| gone.contains(name)).map(|(_, holding)| *holding);
            finds(&self.without(leaving), count)
        });
        advice(fewer, &to_stop)
    }

    /// The same question with these gone.
    fn without<'h>(&self, gone: impl Iterator<Item = &'h Holding>) -> Search<'_> {
        let mut wear = self.wear.clone().into_owned();
        let mut pool = self.pool.clone();
        for holding in gone {
            wear.take(holding);
            pool = pool.union(&holding.grant.fenced);
        }
        let pool = pool.intersection(&self.machine.topology.usable);
        let Search { machine, ledger, ask, within, .. } = *self;
        Search { machine, ledger, ask, reach: within.of(&pool), pool, within, wear: Cow::Owned(wear) }
    }
}

/// The largest number below `count` that can be had, by halves: whoever can have many can have fewer.
fn largest(count: usize, finds: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut good, mut bad) = (0, count);
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        if finds(middle) { good = middle } else { bad = middle }
    }
    (good > 0).then_some(good)
}
