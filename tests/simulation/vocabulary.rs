//! What manifests may say and what may happen: the one place to add to when the product learns something new. `census` counts each.

use crate::rng::Rng;

/// Behind every good manifest: short waits, so that a story fits into minutes.
const COMMON: &str = "restart: {initialDelay: 100ms, maxDelay: 5s, resetAfter: 10s}\nstop: {grace: 1s}\n";

/// The host's label, which `hosts` may ask for.
pub const LABEL: &str = "role=sim";

/// What a command says of how it will behave in the simulated kernel.
pub const SLOW: &str = "--slow";
pub const FAILS: &str = "--fails";
pub const NEVER_READY: &str = "--never-ready";

/// How long an update has until it is taken back, in milliseconds, in every manifest that rolls.
pub const PROGRESS_DEADLINE: u64 = 8_000;

/// Good manifests: how often, what they have in them, and how they say it. Those with a restart or stop of their own come without
/// [`COMMON`]; `OTHER` is the name of another workload.
pub const WORDS: [(u64, &str, &str); 47] = [
    (8, "a service", "command: serve\n"),
    (4, "a limit", "command: serve --new\ncpu: 1\n"),
    (4, "other limits", "command: serve\ncpu: 500m\nmemory: 64M\n"),
    (4, "pinned", "command: serve\ncpu: {class: pinned, request: 1}\n"),
    (4, "exclusive", "command: serve\ncpu: {class: exclusive, request: 1}\n"),
    (4, "exclusive and urgent", "command: serve\ncpu: {class: exclusive, request: 2}\npriority: 5\n"),
    (4, "suspended", "command: serve\nsuspend: true\n"),
    (4, "a suspended job", "kind: job\ncommand: work\nsuspend: true\n"),
    (4, "a GPU", "command: train\ngpu: true\n"),
    (4, "a part of a GPU", "command: train\ngpu: {memory: 9Gi}\n"),
    (6, "a job", "kind: job\ncommand: work\n"),
    (4, "another job", "kind: job\ncommand: work --harder\ncpu: 250m\n"),
    (3, "a job tried once", "kind: job\ncommand: work\nrestart: never\nstop: {grace: 500ms}\n"),
    (3, "restarted on failure", "command: serve\nrestart: {policy: on-failure, initialDelay: 50ms, maxDelay: 2s}\n"),
    (2, "never restarted", "command: serve\nrestart: never\n"),
    (5, "replicas", "command: serve\nreplicas: 3\n"),
    (3, "replicas of another process", "command: serve --new\nreplicas: 2\n"),
    (5, "rolling", "command: serve\nreplicas: 3\nROLLING"),
    (5, "rolling to another process", "command: serve --new\nreplicas: 3\nROLLING"),
    (3, "rolling, two at a time", "command: serve --two\nreplicas: 4\nROLLING2"),
    (4, "rolling to what is never ready", "command: serve --never-ready\nreplicas: 3\nROLLING"),
    (6, "after", "command: serve\nafter: [OTHER]\n"),
    (3, "after several", "command: serve\nafter: [OTHER, OTHER]\n"),
    (3, "a job after", "kind: job\ncommand: work\nafter: [OTHER]\n"),
    (3, "replicas after", "command: serve\nreplicas: 2\nafter: [OTHER]\n"),
    (5, "a schedule", "kind: job\ncommand: work\nschedule: \"*/5 * * * * *\"\n"),
    (
        3,
        "a schedule that skips",
        "kind: job\ncommand: work\nschedule: {cron: \"*/7 * * * * *\", missed: skip, startingDeadline: 3s}\n",
    ),
    (
        3,
        "a schedule that replaces",
        "kind: job\ncommand: work --slow\nschedule: {cron: \"*/6 * * * * *\", concurrency: replace}\n",
    ),
    (
        2,
        "a schedule of failures",
        "kind: job\ncommand: work --fails\nretries: 1\nschedule: {cron: \"*/9 * * * * *\", missed: skip}\n",
    ),
    (3, "a timeout", "kind: job\ncommand: work --slow\ntimeout: 2s\nretries: 1\n"),
    (3, "retries", "kind: job\ncommand: work --fails\nretries: 3\n"),
    (3, "fewer retries", "kind: job\ncommand: work --fails\nretries: 1\n"),
    (3, "a startup probe", "command: serve\nprobes: {startup: {tcp: {port: 1}, period: 300ms, failureThreshold: 8}}\n"),
    (3, "a readiness probe", "command: serve\nprobes: {readiness: {tcp: {port: 1}, period: 1s}}\n"),
    (3, "a liveness probe", "command: serve\nprobes: {liveness: {exec: check, period: 1s, failureThreshold: 2}}\n"),
    (4, "a job that asks for much", "kind: job\ncommand: work\nmemory: {request: 10G}\n"),
    (
        3,
        "another job that asks for much",
        "kind: job\ncommand: work --harder\nmemory: {request: 12G}\nrestart: never\n",
    ),
    (3, "a long job that asks for much", "kind: job\ncommand: work --slow\nmemory: {request: 10G}\n"),
    (3, "a long job with an end", "kind: job\ncommand: work --slow\nmemory: {request: 10G}\ntimeout: 30s\n"),
    (3, "a job that asks for less", "kind: job\ncommand: work\nmemory: {request: 6G}\n"),
    (3, "a short job that asks for less", "kind: job\ncommand: work\nmemory: {request: 6G}\ntimeout: 9s\nretries: 2\n"),
    (3, "an urgent job that asks for much", "kind: job\ncommand: work\nmemory: {request: 10G}\npriority: 5\n"),
    (3, "an urgent service", "command: serve\nmemory: {request: 10G}\npriority: 10\n"),
    (3, "idle work", "command: serve\ncpu: {class: idle}\nmemory: {request: 10G}\npriority: -5\n"),
    (3, "an urgent job on GPUs", "kind: job\ncommand: train\ngpu: 2\npriority: 5\n"),
    (3, "for this host", "command: serve\nhosts: {role: sim}\n"),
    (3, "for another host", "command: serve\nhosts: {role: other}\n"),
];

