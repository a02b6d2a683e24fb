//! One story from beginning to end: a storm, a while in which only the calendar goes on, a long calm, and a look at what has become of it all.

use crate::census::Census;
use crate::world::{Faults, Sim};
use std::sync::Arc;

/// How long things happen, how long schedules are followed afterwards while nothing goes wrong, and how long everything may take then to be
/// as it should be, in virtual milliseconds.
pub const STORM_MAX: u64 = 40_000;
const ROUTINE: u64 = 20_000;
const CALM: u64 = 200_000;
/// From here on in [`ROUTINE`] what the storm has left undone is done.
const SETTLED: u64 = 8_000;

impl Sim {
    /// Tells the whole story. Answers what it went through, or what went wrong.
    pub fn tell(self: &Arc<Sim>) -> Result<Census, String> {
        self.until(STORM_MAX);
        self.calm_down();
        self.until(STORM_MAX + ROUTINE);
        {
            let mut world = self.world();
            world.law_times_are_kept(STORM_MAX + SETTLED);
            world.put_off_schedules();
        }
        self.until(STORM_MAX + CALM);
        self.check_converged();
        // On a host that is as it should be a controller has nothing to do, and neither has the one after it.
        let steps = self.world().steps;
        let events = self.world().events;
        self.until(STORM_MAX + CALM + 70_000);
        if self.world().events != events {
            self.world().violate("events of a host that had converged are written".to_owned());
        }
        self.crash("at rest");
        self.until(STORM_MAX + CALM + 140_000);
        self.check_converged();
        let controller = self.controller().take();
        let told = controller.map(|known| known.handle().1.journal.after(0, None)).unwrap_or_default();
        let mut world = self.world();
        world.judge("a host at rest is left alone");
        if world.steps != steps {
            let (more, last) = (world.steps - steps, world.last_step.clone());
            world.violate(format!("{more} steps on a host that had converged, the last about {last:?}"));
        }
        world.law_every_end_is_told(&told);
        world.violation.clone().map_or(Ok(std::mem::take(&mut world.census)), Err)
    }

    pub fn calm_down(&self) {
        let mut world = self.world();
        world.say(|| "--- from here on nothing goes wrong any more".to_owned());
        world.stormy = false;
        world.faults = Faults::default();
        world.shelf.calm();
        world.kernel.runtime_full_until = 0;
        world.disk.full_until = 0;
        world.tell_of_folder();
    }
}
