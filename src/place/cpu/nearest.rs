//! Counted CPUs that cannot be had: how many could, and who would have to leave.

use super::Search;
use crate::model::cpuset::CpuSet;
use crate::model::name::Name;
use crate::place::admit::{advice, least};

impl Search<'_> {
    /// What to do where `count` CPUs cannot be had; `finds` says whether so many could, as things are or with other CPUs open.
    pub(super) fn nearest(&self, count: usize, finds: impl Fn(&Search<'_>, usize) -> bool) -> String {
        let fewer = largest(count, |fewer| finds(self, fewer)).map(|fewer| fewer.to_string());
        let mut alone: Vec<(&Name, &CpuSet)> = self
            .ledger
            .others(self.ask.name)
            .map(|(name, holding)| (name, &holding.grant.fenced))
            .filter(|(_, fenced)| !fenced.is_empty())
            .collect();
        alone.sort_by_key(|(name, fenced)| (fenced.len(), *name));
        let usable = &self.machine.topology.usable;
        let without = |gone: &CpuSet| Search { pool: self.pool.union(gone).intersection(usable), ..*self };
        let holders: Vec<&Name> = alone.iter().map(|(name, _)| *name).collect();
        let to_stop = least(&holders, |gone| {
            let leaving = alone.iter().filter(|(name, _)| gone.contains(name));
            finds(&without(&leaving.fold(CpuSet::new(), |all, (_, fenced)| all.union(fenced))), count)
        });
        advice(fewer, &to_stop)
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
