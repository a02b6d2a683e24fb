//! What the probes of a run come to, and what is done about it.

use super::World;
use crate::model::exit::Outcome;
use crate::model::probe::{ProbeKind, Standing};
use crate::model::spec::Signal;
use std::sync::Arc;

impl World {
    /// Somebody has asked the run that there is.
    fn stands(&mut self, name: &str, ready: bool, reason: &'static str, failed: Option<ProbeKind>) -> &mut World {
        let name = name.parse().unwrap();
        let instance = self.observed[&name].instance.as_ref().unwrap().number;
        let message = format!("{} of run {instance}", reason.to_lowercase());
        let probes = Arc::new(self.records[&name].spec.probes.clone());
        self.standings.insert(name, Standing { instance, pid: 100, probes, ready, reason, message, failed });
        self
    }
}

const PROBED: &str = "command: a\nprobes: {readiness: {tcp: {port: 1}}, liveness: {exec: b}}";

#[test]
fn it_is_ready_when_its_probes_say_so() {
    let mut world = World::new(4);
    world.file("web.yaml", PROBED).settle();
    insta::assert_snapshot!(world.pass(), @"  web Running Ready=false Probing: its probes have not been asked yet");
    insta::assert_snapshot!(world.stands("web", false, "NotReady", None).pass(), @"  web Running Ready=false NotReady: notready of run 1");
    insta::assert_snapshot!(world.stands("web", true, "ProbesSucceed", None).pass(), @"  web Running Ready=true ProbesSucceed: probessucceed of run 1");
    assert_eq!(world.plan().work, []);
    assert_eq!(world.plan().wake_at, None, "whoever asks says when there is news");
    // What was said of this run says nothing about the next.
    world.exit_code("web", 1);
    world.after(10_000).settle();
    world.after(10_000).settle();
    insta::assert_snapshot!(world.pass(), @"  web Running Ready=false Probing: its probes have not been asked yet");
}

#[test]
fn a_failed_probe_ends_it_like_a_failure_of_its_own() {
    let mut world = World::new(4);
    world.file("web.yaml", &format!("{PROBED}\nstop: {{signal: SIGINT, grace: 3s}}")).settle();
    insta::assert_snapshot!(world.stands("web", false, "LivenessFailed", Some(ProbeKind::Liveness)).pass(), @"
    web: stop { signal: signal(2) } (livenessfailed of run 1)
      web Stopping Ready=false LivenessFailed: livenessfailed of run 1
    ");
    world.standings.clear();
    insta::assert_snapshot!(world.after(2999).pass(), @"  web Stopping Ready=false LivenessFailed: livenessfailed of run 1");
    insta::assert_snapshot!(world.after(1).settle(), @"
    web: kill (its grace period is over)
      web Stopping Ready=false Killed: livenessfailed of run 1; still there after the grace period
    web: clear (livenessfailed of run 1)
      web Pending Ready=false Ended: livenessfailed of run 1
    ");
    let record = &world.records[&"web".parse().unwrap()];
    assert_eq!((record.failures, record.last_exit.as_ref().unwrap().outcome.code()), (1, 137));
    insta::assert_snapshot!(world.pass(), @"  web Pending Ready=false BackOff: livenessfailed of run 1; next try at 1970-01-01T00:16:44.165Z");
    insta::assert_snapshot!(world.after(2000).settle(), @"
    web: start (its last run: livenessfailed of run 1; no cpu.limit: all shared CPUs)
      web Starting Ready=false Starting: being set up
    ");
    assert_eq!(world.records[&"web".parse().unwrap()].restarts, 1);
    // It doubles as for any failure, even if it ends well when it is asked to.
    world.stands("web", false, "LivenessFailed", Some(ProbeKind::Liveness)).pass();
    world.exit("web", Outcome::Exited { code: 0 });
    world.settle();
    assert_eq!(world.records[&"web".parse().unwrap()].failures, 2);
}

#[test]
fn the_restart_policy_says_what_comes_after_a_failed_probe() {
    for (policy, shown) in [("never", "Failed"), ("on-failure", "Pending"), ("always", "Pending")] {
        let mut world = World::new(4);
        world.file("web.yaml", &format!("{PROBED}\nrestart: {policy}")).settle();
        world.stands("web", false, "StartupFailed", Some(ProbeKind::Startup)).pass();
        world.exit("web", Outcome::Killed { signal: Signal::TERM });
        world.settle();
        let pass = world.pass();
        assert!(pass.contains(&format!("web {shown} ")) && pass.contains("startupfailed of run 1"), "{policy}: {pass}");
    }
}

#[test]
fn an_edit_of_a_probe_touches_no_process() {
    let mut world = World::new(4);
    world.file("web.yaml", PROBED).settle();
    world.stands("web", true, "ProbesSucceed", None);
    world.file("web.yaml", "command: a\nprobes: {readiness: {tcp: {port: 2}}}");
    insta::assert_snapshot!(world.pass(), @"
    web: remember (as it should be)
      web Running Ready=false Probing: its probes have not been asked yet
    ");
    world.file("web.yaml", "command: a");
    insta::assert_snapshot!(world.pass(), @"
    web: remember (as it should be)
      web Running Ready=true Running: pid 100
    ");
}

#[test]
fn a_probe_that_was_mended_in_time_ends_nothing() {
    let mut world = World::new(4);
    world.file("web.yaml", PROBED).settle();
    world.stands("web", false, "LivenessFailed", Some(ProbeKind::Liveness));
    world.file("web.yaml", "command: a\nprobes: {readiness: {tcp: {port: 1}}, liveness: {exec: c}}");
    assert!(!world.pass().contains("stop"));
}

#[test]
fn a_deletion_comes_before_a_failed_probe() {
    let mut world = World::new(4);
    world.file("web.yaml", PROBED).settle();
    world.stands("web", false, "LivenessFailed", Some(ProbeKind::Liveness));
    world.files.clear();
    insta::assert_snapshot!(world.pass(), @"
    web: stop { signal: signal(15) } (web.yaml was deleted)
      web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Stopping: web.yaml was deleted
    ");
}
