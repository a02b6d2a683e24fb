//! When a workload runs into its limits: two readings of the kernel's counters to what people should hear about it.
//!
//! Terms: a *reading* is a [`Usage`] with its time; a *strain* is one way to be short of something. Ways that come and go (throttling, stalls)
//! are told when they begin and when they are over, with a lower bound for the end so that a workload at the edge is not told twice a
//! minute; what happens at once (a process killed, a fork refused) is told with each reading that shows more of it.
//!
//! Guarantees: pure; a new run begins with a clean slate; nothing is told of a workload that has what it needs, nor told again because the
//! controller was restarted: of a run older than the controller the first reading is only where counting begins.

use crate::model::event::News;
use crate::model::name::Name;
use crate::model::spec::Resources;
use crate::model::time::Timestamp;
use crate::model::usage::Usage;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Periods of 100 ms between two readings below which a share of them says nothing.
const PERIODS_MIN: u64 = 10;
/// A quota used up in a quarter of the periods is felt by whoever waits for an answer; in one of twenty it is a burst.
const THROTTLED_PERCENT: (u64, u64) = (25, 5);
/// Shares of the time in which something waited. Memory: reclaim at a tenth of the time is where systemd-oomd and Meta's oomd begin to watch.
/// Disks and CPUs are shared on purpose, and waiting for them is how sharing works: half of the time is told.
const MEMORY_PERCENT: (u64, u64) = (10, 5);
const IO_PERCENT: (u64, u64) = (50, 25);
const CPU_PERCENT: (u64, u64) = (50, 25);

/// One way to be short of something that comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Strain {
    Throttled,
    Memory,
    Io,
    Cpu,
}

/// The last reading of a workload, and what it suffers from.
#[derive(Clone, Debug, Default)]
struct Known {
    run: u64,
    at: Timestamp,
    usage: Usage,
    strained: BTreeSet<Strain>,
}

/// The readings of all workloads.
#[derive(Clone, Debug, Default)]
pub struct Strains {
    /// When the controller started: what a run older than that went through has been told by another one.
    since: Timestamp,
    known: BTreeMap<Name, Known>,
}

/// A reading of one workload.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The number of the run, and when it began: its counters were zero then. One whose beginning nobody knows is old.
    pub run: u64,
    pub began: Timestamp,
    /// When it was taken, or when the run ended: no counter grows after that.
    pub at: Timestamp,
    pub usage: Usage,
    pub resources: &'a Resources,
}

impl Strains {
    /// None yet, of a controller that started then.
    pub fn since(since: Timestamp) -> Strains {
        Strains { since, known: BTreeMap::new() }
    }

    /// Takes a reading, and answers what there is to tell.
    pub fn take(&mut self, name: &Name, reading: &Reading<'_>) -> Vec<News> {
        let Reading { run, began, at, usage, .. } = *reading;
        let Some(before) = self.known.remove(name).filter(|known| known.run == run).or_else(|| {
            let fresh = Known { run, at: began, ..Known::default() };
            (began >= self.since).then_some(fresh)
        }) else {
            self.known.insert(name.clone(), Known { run, at, usage, strained: BTreeSet::new() });
            return Vec::new();
        };
        let mut news = at_once(name, &before.usage, reading);
        let elapsed = at.since(before.at);
        let mut strained = before.strained;
        for (strain, share, text) in shares(&before.usage, reading, elapsed) {
            let (enter, leave) = strain.bounds();
            if share >= enter && strained.insert(strain) {
                news.push(News::warning(name, strain.reason(), text));
            } else if share < leave && strained.remove(&strain) {
                news.push(News::normal(name, strain.over(), text));
            }
        }
        self.known.insert(name.clone(), Known { run, at, usage, strained });
        news
    }

    /// Forgets workloads that are not among those.
    pub fn keep_only(&mut self, names: &BTreeSet<Name>) {
        self.known.retain(|name, _| names.contains(name));
    }
}

impl Strain {
    /// Percent at which it begins, and below which it is over.
    fn bounds(self) -> (u64, u64) {
        match self {
            Strain::Throttled => THROTTLED_PERCENT,
            Strain::Memory => MEMORY_PERCENT,
            Strain::Io => IO_PERCENT,
            Strain::Cpu => CPU_PERCENT,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Strain::Throttled => "Throttled",
            Strain::Memory => "MemoryPressure",
            Strain::Io => "IoPressure",
            Strain::Cpu => "CpuPressure",
        }
    }

