//! The simulated machine, as the controller calls it: every call, and every step inside a longer one, may fail, take its time, or be the
//! last thing the controller does.

use crate::kernel::{self, Files, Group, Stage};
use crate::world::{CRASHES_MAX, Crash, Sim};
use containerctl::host::cgroup::CgroupError;
use containerctl::host::life;
use containerctl::host::traces::{TraceError, box_bytes};
use containerctl::host::{Ask, CpuTimes, FolderId, Host, HostError, Start};
use containerctl::model::admission::Admission;
use containerctl::model::cgroup::{Generation, Shrink, Support, Write};
use containerctl::model::clock::Steady;
use containerctl::model::cpuset::CpuSet;
use containerctl::model::gpu::{Gpu, GpuId, Vendor};
use containerctl::model::machine::{self, Ceilings};
use containerctl::model::name::Name;
use containerctl::model::observed;
use containerctl::model::observed::Observed;
use containerctl::model::probe::Answer;
use containerctl::model::spec::Signal;
use containerctl::model::time::Timestamp;
use containerctl::model::topology::Topology;
use containerctl::model::units::Bytes;
use containerctl::model::usage::Usage;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

const CPUS: u32 = 4;
pub const MEMORY: u64 = 16 << 30;
/// As Linux numbers them.
const EIO: i32 = 5;
const EBUSY: i32 = 16;
/// The longest a call takes, in milliseconds.
const GAP_MAX: u64 = 25;

impl Sim {
    /// What may happen before a call has done anything.
    pub fn before(self: &Arc<Sim>, call: &'static str, name: Option<&Name>) -> io::Result<()> {
        self.point(call, "before", name)
    }

    /// What may happen when a call has done what it is for, and nobody knows yet.
    pub fn behind(self: &Arc<Sim>, call: &'static str, name: Option<&Name>) -> io::Result<()> {
        self.point(call, "after", name)
    }

    fn point(self: &Arc<Sim>, call: &'static str, side: &'static str, name: Option<&Name>) -> io::Result<()> {
        let mut world = self.world();
        if world.violation.is_some() {
            drop(world);
            resume_unwind(Box::new(Crash));
        }
        let faults = world.faults;
        if world.rng.chance(faults.delay) {
            let end = world.now + world.rng.below(GAP_MAX);
            drop(world);
            self.pass_time(end);
            world = self.world();
        }
        let crash = world.crashes < CRASHES_MAX && world.rng.chance(faults.crash);
        let fails = world.rng.chance(faults.error);
        if crash {
            let phase = name.map_or("any", |name| world.kernel.phase(name));
            world.say(|| format!("crash {side} {call}, {phase}"));
            world.census.crash_at((call, side, phase));
            drop(world);
            resume_unwind(Box::new(Crash));
        }
        if fails {
            world.say(|| format!("{call} fails ({side})"));
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }
}

/// The machine, by its handle.
pub struct Machine(pub Arc<Sim>);

fn path(name: &Name) -> PathBuf {
    PathBuf::from(format!("/cgroup/{name}"))
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::Facts { what: call, source }
}

impl Machine {
    /// One of the steps that a call is made of.
    fn step<T>(
        &self,
        call: &'static str,
        name: &Name,
        act: impl FnOnce(&mut crate::world::World) -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        self.0.before(call, Some(name)).map_err(failed(call))?;
        let answer = {
            let mut world = self.0.world();
            world.step(Some(name));
            world.say(|| format!("{call} {name}"));
            act(&mut world)?
        };
        self.0.behind(call, Some(name)).map_err(failed(call))?;
        Ok(answer)
    }

    pub fn look<T>(
        &self,
        call: &'static str,
        name: &Name,
        look: impl FnOnce(&mut crate::world::World) -> T,
    ) -> Result<T, HostError> {
        self.0.before(call, Some(name)).map_err(failed(call))?;
        Ok(look(&mut self.0.world()))
    }

    fn remove_group(&self, name: &Name) -> Result<(), HostError> {
        self.step("cgroup.remove", name, |world| {
            if world.kernel.populated(name) {
                let source = io::Error::from_raw_os_error(EBUSY);
                return Err(CgroupError::Remove { path: path(name), source }.into());
            }
            world.kernel.groups.remove(name);
            Ok(())
        })
    }

