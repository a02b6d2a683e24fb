//! One document to one [`Spec`]: which fields there are, what they mean, what their defaults are, what does not go together.
//!
//! The reference for people is `docs/MANIFEST.md`; a test holds the two field lists against each other.

use super::diagnostic::Problems;
use super::fields::{Field, Map, Schema};
use super::tree::{Node, Value};
use super::{isolation, job, logs, probes, replicas, resources, rootfs, strategy};
use crate::model::gpu::GPU_VARIABLES;
use crate::model::label;
use crate::model::name::Name;
use crate::model::spec::{Kind, Process, Restart, RestartPolicy, Signal, Spec, Stop, User};
use std::collections::BTreeMap;
use std::time::Duration;

/// The one value of `apiVersion`.
pub const API_VERSION: &str = "containerctl/v1";

/// Signals that cannot ask a command to end: SIGKILL and SIGSTOP would hit its PID 1 instead, SIGPIPE, SIGCHLD and SIGXFSZ are that
/// one's own business.
const UNSENDABLE: [i32; 5] = [9, 13, 17, 19, 25];

/// The least bound on the wait between restarts.
const MAX_DELAY_MIN: Duration = Duration::from_secs(1);

pub const WORKLOAD: Schema = Schema {
    fields: &[
        "apiVersion",
        "name",
        "kind",
        "command",
        "env",
        "workdir",
        "user",
        "labels",
        "hosts",
        "priority",
        "cpu",
        "memory",
        "gpu",
        "pids",
        "io",
        "hugepages",
        "volumes",
        "restart",
        "stop",
        "probes",
        "logs",
        "suspend",
        "replicas",
        "rootfs",
        "network",
        "security",
        "rlimits",
        "oomScoreAdj",
        "timeout",
        "retries",
        "schedule",
        "after",
        "strategy",
    ],
    later: &[],
};
pub const RESTART: Schema = Schema { fields: &["policy", "initialDelay", "maxDelay", "resetAfter"], later: &[] };
pub const STOP: Schema = Schema { fields: &["signal", "grace"], later: &[] };

/// The name a document claims, even if the rest of it is refused.
pub fn claimed_name(document: &Node, default: Option<&str>) -> Option<Name> {
    let Value::Map(entries) = &document.value else { return default?.parse().ok() };
    let given = entries.iter().find(|entry| entry.key == "name").map(|entry| &entry.value.value);
    match given {
        Some(Value::Scalar { text, .. }) => text.parse().ok(),
        Some(_) => None,
        None => default?.parse().ok(),
    }
}

/// Reads a document. `default_name` is the file's stem where the file holds one document.
pub fn read(document: &Node, default_name: Option<&str>, problems: &mut Problems) -> Option<Spec> {
    let map = Map::open(document, "", &WORKLOAD, problems)?;
    api_version(&map, problems);
    let name = name(&map, document, default_name, problems);
    let kind = map
        .get("kind", problems)
        .and_then(|field| field.one_of(&[("service", Kind::Service), ("job", Kind::Job)], problems));
    let kind = kind.unwrap_or(Kind::Service);
    let process = process(&map, document, problems);
    let env = process.as_ref().map(|process| &process.env);
    let replica = replicas::replicas(&map, kind, name.as_ref(), env, problems);
    let after = replicas::after(&map, name.as_ref(), replica.as_ref(), problems);
    let strategy = strategy::strategy(&map, kind, problems);
    let resources = resources::read(&map, problems);
    let gpu = map.get("gpu", problems).and_then(|field| resources::gpu(&field, problems));
    let priority = map.get("priority", problems).and_then(|field| field.integer(-1000..=1000, problems)).unwrap_or(0);
    let labels = map.get("labels", problems).and_then(|field| field.texts(problems)).unwrap_or_default();
    let hosts = hosts(&map, problems);
    let restart = restart(&map, kind, problems);
    let stop = stop(&map, problems);
    let job = job::job(&map, kind, &restart, problems);
    let probes = probes::probes(&map, problems);
    let logs = logs::read(&map, problems);
    let suspend = map.get("suspend", problems).and_then(|field| field.boolean(problems)).unwrap_or(false);
    if let (Some(process), Some(_)) = (&process, &gpu) {
        granted_variables(&map, process, problems);
    }
    if problems.any_error() {
        return None;
    }
    Some(Spec {
        name: name?,
        kind,
        process: process?,
        resources,
        gpu,
        priority,
        labels,
        hosts,
        restart,
        stop,
        probes,
        logs,
        suspend,
        job,
        replica,
        after,
        strategy: strategy.unwrap_or_default(),
    })
}