    fn over(self) -> &'static str {
        match self {
            Strain::Throttled => "ThrottledNoMore",
            Strain::Memory => "MemoryPressureOver",
            Strain::Io => "IoPressureOver",
            Strain::Cpu => "CpuPressureOver",
        }
    }
}

/// What is told with each reading that shows more of it.
fn at_once(name: &Name, before: &Usage, reading: &Reading<'_>) -> Vec<News> {
    let mut news = Vec::new();
    let Reading { usage, resources, .. } = reading;
    let killed = usage.oom_kills.saturating_sub(before.oom_kills);
    if killed > 0 {
        let used = usage.memory_bytes.map_or_else(String::new, |used| format!(", {} MiB are in use now", used >> 20));
        let limit = resources.memory.limit;
        let text =
            format!("the kernel killed {killed} of its processes for want of memory; memory.limit is {limit}{used}");
        news.push(News::warning(name, "OomKilled", text));
    }
    let refused = usage.pids_refused.saturating_sub(before.pids_refused);
    if refused > 0 {
        let now = usage.pids.map_or_else(String::new, |pids| format!(", {pids} there are now"));
        let text = format!("{refused} forks were refused; pids is {}{now}", resources.pids);
        news.push(News::warning(name, "PidsExhausted", text));
    }
    news
}

