//! How long threads waited for a CPU, by `/proc/TID/schedstat`, for hosts without pressure counters.

use super::THREADS_PER_GROUP;
use crate::host::cgroup::Counter;
use crate::model::name::Name;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::ops::Bound;

/// What the threads of groups have told so far.
#[derive(Debug, Default)]
pub struct Waits {
    groups: BTreeMap<Name, Group>,
}

#[derive(Debug, Default)]
struct Group {
    /// Added up, in nanoseconds: a counter like that of the kernel, for a group.
    waited_ns: u64,
    /// What each thread had waited when it was last asked.
    threads: BTreeMap<u32, u64>,
    /// The thread that was asked last.
    after: Option<u32>,
}

impl Waits {
    /// Asks threads of these groups, at most so many, each group the same share and its threads in turn.
    pub fn read(&mut self, counter: &Counter, names: &[&Name], threads_max: usize) {
        let share = (threads_max / names.len().max(1)).max(1);
        for name in names.iter().take(threads_max) {
            let Ok(list) = File::open(counter.path(name)) else { continue };
            let threads = ids(BufReader::new(list));
            let group = self.groups.entry((*name).clone()).or_default();
            group.take(&threads, share, |thread| fs::read_to_string(format!("/proc/{thread}/schedstat")).ok());
        }
    }

    /// In microseconds; none of a group that has not been asked.
    pub fn known(&self, name: &Name) -> Option<u64> {
        self.groups.get(name).map(|group| group.waited_ns / 1000)
    }

    pub fn forget(&mut self, name: &Name) {
        self.groups.remove(name);
    }

    pub fn keep_only<T>(&mut self, names: &BTreeMap<Name, T>) {
        self.groups.retain(|name, _| names.contains_key(name));
    }
}

impl Group {
    fn take(&mut self, threads: &BTreeSet<u32>, asked_max: usize, schedstat: impl Fn(u32) -> Option<String>) {
        self.threads.retain(|thread, _| threads.contains(thread));
        let after = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = threads.range((after, Bound::Unbounded));
        let before = self.after.map(|after| threads.range(..=after));
        for thread in behind.chain(before.into_iter().flatten()).copied().take(asked_max) {
            self.after = Some(thread);
            let Some(waited) = schedstat(thread).as_deref().and_then(waited_ns) else { continue };
            // Of one that is new here nobody knows when it waited what it has.
            if let Some(known) = self.threads.insert(thread, waited) {
                self.waited_ns += waited.saturating_sub(known);
            }
        }
    }
}

/// The first ids of a group's list, one a line. The rest of it is not even read: it has no end that anybody but the group's pids limit sets.
fn ids(list: impl BufRead) -> BTreeSet<u32> {
    list.lines().map_while(Result::ok).take(THREADS_PER_GROUP).filter_map(|line| line.parse().ok()).collect()
}

/// The second number: time spent waiting to run (Documentation/scheduler/sched-stats.rst).
fn waited_ns(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn threads_asked_in_turn_lose_nothing_of_what_they_waited() {
        let (threads, mut group) = ((1..=5).collect(), Group::default());
        // Each of five waits a millisecond a reading, and two are asked each time.
        for reading in 1..=11u64 {
            group.take(&threads, 2, |thread| Some(format!("7 {} 3\n", reading * 1_000_000 + u64::from(thread))));
        }
        // The first readings, 1, 2, 3 of the five, say where counting begins; then every second to third reading brings what came between.
        let missing: u64 = 55_000_000 - group.waited_ns;
        assert!(missing <= 5 * 3_000_000 + 5, "{} of 55 ms are known", group.waited_ns);
        assert!(group.threads.len() == 5 && group.after == Some(2));
    }

    #[test]
    fn of_a_group_of_countless_threads_the_first_are_read_and_no_more() {
        // A list that fails if it is read to its end.
        let ids_there = (1..).map(|id: usize| format!("{id}\n")).take(THREADS_PER_GROUP + 1).collect::<String>();
        let mut list = BufReader::with_capacity(64, ids_there.as_bytes().chain(NeverRead));
        let read = ids(&mut list);
        assert_eq!((read.len(), read.last().copied()), (1024, Some(1024)));
    }

    struct NeverRead;

    impl Read for NeverRead {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            panic!("the list was read to its end");
        }
    }

    #[test]
    fn a_thread_that_is_gone_is_forgotten_and_a_new_one_begins_at_nothing() {
        let mut group = Group::default();
        group.take(&[1].into(), 9, |_| Some("0 5000 1".to_owned()));
        group.take(&[2].into(), 9, |_| Some("0 9000 1".to_owned()));
        assert_eq!((group.waited_ns, group.threads.clone()), (0, [(2, 9000)].into()));
        group.take(&[2].into(), 9, |_| Some("0 9500 1".to_owned()));
        assert_eq!(group.waited_ns, 500);
    }
}