/// There is one version of the format so far; it may be written out.
fn api_version(map: &Map<'_>, problems: &mut Problems) {
    let Some(field) = map.get("apiVersion", problems) else { return };
    let is = matches!(&field.node.value, Value::Scalar { text, .. } if text == API_VERSION);
    if !is {
        let help = format!("write `apiVersion: {API_VERSION}` or delete the line; this version honours nothing else");
        field.wrong(API_VERSION, help, problems);
    }
}

fn name(map: &Map<'_>, document: &Node, default: Option<&str>, problems: &mut Problems) -> Option<Name> {
    let (text, at) = match (map.get("name", problems), default) {
        (Some(field), _) => (field.text(problems)?.to_owned(), field.at()),
        (None, Some(stem)) => (stem.to_owned(), document.at),
        (None, None) => {
            let help = "add `name: ...` to each document of the file";
            problems.error(document.at, "name is missing, expected in every document of a file with several", help);
            return None;
        }
    };
    match text.parse() {
        Ok(name) => Some(name),
        Err(reason) => {
            let help = "write `name:` with letters, digits, `-`, `_` and `.`, for example `name: web-1`";
            problems.error(at, format!("name `{}` {reason}", text.escape_debug()), help);
            None
        }
    }
}

fn process(map: &Map<'_>, document: &Node, problems: &mut Problems) -> Option<Process> {
    let command = match map.get("command", problems) {
        Some(field) => command(&field, problems),
        None => {
            problems.error(document.at, "command is missing", "add what to run, for example `command: sleep infinity`");
            None
        }
    };
    let env = map.get("env", problems).and_then(|field| env(&field, problems)).unwrap_or_default();
    let workdir = map.get("workdir", problems).and_then(|field| absolute(&field, problems));
    let user = map.get("user", problems).and_then(|field| user(&field, problems)).unwrap_or(User { uid: 0, gid: 0 });
    let volumes = isolation::volumes(map, problems);
    let network = isolation::network(map, problems);
    let (security, read_only) = isolation::security(map, user, problems);
    let rootfs = rootfs::rootfs(map, read_only.as_ref(), problems);
    let rlimits = isolation::rlimits(map, problems);
    let oom_score_adj = map.get("oomScoreAdj", problems).and_then(|field| field.integer(-1000..=1000, problems));
    let (workdir, oom_score_adj) = (workdir.unwrap_or_else(|| "/".to_owned()), oom_score_adj.unwrap_or(0));
    Some(Process { command: command?, env, workdir, user, rootfs, volumes, network, security, rlimits, oom_score_adj })
}

