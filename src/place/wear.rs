//! What all holdings together expect of each CPU.

use super::Holding;
use crate::model::cpuset::CpuSet;
use crate::model::spec::{CpuClass, Resources};

/// By CPU number; CPUs nobody holds may be missing at the end.
#[derive(Clone, Debug, Default)]
pub struct Wear(Vec<Cpu>);

#[derive(Clone, Copy, Debug, Default)]
struct Cpu {
    /// Claims in millionths of a CPU: those of a workload spread evenly over its CPUs, and thousandths would be lost between many.
    claimed: u64,
    pinned: u32,
}

impl Wear {
    pub fn add(&mut self, holding: &Holding) {
        let (share, pinned) = share(holding);
        for cpu in holding.grant.cpus.iter() {
            let cpu = self.at(cpu);
            cpu.claimed += share;
            cpu.pinned += pinned;
        }
    }

    pub fn take(&mut self, holding: &Holding) {
        let (share, pinned) = share(holding);
        for cpu in holding.grant.cpus.iter() {
            let cpu = self.at(cpu);
            cpu.claimed -= share;
            cpu.pinned -= pinned;
        }
    }

    /// Claims on these CPUs, in thousandths of a CPU.
    pub fn claimed(&self, cpus: &CpuSet) -> u64 {
        cpus.iter().filter_map(|cpu| self.0.get(cpu as usize)).map(|cpu| cpu.claimed).sum::<u64>() / 1000
    }

    /// CPUs of pinned workloads among these, each as often as it is held.
    pub fn pinned(&self, cpus: &CpuSet) -> u32 {
        cpus.iter().filter_map(|cpu| self.0.get(cpu as usize)).map(|cpu| cpu.pinned).sum()
    }

    fn at(&mut self, cpu: u32) -> &mut Cpu {
        let index = cpu as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, Cpu::default());
        }
        &mut self.0[index]
    }
}

/// What a workload expects of each of its CPUs, in millionths. Idle work yields to everyone, so it is no load.
fn share(holding: &Holding) -> (u64, u32) {
    let class = holding.resources.cpu.class;
    let cpus = holding.grant.cpus.len() as u64;
    let claimed = if class == CpuClass::Idle || cpus == 0 { 0 } else { claim(&holding.resources) * 1000 / cpus };
    (claimed, u32::from(class == CpuClass::Pinned))
}

/// What a workload is expected to use, in thousandths of a CPU.
pub fn claim(resources: &Resources) -> u64 {
    u64::from(resources.cpu.limit.at().unwrap_or(resources.cpu.request).max(resources.cpu.request).0)
}
