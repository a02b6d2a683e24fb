//! What an exclusive newcomer has to leave of one node: as many CPUs as a pinned workload that requires alignment was promised. With enough
//! left of the machine but not of any node it could only stay where it is no longer alone, and wait there for somebody to leave.

use crate::model::cpuset::CpuSet;
use crate::model::spec::Align;
use crate::place::cpu::{Search, widest};
use std::borrow::Cow;
use std::cmp::Reverse;

impl Search<'_> {
    /// Whether some node keeps so many CPUs in the pool.
    pub(super) fn leaves_a_node(&self, fenced: &CpuSet, width: usize) -> bool {
        width == 0 || widest(self.machine, Align::Required, &self.pool.difference(fenced)) >= width
    }

    /// The same question with so many CPUs of one node beyond reach, for each node that has them. Those that could not be taken anyway are
    /// spared first, then those that pinned workloads would have to leave.
    pub(super) fn sparing(&self, width: usize) -> impl Iterator<Item = Search<'_>> + '_ {
        let layout = &self.wear.layout;
        self.machine.topology.nodes.values().filter_map(move |node| {
            let open = node.intersection(&self.pool);
            let mut cores: Vec<&CpuSet> = layout.cores.iter().filter(|core| !core.is_disjoint(&open)).collect();
            cores.sort_by_key(|core| {
                let pinned = core.iter().filter(|cpu| self.wear.pinned(*cpu) > 0).count();
                (core.is_subset(&open), Reverse((core.len(), pinned)), Reverse(core.iter().next()))
            });
            // Whole cores while they fit: one of which a thread is spared is of no more use than one that is.
            let (mut spared, mut parts) = (CpuSet::new(), Vec::new());
            for core in cores.into_iter().map(|core| core.intersection(&open)) {
                if spared.len() + core.len() <= width { spared = spared.union(&core) } else { parts.push(core) }
            }
            let left = width - spared.len();
            if let Some(smallest) = parts.iter().min_by_key(|core| core.len()) {
                spared = spared.union(&smallest.iter().take(left).collect());
            }
            (spared.len() == width).then(|| self.beyond(&spared))
        })
    }

    /// The same question with these out of reach.
    fn beyond(&self, cpus: &CpuSet) -> Search<'_> {
        let Search { machine, ledger, ask, within, .. } = *self;
        let wear = Cow::Owned(self.wear.clone().into_owned().without(cpus));
        Search { machine, ledger, ask, pool: self.pool.clone(), reach: self.reach.difference(cpus), within, wear }
    }
}
