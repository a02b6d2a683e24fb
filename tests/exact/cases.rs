//! Random small machines, and workloads that come and go on them.

use super::solver::{self, Found};
use containerctl::manifest;
use containerctl::model::admission::Admission;
use containerctl::model::cgroup::{Generation, Support};
use containerctl::model::cpuset::CpuSet;
use containerctl::model::machine::{Ceilings, Machine};
use containerctl::model::name::Name;
use containerctl::model::record::{Grant, Requested};
use containerctl::model::shape::Shape;
use containerctl::model::spec::{Align, CpuClass, Spec};
use containerctl::model::topology::{Kind, Topology};
use containerctl::model::units::Bytes;
use containerctl::place::objective::{self, Seated};
use containerctl::place::{Ask, Holding, Ledger, cpu};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The largest machine: what an exact solver can still go through.
const CPUS_MAX: u32 = 12;

/// SplitMix64 (Steele, Lea, Flood, 2014).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    fn number(&mut self, from: u32, to: u32) -> u32 {
        from + u32::try_from(self.below(u64::from(to - from + 1))).unwrap()
    }
}

/// A machine with what has been placed on it.
pub struct Round {
    rng: Rng,
    shape: Shape,
    machine: Machine,
    holdings: BTreeMap<Name, Held>,
    pub arrivals: u32,
}

struct Held {
    spec: Arc<Spec>,
    grant: Grant,
}

/// An arrival: what placement chose, and the best there was.
#[derive(Debug)]
pub struct Met {
    pub fields: String,
    /// What the others cost without it.
    pub before: u64,
    pub ours: Option<Found>,
    pub best: Option<Found>,
}

impl Round {
    pub fn new(mut rng: Rng) -> Round {
        let shape = loop {
            let shape = Shape {
                packages: rng.number(1, 2),
                nodes: rng.number(1, 2),
                llcs: rng.number(1, 3),
                cores: rng.number(1, 4),
                threads: rng.number(1, 2),
            };
            let cpus = shape.packages * shape.nodes * shape.llcs * shape.cores * shape.threads;
            if (3..=CPUS_MAX).contains(&cpus) {
                break shape;
            }
        };
        let mut topology = shape.topology();
        spoil(&mut topology, &mut rng);
        let arrivals = rng.number(3, 12);
        Round { rng, shape, machine: machine(topology), holdings: BTreeMap::new(), arrivals }
    }

    pub fn shown(&self) -> String {
        let held = self.holdings.iter().map(|(name, held)| {
            format!(
                "  {name} {} {:?}: {}, fenced {}",
                held.spec.resources.cpu.class, held.spec.resources.cpu.limit, held.grant.cpus, held.grant.fenced
            )
        });
        format!("{}, usable {}\n{}", self.shape, self.machine.topology.usable, held.collect::<Vec<_>>().join("\n"))
    }

    /// Places one more. None if placement had nothing to choose.
    pub fn arrive(&mut self, number: u32) -> Option<Met> {
        if self.rng.below(4) == 0 && !self.holdings.is_empty() {
            let leaving = self.rng.below(self.holdings.len() as u64);
            let name = self.holdings.keys().nth(usize::try_from(leaving).unwrap()).unwrap().clone();
            self.holdings.remove(&name);
        }
        let fields = self.fields();
        let spec = spec(&format!("w{number}"), &fields);
        let previous = (self.rng.below(4) == 0).then(|| self.held_before());
        let mut ledger = Ledger::of(&self.machine.topology);
        for (name, held) in &self.holdings {
            let holding = Holding { resources: held.spec.resources.clone(), grant: held.grant.clone() };
            ledger.put(name.clone(), holding);
        }
        let ask = Ask { previous: previous.as_ref(), ..Ask::of(&spec, None) };
        let others: Vec<Seated> =
            self.holdings.values().map(|held| seated(&held.spec, &held.grant.cpus, &held.grant.fenced, None)).collect();
        let requested: Vec<(Requested, bool)> =
            self.holdings.values().map(|held| (held.grant.requested, held.grant.fenced.is_empty())).collect();
        let aligned = self.holdings.values().filter(|held| is_aligned(&held.spec));
        let aligned = aligned.filter(|held| held.spec.resources.cpu.class == CpuClass::Pinned);
        let question = solver::Question {
            topology: &self.machine.topology,
            others: &others,
            requested: &requested,
            aligned: aligned.map(|held| held.grant.requested.cpu.cpus_ceil()).max().unwrap_or(0),
            spec: &spec,
            previous: previous.as_ref().map(|grant| &grant.cpus),
        };
        let admitted = question.is_admitted();
        let placed = if admitted { cpu::place(&self.machine, &ledger, &ask).ok() } else { None };
        let best = if admitted { solver::best(&question)? } else { None };
        let before = objective::of(&self.machine.topology, &others).micropoints();
        let ours = placed.as_ref().map(|grant| question.judged(&grant.cpus, &grant.fenced));
        if let Some(grant) = placed {
            let requested = Requested { cpu: spec.resources.cpu.request, memory: Bytes(0) };
            let grant = Grant { cpus: grant.cpus, fenced: grant.fenced, requested, ..Grant::default() };
            self.holdings.insert(spec.name.clone(), Held { spec, grant });
            self.drive_out();
        }
        Some(Met { fields, before, ours, best })
    }

