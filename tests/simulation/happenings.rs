//! What the words of the vocabulary do to the world.

use crate::kernel::{BoxFile, Stage};
use crate::vocabulary::Happening;
use crate::world::World;
use containerctl::model::name::Name;

impl World {
    #[allow(clippy::too_many_lines, reason = "one short arm for each word of the vocabulary")]
    pub fn apply(&mut self, happening: Happening) {
        match happening {
            Happening::Write => self.save(true, 0),
            Happening::WriteBad => self.save(false, 0),
            Happening::HalfWritten => {
                let busy = self.rng.between(50, 3_000);
                self.save(true, busy);
            }
            Happening::Scale => {
                if !self.scale() {
                    self.save(true, 0);
                }
            }
            Happening::Delete => self.delete(),
            Happening::Retire => self.retire(),
            Happening::Empty => self.empty(),
            Happening::Blink | Happening::AwayOverRestart => self.blink(),
            Happening::Duplicate => self.duplicate(),
            Happening::Unreadable => self.unreadable(),
            Happening::FolderGone => {
                self.shelf.gone_until = self.now + self.rng.between(100, 8_000);
                self.tell_of_folder();
            }
            Happening::ClockAhead => {
                self.clock_skew += self.rng.below(3_600_000).cast_signed();
                self.truth.clock_set = Some(self.now);
            }
            Happening::ClockBack => {
                self.clock_skew -= self.rng.below(3_600_000).cast_signed();
                (self.truth.clock_set, self.truth.clock_back) = (Some(self.now), Some(self.now));
            }
            Happening::Sicken => self.sicken(),
            Happening::LogsGone => self.with_a_group(|world, name| {
                let until = world.now + world.rng.below(40_000);
                let (folder, gone) = world.kernel.log_folders.entry(name.clone()).or_default();
                (*folder, *gone) = (*folder + 1, until);
            }),
            Happening::WipeRuntime => self.wipe_runtime(),
            Happening::Exit => {
                let runs = &self.kernel.runs;
                let running: Vec<usize> = (0..runs.len()).filter(|id| runs[*id].stage == Stage::Running).collect();
                if !running.is_empty() {
                    let (id, fails) = (*self.rng.pick(&running), self.rng.chance(7_000));
                    let outcome = self.outcome(fails);
                    self.ends(id, outcome);
                }
            }
            Happening::Drift => self.with_a_group(|world, name| {
                let file = *world.rng.pick(&["cpu.max", "memory.max", "cpuset.cpus", "pids.max"]);
                let value = if file == "cpuset.cpus" { "0" } else { "max" };
                let Some(group) = world.kernel.groups.get_mut(name) else { return };
                group.settings.set(file, value);
                group.meddled = true;
            }),
            Happening::RemoveEmpty => {
                let names: Vec<Name> = self.kernel.groups.keys().cloned().collect();
                for name in names {
                    if !self.kernel.populated(&name) {
                        self.kernel.groups.remove(&name);
                    }
                }
            }
            Happening::Stranger => self.with_a_group(|world, name| {
                let pid = world.kernel.next_pid;
                world.kernel.next_pid += 1;
                world.kernel.groups.get_mut(name).into_iter().for_each(|group| group.strangers.push(pid));
            }),
            Happening::WipeTraces => self.with_a_group(|world, name| {
                world.kernel.traces.remove(name);
                world.excuse(name);
            }),
            Happening::DamageTrace => self.with_a_group(|world, name| {
                world.excuse(name);
                let files = world.kernel.traces.get_mut(name).and_then(|runs| runs.values_mut().next_back());
                if let Some(boxed) = files.and_then(|files| files.boxed.as_mut()) {
                    *boxed = BoxFile::of(boxed.bytes[..boxed.bytes.len() / 2].to_vec());
                }
            }),
            Happening::RuntimeFull => {
                self.kernel.runtime_full_until = self.now + self.rng.between(100, 5_000);
                self.truth.disturbed = true;
            }
            Happening::StateFull => {
                self.disk.full_until = self.now + self.rng.between(100, 5_000);
                self.truth.disturbed = true;
            }
            // These end the controller or speak to it; the world sees to them.
            Happening::Crash | Happening::Reboot | Happening::Approve => {}
        }
    }

    fn with_a_group(&mut self, act: impl FnOnce(&mut World, &Name)) {
        let names: Vec<Name> = self.kernel.groups.keys().cloned().collect();
        if !names.is_empty() {
            let name = self.rng.pick(&names).clone();
            self.say(|| format!("it is {name} that this happens to"));
            act(self, &name);
        }
    }
}