const ROLLING: &str =
    "strategy: {type: rolling, progressDeadline: 8s}\nprobes: {readiness: {tcp: {port: 1}, period: 1s}}\n";
const ROLLING2: &str = "strategy: {type: rolling, maxUnavailable: 2, progressDeadline: 8s}\nprobes: {readiness: {tcp: {port: 1}, period: 1s}}\n";

const BAD: [&str; 5] = ["comand: serve\n", "", "command: [\n", "command: serve\ncpu: -1\n", "\u{0}"];

/// How much more often manifests ask for so much that not all fit, where a host is crowded.
const CROWD: u64 = 12;

/// A good manifest for `name`, on a host that may be crowded: the word it is made of, and its text.
pub fn good(rng: &mut Rng, name: &str, names: &[&str], is_crowded: bool) -> (&'static str, String) {
    let weight = |(weight, _, text): (u64, &str, &str)| {
        let asks_for_much = text.contains("memory: {request:") || text.contains("gpu: 2");
        if is_crowded && asks_for_much { weight * CROWD } else { weight }
    };
    let (_, word, text) = WORDS[rng.weighted(&WORDS.map(weight))];
    let mut text = text.replace("ROLLING2", ROLLING2).replace("ROLLING", ROLLING);
    let others: Vec<&str> = names.iter().copied().filter(|other| *other != name).chain(["nobody"]).collect();
    while text.contains("OTHER") {
        // One that no manifest may ever name is rare.
        let other =
            if others.len() > 1 && rng.chance(9_500) { *rng.pick(&others[..others.len() - 1]) } else { "nobody" };
        text = text.replacen("OTHER", other, 1);
    }
    if !text.contains("restart:") {
        text += COMMON;
    }
    (word, text)
}

