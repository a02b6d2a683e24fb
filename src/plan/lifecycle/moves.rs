//! CPUs that the rebalancer proposes for a workload that runs.

use super::Case;
use crate::model::spec::CpuClass;
use crate::place::Holding;
use crate::plan::balance::moved;

impl Case<'_, '_> {
    /// Takes up what is proposed, unless its CPUs have just been changed for another reason.
    pub(super) fn take_move(&mut self) {
        let name = &self.record.spec.name;
        let known = self.input.records.get(name).and_then(|record| record.grant.as_ref());
        let (Some(proposed), Some(grant)) = (self.moves.get(name), &self.record.grant) else { return };
        if known != Some(grant) {
            return;
        }
        let grant = moved(grant, proposed, self.input);
        let holding = Holding { resources: self.record.spec.resources.clone(), grant: grant.clone() };
        self.ledger.put(name.clone(), holding);
        self.record.grant = Some(grant);
    }

    /// Where idle work was squeezed to means nothing without somebody who gives it back its room: not where nothing is rebalanced, nor for
    /// the next run.
    pub(super) fn forget_squeeze(&mut self) {
        if self.record.spec.resources.cpu.class == CpuClass::Idle
            && let Some(grant) = &mut self.record.grant
        {
            grant.moved = None;
        }
    }
}
