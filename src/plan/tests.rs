//! Plans as text: a small world of manifests, records and sightings; each pass is printed and then carried out on the world.

use super::*;
use crate::manifest::{gather, parse};
use crate::model::cgroup::{Generation, Settings, Support};
use crate::model::cpuset::CpuSet;
use crate::model::exit::{Exit, Outcome};
use crate::model::gpu::{Gpu, GpuId, Vendor};
use crate::model::observed::{Group, Instance};
use crate::model::topology::tests::{flat, two_sockets};
use crate::model::units::Bytes;
use proptest::prelude::*;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// A world without a kernel: work is carried out by editing what is seen.
struct World {
    files: BTreeMap<String, String>,
    records: BTreeMap<Name, Record>,
    observed: BTreeMap<Name, Observed>,
    setbacks: BTreeMap<Name, Setback>,
    busy: BTreeSet<Name>,
    machine: Machine,
    utilisation_percent: Option<u8>,
    now: Timestamp,
}

impl World {
    fn new(cpus: u32) -> World {
        let files = [
            "cpu.max",
            "cpu.max.burst",
            "cpu.idle",
            "cpu.weight",
            "memory.low",
            "memory.high",
            "memory.max",
            "memory.swap.max",
            "cpuset.cpus",
            "pids.max",
        ];
        let gpu = |index: u32| Gpu {
            id: GpuId(format!("GPU-{index}")),
            vendor: Vendor::Simulated,
            model: "Simulated".to_owned(),
            memory: Bytes(16 << 30),
        };
        World {
            files: BTreeMap::new(),
            records: BTreeMap::new(),
            observed: BTreeMap::new(),
            setbacks: BTreeMap::new(),
            busy: BTreeSet::new(),
            machine: Machine {
                topology: if cpus == 16 { two_sockets() } else { flat(cpus) },
                memory: Bytes(16 << 30),
                gpus: vec![gpu(0), gpu(1)],
                cgroup: Support {
                    generation: Generation::Unified,
                    files: files.into_iter().map(str::to_owned).collect(),
                    nodes: "0".parse().unwrap(),
                },
                boot_id: "boot".to_owned(),
            },
            utilisation_percent: None,
            now: Timestamp(1_000_000),
        }
    }

    fn file(&mut self, path: &str, text: &str) -> &mut World {
        self.files.insert(path.to_owned(), text.to_owned());
        self
    }

    fn plan(&self) -> Plan {
        let files =
            self.files.iter().map(|(path, text)| (path.clone(), Arc::new(parse(path, text.as_bytes())))).collect();
        let owners = self.records.iter().map(|(name, record)| (name.clone(), record.origin.path.clone())).collect();
        let (desired, _) = gather::gather(&files, &BTreeSet::new(), &owners);
        plan(&Input {
            desired: &desired,
            records: &self.records,
            observed: &self.observed,
            busy: &self.busy,
            setbacks: &self.setbacks,
            machine: &self.machine,
            utilisation_percent: self.utilisation_percent,
            job_threshold_percent: 85,
            now: self.now,
            entropy: 0,
        })
    }

    /// One pass: planned, printed, carried out.
    fn pass(&mut self) -> String {
        let plan = self.plan();
        let mut shown = String::new();
        for Work { name, record, act, reason } in plan.work {
            let act_shown = match &act {
                Act::Start { env, .. } => match env.get("CUDA_VISIBLE_DEVICES") {
                    Some(devices) => format!("start with {devices}"),
                    None => "start".to_owned(),
                },
                Act::Resize { .. } => "resize".to_owned(),
                other => format!("{other:?}").to_lowercase(),
            };
            writeln!(shown, "{name}: {act_shown} ({reason})").unwrap();
            self.carry_out(&name, record, &act);
        }
        for (name, verdict) in &plan.verdicts {
            let findings: Vec<String> = verdict
                .findings
                .iter()
                .filter(|finding| {
                    finding.kind != ConditionKind::Accepted && finding.kind != ConditionKind::Placed || !finding.status
                })
                .map(|finding| format!("{:?}={} {}: {}", finding.kind, finding.status, finding.reason, finding.message))
                .collect();
            writeln!(shown, "  {name} {} {}", verdict.phase, findings.join("; ")).unwrap();
        }
        shown
    }

