//! Compiles `containerctl-init` and hands its path to the library, which embeds it.
//!
//! Why here and not as a second `[[bin]]`: `cargo run` builds only the binary it runs, so the README's first command would start a
//! controller without an init; and a program without libraries cannot share a dependency graph in which another crate turns on a
//! dependency's `std` feature. One `rustc` call with no dependencies has neither problem.

#![allow(clippy::expect_used, reason = "a build script can only stop; the message is all there is")]

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/init");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("containerctl-init");
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"));
    rustc.args(["--edition=2024", "--crate-type=bin", "--crate-name=containerctl_init", "--cfg=containerctl_init"]);
    // The same code whatever the profile: a debug build of the controller must cost a workload no more than a release build.
    rustc.args([
        "-Copt-level=s",
        "-Ccodegen-units=1",
        "-Clto=fat",
        "-Cstrip=symbols",
        "-Cpanic=abort",
        "-Cdebuginfo=0",
    ]);
    // A plain static program at fixed addresses: no loader, no relocations, and so no page that every workload dirties for itself.
    rustc.arg("-Crelocation-model=static");
    for arg in ["-nostartfiles", "-nodefaultlibs", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,norelro"] {
        rustc.arg(format!("-Clink-arg={arg}"));
    }
    if let Ok(target) = env::var("TARGET") {
        rustc.arg("--target").arg(target);
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut flag = std::ffi::OsString::from("-Clinker=");
        flag.push(linker);
        rustc.arg(flag);
    }
    rustc.arg("src/init/main.rs").arg("-o").arg(&out);
    let status = rustc.status().expect("cannot run rustc to build containerctl-init");
    assert!(status.success(), "cannot build containerctl-init: {rustc:?} ended with {status}");
    println!("cargo::rustc-env=CONTAINERCTL_INIT={}", out.display());
}
