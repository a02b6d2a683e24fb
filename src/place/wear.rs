//! What all holdings together expect of each CPU, core, block and domain, kept up to date so that a placement asks no workload and adds
//! nothing up.
//!
//! Invariants: taking what was added leaves everything as it was; what is *open* of a group are its CPUs that nobody has fenced; *calm*
//! are the open CPUs on cores that nobody counts CPUs of.

use super::layout::Layout;
use super::{Holding, is_counted};
use crate::model::cpuset::CpuSet;
use crate::model::spec::{CpuClass, Resources};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Wear {
    pub layout: Arc<Layout>,
    /// By CPU number.
    cpus: Vec<Cpu>,
    cores: Vec<Core>,
    blocks: Vec<Block>,
    domains: Vec<Domain>,
    /// Claims of those who have every CPU, in millionths of a CPU for each: they are on every CPU alike, and there may be thousands.
    everywhere: u64,
}

/// Claims are in millionths of a CPU: those of a workload spread evenly over its CPUs, and thousandths would be lost between many.
#[derive(Clone, Copy, Debug, Default)]
struct Cpu {
    claimed: u64,
    pinned: u32,
    fenced: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Core {
    /// How many workloads have counted CPUs of it.
    counted: u32,
    /// Over its CPUs, how many pinned workloads have each.
    pinned: u32,
    /// How many of its CPUs are fenced.
    fenced: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    claimed: u64,
    open: u32,
    calm: u32,
    placed: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Domain {
    /// Of its open CPUs.
    claimed: u64,
    open: u32,
}

/// Whether a holding comes or goes.
#[derive(Clone, Copy)]
enum Way {
    Add,
    Take,
}

impl Way {
    fn shift(self, value: &mut u64, by: u64) {
        *value = match self {
            Way::Add => *value + by,
            Way::Take => *value - by,
        };
    }

    fn count(self, value: &mut u32, by: u32) {
        *value = match self {
            Way::Add => *value + by,
            Way::Take => *value - by,
        };
    }
}

impl Wear {
    /// Of a machine nobody has anything of.
    pub fn of(layout: Arc<Layout>) -> Wear {
        let size = |cpus: &CpuSet| u32::try_from(cpus.len()).unwrap_or(u32::MAX);
        let block = |cpus: &CpuSet| Block { open: size(cpus), calm: size(cpus), ..Block::default() };
        Wear {
            cpus: vec![Cpu::default(); layout.usable.iter().last().map_or(0, |last| last as usize + 1)],
            cores: vec![Core::default(); layout.cores.len()],
            blocks: layout.blocks.iter().map(|of| block(&of.cpus)).collect(),
            domains: layout.domains.iter().map(|of| Domain { open: size(&of.domain.cpus), claimed: 0 }).collect(),
            everywhere: 0,
            layout,
        }
    }

    pub fn add(&mut self, holding: &Holding) {
        self.fence(&holding.grant.fenced, Way::Add);
        self.expect(holding, Way::Add);
    }

    pub fn take(&mut self, holding: &Holding) {
        self.fence(&holding.grant.fenced, Way::Take);
        self.expect(holding, Way::Take);
    }

    /// For somebody who may not have these: to them they are as closed as fenced ones, and stay so whoever leaves.
    #[must_use]
    pub fn without(mut self, cpus: &CpuSet) -> Wear {
        self.fence(cpus, Way::Add);
        self
    }

    /// What a holding expects of its CPUs.
    fn expect(&mut self, holding: &Holding, way: Way) {
        let layout = Arc::clone(&self.layout);
        let class = holding.resources.cpu.class;
        let cpus = &holding.grant.cpus;
        let claimed = if class == CpuClass::Idle { 0 } else { claim(&holding.resources) * 1000 };
        let share = claimed / (cpus.len() as u64).max(1);
        let is_everywhere = *cpus == layout.usable;
        if is_everywhere && !is_counted(class) {
            way.shift(&mut self.everywhere, share);
            return;
        }
        if share == 0 && !is_counted(class) {
            return;
        }
        let (mut cores, mut blocks) = (Vec::new(), Vec::new());
        for cpu in cpus.iter() {
            let Some(home) = layout.home(cpu) else { continue };
            let wear = &mut self.cpus[cpu as usize];
            let pinned = u32::from(class == CpuClass::Pinned);
            way.count(&mut wear.pinned, pinned);
            way.count(&mut self.cores[home.core].pinned, pinned);
            way.shift(&mut wear.claimed, share);
            way.shift(&mut self.blocks[home.block].claimed, share);
            if wear.fenced == 0 {
                home.domains.iter().for_each(|at| way.shift(&mut self.domains[*at].claimed, share));
            }
            cores.push(home.core);
            blocks.push(home.block);
        }
        if !is_everywhere {
            blocks.sort_unstable();
            blocks.dedup();
            for at in blocks {
                way.count(&mut self.blocks[at].placed, 1);
            }
        }
        if is_counted(class) {
            cores.sort_unstable();
            cores.dedup();
            for core in cores {
                self.count(core, way);
            }
        }
    }

    /// One workload more, or less, that has counted CPUs of a core.
    fn count(&mut self, core: usize, way: Way) {
        let counted = &mut self.cores[core].counted;
        let was_calm = *counted == 0;
        way.count(counted, 1);
        let is_calm = *counted == 0;
        if was_calm != is_calm {
            let layout = Arc::clone(&self.layout);
            for cpu in layout.cores[core].iter().filter(|cpu| self.cpus[*cpu as usize].fenced == 0) {
                if let Some(home) = layout.home(cpu) {
                    let calm = &mut self.blocks[home.block].calm;
                    if is_calm { Way::Add.count(calm, 1) } else { Way::Take.count(calm, 1) }
                }
            }
        }
    }

    /// CPUs that are fenced, or no longer. Two may fence one by mistake; it is open again when both are gone.
    fn fence(&mut self, fenced: &CpuSet, way: Way) {
        let layout = Arc::clone(&self.layout);
        for cpu in fenced.iter() {
            let Some(home) = layout.home(cpu) else { continue };
            let wear = &mut self.cpus[cpu as usize];
            let was_open = wear.fenced == 0;
            way.count(&mut wear.fenced, 1);
            let (claimed, is_open) = (wear.claimed, wear.fenced == 0);
            if was_open == is_open {
                continue;
            }
            let (way, fencing) = if is_open { (Way::Add, Way::Take) } else { (Way::Take, Way::Add) };
            fencing.count(&mut self.cores[home.core].fenced, 1);
            for at in &home.domains {
                way.shift(&mut self.domains[*at].claimed, claimed);
                way.count(&mut self.domains[*at].open, 1);
            }
            way.count(&mut self.blocks[home.block].open, 1);
            if self.cores[home.core].counted == 0 {
                way.count(&mut self.blocks[home.block].calm, 1);
            }
        }
    }

    /// Claims on a CPU but for those on every one, in millionths.
    pub fn claimed(&self, cpu: u32) -> u64 {
        self.cpus.get(cpu as usize).map_or(0, |cpu| cpu.claimed)
    }

    /// How many pinned workloads have it.
    pub fn pinned(&self, cpu: u32) -> u32 {
        self.cpus.get(cpu as usize).map_or(0, |cpu| cpu.pinned)
    }

    /// How many have fenced it.
    pub fn fences(&self, cpu: u32) -> u32 {
        self.cpus.get(cpu as usize).map_or(0, |cpu| cpu.fenced)
    }

    /// How many workloads have counted CPUs of a core.
    pub fn counted(&self, core: usize) -> u32 {
        self.cores[core].counted
    }

    /// How many times CPUs of a core are pinned workloads'.
    pub fn pinned_of_core(&self, core: usize) -> u32 {
        self.cores[core].pinned
    }

    /// Whether nobody has fenced a CPU of a core.
    pub fn is_open_core(&self, core: usize) -> bool {
        self.cores[core].fenced == 0
    }

    /// Claims on a block, in thousandths of a CPU.
    pub fn load_of_block(&self, at: usize) -> u64 {
        (self.blocks[at].claimed + self.everywhere * self.layout.blocks[at].cpus.len() as u64) / 1000
    }

    pub fn open_of_block(&self, at: usize) -> usize {
        self.blocks[at].open as usize
    }

    pub fn calm_of_block(&self, at: usize) -> usize {
        self.blocks[at].calm as usize
    }

    /// Whether nobody was placed in it.
    pub fn is_free(&self, at: usize) -> bool {
        self.blocks[at].placed == 0
    }

    /// Claims on the open CPUs of a domain, in thousandths of a CPU.
    pub fn load_of_domain(&self, at: usize) -> u64 {
        let Domain { claimed, open } = self.domains[at];
        (claimed + self.everywhere * u64::from(open)) / 1000
    }

    pub fn open_of_domain(&self, at: usize) -> usize {
        self.domains[at].open as usize
    }
}

/// What a workload is expected to use, in thousandths of a CPU.
pub fn claim(resources: &Resources) -> u64 {
    u64::from(resources.cpu.limit.at().unwrap_or(resources.cpu.request).max(resources.cpu.request).0)
}
