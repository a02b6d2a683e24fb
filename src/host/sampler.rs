//! Readings of what CPUs and workloads use, often and for little: what the rebalancer goes by.
//!
//! Problem: a thousand workloads read every five seconds, three files each, is 9,000 system calls a time and half of a per cent of a CPU spent on looking.
//! Approach: most of a thousand do nothing. Those that use a CPU are *hot*: their counters stay open, and a reading is one `pread` each. The
//! *cold* ones are opened, read and closed in turn, [`COLD_PER_READING`] of them a reading, and become hot once they are seen to work. Memory changes
//! slowly and is asked for with the first reading and then in turn.
//! How long tasks wait for a CPU is told by the group's pressure counter (PSI). Where there is none, by `/proc/TID/schedstat`, its second
//! number, of the threads of hot groups: at most [`THREADS_PER_READING`] of them a reading, the rest in the next ones, and of a group's list the first
//! [`THREADS_PER_GROUP`]. A thread tells what it has waited since it was last asked, so nothing is lost by asking seldom, only later known.
//!
//! Guarantees: descriptors, calls and memory are bounded whatever there is; writes nothing; a group that cannot be read is left out and
//! keeps nobody else from being read.

mod threads;

use super::cgroup::{Counter, Counters};
use super::{HostError, clock};
use crate::model::meter::{Count, CpuCount, Reading};
use crate::model::name::Name;
use crate::model::units::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use threads::Waits;

/// Groups whose counters stay open, two descriptors each: a quarter of the 1,024 that a process may usually have, which the pidfds of its
/// workloads want as well.
pub const HOT_MAX: usize = 128;
/// Cold groups read in one reading. A thousand are through in eight, 40 s; a host of fewer has none that wait.
pub const COLD_PER_READING: usize = 128;
/// Hot groups asked for their memory in one reading.
const MEMORY_PER_READING: usize = 16;
/// Threads asked how long they waited, in one reading: some 3 ms of a CPU, an eighth of what a reading may cost.
pub const THREADS_PER_READING: usize = 512;
/// Threads of one group whose wait is counted at all. A thousand that wait are more than the CPUs of most machines, and a group's demand ends
/// at its CPUs: what the others wait would not change a decision. What is kept of the hot groups together stays below 4 MiB.
pub const THREADS_PER_GROUP: usize = 1024;
/// CPU use from which a group is hot, in thousandths of a CPU: below a fiftieth it weighs nothing wherever it is.
const HOT_PERMILLE: u64 = 20;
/// Readings below that in a row, a minute of them, after which it is cold again.
const HOT_FOR: u32 = 12;
/// More than any counter's text holds of what is looked for: the first line of `cpu.stat` or of a pressure file.
const TEXT_BYTES_MAX: usize = 512;

/// Reads counters, and keeps what it takes to do so cheaply.
pub trait Meter: Send {
    /// Reads the CPUs, and of these workloads (with the number of the run) those whose turn it is.
    fn read(&mut self, runs: &BTreeMap<Name, u64>) -> Result<Reading, HostError>;
}

/// The real one.
pub struct Sampler {
    counters: Counters,
    stat: Kept,
    known: BTreeMap<Name, Known>,
    /// Where the turn of the cold ended, and of those asked for memory.
    cold_after: Option<Name>,
    memory_after: Option<Name>,
    waits: Waits,
}

/// A group as it was last read.
#[derive(Debug)]
struct Known {
    count: Count,
    /// Open, while it is hot.
    hot: Option<Hot>,
}

#[derive(Debug)]
struct Hot {
    cpu: Kept,
    pressure: Option<Kept>,
    /// Readings in a row in which it did nothing.
    quiet: u32,
    permille: u64,
}

/// A file that stays open.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    file: Option<File>,
}

impl Sampler {
    /// `stat` is `/proc/stat`; none where there is nothing that counts CPU time.
    pub fn new(counters: Counters, stat: PathBuf) -> Option<Sampler> {
        counters.cpu.as_ref()?;
        let (known, waits) = (BTreeMap::new(), Waits::default());
        Some(Sampler { counters, stat: Kept::new(stat), known, cold_after: None, memory_after: None, waits })
    }

