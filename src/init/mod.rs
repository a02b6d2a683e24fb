//! `containerctl-init`, the PID 1 of each workload: executes a prepared list of steps, reaps, pumps logs; decides nothing.
//!
//! The program itself is `main.rs`, compiled without any library by `build.rs`. Its other files are modules of this library too: the
//! controller writes orders with [`wire`] and starts init with the raw calls of [`sys`], and all of them are tested and linted here.

#![allow(
    unsafe_code,
    reason = "init is made of system calls without a library underneath; each block argues its own case"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the kernel's ABI mixes signed and unsigned words of the same size; conversions that could lose a value are checked"
)]
#![allow(
    clippy::result_large_err,
    reason = "a report travels by value once in the life of a workload; there is no heap"
)]

pub mod clock;
pub mod log;
pub mod report;
pub mod steps;
pub mod supervise;
pub mod sys;
pub mod wire;

/// The init program, an ELF executable.
pub static PROGRAM: &[u8] = include_bytes!(env!("CONTAINERCTL_INIT"));
