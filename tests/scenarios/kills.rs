//! `kill -9` of the controller at random moments while workloads are created, resized, replaced and deleted and jobs end.
//!
//! What may not happen, whatever the moment: a process lost, one started twice, a group or a trace left behind, a database damaged, an exit
//! forgotten, a job run again.

use super::kernel;
use super::world::{PATIENCE, World};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

/// Numbers that look random and are the same in every run (Marsaglia's xorshift64, "Xorshift RNGs", 2003).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What a storm of kills goes through.
struct Storm {
    dice: Dice,
    world: World,
    /// Services that are wanted: command and limit.
    services: BTreeMap<String, (u64, u64)>,
    /// Jobs that were put: the code each ends with. None is ever taken away or changed.
    jobs: BTreeMap<String, u64>,
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let mut world = World::new();
        // The jobs are not to wait for whatever else this host does.
        world.start(&["--job-cpu-threshold", "100"]);
        fs::create_dir(world.path("scratch")).unwrap();
        Storm { dice: Dice(seed), world, services: BTreeMap::new(), jobs: BTreeMap::new() }
    }

    /// Creates, resizes, replaces or deletes one of so many services.
    fn edit(&mut self, services: u64) {
        let name = format!("w{}", self.dice.below(services));
        if self.dice.below(5) == 0 {
            if self.services.remove(&name).is_some() {
                self.world.delete(&format!("{name}.yaml"));
            }
            return;
        }
        let (command, milli) = (self.dice.below(3), 100 * (1 + self.dice.below(5)));
        let text = format!("command: sleep 10000{command}\ncpu: {milli}m\nstop: {{grace: 1s}}");
        self.world.put(&format!("{name}.yaml"), &text);
        self.services.insert(name, (command, milli));
    }

    /// A job that writes down that it ran, and ends with a code.
    fn job(&mut self) {
        let (name, code) = (format!("j{}", self.jobs.len()), self.dice.below(3));
        let scratch = self.world.path("scratch").display().to_string();
        let script = format!("echo ran >>/run/scratch/{name}; exit {code}");
        self.world.put(
            &format!("{name}.yaml"),
            &format!(
                "kind: job\nrestart: never\nvolumes: [{{source: {scratch}, target: /run/scratch}}]\ncommand: [sh, -c, '{script}']"
            ),
        );
        self.jobs.insert(name, code);
    }

    fn kill(&mut self) {
        // From before the first event is read to well after the last step of a settled deletion.
        let span_us = 1 << (1 + self.dice.below(20));
        std::thread::sleep(Duration::from_micros(self.dice.below(span_us)));
        self.world.kill_controller();
        self.world.start(&["--job-cpu-threshold", "100"]);
    }

    /// Everything as it was last said, and nothing besides.
    fn check(&mut self) {
        let world = &self.world;
        let patience = format!("{}s", PATIENCE.as_secs());
        // A job that has failed keeps the host from being as it should: each is waited for by itself.
        for (name, (command, milli)) in &self.services {
            let said = world.ctl(&["wait", name, "--for", "ready", "--timeout", &patience]);
            assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
            let pid = world.wait_running(name);
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            assert_eq!(line, format!("sleep\u{0}10000{command}\u{0}"), "{name} runs another command");
            assert_eq!(kernel::cpu_milli(&world.group(name)), Some(*milli), "{name} has another limit");
            let processes = kernel::processes(&world.group(name));
            assert_eq!(processes.len(), 2, "{name}: one init and one command, found {processes:?}");
        }
        for (name, code) in &self.jobs {
            let phase = if *code == 0 { "Completed" } else { "Failed" };
            let status = world.wait_phase(name, phase);
            assert_eq!(status["lastExit"]["code"].as_u64(), Some(*code), "{status:#}");
            let ran = fs::read_to_string(world.path("scratch").join(name)).unwrap();
            assert_eq!(ran, "ran\n", "{name} did not run once");
        }
        self.nothing_else_is_left();
        let log = world.log();
        assert!(!log.contains("set aside") && !log.contains("is damaged") && !log.contains("panicked"), "{log}");
    }

    fn nothing_else_is_left(&self) {
        let world = &self.world;
        let wanted: BTreeSet<String> = self.services.keys().cloned().collect();
        let known: BTreeSet<String> = wanted.iter().chain(self.jobs.keys()).cloned().collect();
        world.wait_until_known(&known);
        for directory in kernel::directories(&world.parent) {
            let groups = fs::read_dir(&directory).unwrap().filter_map(|entry| {
                entry.unwrap().file_name().into_string().unwrap().strip_suffix(".workload").map(str::to_owned)
            });
            let groups: BTreeSet<String> = groups.collect();
            // Joined only by those that are held to something there.
            let joined_by_need = directory.starts_with("/sys/fs/cgroup/blkio");
            let complete = groups == wanted || (joined_by_need && groups.is_subset(&wanted));
            assert!(complete, "groups in {}: {groups:?}, expected {wanted:?}", directory.display());
        }
        let traces = fs::read_dir(world.path("run/workloads")).unwrap();
        let traces: BTreeSet<String> = traces.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(traces, wanted);
    }
}

#[test]
fn twenty_kills_while_eight_workloads_change_lose_and_double_nothing() {
    let mut storm = Storm::new(0x2026_1124);
    for _ in 0..20 {
        for _ in 0..4 {
            storm.edit(8);
        }
        storm.kill();
    }
    storm.job();
    storm.check();
}

#[test]
fn three_hundred_kills_while_thirty_workloads_change_lose_and_double_nothing() {
    let mut storm = Storm::new(0x0300_0030);
    for round in 0..300 {
        for _ in 0..3 {
            storm.edit(30);
        }
        if round % 6 == 0 {
            storm.job();
        }
        storm.kill();
    }
    storm.check();
    println!("300 kills, {} services and {} jobs at the end", storm.services.len(), storm.jobs.len());
}
