//! What manifests may say and what may happen: the one place to add to when the product learns something new.

use crate::rng::Rng;

/// Behind every good manifest: short waits, so that a story fits into minutes.
const COMMON: &str = "restart: {initialDelay: 100ms, maxDelay: 5s, resetAfter: 10s}\nstop: {grace: 1s}\n";

/// Good manifests. Those with a restart or stop of their own come without [`COMMON`].
const GOOD: [&str; 13] = [
    "command: serve\n",
    "command: serve --new\ncpu: 1\n",
    "command: serve\ncpu: 500m\nmemory: 64M\n",
    "command: serve\ncpu: {class: pinned, request: 1}\n",
    "command: serve\ncpu: {class: exclusive, request: 1}\n",
    "command: serve\ncpu: {class: exclusive, request: 2}\npriority: 5\n",
    "command: serve\nsuspend: true\n",
    "command: train\ngpu: true\n",
    "command: train\ngpu: {memory: 9Gi}\n",
    "kind: job\ncommand: work\n",
    "kind: job\ncommand: work --harder\ncpu: 250m\n",
    "kind: job\ncommand: work\nrestart: never\nstop: {grace: 500ms}\n",
    "command: serve\nrestart: {policy: on-failure, initialDelay: 50ms, maxDelay: 2s}\n",
];

const BAD: [&str; 5] = ["comand: serve\n", "", "command: [\n", "command: serve\ncpu: -1\n", "\u{0}"];

pub fn good(rng: &mut Rng) -> String {
    let text = *rng.pick(&GOOD);
    if text.contains("restart:") { text.to_owned() } else { format!("{text}{COMMON}") }
}

pub fn bad(rng: &mut Rng) -> String {
    (*rng.pick(&BAD)).to_owned()
}

/// One thing that happens to the host, the folder or the controller, whatever the controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// Somebody saves a good manifest.
    Write,
    /// Somebody saves nonsense.
    WriteBad,
    Delete,
    /// The file stays, but cannot be read for a while.
    Unreadable,
    /// Somebody takes their time to write a file.
    HalfWritten,
    /// A second file claims the name of another.
    Duplicate,
    /// The folder is unmounted for a while.
    FolderGone,
    /// `kill -9` of the controller, wherever it is.
    Crash,
    /// The power fails.
    Reboot,
    /// Somebody sets the clock.
    ClockJump,
    /// A command ends by itself, or is killed for want of memory.
    Exit,
    /// Somebody writes to a control file.
    Drift,
    /// Somebody removes cgroups that are empty.
    RemoveEmpty,
    /// Somebody moves a process into a workload's cgroup.
    Stranger,
    /// Somebody removes the traces of a workload.
    WipeTraces,
    /// A trace becomes unreadable.
    DamageTrace,
    /// The runtime directory is full for a while.
    RuntimeFull,
    /// The disk with the database is full for a while.
    StateFull,
}

/// How often each happens.
pub const HAPPENINGS: [(Happening, u64); 18] = [
    (Happening::Write, 30),
    (Happening::WriteBad, 8),
    (Happening::Delete, 6),
    (Happening::Unreadable, 3),
    (Happening::HalfWritten, 4),
    (Happening::Duplicate, 3),
    (Happening::FolderGone, 2),
    (Happening::Crash, 10),
    (Happening::Reboot, 3),
    (Happening::ClockJump, 2),
    (Happening::Exit, 14),
    (Happening::Drift, 5),
    (Happening::RemoveEmpty, 2),
    (Happening::Stranger, 3),
    (Happening::WipeTraces, 2),
    (Happening::DamageTrace, 2),
    (Happening::RuntimeFull, 2),
    (Happening::StateFull, 2),
];

pub fn happening(rng: &mut Rng) -> Happening {
    let weights = HAPPENINGS.map(|(_, weight)| weight);
    HAPPENINGS[rng.weighted(&weights)].0
}
