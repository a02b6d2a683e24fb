//! `kill -9` of the controller at random moments while workloads are created, resized, replaced and deleted and jobs end.
//!
//! What may not happen, whatever the moment: a process lost, one started twice, a group or a trace left behind, a database damaged, an exit
//! forgotten, a job run again. After each kill everything is looked at that must hold at every moment; every so often the host is left to
//! come to rest, and what is left then must be what was asked for, and nothing besides.
//!
//! How a start is accounted for: each service writes a line into a file on the host when its command begins. Of one that is edited the
//! line is the serial number of the edit that asked for this command, so that no number may be there twice, none after a higher one, and
//! the last one is what runs. Of one that ends by itself it counts: as many lines as restarts, and one.

mod seen;

use super::kernel;
use super::world::{PATIENCE, World, eventually_or};
use seen::{assert_ended_with, entries, groups, joined_by_need};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Services nobody edits, and services nobody edits that end by themselves.
const BYSTANDERS: u64 = 4;
const RETURNING: u64 = 2;
/// How long a deleted service may still have a group while one controller lives: ten seconds until the folder counts as quiet, a grace of
/// one, and a busy host.
const LEFTOVER_MAX: Duration = Duration::from_secs(30);
/// A deletion settles anew with each controller, and these live for less than that takes. After so long one is let live.
const LEFTOVER_AGE: Duration = Duration::from_secs(5);
/// The code those end with.
const RETURNS: u64 = 7;

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

/// What is asked for of a service.
#[derive(Clone, Copy)]
struct Wish {
    /// The edit that asked for its command.
    serial: u64,
    milli: u64,
}

/// A service nobody edits, as it was before the first kill.
struct Bystander {
    pid: u32,
    start_ticks: u64,
}

