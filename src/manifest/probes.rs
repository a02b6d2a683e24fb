//! The field `probes`: what is asked, of whom, and how often.

use super::diagnostic::Problems;
use super::fields::{Field, Map, Schema};
use super::tree::Value;
use super::workload::command;
use crate::model::probe::{Check, Probe, ProbeKind, Probes};
use crate::model::units::format_duration;
use std::ops::RangeInclusive;
use std::time::Duration;

pub const PROBES: Schema = Schema { fields: &["startup", "readiness", "liveness"], later: &[] };
pub const PROBE: Schema = Schema {
    fields: &["exec", "http", "tcp", "initialDelay", "period", "timeout", "successThreshold", "failureThreshold"],
    later: &["grpc"],
};
pub const HTTP: Schema = Schema { fields: &["port", "path", "host"], later: &["scheme", "headers"] };
pub const TCP: Schema = Schema { fields: &["port"], later: &[] };
pub const EXEC: Schema = Schema { fields: &["command"], later: &[] };

/// Ten a second is more than anything needs to know of a process on the same host, and an exec probe costs milliseconds of CPU time.
const PERIODS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(24);
/// Nobody waits longer for an answer over loopback, and one that is waited for takes one of the places of the prober.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(5);
const DELAYS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);
/// A success or failure that needs more tries than these is none that anybody meant.
const SUCCESSES: RangeInclusive<u32> = 1..=100;
const FAILURES: RangeInclusive<u32> = 1..=10_000;
/// What servers take as a request line, without the method (Apache's `LimitRequestLine` is 8190, nginx takes 8 KiB).
const PATH_BYTES_MAX: usize = 2048;
/// The longest name there is in the DNS, and a port behind it.
const HOST_BYTES_MAX: usize = 260;

pub fn probes(map: &Map<'_>, problems: &mut Problems) -> Probes {
    let mut probes = Probes::default();
    let Some(field) = map.get("probes", problems) else { return probes };
    let Some(map) = Map::open(field.node, "probes.", &PROBES, problems) else { return probes };
    let mut read = |kind: ProbeKind| probe(kind, &map.get(kind.name(), problems)?, problems);
    probes.startup = read(ProbeKind::Startup);
    probes.readiness = read(ProbeKind::Readiness);
    probes.liveness = read(ProbeKind::Liveness);
    probes
}

fn probe(kind: ProbeKind, field: &Field<'_>, problems: &mut Problems) -> Option<Probe> {
    let map = Map::open(field.node, &format!("{}.", field.name), &PROBE, problems)?;
    let check = check(field, &map, problems);
    // What is wrong with the rest is said even if it is not known what to ask.
    let mut probe = Probe::new(check.clone().unwrap_or(Check::Tcp { port: 0 }));
    for (key, range, place) in [
        ("initialDelay", DELAYS, &mut probe.initial_delay),
        ("period", PERIODS, &mut probe.period),
        ("timeout", TIMEOUTS, &mut probe.timeout),
    ] {
        if let Some(duration) = map.get(key, problems).and_then(|field| duration_in(&field, &range, problems)) {
            *place = duration;
        }
    }
    if let Some(field) = map.get("successThreshold", problems)
        && let Some(times) = field.integer(SUCCESSES, problems)
    {
        probe.success_threshold = times;
        if times > 1 && kind != ProbeKind::Readiness {
            field.wrong("1 but for a readiness probe", "delete the line: the first success counts", problems);
        }
    }
    if let Some(times) = map.get("failureThreshold", problems).and_then(|field| field.integer(FAILURES, problems)) {
        probe.failure_threshold = times;
    }
    check.map(|_| probe)
}

fn duration_in(field: &Field<'_>, range: &RangeInclusive<Duration>, problems: &mut Problems) -> Option<Duration> {
    let duration = field.duration(problems)?;
    if range.contains(&duration) {
        return Some(duration);
    }
    let (least, most) = (format_duration(*range.start()), format_duration(*range.end()));
    field.wrong(&format!("{least} to {most}"), format!("write a duration from {least} to {most}"), problems);
    None
}

