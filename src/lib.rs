//! containerctl: YAML files in a folder become confined processes on one Linux host.
//!
//! The pure core decides, the shell acts. Each layer knows only those above it in this list (`tests/tidy.rs` holds it to that):
//!
//! | layer | what it is | does it touch the machine? |
//! |---|---|---|
//! | [`model`] | values of the domain and their notation | no |
//! | [`manifest`] | text to what is desired, and what is wrong with the text | no |
//! | [`place`] | which CPUs and GPUs, or why not yet | no |
//! | [`plan`] | desired, recorded, seen to the next step of each workload | no |
//! | [`init`] | PID 1 of each workload: carries out prepared steps | inside the box only |
//! | [`host`] | kernel, clock, devices, behind the trait [`host::Host`] | yes, alone |
//! | [`store`] | the database: one record a workload | its folder |
//! | [`control`] | the loop: watch, load, observe, plan, act, record | through `host` and `store`, and the manifests folder |
//! | [`api`], [`cli`] | the socket and the command line | socket and terminal |
//!
//! # Where was it decided?
//! * A wrong CPU assignment: [`place::cpu`] chose the grant, [`place::cpus_in_force`] took out what is fenced for others,
//!   [`plan::kernel`] spelled the `cpuset.cpus` that was written. The record's grant says why; `containerctl describe` shows it.
//! * A move of something that runs: `place::rebalance` proposed it from measured load, [`plan::balance`] took it up, the record's grant says why and from where.
//! * A wrong GPU: [`place::gpu`]; how far a device is trusted: [`plan::gpu`]. A start, stop, restart or wait: `plan::lifecycle`; whether its probes call for one: [`plan::probe`]. A refused manifest: [`manifest`].
//! * Nothing is decided in `host`, `store`, `control` or `init`.
//!
//! # Tasks and threads of a controller
//! | who | waits for | gives |
//! |---|---|---|
//! | the loop, [`control::Controller::run`] (one task) | everything below | work for the workers, a [`control::report::Snapshot`] after each pass |
//! | workers (threads, at most 8, and 32 more of what hangs; gone when idle) | one step, look or scan each | its result, as a message to the loop |
//! | a measurement (one worker at most, [`control::balance`]) | nothing: it reads counters ([`host::sampler`]) | a reading, to the rebalancer's turn |
//! | a look at the host's own cpusets (one worker at most, [`control::fence`]; with `--fence-system` only) | nothing: it reads and writes control files | how far the host is kept off exclusive CPUs |
//! | the prober, [`control::prober`] (a task, one more a probed workload) | when a try is due, an answer, whom to ask | "someone stands otherwise", rung on its board |
//! | tries (threads, at most 16, and 32 more of what hangs; gone when idle) | one answer each | it, to the prober |
//! | the watcher (thread of notify) | inotify | "look at the folder" |
//! | the table of mounts ([`host::mounts`], in the loop) | mounts and unmounts | "look at the folder" |
//! | the kernel's messages about devices ([`host::hotplug`], in the loop) | CPUs and memory that come and go | "look at everything" |
//! | `processes` (thread, [`host::processes`]) | pidfds and set-up reports, in epoll | "look at this workload" |
//! | the syncer (thread, [`store`]) | a record put | records on disk |
//! | the keeper (task, `cli::keeper`) | each resync | runtime directory and socket anew where they were deleted |
//! | the API (task, [`api::socket`]) | the Unix socket | commands to the loop, answers from the last snapshot |

pub mod api;
pub mod cli;
pub mod control;
pub mod host;
pub mod init;
pub mod manifest;
pub mod model;
pub mod place;
pub mod plan;
pub mod store;
