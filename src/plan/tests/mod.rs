//! Plans as text: what a pass does about a small world, printed.

mod alone;
mod away;
mod clocks;
mod crashes;
mod gpus;
mod guard;
mod jobs;
mod lives;
mod moves;
mod order;
mod places;
mod preemption;
mod probes;
mod properties;
mod queue;
mod reboots;
mod rollouts;
mod seeds;
mod tries;
mod world;

use world::World;
