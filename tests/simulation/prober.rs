//! The prober of the simulation: the same questions at the same times, the answers from the simulated commands.

use crate::world::{Event, Sim, millis};
use containerctl::control::Input;
use containerctl::control::prober::{Board, Probed, Wanted};
use containerctl::model::clock::Steady;
use containerctl::model::name::Name;
use containerctl::model::probe::Answer;
use containerctl::plan::probe::Tally;
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

/// Everyone who is asked, by one incarnation of the controller.
#[derive(Default)]
pub struct Prober {
    board: Arc<Board>,
    entropy: u64,
    /// When this incarnation began, by the clock that nobody sets.
    began: u64,
    known: Option<Arc<Wanted>>,
    asked: BTreeMap<Name, Asked>,
    /// Tells the events of one who is asked from those of one who was.
    next: u64,
}

struct Asked {
    probed: Arc<Probed>,
    tally: Tally,
    number: u64,
    /// How old it was when it was asked first, and when that was.
    age: Duration,
    since: u64,
}

impl Asked {
    fn age(&self, now: u64) -> Duration {
        self.age + Duration::from_millis(now - self.since)
    }
}

impl Prober {
    pub fn new(board: Arc<Board>, entropy: u64, began: u64) -> Prober {
        Prober { board, entropy, began, ..Prober::default() }
    }
}

fn steady(now: u64) -> Steady {
    Steady(i64::try_from(now).unwrap_or(i64::MAX))
}

impl Sim {
    pub fn prober(&self) -> MutexGuard<'_, Prober> {
        self.prober.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in whom to ask from now on.
    pub fn ask_those(self: &Arc<Sim>, wanted: &Arc<Wanted>) {
        let mut prober = self.prober();
        if prober.known.as_ref().is_some_and(|known| Arc::ptr_eq(known, wanted)) {
            return;
        }
        prober.known = Some(Arc::clone(wanted));
        let Prober { board, entropy, began, asked, next, .. } = &mut *prober;
        let mut world = self.world();
        let (now, by_clock) = (world.now, steady(world.steady()));
        asked.retain(|name, asked| {
            let goes_on = wanted.get(name).is_some_and(|probed| probed.is_same_run(&asked.probed));
            if !goes_on {
                board.remove(name);
            }
            goes_on
        });
        for (name, probed) in wanted.iter() {
            match asked.get_mut(name) {
                Some(asked) if Arc::ptr_eq(&asked.probed, probed) => continue,
                Some(asked) => {
                    let age = asked.age(now);
                    asked.tally.revise(Arc::clone(&probed.probes), age);
                    asked.probed = Arc::clone(probed);
                }
                None => {
                    *next += 1;
                    let tally = probed.tally(name, by_clock, steady(*began), *entropy);
                    let (number, age) = (*next, probed.age(by_clock));
                    let whom = Arc::clone(probed);
                    asked.insert(name.clone(), Asked { probed: whom, tally, number, age, since: now });
                }
            }
            let (incarnation, number) = (world.incarnation, asked[name].number);
            world.after(0, Event::Ask(incarnation, name.clone(), number));
        }
    }

    /// Asks what is due of one run, and says when to come back.
    pub fn ask(self: &Arc<Sim>, incarnation: u64, name: &Name, number: u64) {
        let due = {
            let mut prober = self.prober();
            let now = self.world().now;
            let Some(asked) = prober.asked.get_mut(name).filter(|asked| asked.number == number) else { return };
            let age = asked.age(now);
            asked.tally.begin(age)
        };
        for (kind, probe) in due {
            let instance = {
                let prober = self.prober();
                let Some(asked) = prober.asked.get(name).filter(|asked| asked.number == number) else { return };
                asked.probed.instance
            };
            let answer = match self.before("probe", Some(name)) {
                Ok(()) => self.world().answer(name, instance, kind),
                Err(error) => Answer::Unasked(error.to_string()),
            };
            let mut prober = self.prober();
            let now = self.world().now;
            let Some(asked) = prober.asked.get_mut(name).filter(|asked| asked.number == number) else { return };
            let age = asked.age(now);
            asked.tally.take(kind, &probe, age, answer);
        }
        let changed = {
            let prober = self.prober();
            let mut world = self.world();
            let now = world.now;
            let Some(asked) = prober.asked.get(name).filter(|asked| asked.number == number) else { return };
            let (standing, age) = (asked.tally.standing(), asked.age(now));
            let next = asked.tally.next();
            let changed = prober.board.post(name, &standing, Vec::new());
            // When nothing goes wrong any more, who is ready stays so.
            if let Some(next) = next.filter(|_| world.stormy || !standing.ready) {
                let wait = millis(next.saturating_sub(age)).max(1);
                world.after(wait, Event::Ask(incarnation, name.clone(), number));
            }
            changed
        };
        if changed {
            self.turn(Input::Probes);
        }
    }

    /// A controller that dies takes its prober with it.
    pub fn forget_whom_to_ask(&self) {
        *self.prober() = Prober::default();
    }
}
