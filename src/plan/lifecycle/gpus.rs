//! Whether a run may stay on its GPUs.

use super::Case;
use crate::model::gpu::{Gpu, GpuId, Health, OnUnhealthy};
use crate::model::name::Name;
use crate::model::observed::Life;
use crate::model::record::Record;
use crate::model::status::ConditionKind;

impl Case<'_, '_> {
    /// Why a run has to leave a device that is draining; says so of one that stays.
    pub(super) fn leaves_its_gpu(&mut self) -> Option<String> {
        let gpu = self.draining(&self.record)?;
        let what = format!("{} is {}", gpu.id, gpu.health);
        let policy = self.record.spec.gpu.as_ref().map_or(OnUnhealthy::Keep, |request| request.on_unhealthy);
        let stays = match policy {
            OnUnhealthy::Stop => return Some(what),
            OnUnhealthy::Keep => "gpu.onUnhealthy says keep".to_owned(),
            OnUnhealthy::Restart => match (self.placed(), self.in_motion()) {
                (Ok(_), None) => return Some(format!("{what}, another is free")),
                (Ok(_), Some(other)) => format!("it waits for {other}, which leaves one too"),
                (Err(refusal), _) => format!("no other serves: {}", refusal.message),
            },
        };
        self.find(ConditionKind::Degraded, true, "GpuUnhealthy", format!("{what}; it runs on: {stays}"));
        None
    }

    fn draining(&self, record: &Record) -> Option<&Gpu> {
        let leases = &record.grant.as_ref()?.gpus;
        let gpu_of = |id: &GpuId| self.input.machine.gpus.iter().find(|gpu| gpu.id == *id);
        let mut held = leases.iter().filter_map(|lease| gpu_of(&lease.gpu));
        held.find(|gpu| matches!(gpu.health, Health::Draining { .. }))
    }

    /// Somebody else who leaves a draining device and has no other yet. One at a time: two that see the same device free would both be
    /// stopped, and one of them for nothing.
    fn in_motion(&self) -> Option<String> {
        let own = &self.record.spec.name;
        let runs = |name: &Name| {
            let instance = self.input.observed.get(name).and_then(|seen| seen.instance.as_ref());
            instance.is_some_and(|instance| matches!(instance.life, Life::Starting | Life::Running { .. }))
        };
        let mut others = self.input.records.iter().filter(|(name, _)| *name != own);
        let leaves = |record: &Record| self.draining(record).is_some();
        let is_moving = |record: &Record| record.stopping.is_some() || !runs(&record.spec.name);
        let recorded = others.find(|(_, record)| leaves(record) && is_moving(record)).map(|(name, _)| name);
        // And whoever was decided to go in this very pass.
        recorded.or_else(|| self.leaving.iter().find(|name| *name != own)).map(ToString::to_string)
    }
}