/// Exactly one of the three.
fn check(field: &Field<'_>, map: &Map<'_>, problems: &mut Problems) -> Option<Check> {
    let given: Vec<Field<'_>> = ["exec", "http", "tcp"].iter().filter_map(|key| map.get(key, problems)).collect();
    let [check] = given.as_slice() else {
        if given.is_empty() && problems.any_error() {
            return None;
        }
        let found = if given.is_empty() { "none" } else { "more than one" };
        let message = format!("{} has {found} of exec, http and tcp, expected one", field.name);
        let help =
            "write for example `http: {port: 8080, path: /}`, `tcp: {port: 5432}` or `exec: [test, -e, /tmp/ready]`";
        problems.error(field.at(), message, help);
        return None;
    };
    match check.name.rsplit('.').next() {
        Some("http") => http(check, problems),
        Some("tcp") => {
            let map = Map::open(check.node, &format!("{}.", check.name), &TCP, problems)?;
            Some(Check::Tcp { port: port(check, &map, problems)? })
        }
        _ => exec(check, problems),
    }
}

/// A command as in `command`, or Kubernetes' way, `{command: [...]}`.
fn exec(field: &Field<'_>, problems: &mut Problems) -> Option<Check> {
    let command = if let Value::Map(_) = field.node.value {
        let map = Map::open(field.node, &format!("{}.", field.name), &EXEC, problems)?;
        let Some(inner) = map.get("command", problems) else {
            problems.error(field.at(), format!("{} has no command", field.name), "write `exec: [program, argument]`");
            return None;
        };
        command(&inner, problems)
    } else {
        command(field, problems)
    };
    Some(Check::Exec { command: command? })
}