    /// Whose turn it is: all that are hot or new, and of the others the next ones.
    fn turn(&mut self, runs: &BTreeMap<Name, u64>) -> Vec<Name> {
        let is_hot = |name: &&Name| self.known.get(*name).is_some_and(|known| known.hot.is_some());
        let mut names: Vec<Name> = runs.keys().filter(is_hot).cloned().collect();
        let is_cold = |(name, _): &(&Name, &u64)| !is_hot(name);
        let is_new = |(name, run): &(&Name, &u64)| self.known.get(*name).is_none_or(|known| known.count.run != **run);
        let new: Vec<Name> =
            runs.iter().filter(is_new).filter(is_cold).take(COLD_PER_READING).map(|(name, _)| name.clone()).collect();
        let left = COLD_PER_READING - new.len();
        let known = |one: &(&Name, &u64)| is_cold(one) && !is_new(one);
        let cold = in_turn(runs, self.cold_after.as_ref()).filter(known).take(left);
        let cold: Vec<Name> = cold.map(|(name, _)| name.clone()).collect();
        self.cold_after = cold.last().cloned().or(self.cold_after.take());
        names.extend(new);
        names.extend(cold);
        names
    }

    fn read_group(&mut self, name: &Name, run: u64, ask_memory: bool) -> Option<Count> {
        let now = clock::steady();
        let before = self.known.get(name).filter(|known| known.count.run == run).map(|known| known.count);
        let mut hot = self.known.get_mut(name).and_then(|known| known.hot.take()).filter(|_| before.is_some());
        let cpu_us = match &mut hot {
            Some(hot) => hot.cpu.text().ok().as_deref().and_then(cpu_us),
            None => self.counters.cpu.as_ref().and_then(|counter| once(counter, name)).as_deref().and_then(cpu_us),
        };
        let Some(cpu_us) = cpu_us else {
            self.known.remove(name);
            self.waits.forget(name);
            return None;
        };
        let pressure = match &mut hot {
            Some(hot) => hot.pressure.as_mut().and_then(|kept| kept.text().ok()),
            None => self.counters.pressure.as_ref().and_then(|counter| once(counter, name)),
        };
        let known_memory = before.and_then(|before| before.memory);
        let memory = if ask_memory || known_memory.is_none() || hot.is_none() {
            self.memory(name).or(known_memory)
        } else {
            known_memory
        };
        let waited_us = match &self.counters.pressure {
            Some(_) => pressure.as_deref().and_then(super::cgroup::stalled_us),
            None => self.waits.known(name),
        };
        let count = Count { run, at: now, cpu_us, waited_us, memory };
        let hot = self.warm(name, before, &count, hot);
        self.known.insert(name.clone(), Known { count, hot });
        Some(count)
    }

    /// Whether it is hot from now on.
    fn warm(&mut self, name: &Name, before: Option<Count>, now: &Count, hot: Option<Hot>) -> Option<Hot> {
        let before = before?;
        let permille = permille(&before, now)?;
        if let Some(hot) = hot {
            let quiet = if permille < HOT_PERMILLE { hot.quiet + 1 } else { 0 };
            return (quiet < HOT_FOR).then_some(Hot { quiet, permille, ..hot });
        }
        if permille < HOT_PERMILLE {
            return None;
        }
        if self.known.values().filter(|known| known.hot.is_some()).count() >= HOT_MAX {
            let of = |known: &Known| known.hot.as_ref().map(|hot| hot.permille);
            let lightest =
                self.known.iter_mut().filter(|(_, known)| known.hot.is_some()).min_by_key(|(_, known)| of(known));
            // Twice as much, so that two of the same do not take turns.
            let (_, lightest) = lightest.filter(|(_, known)| of(known).is_some_and(|least| permille > 2 * least))?;
            lightest.hot = None;
        }
        let kept = |counter: &Option<Counter>| counter.as_ref().map(|counter| Kept::new(counter.path(name)));
        Some(Hot { cpu: kept(&self.counters.cpu)?, pressure: kept(&self.counters.pressure), quiet: 0, permille })
    }

    fn memory(&self, name: &Name) -> Option<Bytes> {
        let text = self.counters.memory.as_ref().and_then(|counter| once(counter, name))?;
        text.trim().parse().ok().map(Bytes)
    }

    /// Hot groups whose turn it is to be asked for their memory.
    fn remembered(&mut self, runs: &BTreeMap<Name, u64>) -> Vec<Name> {
        let is_hot = |(name, _): &(&Name, &u64)| self.known.get(*name).is_some_and(|known| known.hot.is_some());
        let due = in_turn(runs, self.memory_after.as_ref()).filter(is_hot).take(MEMORY_PER_READING);
        let due: Vec<Name> = due.map(|(name, _)| name.clone()).collect();
        self.memory_after = due.last().cloned().or(self.memory_after.take());
        due
    }
}

