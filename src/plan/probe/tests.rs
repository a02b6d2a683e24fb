//! Answers in, what they come to out. A script is a list of answers, each a letter: `+` good, `-` bad, `?` could not be asked.

use super::*;
use crate::manifest::parse;
use std::fmt::Write as _;

fn probes(text: &str) -> Arc<Probes> {
    let parsed = parse("web.yaml", format!("command: x\nprobes: {{{text}}}").as_bytes());
    assert_eq!(parsed.diagnostics, []);
    Arc::new(parsed.workloads[0].0.probes.clone())
}

const NEW: Run = Run { instance: 1, pid: 7, age: Duration::ZERO, adopted: false };

/// Somebody who answers for a workload.
struct Script {
    tally: Tally,
    now: Duration,
}

impl Script {
    fn new(text: &str) -> Script {
        Script::of(NEW, text)
    }

    fn of(run: Run, text: &str) -> Script {
        Script { tally: Tally::new(&"web".parse().unwrap(), run, &probes(text), 0), now: run.age }
    }

    /// Tries, one after the other, each when it is due and answered at once; tells of every change.
    fn play(&mut self, kind: ProbeKind, answers: &str) -> String {
        let mut shown = String::new();
        let mut before = self.tally.standing();
        for answer in answers.chars() {
            let mut asked = Vec::new();
            while !asked.iter().any(|(of, _)| *of == kind) {
                let Some(due) = self.tally.next() else { return format!("{shown}{kind} is not asked any more\n") };
                self.now = self.now.max(due);
                asked = self.tally.begin(self.now);
                for (other, probe) in asked.iter().filter(|(of, _)| *of != kind) {
                    self.tally.take(*other, probe, self.now, Answer::Good);
                }
            }
            let answer = match answer {
                '+' => Answer::Good,
                '-' => Answer::Bad("connection refused".to_owned()),
                _ => Answer::Unasked("no room for a process".to_owned()),
            };
            let (_, probe) = asked.iter().find(|(of, _)| *of == kind).unwrap();
            self.tally.take(kind, probe, self.now, answer);
            let standing = self.tally.standing();
            if !standing.agrees_with(&before) {
                let at = self.now.as_millis() / 1000;
                writeln!(shown, "{at}s ready={} {}: {}", standing.ready, standing.reason, standing.message).unwrap();
            }
            before = standing;
        }
        shown
    }
}

use ProbeKind::{Liveness, Readiness, Startup};

