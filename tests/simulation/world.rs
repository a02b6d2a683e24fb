//! The world of one seed: virtual time, a queue of events, and the controller that lives in it, dies and comes back.
//!
//! One thread does it all. A host or store call is a gap: while it lasts, whatever is due happens *inside* it, other tasks of the
//! controller and turns of its loop included, so calls interleave as they do on threads, but in an order drawn from the seed. A crash is an
//! unwinding from wherever the controller is: nothing of it survives but what it has put into the kernel and on the disk.

use crate::census::{Census, Told};
use crate::disk::Disk;
use crate::folder::Shelf;
use crate::kernel::{Kernel, KernelEvent, RunId};
use crate::laws::Truth;
use crate::prober::Prober;
use crate::rng::Rng;
use crate::story::STORM_MAX;
use crate::vocabulary::{Happening, happening};
use containerctl::control::{Changes, Command, Controller, Done, Input, Job, Task, WORKERS_MAX};
use containerctl::host::processes::Reaped;
use containerctl::model::name::Name;
use containerctl::model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

pub const RESYNC: Duration = Duration::from_secs(30);
/// Crashes of one story. More only prove that nothing gets done between them.
pub const CRASHES_MAX: u32 = 12;

pub enum Event {
    Kernel(KernelEvent),
    Synced(u64),
    Happening,
    Restart,
    /// A file of this workload may be back.
    FolderStirs(String),
    /// The rest concerns one incarnation of the controller.
    Task(u64, Task),
    Done(u64, Box<Done>),
    Wake(u64, Wake),
    Deadline(u64, u64),
    /// A probe of the run with this number is due.
    Ask(u64, Name, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    Folder,
    Workloads,
    Resync,
}

/// What a crash unwinds with.
pub struct Crash;

/// A crash point: before or after which call, in which phase of the workload.
pub type CrashPoint = (&'static str, &'static str, &'static str);

/// How much goes wrong, in ten-thousandths of a call.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub crash: u64,
    pub error: u64,
    pub delay: u64,
}

#[allow(clippy::struct_excessive_bools, reason = "they are independent facts")]
pub struct World {
    pub rng: Rng,
    pub now: u64,
    /// What people have set the clock ahead or back by.
    pub clock_skew: i64,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub kernel: Kernel,
    pub disk: Disk,
    pub shelf: Shelf,
    pub truth: Truth,
    pub faults: Faults,
    pub stormy: bool,
    pub prune_guard: bool,
    pub incarnation: u64,
    pub up: bool,
    pub crashes: u32,
    /// A crash has taken records that the kernel had not been given.
    pub lost_writes: bool,
    pub census: Census,
    /// Inits the controller watches, and what it has reaped.
    pub watched: BTreeMap<(Name, u64), RunId>,
    /// Those of them whose end the kernel would not tell of.
    pub untold: BTreeSet<(Name, u64)>,
    pub reaped: BTreeMap<(Name, u64), Reaped>,
    pub changes: Arc<Changes>,
    /// Tasks given and not yet come back.
    pub tasks: Vec<Job>,
    pub depth: usize,
    turn: u64,
    /// Steps that changed anything outside the controller, and about whom the last one was.
    pub steps: u64,
    pub last_step: Option<Name>,
    /// Events written to the database.
    pub events: u64,
    pub violation: Option<String>,
    pub verbose: bool,
}

/// One story.
pub struct Sim {
    world: Mutex<World>,
    controller: Mutex<Option<Controller>>,
    pub prober: Mutex<Prober>,
    base: Instant,
}

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl World {
    pub fn say(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>5}.{:03} s  {}", self.now / 1000, self.now % 1000, line());
        }
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    pub fn wall(&self) -> Timestamp {
        Timestamp(1_795_464_785_000_u64.saturating_add_signed(self.clock_skew) + self.now)
    }