fn http(field: &Field<'_>, problems: &mut Problems) -> Option<Check> {
    let map = Map::open(field.node, &format!("{}.", field.name), &HTTP, problems)?;
    let port = port(field, &map, problems);
    let path = match map.get("path", problems) {
        Some(path) => {
            // What would end the request line, or begin another header, in the middle.
            let fits = |text: &&str| text.starts_with('/') && is_plain(text) && text.len() <= PATH_BYTES_MAX;
            let text = path.text(problems)?;
            if !fits(&text) {
                let help = "write for example `path: /healthz`, percent-encoded where need be";
                path.wrong("a path that begins with `/`, without spaces", help, problems);
            }
            text.to_owned()
        }
        None => "/".to_owned(),
    };
    let host = match map.get("host", problems) {
        Some(host) => {
            let text = host.text(problems)?;
            if text.is_empty() || !is_plain(text) || text.contains('/') || text.len() > HOST_BYTES_MAX {
                let help = "it is what the header `Host` says, for example `host: example.org`; the loopback is asked";
                host.wrong("a host name", help, problems);
            }
            Some(text.to_owned())
        }
        None => None,
    };
    Some(Check::Http { port: port?, path, host })
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn port(field: &Field<'_>, map: &Map<'_>, problems: &mut Problems) -> Option<u16> {
    match map.get("port", problems) {
        Some(port) => port.integer(1..=u16::MAX, problems),
        None => {
            problems.error(field.at(), format!("{}.port is missing", field.name), "add it, for example `port: 8080`");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::manifest::parse;
    use std::fmt::Write as _;

    /// The probes of a workload in short, or what is wrong with them.
    fn check(text: &str) -> String {
        let parsed = parse("web.yaml", format!("command: x\nprobes:\n{text}").as_bytes());
        let mut shown = String::new();
        for diagnostic in &parsed.diagnostics {
            writeln!(shown, "{diagnostic}").unwrap();
        }
        for (spec, _) in &parsed.workloads {
            for kind in crate::model::probe::ProbeKind::ALL {
                let Some(probe) = spec.probes.get(kind) else { continue };
                let times = [probe.initial_delay, probe.period, probe.timeout];
                let (good, bad) = (probe.success_threshold, probe.failure_threshold);
                writeln!(shown, "{kind}: {} {times:?} {good}/{bad}", probe.check).unwrap();
            }
        }
        shown
    }

    #[test]
    fn probes_have_the_defaults_of_kubernetes() {
        insta::assert_snapshot!(check(
            "  startup: {tcp: {port: 5432}, period: 500ms, failureThreshold: 60}\n  \
             readiness: {http: {port: 8080}, initialDelay: 2s, timeout: 250ms, successThreshold: 2}\n  \
             liveness: {exec: test -e '/tmp/a b'}\n"
        ), @"
        startup: tcp :5432 [0ns, 500ms, 1s] 1/60
        readiness: http :8080/ [2s, 10s, 250ms] 2/3
        liveness: exec test -e /tmp/a b [0ns, 10s, 1s] 1/3
        ");
        insta::assert_snapshot!(check(
            "  readiness: {http: {port: 80, path: '/a?b=c', host: 'example.org:80'}}\n  liveness: {exec: {command: [a, b c]}}\n"
        ), @"
        readiness: http :80/a?b=c (example.org:80) [0ns, 10s, 1s] 1/3
        liveness: exec a b c [0ns, 10s, 1s] 1/3
        ");
        assert_eq!(check("  {}\n"), "");
    }

    #[test]
    fn a_probe_asks_exactly_one_thing() {
        insta::assert_snapshot!(check("  readiness: {period: 1s}\n  liveness: {tcp: {port: 1}, exec: x}\n"), @"
        web.yaml:3:14: probes.readiness has none of exec, http and tcp, expected one
          help: write for example `http: {port: 8080, path: /}`, `tcp: {port: 5432}` or `exec: [test, -e, /tmp/ready]`
        web.yaml:4:13: probes.liveness has more than one of exec, http and tcp, expected one
          help: write for example `http: {port: 8080, path: /}`, `tcp: {port: 5432}` or `exec: [test, -e, /tmp/ready]`
        ");
        insta::assert_snapshot!(check("  readyness: {tcp: {port: 1}}\n"), @"
        web.yaml:3:3: unknown field probes.readyness
          help: did you mean `readiness`?
        ");
        insta::assert_snapshot!(check("  liveness: {httpGet: {port: 1}}\n"), @"
        web.yaml:3:14: unknown field probes.liveness.httpGet
          help: did you mean `http`?
        ");
    }

    #[test]
    fn absurd_values_are_refused() {
        insta::assert_snapshot!(check(
            "  startup: {tcp: {port: 0}, successThreshold: 2}\n  readiness: {http: {path: health}}\n  \
             liveness: {exec: x, period: 0s, timeout: 1h, initialDelay: 10, failureThreshold: 0}\n"
        ), @"
        web.yaml:3:25: probes.startup.tcp.port is `0`, expected 1..=65535
          help: write a whole number from 1 to 65535
        web.yaml:3:47: probes.startup.successThreshold is `2`, expected 1 but for a readiness probe
          help: delete the line: the first success counts
        web.yaml:4:21: probes.readiness.http.port is missing
          help: add it, for example `port: 8080`
        web.yaml:4:28: probes.readiness.http.path is `health`, expected a path that begins with `/`, without spaces
          help: write for example `path: /healthz`, percent-encoded where need be
        web.yaml:5:31: probes.liveness.period is `0s`, expected 100ms to 1d
          help: write a duration from 100ms to 1d
        web.yaml:5:44: probes.liveness.timeout is `1h`, expected 10ms to 5m
          help: write a duration from 10ms to 5m
        web.yaml:5:62: probes.liveness.initialDelay is `10`, which has no unit, expected ms, s, m, h or d
          help: write for example `initialDelay: 10s`
        web.yaml:5:84: probes.liveness.failureThreshold is `0`, expected 1..=10000
          help: write a whole number from 1 to 10000
        ");
        insta::assert_snapshot!(check(
            "  startup: {http: {port: 1, path: \"/a\\r\\nX: y\"}}\n  readiness: {http: {port: 1, host: 'a b'}}\n  liveness: {exec: []}\n"
        ), @r#"
        web.yaml:3:35: probes.startup.http.path is `/a\r\nX: y`, expected a path that begins with `/`, without spaces
          help: write for example `path: /healthz`, percent-encoded where need be
        web.yaml:4:37: probes.readiness.http.host is `a b`, expected a host name
          help: it is what the header `Host` says, for example `host: example.org`; the loopback is asked
        web.yaml:5:20: probes.liveness.exec is empty
          help: write a program and its arguments, for example `command: sleep infinity`
        "#);
        insta::assert_snapshot!(check("  startup: {exec: {}}\n  readiness: {tcp: 1}\n  liveness: {http: {port: 1, scheme: HTTPS}}\n"), @"
        web.yaml:3:19: probes.startup.exec has no command
          help: write `exec: [program, argument]`
        web.yaml:4:20: probes.readiness.tcp is a number, expected a map of fields
          help: write fields such as `port: ...`, one a line
        web.yaml:5:30: probes.liveness.http.scheme is not supported by this version
          help: remove the line; the README lists under `Not there yet` what is missing
        ");
    }
}