    fn lay_traces(&self, start: &Start<'_>) -> Result<u64, HostError> {
        let (name, number) = (&start.record.spec.name, start.record.instance);
        let folder = self.step("traces.begin", name, |world| {
            if world.runtime_is_full() {
                let (path, source) = (PathBuf::from("/run/box"), io::ErrorKind::StorageFull.into());
                return Err(TraceError::Write { path, source }.into());
            }
            world.kernel.next_folder += 1;
            let folder = world.kernel.next_folder;
            let boxed = box_bytes(&world.kernel.boot_id(), start.record).ok().map(kernel::BoxFile::of);
            let files = Files { folder, boxed, ..Files::default() };
            world.kernel.traces.entry(name.clone()).or_default().insert(number, files);
            Ok(folder)
        })?;
        self.step("traces.keep_only", name, |world| {
            world.law_exit_is_remembered(name, Some(number));
            world.kernel.traces.get_mut(name).into_iter().for_each(|runs| runs.retain(|other, _| *other == number));
            Ok(())
        })?;
        Ok(folder)
    }

    fn begin(&self, start: &Start<'_>, folder: u64) -> Result<(), HostError> {
        let name = &start.record.spec.name;
        self.write(name, start.writes)?;
        self.step("spawn", name, |world| {
            world.spawn_run(start.record, folder);
            Ok(())
        })?;
        // Its descriptor is held, whether or not the kernel will tell of it.
        let run = (name.clone(), start.record.instance);
        let _ = self.hold(&run, |world| world.kernel.born_as(name, run.1));
        Ok(())
    }

    fn write(&self, name: &Name, writes: &[Write]) -> Result<(), HostError> {
        for write in writes {
            self.step("cgroup.write", name, |world| {
                let Some(group) = world.kernel.groups.get_mut(name) else {
                    let (path, source) = (path(name), io::ErrorKind::NotFound.into());
                    return Err(CgroupError::Write { path, value: write.value.clone(), source }.into());
                };
                group.settings.set(write.file.clone(), &write.value);
                Ok(())
            })?;
        }
        self.0.world().law_exclusive_is_exclusive(name);
        Ok(())
    }
}

impl Host for Machine {
    fn now(&self) -> Timestamp {
        self.0.world().wall()
    }

    fn steady(&self) -> Steady {
        Steady(i64::try_from(self.0.world().steady()).unwrap_or(i64::MAX))
    }

    fn instant(&self) -> Instant {
        self.0.clock()
    }

    fn survey(&self) -> Result<machine::Machine, HostError> {
        self.0.before("survey", None).map_err(failed("survey"))?;
        let all: CpuSet = (0..CPUS).collect();
        let files = Group::new().settings.iter().map(|(file, _)| file.to_owned()).collect();
        let gpu = |index| Gpu::new(GpuId(format!("GPU-{index}")), Vendor::Simulated, "Simulated", Bytes(16 << 30));
        Ok(machine::Machine {
            gpu_trouble: Vec::new(),
            topology: Topology {
                online: all.clone(),
                usable: all.clone(),
                cores: (0..CPUS).map(|cpu| CpuSet::from_iter([cpu])).collect(),
                llcs: vec![all.clone()],
                nodes: [(0, all.clone())].into(),
                packages: vec![all],
                ..Topology::default()
            },
            memory: Bytes(MEMORY),
            gpus: vec![gpu(0), gpu(1)],
            disks: BTreeMap::new(),
            huge_pages: BTreeSet::new(),
            cgroup: Support { generation: Generation::Unified, files, nodes: "0".parse().unwrap() },
            boot_id: self.0.world().kernel.boot_id(),
            ceilings: Ceilings::default(),
            admission: Admission::default(),
        })
    }

    fn cpu_times(&self) -> Result<CpuTimes, HostError> {
        let now = self.0.world().now;
        Ok(CpuTimes { busy: now / 100, total: now / 10 })
    }

    fn names(&self) -> Result<BTreeSet<Name>, HostError> {
        self.0.before("names", None).map_err(failed("names"))?;
        let world = self.0.world();
        Ok(world.kernel.groups.keys().chain(world.kernel.traces.keys()).cloned().collect())
    }

    fn observe(&self, name: &Name) -> Result<Observed, HostError> {
        let group = self.look("cgroup.read", name, |world| {
            let populated = world.kernel.populated(name);
            let group = world.kernel.groups.get(name)?;
            Some(observed::Group { settings: group.settings.clone(), populated, frozen: group.frozen })
        })?;
        life::observe(self, name, group)
    }