pub(super) fn command(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<String>> {
    let words = if let Value::List(_) = field.node.value {
        let items = field.list(problems)?;
        let words: Vec<Option<String>> = items.iter().map(|item| item.text(problems).map(str::to_owned)).collect();
        words.into_iter().collect::<Option<Vec<String>>>()?
    } else {
        let text = field.text(problems)?;
        let Ok(words) = shell_words::split(text) else {
            field.wrong(
                "balanced quotes",
                "close the quote, or write the command as a list: `command: [program, argument]`",
                problems,
            );
            return None;
        };
        // Split like a shell, but nothing is expanded: someone who writes shell here should be told before it surprises them.
        if let Some(operator) =
            words.iter().find(|word| ["|", "||", "&", "&&", ";", ">", ">>", "<"].contains(&word.as_str()))
        {
            problems.warning(
                field.at(),
                format!("{} passes `{operator}` as an argument: no shell is involved", field.name),
                "for shell syntax write `command: [sh, -c, \"...\"]`",
            );
        }
        words
    };
    if words.first().is_none_or(String::is_empty) {
        problems.error(
            field.at(),
            format!("{} is empty", field.name),
            "write a program and its arguments, for example `command: sleep infinity`",
        );
        return None;
    }
    Some(words)
}

fn env(field: &Field<'_>, problems: &mut Problems) -> Option<BTreeMap<String, String>> {
    let texts = field.texts(problems)?;
    for key in texts.keys() {
        if key.is_empty() || key.contains(['=', '\0']) {
            let help = "use letters, digits and `_`";
            problems.error(field.at(), format!("env has the impossible variable name `{}`", key.escape_debug()), help);
        }
    }
    Some(texts)
}

/// Labels of the hosts it is for.
fn hosts(map: &Map<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let Some(field) = map.get("hosts", problems) else { return BTreeMap::new() };
    let hosts = field.texts(problems).unwrap_or_default();
    for (key, value) in &hosts {
        if let Err(reason) = label::check(key, value) {
            let help = "write labels as the controller was given them with --label, for example `hosts: {role: gpu}`";
            problems.error(field.at(), format!("hosts {reason}"), help);
        }
    }
    hosts
}

/// Variables that tell a workload its GPUs come from the grant; a manifest that sets them too would be overruled without a word.
fn granted_variables(map: &Map<'_>, process: &Process, problems: &mut Problems) {
    for variable in GPU_VARIABLES.into_iter().filter(|variable| process.env.contains_key(*variable)) {
        if let Some(field) = map.get("env", problems) {
            let message = format!("env.{variable} is set by the controller for a workload with `gpu`");
            problems.error(field.at(), message, "delete the variable, or delete `gpu`");
        }
    }
}

/// An absolute path without `..`, which could lead out of where it was checked; in its shortest spelling, so that `//proc` and `/./proc` are
/// checked as what they are.
pub(super) fn absolute(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    if text.starts_with('/') && !text.split('/').any(|part| part == "..") {
        let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        return Some(format!("/{}", parts.join("/")));
    }
    field.wrong("an absolute path without `..`", "write the whole path, beginning with `/`", problems);
    None
}

fn user(field: &Field<'_>, problems: &mut Problems) -> Option<User> {
    let text = field.text(problems)?;
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    // The highest number means "no change" to the kernel (setresuid(2)).
    let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    if let (Some(uid), Some(gid)) = (id(uid), id(gid)) {
        return Some(User { uid, gid });
    }
    field.wrong(
        "\"UID\" or \"UID:GID\" in numbers",
        "look the numbers up with `id NAME` and write them, for example `user: \"1000:1000\"`",
        problems,
    );
    None
}

fn restart(map: &Map<'_>, kind: Kind, problems: &mut Problems) -> Restart {
    let mut restart = Restart {
        policy: match kind {
            Kind::Service => RestartPolicy::Always,
            Kind::Job => RestartPolicy::OnFailure,
        },
        initial_delay: Duration::from_secs(1),
        max_delay: Duration::from_mins(5),
        reset_after: Duration::from_mins(10),
    };
    let Some(field) = map.get("restart", problems) else { return restart };
    let mut policy = |field: &Field<'_>, problems: &mut Problems| {
        let table = [
            ("always", RestartPolicy::Always),
            ("on-failure", RestartPolicy::OnFailure),
            ("never", RestartPolicy::Never),
        ];
        if let Some(policy) = field.one_of(&table, problems) {
            if policy == RestartPolicy::Always && kind == Kind::Job {
                field.wrong(
                    "on-failure or never for a job",
                    "a job ends when it succeeds; use `kind: service` to run for ever",
                    problems,
                );
            }
            restart.policy = policy;
        }
    };
    if !matches!(field.node.value, Value::Map(_)) {
        policy(&field, problems);
        return restart;
    }
    let Some(map) = Map::open(field.node, "restart.", &RESTART, problems) else { return restart };
    if let Some(field) = map.get("policy", problems) {
        policy(&field, problems);
    }
    for (key, place) in [
        ("initialDelay", &mut restart.initial_delay),
        ("maxDelay", &mut restart.max_delay),
        ("resetAfter", &mut restart.reset_after),
    ] {
        if let Some(duration) = map.get(key, problems).and_then(|field| field.duration(problems)) {
            *place = duration;
        }
    }
    if restart.max_delay < MAX_DELAY_MIN {
        problems.error(
            field.at(),
            "restart.maxDelay is below 1s",
            "a failing workload would be started in a tight loop; write 1s or more",
        );
    }
    if restart.initial_delay > restart.max_delay {
        problems.error(
            field.at(),
            "restart.initialDelay is above restart.maxDelay",
            "lower initialDelay or raise maxDelay",
        );
    }
    restart
}

fn stop(map: &Map<'_>, problems: &mut Problems) -> Stop {
    let mut stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(10) };
    let Some(field) = map.get("stop", problems) else { return stop };
    let Some(map) = Map::open(field.node, "stop.", &STOP, problems) else { return stop };
    if let Some(field) = map.get("signal", problems) {
        let named = field.text(problems).and_then(Signal::named);
        match named {
            Some(signal) if UNSENDABLE.contains(&signal.0) => field.wrong(
                "a signal that asks a command to end",
                "write `grace: 0s` to have it killed at once, or for example `signal: SIGINT`",
                problems,
            ),
            Some(signal) => stop.signal = signal,
            None => field.wrong("the name of a signal", "write for example `signal: SIGINT`", problems),
        }
    }
    if let Some(grace) = map.get("grace", problems).and_then(|field| field.duration(problems)) {
        stop.grace = grace;
    }
    stop
}
