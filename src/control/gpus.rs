//! What the loop keeps about GPUs between looks at the machine: how far each is trusted, and what was leased as the look began.

use super::state::State;
use crate::model::clock::Time;
use crate::model::gpu::{Gpu, GpuHolder, GpuId, GpuStatus, Health};
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::record::Record;
use crate::plan::Ledger;
use crate::plan::gpu::{Ladder, Leased, leased};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Gpus {
    ladder: Ladder,
    leased: Leased,
}

impl State {
    /// Remembers what is leased, before the machine is looked at.
    pub fn note_leases(&mut self) {
        self.gpus.leased = leased(self.records.values());
    }

    /// Takes in a look at the machine.
    pub fn take_machine(&mut self, mut machine: Machine, now: Time) {
        let after = leased(self.records.values());
        let before = health(&self.machine.gpus);
        let Gpus { ladder, leased } = &mut self.gpus;
        machine.gpus = ladder.take((machine.gpus, &machine.gpu_trouble), leased, &after, now);
        for (gpu, health) in health(&machine.gpus) {
            if before.get(&gpu).unwrap_or(&Health::Healthy) != &health {
                tracing::warn!(%gpu, %health, "a GPU's health has changed");
            }
        }
        let (was, is) = (&self.machine.topology, &machine.topology);
        if (&was.online, &was.usable) != (&is.online, &is.usable) {
            tracing::info!(online = %is.online, offline = %is.offline, usable = %is.usable, "CPUs have come or gone");
        }
        if was != is {
            *self.bare = Ledger::of(is);
        }
        self.machine = machine;
    }
}

fn health(gpus: &[Gpu]) -> BTreeMap<GpuId, Health> {
    gpus.iter().map(|gpu| (gpu.id.clone(), gpu.health.clone())).collect()
}

/// Every device, and who holds what of it.
pub fn statuses(gpus: &[Gpu], records: &BTreeMap<Name, Record>) -> Vec<GpuStatus> {
    let leases = |name: &Name, record: &Record| {
        let leases = record.held().into_iter().flat_map(|grant| grant.gpus.clone());
        leases.map(|lease| (name.clone(), lease)).collect::<Vec<_>>()
    };
    let all: Vec<_> = records.iter().flat_map(|(name, record)| leases(name, record)).collect();
    let status = |gpu: &Gpu| {
        let of_it = all.iter().filter(|(_, lease)| lease.gpu == gpu.id);
        let holder = |(workload, lease): &(Name, _)| GpuHolder::of(workload.clone(), lease);
        GpuStatus::of(gpu, of_it.map(holder).collect())
    };
    gpus.iter().map(status).collect()
}