    fn carry_out(&mut self, name: &Name, record: Option<Record>, act: &Act) {
        if let Some(record) = record {
            self.records.insert(name.clone(), record);
        }
        let seen = self.observed.entry(name.clone()).or_default();
        match act {
            Act::Remember | Act::Stop { .. } => {}
            Act::Start { writes, .. } => {
                assert_eq!(*seen, Observed::default(), "{name} was started beside something");
                assert_eq!(self.on_fenced_cpus_of(name), None, "{name} was started on CPUs that are not exclusive yet");
                let seen = self.observed.entry(name.clone()).or_default();
                let record = self.records[name].clone();
                let mut settings = Settings::default();
                for write in writes {
                    settings.set(&write.file, &write.value);
                }
                for (file, value) in [
                    ("cpu.max", "max 100000"),
                    ("cpu.weight", "100"),
                    ("memory.max", "max"),
                    ("memory.high", "max"),
                    ("cpu.max.burst", "0"),
                    ("cpu.idle", "0"),
                    ("memory.low", "0"),
                    ("memory.swap.max", "max"),
                    ("pids.max", "max"),
                ] {
                    settings.0.entry(file.to_owned()).or_insert_with(|| value.to_owned());
                }
                seen.group = Some(Group { settings, populated: true });
                let life = Life::Running { pid: 100 };
                seen.instance = Some(Instance { number: record.instance, record, started: Some(self.now), life });
            }
            Act::Resize { writes } => {
                let group = seen.group.as_mut().unwrap();
                for write in writes {
                    group.settings.set(&write.file, &write.value);
                }
            }
            Act::Kill => {
                if seen.instance.is_some() {
                    self.exit(name.as_str(), Outcome::Killed { signal: Signal::KILL });
                } else {
                    seen.group.as_mut().unwrap().populated = false;
                }
            }
            Act::Clear => *seen = Observed::default(),
            Act::Forget => {
                self.observed.remove(name);
                self.records.remove(name);
            }
        }
    }

    /// A workload that the kernel would let run on CPUs fenced for `name`.
    fn on_fenced_cpus_of(&self, name: &Name) -> Option<Name> {
        let fenced = self.records.get(name).and_then(|record| record.grant.as_ref()).map(|grant| grant.fenced.clone());
        let trespasses = |seen: &Observed| {
            let cpus = seen.group.as_ref().and_then(|group| group.settings.get("cpuset.cpus")).unwrap_or("");
            let cpus: CpuSet = cpus.parse().unwrap();
            fenced.as_ref().is_some_and(|fenced| !fenced.is_disjoint(&cpus))
        };
        let mut others = self.observed.iter().filter(|(other, _)| *other != name);
        others.find(|(_, seen)| trespasses(seen)).map(|(other, _)| other.clone())
    }

    fn assert_exclusive_is_exclusive(&self) {
        for (name, seen) in &self.observed {
            if let Some(Instance { life: Life::Running { .. }, .. }) = seen.instance {
                assert_eq!(self.on_fenced_cpus_of(name), None, "runs on CPUs exclusive to {name}");
            }
        }
    }

    fn exit(&mut self, name: &str, outcome: Outcome) {
        let seen = self.observed.get_mut(&name.parse().unwrap()).unwrap();
        let instance = seen.instance.as_mut().unwrap();
        instance.life = Life::Ended(Exit { instance: instance.number, outcome, at: self.now });
        seen.group.as_mut().unwrap().populated = false;
    }

    fn exit_code(&mut self, name: &str, code: i32) {
        self.exit(name, Outcome::Exited { code });
    }

    fn after(&mut self, millis: u64) -> &mut World {
        self.now = self.now.plus(Duration::from_millis(millis));
        self
    }

    /// Passes until nothing is left to do at this instant.
    fn settle(&mut self) -> String {
        let mut shown = String::new();
        for _ in 0..20 {
            if self.plan().work.is_empty() {
                return shown;
            }
            shown += &self.pass();
        }
        panic!("does not settle:\n{shown}");
    }
}

