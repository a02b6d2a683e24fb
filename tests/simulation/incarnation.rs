//! A controller comes to life on whatever the last one has left.

use crate::disk::{Events, Records};
use crate::prober::Prober;
use crate::vocabulary::LABEL;
use crate::world::{Event, RESYNC, Sim, Wake, millis};
use containerctl::control::{Changes, Controller, Input, Options, Parts};
use containerctl::host::HostError;
use containerctl::model::label::HostLabels;
use containerctl::store::Store;
use std::sync::Arc;

impl Sim {
    /// A new controller, on whatever is there.
    pub fn restart(self: &Arc<Sim>) {
        let mut world = self.world();
        world.depth += 1;
        world.kernel.booted_at = world.kernel.booted_at.min(world.now);
        drop(world);
        let result = self.set_up();
        let mut world = self.world();
        world.depth -= 1;
        match result {
            Ok(controller) => {
                world.say(|| format!("controller {}: started", world.incarnation));
                world.up = true;
                let incarnation = world.incarnation;
                world.after(millis(RESYNC), Event::Wake(incarnation, Wake::Resync));
                let (began, entropy) = (world.steady(), world.rng.next());
                drop(world);
                let (_, board) = controller.probed();
                *self.prober() = Prober::new(board, entropy, began);
                *self.controller() = Some(controller);
                self.turn(Input::Folder);
            }
            // systemd tries again.
            Err(error) => {
                world.say(|| format!("controller {}: cannot start: {error}", world.incarnation));
                world.incarnation += 1;
                world.after(1_000, Event::Restart);
            }
        }
    }

    fn set_up(self: &Arc<Sim>) -> Result<Controller, String> {
        let (store, found) = Store::over(Box::new(Records(Arc::clone(self))), Box::new(Events(Arc::clone(self))))
            .map_err(|error| error.to_string())?;
        let changes: Arc<Changes> = Arc::default();
        let mut world = self.world();
        world.changes = Arc::clone(&changes);
        let now = world.now;
        world.truth.begun.push(now);
        let (incarnation, entropy, prune_guard) = (world.incarnation, world.rng.next(), world.prune_guard);
        drop(world);
        let sim = Arc::clone(self);
        let parts = Parts {
            host: Arc::new(crate::host::Machine(Arc::clone(self))),
            store,
            source: Box::new(crate::folder::Source(Arc::clone(self))),
            changes,
            spawn: Box::new(move |task| sim.take_task(incarnation, task)),
        };
        let options = Options {
            resync: RESYNC,
            job_threshold_percent: 85,
            entropy,
            labels: HostLabels::new("sim", "x86_64", &[LABEL.parse().unwrap()]),
            prune_guard,
            fence_system: false,
            stop_workloads: false,
            balance: containerctl::control::balance::Options::default(),
        };
        Controller::new(parts, found, options).map_err(|error: HostError| error.to_string())
    }
}