#[test]
fn readiness_takes_its_thresholds_both_ways() {
    let mut script = Script::new("readiness: {tcp: {port: 1}, successThreshold: 2}");
    assert_eq!(script.tally.standing().message, "its readiness probe has not succeeded yet: not asked yet");
    insta::assert_snapshot!(script.play(Readiness, "---+-++--+---+-++"), @"
    1s ready=false NotReady: its readiness probe fails: connection refused
    24s ready=true ProbesSucceed: pid 7; its readiness probe succeeds
    84s ready=false NotReady: its readiness probe fails: connection refused
    124s ready=true ProbesSucceed: pid 7; its readiness probe succeeds
    ");
}

#[test]
fn what_could_not_be_asked_counts_neither_way() {
    let mut script = Script::new("readiness: {tcp: {port: 1}}, liveness: {tcp: {port: 2}, failureThreshold: 2}");
    insta::assert_snapshot!(script.play(Readiness, "+????"), @"0s ready=true ProbesSucceed: pid 7; its readiness probe succeeds");
    assert_eq!(script.play(Liveness, "-????????"), "");
    insta::assert_snapshot!(script.play(Liveness, "-+"), @"
    140s ready=false LivenessFailed: its liveness probe failed 2 times in a row: connection refused
    liveness is not asked any more
    ");
}

#[test]
fn until_it_has_come_up_nothing_else_is_asked() {
    let text =
        "startup: {tcp: {port: 1}, failureThreshold: 9}, readiness: {tcp: {port: 2}}, liveness: {tcp: {port: 3}}";
    let mut script = Script::new(text);
    let mut asked = Vec::new();
    for _ in 0..5 {
        script.now = script.tally.next().unwrap();
        for (kind, probe) in script.tally.begin(script.now) {
            asked.push(kind);
            script.tally.take(kind, &probe, script.now, Answer::Bad("no".to_owned()));
        }
    }
    assert_eq!(asked, [Startup; 5]);
    assert_eq!(script.tally.standing().reason, "Probing");
    insta::assert_snapshot!(script.play(Startup, "+") + &script.play(Readiness, "+"), @"7s ready=true ProbesSucceed: pid 7; its readiness probe succeeds");
}

#[test]
fn a_start_that_takes_too_long_is_a_failure_after_the_time_it_was_given() {
    let mut script = Script::new("startup: {tcp: {port: 1}, period: 2s, failureThreshold: 3}");
    // Tried more often than every two seconds at first, but only three failures count: at 0, 2 and 4 seconds.
    insta::assert_snapshot!(script.play(Startup, "--------------------"), @"
    4s ready=false StartupFailed: its startup probe failed 3 times in a row: connection refused
    startup is not asked any more
    ");
    assert_eq!(script.tally.standing().failed, Some(Startup));
    assert_eq!(script.tally.next(), None, "a run that has failed is left alone");
}

#[test]
fn what_comes_up_soon_is_found_soon_and_what_does_not_is_not_pestered() {
    let mut script = Script::new("readiness: {tcp: {port: 1}}");
    let mut times = Vec::new();
    for _ in 0..9 {
        script.play(Readiness, "-");
        times.push(script.now.as_millis());
    }
    let times: Vec<u128> = times.iter().map(|time| time - times[0]).collect();
    assert_eq!(times, [0, 250, 750, 1750, 3750, 7750, 15750, 25750, 35750]);
}

#[test]
fn liveness_fails_on_failures_in_a_row() {
    let mut script = Script::new("liveness: {exec: x}");
    assert!(script.tally.standing().ready, "without a readiness probe it is ready when it runs");
    insta::assert_snapshot!(script.play(Liveness, "--+--+---+"), @"
    80s ready=false LivenessFailed: its liveness probe failed 3 times in a row: connection refused
    liveness is not asked any more
    ");
}

#[test]
fn a_readiness_that_flaps_is_held_down_until_it_is_steady() {
    let mut script = Script::new("readiness: {tcp: {port: 1}, failureThreshold: 1}");
    insta::assert_snapshot!(script.play(Readiness, "+-+-+-+-+-+-+-++++++++++-++"), @"
    0s ready=true ProbesSucceed: pid 7; its readiness probe succeeds
    10s ready=false NotReady: its readiness probe fails: connection refused
    20s ready=true ProbesSucceed: pid 7; its readiness probe succeeds
    30s ready=false NotReady: its readiness probe fails: connection refused
    40s ready=true ProbesSucceed: pid 7; its readiness probe succeeds
    50s ready=false NotReady: its readiness probe fails: connection refused
    60s ready=true ProbesSucceed: pid 7; its readiness probe succeeds
    70s ready=false Flapping: its readiness was lost more than 3 times in 10m; held down until its probe has been good for 1m
    200s ready=true ProbesSucceed: pid 7; its readiness probe succeeds
    240s ready=false Flapping: its readiness was lost more than 3 times in 10m; held down until its probe has been good for 1m
    ");
}

#[test]
fn an_outage_now_and_then_is_no_flapping() {
    let mut script = Script::new("readiness: {tcp: {port: 1}, failureThreshold: 1, period: 3m}");
    assert!(!script.play(Readiness, &"+-".repeat(50)).contains("Flapping"));
}

#[test]
fn two_hundred_workloads_do_not_ask_at_once() {
    let probes = probes("readiness: {tcp: {port: 1}}");
    let due = |n: u32| Tally::new(&format!("w{n}").parse().unwrap(), NEW, &probes, 7).next().unwrap().as_millis();
    let mut by_slot: BTreeMap<u128, u32> = BTreeMap::new();
    for n in 0..200 {
        *by_slot.entry(due(n) / 50).or_default() += 1;
    }
    assert!(by_slot.len() == 10 && by_slot.values().all(|count| *count < 40), "{by_slot:?}");
}

#[test]
fn an_adopted_run_begins_anew_and_is_not_ended_for_what_nobody_saw() {
    let text = "startup: {tcp: {port: 1}, period: 1s, failureThreshold: 5}, liveness: {tcp: {port: 2}, period: 1s}";
    let age = Duration::from_hours(1);
    let mut old = Script::of(Run { age, adopted: true, ..NEW }, text);
    assert_eq!(old.play(Startup, "----------"), "", "long past its time to come up it is not ended");
    assert!(!old.tally.standing().ready, "but neither is it said to be ready");
    insta::assert_snapshot!(old.play(Liveness, "---"), @"
    3608s ready=true Running: pid 7
    3609s ready=false LivenessFailed: its liveness probe failed 3 times in a row: connection refused
    ");
    let mut young = Script::of(Run { age: Duration::from_secs(3), adopted: true, ..NEW }, text);
    insta::assert_snapshot!(young.play(Startup, "----------"), @"
    7s ready=false StartupFailed: its startup probe failed 5 times in a row: connection refused
    startup is not asked any more
    ");
}

#[test]
fn an_edit_of_the_numbers_goes_on_and_another_question_begins_anew() {
    let mut script = Script::new("readiness: {tcp: {port: 1}}");
    script.play(Readiness, "+-");
    script.tally.revise(probes("readiness: {tcp: {port: 1}, period: 1s, failureThreshold: 2}"), script.now);
    insta::assert_snapshot!(script.play(Readiness, "-"), @"11s ready=false NotReady: its readiness probe fails: connection refused");
    script.play(Readiness, "+");
    script.tally.revise(probes("readiness: {tcp: {port: 2}}"), script.now);
    insta::assert_snapshot!(script.tally.standing().message, @"its readiness probe has not succeeded yet: not asked yet");
    // A try of the old question that is still under way has nothing to say to the new one.
    script.now = script.tally.next().unwrap();
    let (_, old) = script.tally.begin(script.now).remove(0);
    script.tally.revise(probes("readiness: {tcp: {port: 3}}"), script.now);
    assert_eq!(script.tally.next(), None, "one at a time");
    script.tally.take(Readiness, &old, script.now, Answer::Good);
    assert!(!script.tally.standing().ready);
    // A startup probe that comes later is for the next start.
    script.tally.revise(probes("startup: {tcp: {port: 9}, failureThreshold: 1}"), script.now);
    assert!(script.tally.standing().ready && script.tally.next().is_none());
    script.tally.revise(Arc::default(), script.now);
    assert!(script.tally.standing().ready);
}
