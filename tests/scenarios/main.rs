//! The program as people use it: a real controller, real manifests, the kernel asked directly.
//!
//! Every test has a controller, a cgroup parent and folders of its own, and needs root. The same binary runs on the developer's host
//! (whichever cgroups it has) and in the virtual machine (`tests/vm`), where cgroups are pure v2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod bad_input;
mod box_;
mod damage;
mod drift;
mod durable;
mod escape;
mod exec;
mod foreground;
mod gpus;
mod guard;
mod hung;
mod idle;
mod jobs;
mod kernel;
mod kills;
mod levelling;
mod lifecycle;
mod logs;
mod measuring;
mod meddling;
mod memory;
mod probes;
mod programs;
mod reboots;
mod recovery;
mod resize;
mod resources;
mod room;
mod rootfs;
mod terminal;
mod verbs;
mod walls;
mod watching;
mod whole_machine;
mod world;
