//! What the simulated machine bears witness of: whether a run is still the one that was started, and how it ended.

use crate::host::Machine;
use crate::kernel::{RunId, Stage};
use crate::world::World;
use containerctl::host::life::Witness;
use containerctl::host::processes::{Init, Reaped, Run};
use containerctl::host::traces::{Process, Trace};
use containerctl::host::{Host, HostError};
use containerctl::init::wire::Step;
use containerctl::model::clock::Steady;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::model::time::Timestamp;
use std::ffi::CString;
use std::io;

impl Machine {
    /// Holds an init's descriptor from here on, and asks to be told of its end.
    pub fn hold(&self, run: &Run, find: impl FnOnce(&mut World) -> Option<RunId>) -> io::Result<()> {
        {
            let mut world = self.0.world();
            let Some(id) = find(&mut world) else { return Ok(()) };
            world.watched.insert(run.clone(), id);
            world.untold.insert(run.clone());
        }
        self.listen(run)
    }

    /// Asks to be told of the end of an init that is held, if nobody does yet. Where that fails, looks whether it has come.
    fn listen(&self, run: &Run) -> io::Result<()> {
        if !self.0.world().untold.contains(run) {
            return Ok(());
        }
        let told = self.0.before("watch", Some(&run.0));
        let mut world = self.0.world();
        if told.is_ok() {
            world.untold.remove(run);
        }
        world.end_watch(run, told.is_ok());
        told
    }
}

impl Witness for Machine {
    fn is_this_boot(&self, boot_id: &str) -> bool {
        self.0.world().kernel.boot_id() == boot_id
    }

    fn newest(&self, name: &Name) -> Result<Option<Trace>, HostError> {
        self.look("traces.newest", name, |world| {
            let runs = world.kernel.traces.get(name)?;
            let (number, files) = runs.iter().rev().find(|(_, files)| files.boxed.is_some())?;
            let (boxed, reports) = (files.boxed.as_ref()?.read.clone(), [&files.started, &files.exit]);
            let [started, exit] = reports.map(|report| report.as_deref());
            Some(Trace { boxed, ..Trace::parse(*number, &[], started, exit) })
        })
    }

    fn adopt(&self, run: &Run, init: Process) -> Result<bool, HostError> {
        if self.is_running(run) {
            return Ok(true);
        }
        let is_there = |world: &mut World| {
            world.law_nobody_of_the_system_is_adopted(run, init);
            world.kernel.by_init(init).is_some()
        };
        if !self.look("adopt", &run.0, is_there)? {
            return Ok(false);
        }
        let told = self.hold(run, |world| {
            let id = world.kernel.by_init(init)?;
            world.law_only_its_own_is_adopted(run, id);
            Some(id)
        });
        told.map_err(|source| HostError::Facts { what: "watch", source })?;
        Ok(self.0.world().watched.contains_key(run))
    }

    fn began(&self, process: Process) -> Steady {
        Steady(i64::try_from(process.start_ticks * 10).unwrap_or(i64::MAX))
    }

    fn is_running(&self, run: &Run) -> bool {
        // What is not told of is looked at.
        let _ = self.listen(run);
        self.0.world().watched.contains_key(run)
    }

    fn reaped(&self, run: &Run) -> Option<Reaped> {
        self.0.world().reaped.get(run).copied()
    }

    fn init_in_group(&self, name: &Name) -> Result<Option<Init>, HostError> {
        self.look("init_in_group", name, |world| {
            let run = &world.kernel.runs[world.kernel.live(name)?];
            let command = (run.stage == Stage::Running).then_some(run.command.pid);
            run.in_group.then_some(Init { init: run.init, command })
        })
    }

    fn oom_kills(&self, name: &Name) -> u64 {
        self.0.world().kernel.groups.get(name).map_or(0, |group| group.oom_kills)
    }

    fn steps(&self, _record: &Record) -> Vec<Step<CString>> {
        Vec::new()
    }

    fn ended_at(&self) -> Timestamp {
        self.now()
    }
}
