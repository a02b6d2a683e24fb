//! Whose turn it is, on a tree of ordinary files.

use super::*;
use std::fs;
use tempfile::TempDir;

const STAT: &str =
    "cpu  9 9 9 9 0 0 0 0 0 0\ncpu0 100 20 30 800 50 7 8 9 0 0\ncpu2 1 0 0 4 0 0 0 0 0 0\nintr 5 1 2 3\ncpu7 1 1 1 1\n";

struct Tree {
    folder: TempDir,
    runs: BTreeMap<Name, u64>,
}

impl Tree {
    fn of(workloads: usize) -> Tree {
        let folder = tempfile::tempdir().unwrap();
        let runs: BTreeMap<Name, u64> =
            (0..workloads).map(|number| (format!("w{number:03}").parse().unwrap(), 1)).collect();
        let tree = Tree { folder, runs };
        for name in tree.runs.keys() {
            tree.spend(name, 0);
        }
        fs::write(tree.folder.path().join("stat"), STAT).unwrap();
        tree
    }

    fn counter(&self, file: &'static str) -> Counter {
        Counter { parent: self.folder.path().to_owned(), file }
    }

    fn sampler(&self) -> Sampler {
        let counters = Counters {
            cpu: Some(self.counter("cpu.stat")),
            pressure: Some(self.counter("cpu.pressure")),
            memory: Some(self.counter("memory.current")),
            threads: None,
        };
        Sampler::new(counters, self.folder.path().join("stat")).unwrap()
    }

    /// Has a workload have used so much CPU time, and waited half as long.
    fn spend(&self, name: &Name, us: u64) {
        let group = self.counter("cpu.stat").path(name).parent().unwrap().to_owned();
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cpu.stat"), format!("usage_usec {us}\nuser_usec 1\n")).unwrap();
        fs::write(group.join("cpu.pressure"), format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={}\n", us / 2))
            .unwrap();
        fs::write(group.join("memory.current"), "4096\n").unwrap();
    }

    fn name(number: usize) -> Name {
        format!("w{number:03}").parse().unwrap()
    }
}

/// The first and the last that were read, and how many.
fn range(reading: &Reading) -> (String, String, usize) {
    let end = |name: Option<&Name>| name.map(ToString::to_string).unwrap_or_default();
    let names = &reading.workloads;
    (end(names.keys().next()), end(names.keys().next_back()), names.len())
}

#[test]
fn every_cold_group_has_its_turn_within_eight_readings_of_a_thousand() {
    let tree = Tree::of(1000);
    let mut sampler = tree.sampler();
    // All of them are new at first, so that each is known soon; then they take turns.
    for _ in 0..2 {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..8 {
            let reading = sampler.read(&tree.runs).unwrap();
            assert!(reading.workloads.len() <= COLD_PER_READING, "{}", reading.workloads.len());
            seen.extend(reading.workloads.into_keys());
        }
        assert_eq!(seen.len(), 1000);
    }
}

#[test]
fn what_works_is_read_each_time_from_open_files_and_memory_with_the_first_reading() {
    let tree = Tree::of(300);
    let mut sampler = tree.sampler();
    let first = sampler.read(&tree.runs).unwrap();
    assert_eq!(range(&first), ("w000".to_owned(), "w127".to_owned(), 128));
    assert!(first.workloads.values().all(|count| count.memory == Some(Bytes(4096))));
    for _ in 0..2 {
        sampler.read(&tree.runs).unwrap();
    }
    tree.spend(&Tree::name(7), 60_000_000);
    // It is found in its turn, and from then on is there each time.
    let found = (0..3).position(|_| sampler.read(&tree.runs).unwrap().workloads.contains_key(&Tree::name(7)));
    assert!(found.is_some());
    assert!(sampler.known[&Tree::name(7)].hot.is_some());
    tree.spend(&Tree::name(7), 90_000_000);
    // The file is written in place: what is open shows it.
    for _ in 0..4 {
        let count = sampler.read(&tree.runs).unwrap().workloads[&Tree::name(7)];
        assert_eq!((count.cpu_us, count.waited_us), (90_000_000, Some(45_000_000)));
    }
    let hot = sampler.known.values().filter(|known| known.hot.is_some()).count();
    assert_eq!(hot, 1, "nobody else works");
}

#[test]
fn what_rests_for_a_minute_is_cold_again() {
    let tree = Tree::of(1);
    let mut sampler = tree.sampler();
    sampler.read(&tree.runs).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2));
    tree.spend(&Tree::name(0), 60_000_000);
    sampler.read(&tree.runs).unwrap();
    for reading in 0..=HOT_FOR {
        let is_hot = sampler.known[&Tree::name(0)].hot.is_some();
        assert_eq!(is_hot, reading < HOT_FOR, "after {reading} quiet readings");
        std::thread::sleep(std::time::Duration::from_millis(2));
        sampler.read(&tree.runs).unwrap();
    }
}

#[test]
fn a_group_that_is_gone_is_left_out_and_hides_nobody() {
    let mut tree = Tree::of(3);
    let mut sampler = tree.sampler();
    sampler.read(&tree.runs).unwrap();
    fs::remove_dir_all(tree.counter("x").path(&Tree::name(1)).parent().unwrap()).unwrap();
    let reading = sampler.read(&tree.runs).unwrap();
    assert_eq!(reading.workloads.keys().map(ToString::to_string).collect::<Vec<_>>(), ["w000", "w002"]);
    // Another run of that name counts from where it is.
    tree.spend(&Tree::name(1), 70);
    tree.runs.insert(Tree::name(1), 2);
    let count = sampler.read(&tree.runs).unwrap().workloads[&Tree::name(1)];
    assert_eq!((count.run, count.cpu_us), (2, 70));
}

#[test]
fn interrupts_and_stolen_time_are_nobodys_work() {
    let tree = Tree::of(0);
    let reading = tree.sampler().read(&tree.runs).unwrap();
    let cpus: Vec<_> = reading.cpus.iter().map(|(cpu, count)| (*cpu, count.busy, count.total)).collect();
    assert_eq!(cpus, [(0, 150, 1024), (2, 1, 5)], "and nothing behind the CPUs is read");
}

#[test]
fn counters_of_both_generations_are_microseconds() {
    assert_eq!(cpu_us("usage_usec 1234\nuser_usec 7\n"), Some(1234));
    assert_eq!(cpu_us("1234567\n"), Some(1234));
    assert_eq!((cpu_us(""), cpu_us("nr_periods 0\n")), (None, None));
}

#[test]
fn a_host_that_counts_no_cpu_time_has_no_meter() {
    assert!(Sampler::new(Counters::default(), PathBuf::from("/proc/stat")).is_none());
}