/// What a storm of kills goes through.
struct Storm {
    dice: Dice,
    world: World,
    services: BTreeMap<String, Wish>,
    serial: u64,
    /// Every service there ever was.
    ever: BTreeSet<String>,
    /// Jobs that were put: the code each ends with. None is ever taken away or changed.
    jobs: BTreeMap<String, u64>,
    /// Those that were seen to have ended.
    ended: BTreeSet<String>,
    bystanders: BTreeMap<String, Bystander>,
    /// Services that end by themselves: the restarts last told of each.
    returning: BTreeMap<String, u64>,
    /// Groups of services that are not wanted any more, and since when they are seen.
    leftovers: BTreeMap<String, Instant>,
    log_read: usize,
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let mut world = World::new();
        world.start(&[]);
        fs::create_dir(world.path("scratch")).unwrap();
        let mut storm = Storm {
            dice: Dice(seed),
            world,
            services: BTreeMap::new(),
            serial: 0,
            ever: BTreeSet::new(),
            jobs: BTreeMap::new(),
            ended: BTreeSet::new(),
            bystanders: BTreeMap::new(),
            returning: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            log_read: 0,
        };
        storm.put_those_nobody_edits();
        storm
    }

    fn put_those_nobody_edits(&mut self) {
        for n in 0..BYSTANDERS {
            let name = format!("bystander{n}");
            self.put(&name, &line_then(&name, "started", "sleep infinity"), "");
            let pid = self.world.wait_running(&name);
            self.bystanders.insert(name, Bystander { pid, start_ticks: kernel::start_ticks(pid) });
        }
        for n in 0..RETURNING {
            let name = format!("returning{n}");
            let script = format!("echo started >>/run/scratch/{name}; exit {RETURNS}");
            self.put(&name, &script, "restart: {initialDelay: 100ms, maxDelay: 1s}");
            self.returning.insert(name, 0);
        }
    }

    /// A manifest of a shell script that can write into the folder all of them share.
    fn put(&self, name: &str, script: &str, more: &str) {
        let scratch = self.world.path("scratch").display().to_string();
        let text =
            format!("volumes: [{{source: {scratch}, target: /run/scratch}}]\ncommand: [sh, -c, '{script}']\n{more}\n");
        self.world.put(&format!("{name}.yaml"), &text);
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
        let resizes_only = self.dice.below(3) == 0;
        let kept = self.services.get(&name).filter(|_| resizes_only).map(|wish| wish.serial);
        let serial = kept.unwrap_or_else(|| {
            self.serial += 1;
            self.serial
        });
        let milli = 100 * (1 + self.dice.below(5));
        let script = line_then(&name, &serial.to_string(), &sleep(serial).join(" "));
        self.put(&name, &script, &format!("cpu: {milli}m\nstop: {{grace: 1s}}"));
        self.ever.insert(name.clone());
        self.services.insert(name, Wish { serial, milli });
    }

    /// A job that writes down that it ran, and ends with a code.
    fn job(&mut self) {
        let (name, code) = (format!("j{}", self.jobs.len()), self.dice.below(3));
        self.put(&name, &format!("echo ran >>/run/scratch/{name}; exit {code}"), "kind: job\nrestart: never");
        self.jobs.insert(name, code);
    }

    fn kill(&mut self) {
        // From before the first event is read to well after the last step of a settled deletion.
        let span_us = 1 << (1 + self.dice.below(20));
        std::thread::sleep(Duration::from_micros(self.dice.below(span_us)));
        self.world.kill_controller();
        // And one in three again: while it opens its database, takes its locks and looks for the first time.
        if self.dice.below(3) == 0 {
            self.world.begin(self.world.command(&[]));
            std::thread::sleep(Duration::from_micros(self.dice.below(50_000)));
            self.world.kill_controller();
        }
        self.world.start(&[]);
        self.look();
    }

    /// What holds at every moment.
    fn look(&mut self) {
        self.bystanders_go_on();
        let statuses = self.statuses();
        for name in self.bystanders.keys() {
            let restarts = &statuses[name]["restarts"];
            assert_eq!(*restarts, 0, "{name} was restarted: {:#}", statuses[name]);
        }
        for (name, restarts) in &mut self.returning {
            let status = &statuses[name];
            let now = status["restarts"].as_u64().unwrap();
            assert!(now >= *restarts, "restarts of {name} were forgotten: {now} after {restarts}");
            // One that is only being started may be killed with its controller before there is anything of it: then it never was.
            if status["phase"] != "Starting" {
                *restarts = now;
            }
            assert_ended_with(status, RETURNS);
        }
        self.look_at_jobs(&statuses);
        self.one_process_each();
        for name in &self.ever {
            self.starts_in_order(name);
        }
        self.no_group_stays();
        self.nothing_in_the_log();
    }

    /// A group of a service that was deleted goes, whoever is killed meanwhile.
    fn no_group_stays(&mut self) {
        let found = groups(&self.everywhere());
        let unwanted = self.ever.iter().filter(|name| !self.services.contains_key(*name));
        let there: BTreeSet<String> = unwanted.filter(|name| found.contains(*name)).cloned().collect();
        self.leftovers.retain(|name, _| there.contains(name));
        for name in there {
            let since = self.leftovers.entry(name.clone()).or_insert_with(Instant::now);
            if since.elapsed() < LEFTOVER_AGE {
                continue;
            }
            let let_live = Instant::now();
            while groups(&self.everywhere()).contains(&name) {
                assert!(let_live.elapsed() < LEFTOVER_MAX, "the group of {name} stays\n{}", self.world.log());
                std::thread::sleep(Duration::from_millis(20));
            }
            self.leftovers.remove(&name);
        }
    }

    /// All that is told of each workload, once the controller has looked at the folder.
    fn statuses(&self) -> BTreeMap<String, Value> {
        let known = |statuses: &BTreeMap<String, Value>| {
            let all = self.bystanders.keys().chain(self.returning.keys());
            all.clone().all(|name| statuses.contains_key(name))
        };
        let begun = Instant::now();
        loop {
            let name = |status: Value| (status["name"].as_str().unwrap().to_owned(), status);
            let told = self.world.ask("/v1/workloads").unwrap_or_default();
            let statuses = told.as_array().cloned().unwrap_or_default().into_iter().map(name).collect();
            if known(&statuses) {
                return statuses;
            }
            assert!(begun.elapsed() < PATIENCE, "not all are known: {:?}\n{}", statuses.keys(), self.world.log());
        }
    }

    fn bystanders_go_on(&self) {
        for (name, Bystander { pid, start_ticks }) in &self.bystanders {
            assert!(kernel::is_alive(*pid), "{name} is lost\n{}", self.world.log());
            assert_eq!(kernel::start_ticks(*pid), *start_ticks, "{name}: pid {pid} is somebody else");
            assert_eq!(self.starts(name), ["started"], "{name} was started again");
        }
    }

    /// None runs twice, and none that was seen to have ended with its code is told otherwise later.
    fn look_at_jobs(&mut self, statuses: &BTreeMap<String, Value>) {
        for (name, code) in &self.jobs {
            assert!(self.starts(name).len() <= 1, "{name} ran twice");
            let Some(status) = statuses.get(name) else {
                assert!(!self.ended.contains(name), "{name} is forgotten");
                continue;
            };
            let phase = if *code == 0 { "Completed" } else { "Failed" };
            if self.ended.contains(name) {
                assert_eq!(status["phase"], phase, "{status:#}");
            }
            if status["phase"] == phase {
                assert_eq!(status["lastExit"]["code"].as_u64(), Some(*code), "{status:#}");
                self.ended.insert(name.clone());
            }
        }
    }

    /// At no moment are there two inits, or two commands, of one workload.
    fn one_process_each(&self) {
        let directory = self.everywhere();
        for name in groups(&directory) {
            let processes = fs::read_to_string(directory.join(format!("{name}.workload/cgroup.procs")));
            let processes: Vec<u32> = processes.unwrap_or_default().lines().map(|pid| pid.parse().unwrap()).collect();
            // What becomes the command bears init's name at first; init is number 1 in its box.
            let shown = |pid: &u32| (kernel::status(*pid, "Name"), kernel::status(*pid, "NSpid"));
            let shown: Vec<(String, String)> = processes.iter().map(shown).collect();
            let inits = shown.iter().filter(|(_, numbers)| numbers.ends_with("\t1")).count();
            let commands = shown.iter().filter(|(name, _)| ["sh", "sleep"].contains(&name.as_str())).count();
            assert!(inits <= 1 && commands <= 1, "{name} runs twice: {shown:?}\n{}", self.world.log());
        }
    }

    /// The parent group, in a hierarchy that all workloads are in.
    fn everywhere(&self) -> PathBuf {
        let mut directories = kernel::directories(&self.world.parent).into_iter();
        directories.rfind(|directory| !joined_by_need(directory)).unwrap()
    }

    fn starts(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.world.path("scratch").join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The serials that have started: none twice, none after a later one.
    fn starts_in_order(&self, name: &str) -> Vec<u64> {
        let starts: Vec<u64> = self.starts(name).iter().map(|line| line.parse().unwrap()).collect();
        let ascends = starts.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(
            ascends,
            "{name} was started twice for one edit, or for one that was over: {starts:?}\n{}",
            self.world.log()
        );
        starts
    }

    fn nothing_in_the_log(&mut self) {
        let log = self.world.log();
        let new = &log[self.log_read..];
        for word in ["set aside", "is damaged", "has lost its contents", "panicked", "cannot be opened"] {
            assert!(!new.contains(word), "{word}: {new}");
        }
        self.log_read = log.len();
    }

    /// Once it has come to rest: everything as it was last said, and nothing besides.
    fn check(&mut self) {
        self.look();
        let world = &self.world;
        let patience = format!("{}s", PATIENCE.as_secs());
        // A job that has failed keeps the host from being as it should: each is waited for by itself.
        for (name, Wish { serial, milli }) in &self.services {
            let said = world.ctl(&["wait", name, "--for", "ready", "--timeout", &patience]);
            assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
            let pid = world.wait_running(name);
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            assert_eq!(line.trim_end_matches('\0').split('\0').collect::<Vec<_>>(), sleep(*serial), "{name}");
            assert_eq!(self.starts_in_order(name).last(), Some(serial), "{name} runs without having written so");
            assert_eq!(kernel::cpu_milli(&world.group(name)), Some(*milli), "{name} has another limit");
            let processes = kernel::processes(&world.group(name));
            assert_eq!(processes.len(), 2, "{name}: one init and one command, found {processes:?}");
        }
        for (name, code) in &self.jobs {
            let phase = if *code == 0 { "Completed" } else { "Failed" };
            let status = world.wait_phase(name, phase);
            assert_eq!(status["lastExit"]["code"].as_u64(), Some(*code), "{status:#}");
            assert_eq!(self.starts(name), ["ran"], "{name} did not run once");
        }
        self.nothing_else_is_left();
        self.look();
    }

    fn nothing_else_is_left(&self) {
        let world = &self.world;
        let unedited = self.bystanders.keys().chain(self.returning.keys());
        let wanted: BTreeSet<String> = self.services.keys().chain(unedited).cloned().collect();
        let known: BTreeSet<String> = wanted.iter().chain(self.jobs.keys()).cloned().collect();
        world.wait_until_known(&known);
        // What ends by itself has no group and no traces between two runs, and may be cleared away just now.
        let is_complete = |found: &BTreeSet<String>| {
            found.is_subset(&wanted) && wanted.difference(found).all(|name| self.returning.contains_key(name))
        };
        for directory in kernel::directories(&world.parent) {
            let complete = || {
                let groups = groups(&directory);
                is_complete(&groups) || (joined_by_need(&directory) && groups.is_subset(&wanted))
            };
            let what = || format!("groups in {}: {:?}, expected {wanted:?}", directory.display(), groups(&directory));
            eventually_or(complete, what);
        }
        let traces = || entries(&world.path("run/workloads"));
        eventually_or(|| is_complete(&traces()), || format!("traces of {:?}, expected {wanted:?}", traces()));
    }

    /// Services that end by themselves have begun as often as is remembered, and ended as they do.
    fn every_return_is_counted(&self) {
        for name in self.returning.keys() {
            let counted = || {
                let (before, status) = (self.starts(name).len(), self.world.status(name));
                // Between two runs, and none began while it was asked about.
                let rests = status["phase"] == "Pending" && self.starts(name).len() == before;
                rests.then_some((before, status))
            };
            let begun = Instant::now();
            let (starts, status) = loop {
                match counted() {
                    Some(counted) => break counted,
                    None => assert!(begun.elapsed() < PATIENCE, "{name} does not rest\n{}", self.world.log()),
                }
            };
            let restarts = usize::try_from(status["restarts"].as_u64().unwrap()).unwrap();
            assert_eq!(starts, restarts + 1, "{name} began otherwise than told: {status:#}\n{}", self.world.log());
            assert_ended_with(&status, RETURNS);
        }
    }
}

/// The script of a service that writes a line when it begins, and becomes another command.
fn line_then(name: &str, line: &str, command: &str) -> String {
    format!("echo {line} >>/run/scratch/{name}; exec {command}")
}

/// A command that says which edit asked for it.
fn sleep(serial: u64) -> [String; 2] {
    ["sleep".to_owned(), format!("{}", 1_000_000 + serial)]
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
    storm.every_return_is_counted();
}

#[test]
fn three_hundred_kills_while_thirty_workloads_change_lose_and_double_nothing() {
    let mut storm = Storm::new(0x0300_0030);
    for round in 1..=300 {
        for _ in 0..3 {
            storm.edit(30);
        }
        if round % 6 == 0 {
            storm.job();
        }
        storm.kill();
        if round % 75 == 0 {
            storm.check();
        }
    }
    storm.every_return_is_counted();
    println!("300 kills, {} edits, {} services and {} jobs", storm.serial, storm.services.len(), storm.jobs.len());
}