    /// Those whose CPUs were fenced are placed again, as the next pass would.
    fn drive_out(&mut self) {
        let names: Vec<Name> = self.holdings.keys().cloned().collect();
        for name in names {
            let mut ledger = Ledger::of(&self.machine.topology);
            for (name, held) in &self.holdings {
                let holding = Holding { resources: held.spec.resources.clone(), grant: held.grant.clone() };
                ledger.put(name.clone(), holding);
            }
            let held = &self.holdings[&name];
            let ask = Ask::of(&held.spec, Some(&held.grant));
            if !cpu::still_good(&self.machine, &ledger, &ask, &held.grant, None) {
                match cpu::place(&self.machine, &ledger, &ask) {
                    Ok(found) => {
                        let grant = Grant { cpus: found.cpus, fenced: found.fenced, ..held.grant.clone() };
                        self.holdings.get_mut(&name).unwrap().grant = grant;
                    }
                    Err(refusal) => {
                        panic!("{name} was driven out and has nowhere to go: {refusal:?}\n{}", self.shown())
                    }
                }
            }
        }
    }

    fn held_before(&mut self) -> Grant {
        let usable: Vec<u32> = self.machine.topology.usable.iter().collect();
        let cpus: CpuSet = usable.into_iter().filter(|_| self.rng.below(3) == 0).collect();
        Grant { cpus, ..Grant::default() }
    }

    fn fields(&mut self) -> String {
        let cpus = u32::try_from(self.machine.topology.usable.len()).unwrap();
        let count = self.rng.number(1, (cpus * 2 / 3).max(1));
        let milli = self.rng.number(100, cpus * 700);
        let smt = self.rng.one_of(&["full-core", "spread", "any"]);
        let align = self.rng.one_of(&["preferred", "preferred", "required"]);
        match self.rng.below(10) {
            0..=3 => format!("cpu: {{class: pinned, request: {milli}m, smt: {smt}, align: {align}}}"),
            4 | 5 => format!("cpu: {{class: exclusive, request: {count}, smt: {smt}, align: {align}}}"),
            6 | 7 => format!("cpu: {{limit: {milli}m, align: {align}}}"),
            8 => format!("cpu: {{class: pinned, request: 1, align: {align}}}"),
            _ => "cpu: {class: idle}".to_owned(),
        }
    }
}

/// Makes some machines odd: CPUs that are not ours, kinds of core, no caches told.
fn spoil(topology: &mut Topology, rng: &mut Rng) {
    let online = topology.online.clone();
    if rng.below(4) == 0 {
        let kept: CpuSet = online.iter().filter(|_| rng.below(5) > 0).collect();
        topology.usable = if kept.len() > 2 { kept } else { online.clone() };
    }
    if rng.below(5) == 0 {
        let strong: CpuSet = topology.cores.iter().filter(|_| rng.below(2) == 0).flat_map(CpuSet::iter).collect();
        let kind = |cpus: CpuSet, efficiency| Kind { cpus, efficiency, ..Kind::default() };
        topology.kinds = vec![kind(online.difference(&strong), 0), kind(strong, 1)];
    }
    match rng.below(8) {
        0 => topology.llcs.clear(),
        1 => topology.cores.clear(),
        2 => topology.nodes = [(0, online)].into(),
        _ => {}
    }
}

pub fn machine(topology: Topology) -> Machine {
    Machine {
        topology,
        memory: Bytes(16 << 30),
        gpu_trouble: Vec::new(),
        gpus: Vec::new(),
        cgroup: Support { generation: Generation::Unified, files: [].into(), nodes: "0".parse().unwrap() },
        boot_id: "boot".to_owned(),
        disks: BTreeMap::new(),
        huge_pages: BTreeSet::new(),
        ceilings: Ceilings::default(),
        admission: Admission::default(),
    }
}

pub fn spec(name: &str, fields: &str) -> Arc<Spec> {
    let parsed = manifest::parse("x.yaml", format!("name: {name}\ncommand: x\n{fields}\n").as_bytes());
    assert_eq!(parsed.diagnostics, [], "{fields}");
    parsed.workloads.into_iter().next().unwrap().0
}

pub fn seated(spec: &Spec, cpus: &CpuSet, fenced: &CpuSet, previous: Option<&CpuSet>) -> Seated {
    let cpu = &spec.resources.cpu;
    let claim = u64::from(cpu.limit.at().unwrap_or(cpu.request).max(cpu.request).0);
    Seated { class: cpu.class, claim, cpus: cpus.clone(), fenced: fenced.clone(), previous: previous.cloned() }
}

pub fn is_aligned(spec: &Spec) -> bool {
    spec.resources.cpu.align == Align::Required
}