#[test]
fn a_new_manifest_is_started_and_then_left_alone() {
    let mut world = World::new(4);
    world.file("web.yaml", "cpu: 2\nmemory: 512M\ngpu: true\ncommand: stress --cpu 2");
    insta::assert_snapshot!(world.pass(), @"
    web: start with GPU-0 (new; smallest domain with room: machine 0-3, 0m of 4 CPUs claimed by others)
      web Starting Ready=false Starting: being set up
    ");
    insta::assert_snapshot!(world.pass(), @"  web Running Ready=true Running: pid 100");
    assert_eq!(world.plan().work, []);
    assert_eq!(world.plan().wake_at, None, "an idle host wakes for nothing");
}

#[test]
fn new_limits_resize_and_a_new_command_replaces() {
    let mut world = World::new(4);
    world.file("web.yaml", "cpu: 2\nmemory: 512M\ncommand: a").settle();
    world.file("web.yaml", "cpu: 1\nmemory: 256M\ncommand: a");
    insta::assert_snapshot!(world.pass(), @"
    web: resize (cpu.max 200000 100000 -> 100000 100000, memory.max 512000000 -> 256000000)
      web Running Ready=true Running: pid 100
    ");
    assert_eq!(world.plan().verdicts.values().next().unwrap().observed_generation, 2);
    world.file("web.yaml", "cpu: 1\nmemory: 256M\ncommand: b\nstop: {signal: SIGINT, grace: 2s}");
    insta::assert_snapshot!(world.pass(), @"
    web: stop { signal: signal(15) } (a new command needs a new process)
      web Stopping Ready=false Stopping: a new command needs a new process
    ");
    insta::assert_snapshot!(world.after(1000).pass(), @"  web Stopping Ready=false Stopping: a new command needs a new process");
    world.exit_code("web", 0);
    insta::assert_snapshot!(world.settle(), @"
    web: clear (exited with code 0)
      web Pending Ready=false Ended: exited with code 0
    web: start (its last run ended; smallest domain with room: machine 0-3, 0m of 4 CPUs claimed by others)
      web Starting Ready=false Starting: being set up
    ");
    assert_eq!(world.records[&"web".parse().unwrap()].restarts, 0, "a replacement is no restart");
}

#[test]
fn whoever_ignores_the_signal_is_killed_after_the_grace() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nstop: {grace: 3s}").settle();
    world.files.clear();
    insta::assert_snapshot!(world.pass(), @"
    web: stop { signal: signal(15) } (web.yaml was deleted)
      web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Stopping: web.yaml was deleted
    ");
    insta::assert_snapshot!(world.after(2999).pass(), @"  web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Stopping: web.yaml was deleted");
    insta::assert_snapshot!(world.after(1).settle(), @"
    web: kill (its grace period is over)
      web Stopping Accepted=false Deleted: web.yaml is gone; Ready=false Killed: web.yaml was deleted; still there after the grace period
    web: clear (killed by SIGKILL)
      web Pending Accepted=false Deleted: web.yaml is gone; Ready=false Ended: killed by SIGKILL
    web: forget (its manifest was deleted and nothing of it runs)
      web Stopping Accepted=false Deleted: web.yaml is gone
    ");
    assert_eq!((world.records.len(), world.observed.len()), (0, 0));
}

#[test]
fn a_stop_is_seen_through_even_if_the_file_comes_back() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    world.files.clear();
    world.pass();
    world.file("web.yaml", "command: a");
    insta::assert_snapshot!(world.pass(), @"  web Stopping Ready=false Stopping: web.yaml was deleted");
    world.exit_code("web", 0);
    insta::assert_snapshot!(world.settle(), @"
    web: clear (exited with code 0)
      web Pending Ready=false Ended: exited with code 0
    web: start (its last run ended; no cpu.limit: all shared CPUs 0-3)
      web Starting Ready=false Starting: being set up
    ");
}

#[test]
fn a_broken_manifest_changes_nothing_that_runs() {
    let mut world = World::new(4);
    world.file("web.yaml", "cpu: 2\ncommand: a").settle();
    world.file("web.yaml", "cpu: [2\ncommand: b");
    insta::assert_snapshot!(world.pass(), @"  web Running Accepted=false Refused: web.yaml cannot be accepted; generation 1 goes on as it was; Ready=true Running: pid 100");
    // Not even when it ends: what was good runs again.
    world.exit_code("web", 1);
    world.settle();
    insta::assert_snapshot!(world.after(2000).settle(), @"
    web: start (its last run: exited with code 1; smallest domain with room: machine 0-3, 0m of 4 CPUs claimed by others)
      web Starting Accepted=false Refused: web.yaml cannot be accepted; generation 1 goes on as it was; Ready=false Starting: being set up
    ");
}

#[test]
fn a_service_that_ends_is_started_again_later_and_later() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    let mut shown = String::new();
    for wait in [1, 2000, 4000] {
        world.after(wait).exit_code("web", 3);
        shown += &world.settle();
        world.now = world.plan().wake_at.unwrap();
        shown += &world.settle();
    }
    insta::assert_snapshot!(shown, @"
    web: clear (exited with code 3)
      web Pending Ready=false Ended: exited with code 3
    web: start (its last run: exited with code 3; no cpu.limit: all shared CPUs 0-3)
      web Starting Ready=false Starting: being set up
    web: clear (exited with code 3)
      web Pending Ready=false Ended: exited with code 3
    web: start (its last run: exited with code 3; no cpu.limit: all shared CPUs 0-3)
      web Starting Ready=false Starting: being set up
    web: clear (exited with code 3)
      web Pending Ready=false Ended: exited with code 3
    web: start (its last run: exited with code 3; no cpu.limit: all shared CPUs 0-3)
      web Starting Ready=false Starting: being set up
    ");
    world.after(600_000).exit_code("web", 3);
    world.settle();
    assert_eq!(world.records[&"web".parse().unwrap()].failures, 1, "ten good minutes are forgiveness");
}

#[test]
fn a_job_that_succeeds_is_never_run_again_unless_its_process_changes() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a\ngpu: true").settle();
    world.exit_code("job", 0);
    insta::assert_snapshot!(world.settle(), @"
    job: clear (exited with code 0)
      job Completed Ready=false Ended: exited with code 0
    ");
    assert_eq!(world.records[&"job".parse().unwrap()].grant, None, "a finished job holds nothing");
    world.file("job.yaml", "kind: job\ncommand: a\ngpu: true\nmemory: 1Gi\nlabels: {a: b}");
    world.settle();
    assert_eq!(world.observed.values().next().unwrap().instance, None);
    world.file("job.yaml", "kind: job\ncommand: b");
    insta::assert_snapshot!(world.settle(), @"
    job: start (its last run ended; no cpu.limit: all shared CPUs 0-3)
      job Starting Ready=false Starting: being set up
    ");
}

#[test]
fn restart_policies_decide_what_an_end_means() {
    let mut shown = String::new();
    for (policy, code) in [("never", 0), ("never", 1), ("on-failure", 0), ("on-failure", 1), ("always", 0)] {
        let mut world = World::new(4);
        world.file("web.yaml", &format!("command: a\nrestart: {policy}")).settle();
        world.exit_code("web", code);
        world.settle();
        write!(shown, "{policy} {code}: {}", world.pass()).unwrap();
    }
    insta::assert_snapshot!(shown, @"
    never 0:   web Completed Ready=false Finished: exited with code 0
    never 1:   web Failed Ready=false Finished: exited with code 1
    on-failure 0:   web Completed Ready=false Finished: exited with code 0
    on-failure 1:   web Pending Ready=false BackOff: exited with code 1; next try at 1970-01-01T00:16:41.165Z
    always 0:   web Pending Ready=false BackOff: exited with code 0; next try at 1970-01-01T00:16:41.165Z
    ");
}

#[test]
fn a_command_that_does_not_exist_is_failed_and_tried_again_at_length() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: stress").settle();
    world.exit("web", Outcome::NotFound { command: "stress".to_owned() });
    world.settle();
    insta::assert_snapshot!(world.pass(), @"  web Failed Ready=false NotStarted: command not found: stress; next try at 1970-01-01T00:21:40.000Z");
    world.file("web.yaml", "command: sleep 1");
    insta::assert_snapshot!(world.settle(), @"
    web: start (its last run: command not found: stress; no cpu.limit: all shared CPUs 0-3)
      web Starting Ready=false Starting: being set up
    ");
}

#[test]
fn an_exclusive_newcomer_starts_after_its_neighbours_have_left_its_cpus() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a").file("b.yaml", "command: b\ncpu: {class: pinned, request: 1}").settle();
    world.file("x.yaml", "command: x\ncpu: {class: exclusive, request: 2}");
    insta::assert_snapshot!(world.pass(), @"
    a: resize (cpuset.cpus 0-3 -> 0,3)
    x: remember (waits for a to leave CPUs 1-2)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
      x Pending Ready=false CpusOccupied: waits for a to leave CPUs 1-2
    ");
    insta::assert_snapshot!(world.pass(), @"
    x: start (new; class exclusive: 1-2 of machine 0-3, fenced 1-2)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
      x Starting Ready=false Starting: being set up
    ");
    world.files.remove("x.yaml");
    world.pass();
    world.exit_code("x", 0);
    insta::assert_snapshot!(world.settle(), @"
    x: clear (exited with code 0)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
      x Pending Accepted=false Deleted: x.yaml is gone; Ready=false Ended: exited with code 0
    x: forget (its manifest was deleted and nothing of it runs)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
      x Stopping Accepted=false Deleted: x.yaml is gone
    a: resize (cpuset.cpus 0,3 -> 0-3)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
    ");
}

#[test]
fn what_has_no_room_waits_and_starts_when_there_is() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a\ngpu: 2").settle();
    world.file("b.yaml", "command: b\ngpu: true\npriority: 5").file("c.yaml", "command: c\ngpu: 2\npriority: 9");
    insta::assert_snapshot!(world.pass(), @"
    c: remember (2 whole GPUs asked for, 0 of 2 suitable are free now; held by a)
    b: remember (1 whole GPU asked for, 0 of 2 suitable are free now; held by a)
      a Running Ready=true Running: pid 100
      b Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by a; Ready=false NotPlaced: waits for room
      c Pending Placed=false GpuBusy: 2 whole GPUs asked for, 0 of 2 suitable are free now; held by a; Ready=false NotPlaced: waits for room
    ");
    world.files.remove("a.yaml");
    world.pass();
    world.exit_code("a", 0);
    insta::assert_snapshot!(world.settle(), @"
    a: clear (exited with code 0)
      a Pending Accepted=false Deleted: a.yaml is gone; Ready=false Ended: exited with code 0
      b Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by a; Ready=false NotPlaced: waits for room
      c Pending Placed=false GpuBusy: 2 whole GPUs asked for, 0 of 2 suitable are free now; held by a; Ready=false NotPlaced: waits for room
    a: forget (its manifest was deleted and nothing of it runs)
      a Stopping Accepted=false Deleted: a.yaml is gone
      b Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by a; Ready=false NotPlaced: waits for room
      c Pending Placed=false GpuBusy: 2 whole GPUs asked for, 0 of 2 suitable are free now; held by a; Ready=false NotPlaced: waits for room
    c: start with GPU-0,GPU-1 (new; no cpu.limit: all shared CPUs 0-3)
      b Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by c; Ready=false NotPlaced: waits for room
      c Starting Ready=false Starting: being set up
    ");
}

#[test]
fn jobs_wait_for_a_quieter_host_and_services_do_not() {
    let mut world = World::new(4);
    world.utilisation_percent = Some(90);
    world.file("job.yaml", "kind: job\ncommand: a").file("web.yaml", "command: b");
    insta::assert_snapshot!(world.pass(), @"
    job: remember (host CPUs are 90 % busy, jobs start below 85 %)
    web: start (new; no cpu.limit: all shared CPUs 0-3)
      job Pending Ready=false HostBusy: host CPUs are 90 % busy, jobs start below 85 %
      web Starting Ready=false Starting: being set up
    ");
    assert_eq!(world.plan().wake_at, Some(world.now.plus(Duration::from_secs(1))));
    world.utilisation_percent = Some(85);
    insta::assert_snapshot!(world.pass(), @"
    job: start (new; no cpu.limit: all shared CPUs 0-3)
      job Starting Ready=false Starting: being set up
      web Running Ready=true Running: pid 100
    ");
}

#[test]
fn a_request_that_no_longer_fits_is_said_and_the_limits_apply_all_the_same() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nmemory: {request: 1Gi, limit: 2Gi}").settle();
    world.file("web.yaml", "command: a\nmemory: {request: 16383Pi, limit: max}");
    insta::assert_snapshot!(world.pass(), @"
    web: resize (memory.low 1073741824 -> 18445618173802708992, memory.max 2147483648 -> max, memory.swap.max 0 -> max)
      web Running Degraded=true InsufficientMemory: memory.request 16383Pi does not fit: 0 of 16Gi are set aside for others; lower a request, or free memory by stopping others; Ready=true Running: pid 100
    ");
    world.file("db.yaml", "command: a\nmemory: {request: 1Gi}");
    insta::assert_snapshot!(world.pass(), @"
    db: remember (memory.request 1Gi does not fit: 16383Pi of 16Gi are set aside for others; lower a request, or free memory by stopping others)
      db Pending Placed=false InsufficientMemory: memory.request 1Gi does not fit: 16383Pi of 16Gi are set aside for others; lower a request, or free memory by stopping others; Ready=false NotPlaced: waits for room
      web Running Degraded=true InsufficientMemory: memory.request 16383Pi does not fit: 0 of 16Gi are set aside for others; lower a request, or free memory by stopping others; Ready=true Running: pid 100
    ");
}

#[test]
fn drift_is_written_back() {
    let mut world = World::new(4);
    world.file("web.yaml", "cpu: 2\ncommand: a").settle();
    let group = world.observed.values_mut().next().unwrap().group.as_mut().unwrap();
    group.settings.set("cpu.max", "max 100000");
    group.settings.set("pids.max", "max");
    insta::assert_snapshot!(world.settle(), @"
    web: resize (cpu.max max 100000 -> 200000 100000, pids.max max -> 512)
      web Running Ready=true Running: pid 100
    ");
}

#[test]
fn without_a_database_what_runs_is_adopted_as_it_was_started() {
    let mut world = World::new(4);
    world
        .file("web.yaml", "cpu: 2\ncommand: a")
        .file("x.yaml", "command: x\ncpu: {class: exclusive, request: 1}")
        .settle();
    let before = world.observed.clone();
    world.records.clear();
    insta::assert_snapshot!(world.settle(), @"
    web: remember (as it should be)
    x: remember (as it should be)
      web Running Ready=true Running: pid 100
      x Running Ready=true Running: pid 100
    ");
    assert_eq!(world.observed, before, "nothing was touched");
    assert_eq!(world.records.len(), 2);
}

#[test]
fn a_run_the_database_has_not_heard_of_is_adopted() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\ngpu: true").settle();
    let stale = world.records.clone();
    world.exit_code("web", 1);
    world.settle();
    world.now = world.plan().wake_at.unwrap();
    world.settle();
    let newer = std::mem::replace(&mut world.records, stale);
    insta::assert_snapshot!(world.settle(), @"
    web: remember (as it should be)
      web Running Ready=true Running: pid 100
    ");
    assert_eq!(world.records, newer, "run, restarts and lease are those of the run that is there");
}

#[test]
fn leftovers_of_a_crash_are_cleared_before_a_start() {
    let mut world = World::new(4);
    world.observed.insert("old".parse().unwrap(), Observed { instance: None, group: Some(Group::default()) });
    let group = Group { populated: true, ..Group::default() };
    world.observed.insert("web".parse().unwrap(), Observed { instance: None, group: Some(group) });
    world.file("web.yaml", "command: a");
    insta::assert_snapshot!(world.settle(), @"
    old: forget (a leftover that no record and no manifest explains)
    web: kill (processes without a run of their own are in its cgroup)
      old Stopping 
      web Pending Ready=false Leftovers: processes without a run of their own are in its cgroup
    web: clear (an empty cgroup is left from before)
      web Pending Ready=false Leftovers: an empty cgroup is left from before
    web: start (new; no cpu.limit: all shared CPUs 0-3)
      web Starting Ready=false Starting: being set up
    ");
}

#[test]
fn suspended_workloads_stop_and_resume() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    world.file("web.yaml", "command: a\nsuspend: true");
    world.pass();
    world.exit_code("web", 0);
    insta::assert_snapshot!(world.settle(), @"
    web: clear (exited with code 0)
      web Pending Ready=false Ended: exited with code 0
    web: remember (suspended)
      web Suspended Ready=false Suspended: its manifest says suspend
    ");
    world.file("web.yaml", "command: a");
    insta::assert_snapshot!(world.settle(), @"
    web: start (its last run ended; no cpu.limit: all shared CPUs 0-3)
      web Starting Ready=false Starting: being set up
    ");
}

#[test]
fn a_failed_step_waits_and_hides_nobody_else() {
    let mut world = World::new(4);
    let setback = Setback {
        message: "cannot make the cgroup".to_owned(),
        failures: 1,
        retry_at: world.now.plus(Duration::from_secs(1)),
    };
    world.setbacks.insert("a".parse().unwrap(), setback);
    world.file("a.yaml", "command: a").file("b.yaml", "command: b");
    insta::assert_snapshot!(world.pass(), @"
    b: start (new; no cpu.limit: all shared CPUs 0-3)
      a Failed Ready=false Starting: being set up; Degraded=true StepFailed: cannot make the cgroup
      b Starting Ready=false Starting: being set up
    ");
    insta::assert_snapshot!(world.after(1000).pass(), @"
    a: start (new; no cpu.limit: all shared CPUs 0-3)
      a Starting Ready=false Starting: being set up; Degraded=true StepFailed: cannot make the cgroup
      b Running Ready=true Running: pid 100
    ");
}

#[test]
fn a_clock_set_back_makes_no_wait_longer() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: {maxDelay: 10s}").settle();
    world.exit_code("web", 1);
    world.settle();
    world.now = Timestamp(5);
    assert!(world.plan().wake_at.unwrap() <= world.now.plus(Duration::from_secs(10)));
    world.now = world.plan().wake_at.unwrap();
    world.settle();
    world.files.clear();
    world.pass();
    world.now = Timestamp(0);
    world.settle();
    world.after(10_000).settle();
    assert_eq!(world.records.len(), 0);
}

/// One thing that may happen to a world.
#[derive(Clone, Debug)]
enum Happening {
    Write(u8, &'static str),
    Delete(u8),
    Exit(u8, i32),
    Wait(u64),
    LoseDatabase,
    Pass,
}

fn happening() -> impl Strategy<Value = Happening> {
    let text = prop_oneof![
        Just("command: a"),
        Just("command: b\ncpu: 1"),
        Just("command: a\ncpu: {class: exclusive, request: 1}"),
        Just("comand: a"),
        Just(""),
        Just("command: a\ngpu: true"),
        Just("command: a\ngpu: 2\nkind: job"),
        Just("command: a\ncpu: {class: pinned, request: 2}"),
        Just("command: a\nsuspend: true"),
        Just("command: a\nrestart: never"),
        Just("command: a\ncpu: {class: exclusive, request: 2}\ngpu: {memory: 9Gi}"),
    ];
    prop_oneof![
        4 => (0u8..5, text).prop_map(|(n, text)| Happening::Write(n, text)),
        1 => (0u8..5).prop_map(Happening::Delete),
        2 => (0u8..5, 0i32..2).prop_map(|(n, code)| Happening::Exit(n, code)),
        2 => (0u64..20_000).prop_map(Happening::Wait),
        1 => Just(Happening::LoseDatabase),
        4 => Just(Happening::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn whatever_happens_the_promises_hold(happenings in proptest::collection::vec(happening(), 1..40)) {
        let mut world = World::new(4);
        for happening in happenings {
            match happening {
                Happening::Write(n, text) => { world.file(&format!("w{n}.yaml"), text); }
                Happening::Delete(n) => { world.files.remove(&format!("w{n}.yaml")); }
                Happening::Exit(n, code) => {
                    let name: Name = format!("w{n}").parse().unwrap();
                    let runs = world.observed.get(&name).and_then(|seen| seen.instance.as_ref());
                    if runs.is_some_and(|instance| matches!(instance.life, Life::Running { .. })) {
                        world.exit_code(name.as_str(), code);
                    }
                }
                Happening::Wait(millis) => { world.after(millis); }
                Happening::LoseDatabase => world.records.clear(),
                Happening::Pass => { world.pass(); }
            }
            if world.plan().work.is_empty() {
                world.assert_exclusive_is_exclusive();
            }
        }
        // In the end: it settles, and a second pass over a settled world is empty.
        for _ in 0..40 {
            world.settle();
            match world.plan().wake_at {
                Some(wake_at) if wake_at.since(world.now) < Duration::from_hours(1) => world.now = wake_at.max(world.now),
                _ => break,
            }
        }
        prop_assert_eq!(world.plan().work, vec![]);
    }
}
