//! Values of the domain: names, units, cpu sets, topology, GPUs, what a workload should be, what was recorded, what was seen.
//!
//! Owns meaning and notation (how a value is written and read), never behaviour: no I/O, no clock, no choice. Everything is ordered
//! (`BTreeMap`, `Ord`) so that equal inputs give equal plans.

pub mod admission;
pub mod balance;
pub mod cgroup;
pub mod clock;
pub mod codec;
pub mod cpuset;
pub mod desired;
pub mod event;
pub mod exit;
pub mod fence;
pub mod gpu;
pub mod isolation;
pub mod job;
pub mod label;
pub mod machine;
pub mod meter;
pub mod name;
pub mod observed;
pub mod probe;
pub mod record;
pub mod replica;
pub mod shape;
pub mod spec;
pub mod status;
pub mod time;
pub mod topology;
pub mod units;
pub mod usage;
pub mod weight;
