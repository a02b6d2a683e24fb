//! What the simulated machine bears witness of: whether a run is still the one that was started, and how it ended.

use crate::host::Machine;
use crate::kernel::Stage;
use containerctl::host::life::Witness;
use containerctl::host::processes::{Init, Reaped, Run};
use containerctl::host::traces::{Process, Trace};
use containerctl::host::{Host, HostError};
use containerctl::init::wire::Step;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::model::time::Timestamp;
use std::ffi::CString;

impl Witness for Machine {
    fn is_this_boot(&self, boot_id: &str) -> bool {
        self.0.world().kernel.boot_id() == boot_id
    }

    fn newest(&self, name: &Name) -> Result<Option<Trace>, HostError> {
        self.look("traces.newest", name, |world| {
            let runs = world.kernel.traces.get(name)?;
            let (number, files) = runs.iter().rev().find(|(_, files)| files.boxed.is_some())?;
            let boxed = files.boxed.as_deref()?;
            Some(Trace::parse(*number, boxed, files.started.as_deref(), files.exit.as_deref()))
        })
    }

    fn adopt(&self, run: &Run, init: Process) -> Result<bool, HostError> {
        if self.is_running(run) {
            return Ok(true);
        }
        self.look("adopt", &run.0, |world| {
            let Some(id) = world.kernel.by_init(init) else { return false };
            world.law_only_its_own_is_adopted(run, id);
            world.watched.insert(run.clone(), id);
            true
        })
    }

    fn is_running(&self, run: &Run) -> bool {
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