    pub fn violate(&mut self, what: String) {
        self.say(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    /// Something outside the controller changes.
    pub fn step(&mut self, name: Option<&Name>) {
        self.steps += 1;
        self.last_step = name.cloned();
    }

    pub fn tell_controller(&mut self, name: &Name) {
        if self.up {
            self.changes.push(name);
            let incarnation = self.incarnation;
            self.after(0, Event::Wake(incarnation, Wake::Workloads));
        }
    }

    pub fn tell_of_folder(&mut self) {
        if self.up {
            let (incarnation, delay) = (self.incarnation, self.rng.below(5));
            self.after(delay, Event::Wake(incarnation, Wake::Folder));
        }
    }
}

impl Sim {
    pub fn new(seed: u64, verbose: bool) -> Arc<Sim> {
        let mut rng = Rng::new(seed);
        let faults = Faults {
            crash: *rng.pick(&[0, 0, 20, 100, 300]),
            error: *rng.pick(&[0, 0, 50, 300]),
            delay: *rng.pick(&[500, 2_000, 6_000]),
        };
        let (shelf, storm) = (Shelf::new(&mut rng), rng.between(5_000, STORM_MAX));
        let mut world = World {
            now: 0,
            clock_skew: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            kernel: Kernel { next_pid: 100, ..Kernel::default() },
            disk: Disk::default(),
            shelf,
            truth: Truth::new(faults.error > 0),
            faults,
            stormy: true,
            prune_guard: rng.chance(5_000),
            incarnation: 0,
            up: false,
            crashes: 0,
            lost_writes: false,
            census: Census::default(),
            watched: BTreeMap::new(),
            untold: BTreeSet::new(),
            reaped: BTreeMap::new(),
            changes: Arc::default(),
            tasks: Vec::new(),
            depth: 0,
            turn: 0,
            steps: 0,
            last_step: None,
            events: 0,
            violation: None,
            verbose,
            rng,
        };
        for _ in 0..world.rng.between(5, 24) {
            let at = world.rng.below(storm);
            world.after(at, Event::Happening);
        }
        world.fill_the_folder();
        world.after(0, Event::Restart);
        let (controller, prober) = (Mutex::new(None), Mutex::default());
        Arc::new(Sim { world: Mutex::new(world), controller, prober, base: Instant::now() })
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn clock(&self) -> Instant {
        self.base + Duration::from_millis(self.world().now)
    }

    pub fn controller(&self) -> MutexGuard<'_, Option<Controller>> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass, from outside of everything.
    pub fn until(self: &Arc<Sim>, end: u64) {
        while self.world().violation.is_none() {
            let result = catch_unwind(AssertUnwindSafe(|| self.pass_time(end)));
            match result {
                Ok(()) => break,
                Err(panic) if panic.is::<Crash>() => self.crash("in a call"),
                Err(panic) => resume_unwind(panic),
            }
        }
    }

    /// Lets time pass until `end`, with everything that is due on the way.
    pub fn pass_time(self: &Arc<Sim>, end: u64) {
        loop {
            let mut world = self.world();
            if world.violation.is_some() {
                return;
            }
            match world.queue.first_key_value() {
                Some(((at, _), _)) if *at <= end => {}
                _ => {
                    world.now = world.now.max(end);
                    return;
                }
            }
            let Some(((at, _), event)) = world.queue.pop_first() else { return };
            world.now = world.now.max(at);
            drop(world);
            self.happen(event);
        }
    }

    fn happen(self: &Arc<Sim>, event: Event) {
        match event {
            Event::Kernel(event) => self.world().kernel_event(event),
            Event::Synced(boot) => self.world().synced(boot),
            Event::Happening => {
                let mut world = self.world();
                let happening = happening(&mut world.rng);
                world.say(|| format!("{happening:?}"));
                world.census.note(Told::Happening(happening));
                match happening {
                    // Whatever is on the stack is the controller: all of it goes.
                    Happening::Crash | Happening::Reboot if world.crashes >= CRASHES_MAX => {}
                    Happening::Crash => {
                        drop(world);
                        self.die();
                    }
                    Happening::Reboot => {
                        world.power_cut();
                        drop(world);
                        self.die();
                    }
                    Happening::AwayOverRestart if world.crashes < CRASHES_MAX => {
                        world.apply(happening);
                        drop(world);
                        self.die();
                    }
                    Happening::Approve => {
                        world.truth.guarded = None;
                        drop(world);
                        let (reply, _) = oneshot::channel();
                        self.turn(Input::Command(Command::Approve { reply }));
                    }
                    other => world.apply(other),
                }
            }
            Event::FolderStirs(workload) => {
                let mut world = self.world();
                world.note_folder(&workload);
                world.tell_of_folder();
            }
            Event::Ask(incarnation, name, number) => {
                if self.is_current(incarnation) {
                    self.ask(incarnation, &name, number);
                }
            }
            Event::Restart => self.restart(),
            Event::Task(incarnation, task) => self.carry_out(incarnation, task),
            Event::Done(incarnation, done) => {
                if self.is_current(incarnation) {
                    self.turn(Input::Done(done));
                }
            }
            Event::Wake(incarnation, wake) => {
                if self.is_current(incarnation) {
                    if wake == Wake::Resync {
                        self.world().after(millis(RESYNC), Event::Wake(incarnation, wake));
                    }
                    self.turn(match wake {
                        Wake::Folder => Input::Folder,
                        Wake::Workloads => Input::Workloads,
                        Wake::Resync => Input::Resync,
                    });
                }
            }
            Event::Deadline(incarnation, turn) => {
                if self.is_current(incarnation) && self.world().turn == turn {
                    self.turn(Input::Deadline);
                }
            }
        }
    }

    fn is_current(&self, incarnation: u64) -> bool {
        let world = self.world();
        world.up && world.incarnation == incarnation
    }

    /// `kill -9`, from inside a gap or from the outside.
    pub fn die(self: &Arc<Sim>) {
        if self.world().depth > 0 {
            resume_unwind(Box::new(Crash));
        }
        self.crash("between calls");
    }

    pub fn crash(&self, when: &'static str) {
        let controller = self.controller().take();
        let mut world = self.world();
        world.say(|| format!("controller {}: killed {when}", world.incarnation));
        (world.up, world.depth, world.incarnation) = (false, 0, world.incarnation + 1);
        world.crashes += 1;
        if when != "in a call" {
            world.census.crash_at(("controller", when, "any"));
        }
        world.queue.retain(|_, event| {
            !matches!(
                event,
                Event::Task(..)
                    | Event::Done(..)
                    | Event::Wake(..)
                    | Event::Deadline(..)
                    | Event::Ask(..)
                    | Event::Restart
                    | Event::Synced(..)
            )
        });
        world.tasks.clear();
        world.watched.clear();
        world.untold.clear();
        world.reaped.clear();
        world.lose_memory();
        world.shelf.forget();
        let delay = world.rng.between(1, 3_000);
        world.after(delay, Event::Restart);
        drop(world);
        self.forget_whom_to_ask();
        // It holds the world's handle; nothing of it may run while the world is locked.
        drop(controller);
    }

    pub fn take_task(&self, incarnation: u64, task: Task) {
        let mut world = self.world();
        if world.tasks.contains(&task.job) {
            world.violate(format!("two tasks at once for {:?}", task.job));
        }
        world.tasks.push(task.job.clone());
        world.law_what_waits_is_bounded();
        let delay = world.rng.below(3);
        world.after(delay, Event::Task(incarnation, task));
    }

    fn carry_out(self: &Arc<Sim>, incarnation: u64, task: Task) {
        let mut world = self.world();
        if world.depth >= WORKERS_MAX {
            return world.after(1, Event::Task(incarnation, task));
        }
        world.depth += 1;
        drop(world);
        let job = task.job.clone();
        let done = task.run();
        let mut world = self.world();
        world.depth -= 1;
        world.tasks.retain(|other| *other != job);
        let delay = world.rng.below(3);
        world.after(delay, Event::Done(incarnation, Box::new(done)));
    }

    /// The loop goes round once.
    pub fn turn(self: &Arc<Sim>, input: Input) {
        let mut controller = self.controller();
        let Some(controller) = controller.as_mut() else { return };
        controller.take(input);
        let deadline = controller.turn();
        let (wanted, _) = controller.probed();
        self.ask_those(&wanted);
        let mut world = self.world();
        world.turn += 1;
        let at = millis(deadline.saturating_duration_since(self.base));
        let (incarnation, turn, wait) = (world.incarnation, world.turn, (at + 1).saturating_sub(world.now));
        world.after(wait, Event::Deadline(incarnation, turn));
    }
}