/// Each strain that can be judged, its share in percent, and the numbers in words.
fn shares(before: &Usage, reading: &Reading<'_>, elapsed: Duration) -> Vec<(Strain, u64, String)> {
    let Reading { usage, resources, .. } = reading;
    let mut shares = Vec::new();
    let seconds = elapsed.as_secs_f64();
    let periods = usage.periods.saturating_sub(before.periods);
    let throttled = usage.throttled_periods.saturating_sub(before.throttled_periods);
    let stood_us = usage.throttled_us.saturating_sub(before.throttled_us);
    // No periods are counted while nothing runs: then nothing is throttled either.
    if periods >= PERIODS_MIN || periods == 0 {
        let share = (100 * throttled).checked_div(periods).unwrap_or(0);
        let limit = resources.cpu.limit;
        let text = format!(
            "its CPU quota ran out in {throttled} of {periods} periods in {seconds:.1} s, its tasks stood still for {:.1} s; cpu.limit is {limit}",
            Duration::from_micros(stood_us).as_secs_f64()
        );
        shares.push((Strain::Throttled, share, text));
    }
    let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    for (strain, now, earlier, what) in [
        (Strain::Memory, usage.memory_stalled_us, before.memory_stalled_us, "memory"),
        (Strain::Io, usage.io_stalled_us, before.io_stalled_us, "a disk"),
        (Strain::Cpu, usage.cpu_stalled_us, before.cpu_stalled_us, "a CPU"),
    ] {
        let (Some(now), true) = (now, elapsed >= Duration::from_secs(1)) else { continue };
        let waited = now.saturating_sub(earlier.unwrap_or(0));
        let share = 100 * waited / elapsed_us.max(1);
        let text = format!(
            "waited for {what} {share} % of the time, {:.1} of {seconds:.1} s",
            Duration::from_micros(waited).as_secs_f64()
        );
        shares.push((strain, share, text));
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    /// Readings every 30 s of a workload that began at 0; prints what is told.
    fn check(manifest: &str, readings: &[Usage]) -> String {
        let (spec, _) = parse("web.yaml", manifest.as_bytes()).workloads.into_iter().next().unwrap();
        let (mut strains, mut told) = (Strains::default(), String::new());
        for (at, usage) in (30_000..).step_by(30_000).zip(readings) {
            let reading =
                Reading { run: 1, began: Timestamp(0), at: Timestamp(at), usage: *usage, resources: &spec.resources };
            for news in strains.take(&spec.name, &reading) {
                told += &format!("{}s {} {}: {}\n", at / 1000, news.severity, news.reason, news.message);
            }
        }
        told
    }

    #[test]
    fn throttling_is_told_when_it_begins_and_when_it_is_over() {
        let at = |periods, throttled_periods, throttled_us| Usage {
            periods,
            throttled_periods,
            throttled_us,
            ..Usage::default()
        };
        let readings = [
            at(300, 10, 1),
            at(600, 130, 9_000_000),
            at(900, 250, 18_000_000),
            at(1200, 300, 20_000_000),
            at(1500, 301, 20_000_000),
        ];
        insta::assert_snapshot!(check("command: x\ncpu: 500m", &readings), @"
        60s Warning Throttled: its CPU quota ran out in 120 of 300 periods in 30.0 s, its tasks stood still for 9.0 s; cpu.limit is 500m
        150s Normal ThrottledNoMore: its CPU quota ran out in 1 of 300 periods in 30.0 s, its tasks stood still for 0.0 s; cpu.limit is 500m
        ");
    }

    #[test]
    fn killed_processes_and_refused_forks_are_told_with_each_reading_that_has_more() {
        let at = |oom_kills, pids_refused| Usage {
            oom_kills,
            pids_refused,
            memory_bytes: Some(60 << 20),
            pids: Some(40),
            ..Usage::default()
        };
        let readings = [at(0, 0), at(2, 37), at(2, 37), at(3, 37)];
        insta::assert_snapshot!(check("command: x\nmemory: 64Mi\npids: 40", &readings), @"
        60s Warning OomKilled: the kernel killed 2 of its processes for want of memory; memory.limit is 64Mi, 60 MiB are in use now
        60s Warning PidsExhausted: 37 forks were refused; pids is 40, 40 there are now
        120s Warning OomKilled: the kernel killed 1 of its processes for want of memory; memory.limit is 64Mi, 60 MiB are in use now
        ");
    }

    #[test]
    fn stalls_are_told_where_they_hurt() {
        let at = |memory: u64, io: u64, cpu: u64| Usage {
            memory_stalled_us: Some(memory * 1_000_000),
            io_stalled_us: Some(io * 1_000_000),
            cpu_stalled_us: Some(cpu * 1_000_000),
            ..Usage::default()
        };
        let readings = [at(1, 5, 10), at(5, 21, 30), at(9, 41, 50), at(10, 42, 51)];
        insta::assert_snapshot!(check("command: x", &readings), @"
        60s Warning MemoryPressure: waited for memory 13 % of the time, 4.0 of 30.0 s
        60s Warning IoPressure: waited for a disk 53 % of the time, 16.0 of 30.0 s
        60s Warning CpuPressure: waited for a CPU 66 % of the time, 20.0 of 30.0 s
        120s Normal MemoryPressureOver: waited for memory 3 % of the time, 1.0 of 30.0 s
        120s Normal IoPressureOver: waited for a disk 3 % of the time, 1.0 of 30.0 s
        120s Normal CpuPressureOver: waited for a CPU 3 % of the time, 1.0 of 30.0 s
        ");
        // A host without pressure information says nothing about it.
        assert_eq!(check("command: x", &[Usage::default(), Usage::default()]), "");
    }

    #[test]
    fn a_new_run_begins_with_a_clean_slate() {
        let (spec, _) = parse("web.yaml", b"command: x").workloads.into_iter().next().unwrap();
        let mut strains = Strains::default();
        let mut take = |run, at, oom_kills| {
            let usage = Usage { oom_kills, ..Usage::default() };
            let reading =
                Reading { run, began: Timestamp(at - 1000), at: Timestamp(at), usage, resources: &spec.resources };
            strains.take(&spec.name, &reading).len()
        };
        assert_eq!([take(1, 1000, 5), take(2, 2000, 1), take(2, 3000, 1)], [1, 1, 0]);
    }

    #[test]
    fn what_an_older_run_went_through_is_not_told_again_by_a_new_controller() {
        let (spec, _) = parse("web.yaml", b"command: x").workloads.into_iter().next().unwrap();
        let mut strains = Strains::since(Timestamp(5000));
        let mut take = |run, began, at, oom_kills| {
            let usage = Usage { oom_kills, ..Usage::default() };
            let reading =
                Reading { run, began: Timestamp(began), at: Timestamp(at), usage, resources: &spec.resources };
            strains.take(&spec.name, &reading).len()
        };
        // Five before the restart, one more after it; the next run is ours from its first moment.
        assert_eq!([take(1, 1000, 6000, 5), take(1, 1000, 9000, 6), take(2, 9500, 9900, 1)], [0, 1, 1]);
    }
}