pub fn bad(rng: &mut Rng) -> String {
    (*rng.pick(&BAD)).to_owned()
}

/// The same with another number of replicas, if it has one.
pub fn scaled(rng: &mut Rng, text: &str) -> Option<String> {
    let (before, rest) = text.split_once("replicas: ")?;
    let (_, rest) = rest.split_once('\n')?;
    Some(format!("{before}replicas: {}\n{rest}", rng.between(1, 5)))
}

/// The same, but for a schedule that comes in a year.
pub fn idle(text: &str) -> Option<String> {
    let (before, rest) = text.split_once("\"*/")?;
    let (_, rest) = rest.split_once('"')?;
    Some(format!("{before}\"0 0 30 6 *\"{rest}"))
}

/// One thing that happens to the host, the folder or the controller, whatever the controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happening {
    /// Somebody saves a good manifest.
    Write,
    /// Somebody asks for more or fewer replicas.
    Scale,
    /// Somebody saves nonsense.
    WriteBad,
    Delete,
    /// Somebody deletes a workload and one that comes after it.
    Retire,
    /// Somebody deletes all files at once.
    Empty,
    /// A tool replaces a file by removing it first: it is back in a moment.
    Blink,
    /// The file stays, but cannot be read for a while.
    Unreadable,
    /// Somebody takes their time to write a file.
    HalfWritten,
    /// A second file claims the name of another.
    Duplicate,
    /// The folder is unmounted for a while.
    FolderGone,
    /// The controller is killed, and files are away for a moment as the next one looks.
    AwayOverRestart,
    /// Somebody consents to the deletions that wait for it.
    Approve,
    /// `kill -9` of the controller, wherever it is.
    Crash,
    /// The power fails.
    Reboot,
    /// Somebody sets the clock ahead, or back.
    ClockAhead,
    ClockBack,
    /// A command ends by itself, or is killed for want of memory.
    Exit,
    /// What runs answers its probes badly for a while.
    Sicken,
    /// Somebody writes to a control file.
    Drift,
    /// Somebody removes cgroups that are empty.
    RemoveEmpty,
    /// Somebody moves a process into a workload's cgroup.
    Stranger,
    /// Somebody removes the traces of a workload.
    WipeTraces,
    /// Somebody removes the runtime directory.
    WipeRuntime,
    /// A trace becomes unreadable.
    DamageTrace,
    /// The log folder of a workload is gone for a while, or another one.
    LogsGone,
    /// The runtime directory is full for a while.
    RuntimeFull,
    /// The disk with the database is full for a while.
    StateFull,
}

/// How often each happens.
pub const HAPPENINGS: [(Happening, u64); 28] = [
    (Happening::Write, 40),
    (Happening::Scale, 10),
    (Happening::WriteBad, 8),
    (Happening::Delete, 6),
    (Happening::Retire, 4),
    (Happening::Empty, 1),
    (Happening::Blink, 3),
    (Happening::Unreadable, 3),
    (Happening::HalfWritten, 4),
    (Happening::Duplicate, 3),
    (Happening::FolderGone, 2),
    (Happening::AwayOverRestart, 2),
    (Happening::Approve, 2),
    (Happening::Crash, 10),
    (Happening::Reboot, 3),
    (Happening::ClockAhead, 1),
    (Happening::ClockBack, 1),
    (Happening::Exit, 14),
    (Happening::Sicken, 8),
    (Happening::Drift, 5),
    (Happening::RemoveEmpty, 2),
    (Happening::Stranger, 3),
    (Happening::WipeTraces, 2),
    (Happening::WipeRuntime, 1),
    (Happening::DamageTrace, 2),
    (Happening::LogsGone, 2),
    (Happening::RuntimeFull, 2),
    (Happening::StateFull, 2),
];

pub fn happening(rng: &mut Rng) -> Happening {
    let weights = HAPPENINGS.map(|(_, weight)| weight);
    HAPPENINGS[rng.weighted(&weights)].0
}
