//! A small world of manifests, records and sightings: each pass is printed and then carried out on it.

use crate::manifest::away::{Away, Look};
use crate::manifest::{gather, parse};
use crate::model::admission::Admission;
use crate::model::balance::Move;
use crate::model::cgroup::{Generation, PARTITION, Settings, Support};
use crate::model::clock::{Clock, Steady};
use crate::model::cpuset::CpuSet;
use crate::model::exit::{Exit, Outcome};
use crate::model::fence::Fence;
use crate::model::gpu::{Gpu, GpuId, Vendor};
use crate::model::label::HostLabels;
use crate::model::machine::{Ceilings, Machine};
use crate::model::name::Name;
use crate::model::observed::{Group, Instance, Life, Observed};
use crate::model::probe::Standing;
use crate::model::record::Record;
use crate::model::spec::Signal;
use crate::model::status::ConditionKind;
use crate::model::time::Timestamp;
use crate::model::topology::tests::{flat, two_sockets};
use crate::model::units::Bytes;
use crate::place::Ledger;
use crate::plan::{Act, Input, Plan, Setback, Shutdown, Work, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// A world without a kernel: work is carried out by editing what is seen.
pub struct World {
    pub files: BTreeMap<String, String>,
    pub records: BTreeMap<Name, Record>,
    pub observed: BTreeMap<Name, Observed>,
    pub setbacks: BTreeMap<Name, Setback>,
    /// Whether the controller has just begun to look: recorded manifests that are missing are waited for.
    pub just_begun: bool,
    pub prune_guard: bool,
    pub strays: BTreeMap<Name, BTreeSet<u32>>,
    pub standings: BTreeMap<Name, Standing>,
    pub busy: BTreeSet<Name>,
    pub blind: BTreeSet<Name>,
    pub machine: Machine,
    pub fence: Fence,
    pub utilisation_percent: Option<u8>,
    pub shutdown: Option<Shutdown>,
    /// What the rebalancer proposes; none where there is none.
    pub moves: Option<Vec<Move>>,
    pub now: Timestamp,
    pub steady: Steady,
    /// When the controller began.
    pub since: Steady,
}

impl World {
    pub fn new(cpus: u32) -> World {
        let files = [
            "cpu.max",
            "cpu.max.burst",
            "cpu.idle",
            "cpu.weight",
            "memory.low",
            "memory.high",
            "memory.max",
            "memory.swap.max",
            "cpuset.cpus",
            "pids.max",
        ];
        let gpu = |index: u32| Gpu::new(GpuId(format!("GPU-{index}")), Vendor::Simulated, "Simulated", Bytes(16 << 30));
        World {
            files: BTreeMap::new(),
            records: BTreeMap::new(),
            observed: BTreeMap::new(),
            setbacks: BTreeMap::new(),
            just_begun: false,
            prune_guard: true,
            strays: BTreeMap::new(),
            standings: BTreeMap::new(),
            busy: BTreeSet::new(),
            blind: BTreeSet::new(),
            machine: Machine {
                gpu_trouble: Vec::new(),
                topology: if cpus == 16 { two_sockets() } else { flat(cpus) },
                memory: Bytes(16 << 30),
                gpus: vec![gpu(0), gpu(1)],
                cgroup: Support {
                    generation: Generation::Unified,
                    files: files.into_iter().map(str::to_owned).collect(),
                    nodes: "0".parse().unwrap(),
                },
                boot_id: "boot".to_owned(),
                disks: BTreeMap::new(),
                huge_pages: BTreeSet::new(),
                ceilings: Ceilings::default(),
                admission: Admission::default(),
            },
            fence: Fence::default(),
            utilisation_percent: None,
            shutdown: None,
            moves: None,
            now: Timestamp(1_000_000),
            steady: Steady(100_000),
            since: Steady(0),
        }
    }

    pub fn file(&mut self, path: &str, text: &str) -> &mut World {
        self.files.insert(path.to_owned(), text.to_owned());
        self
    }

    pub fn plan(&self) -> Plan {
        self.with_input(plan)
    }

    /// Asks something of what a pass would be decided on.
    pub fn with_input<T>(&self, ask: impl FnOnce(&Input<'_>) -> T) -> T {
        let files =
            self.files.iter().map(|(path, text)| (path.clone(), Arc::new(parse(path, text.as_bytes())))).collect();
        let owners = self.records.iter().map(|(name, record)| (name.clone(), record.origin.path.clone())).collect();
        let (mut desired, _) = gather::gather(&files, &BTreeSet::new(), &owners, &HostLabels::default());
        if self.just_begun {
            let look = Look { files: &files, unusable: &BTreeMap::new(), stirred: true };
            Away::default().hold(&owners, &look, &mut desired);
        }
        let bare = Ledger::of(&self.machine.topology);
        ask(&Input {
            desired: &desired,
            records: &self.records,
            observed: &self.observed,
            busy: &self.busy,
            blind: &self.blind,
            setbacks: &self.setbacks,
            prune_guard: self.prune_guard,
            strays: &self.strays,
            standings: &self.standings,
            machine: &self.machine,
            bare: &bare,
            fence: &self.fence,
            utilisation_percent: self.utilisation_percent,
            job_threshold_percent: 85,
            shutdown: self.shutdown,
            clock: Clock { wall: self.now, steady: self.steady, boot: &self.machine.boot_id },
            moves: self.moves.as_deref(),
            since: self.since,
            entropy: 0,
        })
    }

    /// One pass: planned, printed, carried out.
    pub fn pass(&mut self) -> String {
        let plan = self.plan();
        let mut shown = String::new();
        for Work { name, record, act, reason, done, failed: _ } in plan.work {
            let act_shown = match &act {
                Act::Start { env, .. } => match env.get("CUDA_VISIBLE_DEVICES") {
                    Some(devices) => format!("start with {devices}"),
                    None => "start".to_owned(),
                },
                Act::Resize { .. } => "resize".to_owned(),
                Act::Restore { .. } => "restore".to_owned(),
                other => format!("{other:?}").to_lowercase(),
            };
            writeln!(shown, "{name}: {act_shown} ({reason})").unwrap();
            self.carry_out(&name, record, &act);
            if let Some(record) = done {
                self.records.insert(name, record);
            }
        }
        for (name, verdict) in &plan.verdicts {
            let findings: Vec<String> = verdict
                .findings
                .iter()
                .filter(|finding| {
                    finding.kind != ConditionKind::Accepted && finding.kind != ConditionKind::Placed || !finding.status
                })
                .map(|finding| format!("{:?}={} {}: {}", finding.kind, finding.status, finding.reason, finding.message))
                .collect();
            writeln!(shown, "  {name} {} {}", verdict.phase, findings.join("; ")).unwrap();
        }
        shown
    }

    pub fn carry_out(&mut self, name: &Name, record: Option<Record>, act: &Act) {
        if let Some(record) = record {
            self.records.insert(name.clone(), record);
        }
        let seen = self.observed.entry(name.clone()).or_default();
        match act {
            Act::Remember | Act::Stop { .. } => {}
            Act::Start { writes, .. } => {
                assert_eq!(*seen, Observed::default(), "{name} was started beside something");
                assert_eq!(self.on_fenced_cpus_of(name), None, "{name} was started on CPUs that are not exclusive yet");
                let seen = self.observed.entry(name.clone()).or_default();
                let record = self.records[name].clone();
                let mut settings = Settings::default();
                for write in writes {
                    settings.set(write.file.clone(), &write.value);
                }
                fill(&mut settings, &self.machine);
                seen.group = Some(Group { settings, populated: true, frozen: false });
                let life = Life::Running { pid: 100 };
                let (number, started) = (record.instance, Some(self.now));
                let began = Some(self.steady);
                seen.instance = Some(Instance { number, record: Some(record), started, began, life });
            }
            Act::Resize { writes, .. } => {
                let group = seen.group.as_mut().unwrap();
                for write in writes {
                    group.settings.set(write.file.clone(), &write.value);
                }
            }
            Act::Restore { writes, .. } => {
                let group = seen.group.get_or_insert_default();
                (group.populated, group.frozen) = (true, false);
                for write in writes {
                    group.settings.set(write.file.clone(), &write.value);
                }
                fill(&mut group.settings, &self.machine);
                self.strays.remove(name);
            }
            Act::Kill => {
                if seen.instance.is_some() {
                    self.exit(name.as_str(), Outcome::Killed { signal: Signal::KILL });
                } else {
                    seen.group.as_mut().unwrap().populated = false;
                }
            }
            Act::Clear => *seen = Observed::default(),
            Act::Forget => {
                self.observed.remove(name);
                self.records.remove(name);
            }
        }
    }

    /// A workload that the kernel would let run on CPUs fenced for `name`.
    pub fn on_fenced_cpus_of(&self, name: &Name) -> Option<Name> {
        let fenced = self.records.get(name).and_then(|record| record.grant.as_ref()).map(|grant| grant.fenced.clone());
        let trespasses = |seen: &Observed| {
            let cpus = seen.group.as_ref().and_then(|group| group.settings.get("cpuset.cpus")).unwrap_or("");
            let cpus: CpuSet = cpus.parse().unwrap();
            fenced.as_ref().is_some_and(|fenced| !fenced.is_disjoint(&cpus))
        };
        let mut others = self.observed.iter().filter(|(other, _)| *other != name);
        others.find(|(_, seen)| trespasses(seen)).map(|(other, _)| other.clone())
    }

    pub fn assert_exclusive_is_exclusive(&self) {
        for (name, seen) in &self.observed {
            if let Some(Instance { life: Life::Running { .. }, .. }) = seen.instance {
                assert_eq!(self.on_fenced_cpus_of(name), None, "runs on CPUs exclusive to {name}");
            }
        }
    }

    pub fn exit(&mut self, name: &str, outcome: Outcome) {
        let seen = self.observed.get_mut(&name.parse().unwrap()).unwrap();
        let instance = seen.instance.as_mut().unwrap();
        instance.life =
            Life::Ended(Exit { instance: instance.number, outcome, started: instance.started, at: self.now });
        seen.group.as_mut().unwrap().populated = false;
    }

    pub fn exit_code(&mut self, name: &str, code: i32) {
        self.exit(name, Outcome::Exited { code });
    }

    pub fn after(&mut self, millis: u64) -> &mut World {
        self.now = self.now.plus(Duration::from_millis(millis));
        self.steady = self.steady.plus(Duration::from_millis(millis));
        self
    }

    /// Lets the time pass that the plan would sleep.
    pub fn sleep(&mut self) -> &mut World {
        let wake_at = self.plan().wake_at.unwrap();
        self.after(u64::try_from(wake_at.since(self.now).as_millis()).unwrap())
    }

    /// The power fails for a minute, and the host boots: nothing runs any more, the other clock begins anew, and a tmpfs is empty.
    pub fn reboot(&mut self) -> &mut World {
        let boots = self.machine.boot_id.len();
        self.machine.boot_id = format!("boot{}", "'".repeat(boots - 3));
        self.observed.clear();
        self.standings.clear();
        self.after(80_000).steady = Steady(20_000);
        self
    }

    /// Somebody sets the clock on the wall.
    pub fn set_clock(&mut self, to: Timestamp) -> &mut World {
        self.now = to;
        self
    }

    /// Passes until nothing is left to do at this instant.
    pub fn settle(&mut self) -> String {
        let mut shown = String::new();
        for _ in 0..20 {
            if self.plan().work.is_empty() {
                return shown;
            }
            shown += &self.pass();
        }
        panic!("does not settle:\n{shown}");
    }
}

/// What a new group holds where nothing was written.
fn fill(settings: &mut Settings, machine: &Machine) {
    if machine.cgroup.files.contains(PARTITION) {
        set_if_unset(settings, PARTITION, "member");
    }
    for (file, value) in [
        ("cpu.max", "max 100000"),
        ("cpu.weight", "100"),
        ("memory.max", "max"),
        ("memory.high", "max"),
        ("cpu.max.burst", "0"),
        ("cpu.idle", "0"),
        ("memory.low", "0"),
        ("memory.swap.max", "max"),
        ("pids.max", "max"),
    ] {
        set_if_unset(settings, file, value);
    }
}

fn set_if_unset(settings: &mut Settings, file: &'static str, value: &str) {
    if settings.get(file).is_none() {
        settings.set(file, value);
    }
}