impl Meter for Sampler {
    fn read(&mut self, runs: &BTreeMap<Name, u64>) -> Result<Reading, HostError> {
        self.known.retain(|name, _| runs.contains_key(name));
        self.waits.keep_only(runs);
        let text = self.stat.whole().map_err(|source| HostError::Facts { what: "/proc/stat", source })?;
        let cpus = text.lines().skip(1).map_while(cpu_line).collect();
        let names = self.turn(runs);
        let due = self.remembered(runs);
        if self.counters.pressure.is_none()
            && let Some(threads) = &self.counters.threads
        {
            let hot = |name: &&Name| self.known.get(*name).is_some_and(|known| known.hot.is_some());
            let hot: Vec<&Name> = names.iter().filter(hot).collect();
            self.waits.read(threads, &hot, THREADS_PER_READING);
        }
        let mut workloads = BTreeMap::new();
        for name in names {
            let run = runs.get(&name).copied().unwrap_or_default();
            if let Some(count) = self.read_group(&name, run, due.contains(&name)) {
                workloads.insert(name, count);
            }
        }
        Ok(Reading { cpus, workloads })
    }
}

impl Kept {
    fn new(path: PathBuf) -> Kept {
        Kept { path, file: None }
    }

    fn open(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            self.file = Some(File::open(&self.path)?);
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Its beginning, by one call. A group that was removed and made again under an open descriptor answers ENODEV for ever: it is
    /// opened anew next time.
    fn text(&mut self) -> io::Result<String> {
        let mut bytes = [0; TEXT_BYTES_MAX];
        let read = self.open()?.read_at(&mut bytes, 0);
        if read.is_err() {
            self.file = None;
        }
        Ok(String::from_utf8_lossy(&bytes[..read?]).into_owned())
    }

    fn whole(&mut self) -> io::Result<String> {
        let (mut text, mut part, mut at) = (Vec::new(), [0; 16 * 1024], 0);
        loop {
            let read = self.open()?.read_at(&mut part, at)?;
            text.extend_from_slice(&part[..read]);
            at += read as u64;
            // CPUs come first; interrupts, which are many, are of no interest.
            if read == 0 || text.windows(5).any(|word| word == b"\nintr") {
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
        }
    }
}

/// A counter's text, opened for this once.
fn once(counter: &Counter, name: &Name) -> Option<String> {
    let mut bytes = [0; TEXT_BYTES_MAX];
    let read = File::open(counter.path(name)).and_then(|mut file| file.read(&mut bytes)).ok()?;
    Some(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

/// Those behind `after`, then the others, each once.
fn in_turn<'a, T>(all: &'a BTreeMap<Name, T>, after: Option<&'a Name>) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let behind = all.range::<Name, _>((after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
    let before = after.map(|after| all.range::<Name, _>((Bound::Unbounded, Bound::Included(after))));
    behind.chain(before.into_iter().flatten())
}

/// CPU use between two counts, in thousandths of a CPU.
fn permille(before: &Count, now: &Count) -> Option<u64> {
    let elapsed_ms = u64::try_from(now.at.since(before.at).as_millis()).ok().filter(|ms| *ms > 0)?;
    Some(now.cpu_us.saturating_sub(before.cpu_us) / elapsed_ms)
}

/// CPU time of `cpu.stat` (`usage_usec 12`), or of `cpuacct.usage`, which is a number of nanoseconds.
fn cpu_us(text: &str) -> Option<u64> {
    match text.strip_prefix("usage_usec ") {
        Some(rest) => rest.lines().next()?.trim().parse().ok(),
        None => text.trim().parse::<u64>().ok().map(|ns| ns / 1000),
    }
}

/// `cpu3 user nice system idle iowait irq softirq steal guest guest_nice` (proc_stat(5)). Guests are in `user` already. None behind the last CPU.
fn cpu_line(line: &str) -> Option<(u32, CpuCount)> {
    let mut fields = line.split_ascii_whitespace();
    let number = fields.next()?.strip_prefix("cpu")?.parse().ok()?;
    let ticks: Vec<u64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
    let busy = ticks.iter().take(3).sum();
    (ticks.len() >= 4).then(|| (number, CpuCount { busy, total: ticks.iter().sum() }))
}

#[cfg(test)]
mod tests;
