//! How simulated commands answer their probes.

use crate::kernel::{RunId, Stage};
use crate::vocabulary::NEVER_READY;
use crate::world::World;
use containerctl::model::name::Name;
use containerctl::model::probe::{Answer, ProbeKind};

/// A command takes up to so long until it is ready, in milliseconds; one that is slow to come up so much longer.
const READY_MAX: u64 = 1_500;
const LATE: u64 = 4_000;

impl World {
    /// A command begins: when will it be ready?
    pub fn come_up(&mut self, id: RunId) {
        let late = if self.stormy && self.rng.chance(500) { LATE } else { 0 };
        let wait = self.rng.below(READY_MAX) + late;
        let (now, run) = (self.now, &mut self.kernel.runs[id]);
        let never = run.record.spec.process.command.iter().any(|word| word == NEVER_READY);
        run.ready_at = if never { u64::MAX } else { now + wait };
        if run.record.spec.probes.readiness.is_none() {
            self.note_serving(id);
        }
    }

    /// Something that runs is not well for a while.
    pub fn sicken(&mut self) {
        let runs = &self.kernel.runs;
        let running: Vec<RunId> = (0..runs.len()).filter(|id| runs[*id].stage == Stage::Running).collect();
        if running.is_empty() {
            return;
        }
        let (id, until) = (*self.rng.pick(&running), self.now + self.rng.between(300, 6_000));
        let run = &mut self.kernel.runs[id];
        run.sick_until = until;
        let name = run.name.clone();
        self.say(|| format!("{name} is not well until {until} ms"));
    }

    /// What a run says when it is asked.
    pub fn answer(&mut self, name: &Name, instance: u64, kind: ProbeKind) -> Answer {
        let now = self.now;
        let Some(id) = self.kernel.live(name).filter(|id| [0, self.kernel.runs[*id].number].contains(&instance)) else {
            return Answer::Unasked("it is gone".to_owned());
        };
        let run = &mut self.kernel.runs[id];
        let good = match kind {
            ProbeKind::Startup => now >= run.ready_at,
            ProbeKind::Readiness => now >= run.ready_at && now >= run.sick_until,
            ProbeKind::Liveness => now >= run.sick_until,
        };
        match (kind, good) {
            (ProbeKind::Readiness, true) => self.note_serving(id),
            (ProbeKind::Readiness, false) => run.bad_for = now - run.born,
            (_, false) => run.bad_answers += 1,
            (_, true) => {}
        }
        if good { Answer::Good } else { Answer::Bad("it is not well".to_owned()) }
    }
}