    fn start(&self, start: &Start<'_>) -> Result<(), HostError> {
        let (name, number) = (&start.record.spec.name, start.record.instance);
        self.step("cgroup.create", name, |world| {
            if world.kernel.groups.contains_key(name) {
                let (path, source) = (path(name), io::ErrorKind::AlreadyExists.into());
                return Err(CgroupError::Create { path, source }.into());
            }
            world.kernel.groups.insert(name.clone(), Group::new());
            Ok(())
        })?;
        let begun = self.lay_traces(start).and_then(|folder| self.begin(start, folder));
        if begun.is_err() {
            let killed = self.step("undo.kill", name, |world| {
                world.excuse_run(name, number);
                world.kill_group(name);
                Ok(())
            });
            // As in the host: whoever may live keeps its traces.
            if killed.is_err() {
                return begun;
            }
            let _ = self.remove_group(name);
            let _ = self.step("undo.abandon", name, |world| {
                world.kernel.traces.get_mut(name).map(|runs| runs.remove(&number));
                world.kernel.traces.retain(|_, runs| !runs.is_empty());
                Ok(())
            });
        }
        begun
    }

    fn resize(&self, name: &Name, writes: &[Write], _shrink: Shrink) -> Result<(), HostError> {
        self.write(name, writes)
    }

    fn restore(&self, name: &Name, writes: &[Write], _shrink: Shrink) -> Result<(), HostError> {
        self.step("cgroup.restore", name, |world| {
            world.kernel.groups.entry(name.clone()).or_insert_with(Group::new);
            world.kernel.groups.get_mut(name).into_iter().for_each(|group| group.frozen = false);
            Ok(())
        })?;
        self.write(name, writes)?;
        self.step("cgroup.attach", name, |world| {
            if let Some(id) = world.kernel.live(name) {
                world.kernel.runs[id].in_group = true;
            }
            Ok(())
        })
    }

    fn strays(&self) -> BTreeMap<Name, BTreeSet<u32>> {
        let world = self.0.world();
        let outside = |id: &usize| {
            let run = &world.kernel.runs[*id];
            (!run.in_group && run.stage != Stage::Gone).then(|| (run.name.clone(), [run.init.pid].into()))
        };
        world.watched.values().filter_map(outside).collect()
    }

    fn usage(&self, _name: &Name) -> Usage {
        Usage::default()
    }

    fn stop(&self, name: &Name, instance: u64, _signal: Signal) -> Result<(), HostError> {
        {
            let mut world = self.0.world();
            let (now, live) = (world.now, world.kernel.live(name));
            if let Some(id) = live {
                world.kernel.runs[id].tried_at.get_or_insert(now);
            }
        }
        self.step("stop", name, |world| {
            // Only what is watched can be signalled, as with a pidfd.
            if let Some(id) = world.watched.get(&(name.clone(), instance)).copied()
                && world.kernel.runs[id].stage != Stage::Gone
            {
                world.laws_of_a_stop(id);
                world.law_asked_once(id);
                world.signal(id);
            }
            Ok(())
        })
    }

    fn kill(&self, name: &Name) -> Result<(), HostError> {
        self.step("cgroup.kill", name, |world| {
            if let Some(id) = world.kernel.live(name) {
                world.laws_of_a_stop(id);
                world.law_killed_after_its_grace(id);
            }
            world.kill_group(name);
            Ok(())
        })
    }

    fn clear(&self, name: &Name) -> Result<(), HostError> {
        self.remove_group(name)?;
        self.step("traces.clear", name, |world| {
            world.law_exit_is_remembered(name, None);
            world.kernel.traces.remove(name);
            Ok(())
        })?;
        self.0.world().reaped.retain(|(of, _), _| of != name);
        Ok(())
    }

    fn forget(&self, name: &Name) -> Result<(), HostError> {
        self.remove_group(name)?;
        self.step("forget", name, |world| {
            world.kernel.traces.remove(name);
            world.reaped.retain(|(of, _), _| of != name);
            world.excuse(name);
            Ok(())
        })
    }

    fn probe(&self, _: &Ask<'_>) -> Answer {
        // The simulation has a prober of its own.
        Answer::Unasked("nobody is asked this way".to_owned())
    }

    fn cgroup_path(&self, name: &Name) -> String {
        name.to_string()
    }

    fn log_folder(&self, name: &Name) -> PathBuf {
        PathBuf::from("/logs").join(name.as_str())
    }

    fn log_folder_id(&self, name: &Name) -> Option<FolderId> {
        let world = self.0.world();
        let (inode, gone_until) = world.kernel.log_folders.get(name).copied().unwrap_or_default();
        (world.now >= gone_until).then_some(FolderId { device: 1, inode })
    }
}
