//! The simulated disk below the database: what the process has written, what the kernel has, and what is on the platter.
//!
//! `kill -9` loses what the kernel was not given: of the writes since the last flush some first ones are there, the last of them perhaps
//! torn. A power cut loses what was not synced. Both tables share one log, and with it the order of their writes.

use crate::world::{Event, Sim, World};
use containerctl::model::codec;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::store::{Entry, Table};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};

/// As in the store: milliseconds after which a sync that failed is tried again.
const SYNC_AGAIN: u64 = 5_000;

/// As in the loop: so many refusals in a row and a workload's next step is taken without a record of it.
const REFUSED_MIN: u32 = 3;

const QUEUED: &[u8] = b"\"queued\":";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Records,
    Events,
}

type Key = (Of, Vec<u8>);
type Contents = BTreeMap<Key, Arc<Value>>;
/// What is to be at a key, if anything.
type Write = (Key, Option<Arc<Value>>);

/// Some bytes, shared by all that have them, and the record that they are: laws ask for it again and again.
struct Value {
    bytes: Vec<u8>,
    record: OnceLock<Option<Record>>,
}

impl Value {
    fn new(bytes: Vec<u8>) -> Arc<Value> {
        Arc::new(Value { bytes, record: OnceLock::new() })
    }

    fn record(&self) -> Option<Record> {
        self.record.get_or_init(|| codec::decode(&self.bytes).ok()).clone()
    }
}

fn entries_of(table: Of, contents: &Contents) -> Vec<Entry> {
    let of_it = contents.iter().filter(|((of, _), _)| *of == table);
    of_it.map(|((_, key), value)| (key.clone(), value.bytes.clone())).collect()
}

#[derive(Default)]
pub struct Disk {
    /// As the process sees it.
    memory: Contents,
    /// Writes the kernel has not been given, in order; none is a removal.
    pending: Vec<Write>,
    kernel: Contents,
    /// What the kernel was given since the last sync: with these the platter is as the kernel's.
    unsynced: Vec<Write>,
    platter: Contents,
    pub full_until: u64,
    syncing: bool,
    /// The last flush failed: what is only in memory may be lost, and the controller has been told.
    pub flush_failed: bool,
    /// How often the database has refused a record in a row.
    refused: BTreeMap<Name, u32>,
}

fn key_of(name: &Name) -> Key {
    (Of::Records, name.as_str().as_bytes().to_vec())
}

impl Disk {
    pub fn record(&self, name: &Name) -> Option<Record> {
        self.memory.get(&key_of(name))?.record()
    }

    /// What a controller would find now.
    pub fn flushed(&self, name: &Name) -> Option<Record> {
        self.kernel.get(&key_of(name))?.record()
    }

    /// What would be left if the power failed now.
    pub fn synced(&self, name: &Name) -> Option<Record> {
        self.platter.get(&key_of(name))?.record()
    }

    /// Whether so much of a workload was refused that its steps wait for the disk no more.
    pub fn takes_nothing_of(&self, name: &Name) -> bool {
        self.refused.get(name).is_some_and(|times| *times >= REFUSED_MIN)
    }

    /// The record that says since when a workload waits for room, if it does.
    fn waiting(&self, name: &Name) -> Option<Record> {
        let value = self.memory.get(&key_of(name))?;
        // Without decoding what says nothing of it.
        let says = value.bytes.windows(QUEUED.len()).any(|word| word == QUEUED);
        says.then(|| value.record()).flatten()
    }

    fn give_to_kernel(&mut self, write: Write) {
        Disk::write(&mut self.kernel, write.clone());
        self.unsynced.push(write);
    }

    fn write(contents: &mut Contents, (key, value): Write) {
        match value {
            Some(value) => contents.insert(key, value),
            None => contents.remove(&key),
        };
    }
}

impl World {
    fn disk_is_full(&self) -> bool {
        self.now < self.disk.full_until
    }

    fn flush_to_kernel(&mut self) {
        for write in std::mem::take(&mut self.disk.pending) {
            self.disk.give_to_kernel(write);
        }
    }

    /// A write of which the kernel knows nothing yet. It wakes the syncing thread.
    fn note_write(&mut self, table: Of, key: &[u8], value: Option<Vec<u8>>) {
        let write = ((table, key.to_vec()), value.map(Value::new));
        Disk::write(&mut self.disk.memory, write.clone());
        self.disk.pending.push(write);
        if !std::mem::replace(&mut self.disk.syncing, true) {
            let (delay, boot) = (self.rng.below(25), self.kernel.boot);
            self.after(delay, Event::Synced(boot));
        }
    }

    /// The syncing thread has done its round.
    pub fn synced(&mut self, boot: u64) {
        if boot != self.kernel.boot || !self.up {
            self.disk.syncing = false;
        } else if self.disk_is_full() {
            self.after(SYNC_AGAIN, Event::Synced(boot));
        } else {
            self.disk.syncing = false;
            self.disk.flush_failed = false;
            self.flush_to_kernel();
            self.sync_to_platter();
        }
    }

    /// What `kill -9` leaves.
    pub fn lose_memory(&mut self) {
        let pending = std::mem::take(&mut self.disk.pending);
        let kept = usize::try_from(self.rng.below(pending.len() as u64 + 1)).unwrap_or(0);
        let lost = pending[kept..].iter().any(|((of, _), _)| *of == Of::Records);
        self.lost_writes |= lost;
        // Whom the records do not know any more the guard does not count.
        self.truth.guarded.take_if(|_| lost);
        let torn = self.stormy && self.rng.chance(1_000);
        for (at, (key, mut value)) in pending.into_iter().take(kept).enumerate() {
            if torn
                && key.0 == Of::Records
                && at + 1 == kept
                && let Some(whole) = &mut value
            {
                let cut = usize::try_from(self.rng.below(whole.bytes.len() as u64)).unwrap_or(0);
                *whole = Value::new(whole.bytes[..cut].to_vec());
                let name = String::from_utf8_lossy(&key.1).into_owned();
                self.say(|| format!("disk: the record of {name} is torn"));
                if let Ok(name) = name.parse() {
                    self.excuse_all(&name);
                    self.truth.torn.insert(name);
                }
            }
            self.disk.give_to_kernel((key, value));
        }
        self.forget_what_is_lost();
        self.excuse_the_untold();
        self.disk.memory = self.disk.kernel.clone();
        (self.disk.flush_failed, self.disk.syncing) = (false, false);
    }

    fn sync_to_platter(&mut self) {
        for write in std::mem::take(&mut self.disk.unsynced) {
            Disk::write(&mut self.disk.platter, write);
        }
    }

    /// Nothing survives but the platter.
    pub fn power_cut(&mut self) {
        self.lost_writes = true;
        self.truth.guarded = None;
        self.disk.pending.clear();
        self.disk.unsynced.clear();
        self.disk.kernel = self.disk.platter.clone();
        self.reboot();
        self.note_power_cut();
    }
}

/// The records' table.
pub struct Records(pub Arc<Sim>);

impl Records {
    fn write(&self, call: &'static str, key: &[u8], value: Option<Vec<u8>>) -> io::Result<()> {
        let name: Option<Name> = std::str::from_utf8(key).ok().and_then(|key| key.parse().ok());
        if let Err(error) = self.0.before(call, name.as_ref()) {
            if let Some(name) = name {
                *self.0.world().disk.refused.entry(name).or_insert(0) += 1;
            }
            return Err(error);
        }
        if let Some(name) = &name {
            self.0.world().disk.refused.remove(name);
        }
        {
            let mut world = self.0.world();
            if let Some((name, waiting)) = name.as_ref().and_then(|name| Some((name, world.disk.waiting(name)?))) {
                world.truth.waited.insert(name.clone(), waiting);
            }
            world.note_write(Of::Records, key, value);
            world.step(name.as_ref());
            world.say(|| format!("{call} {}", String::from_utf8_lossy(key)));
        }
        self.0.behind(call, name.as_ref())
    }
}

impl Table for Records {
    fn insert(&self, key: &[u8], value: Vec<u8>) -> io::Result<()> {
        self.write("store.put", key, Some(value))
    }

    fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.write("store.remove", key, None)
    }

    fn flush(&self) -> io::Result<()> {
        self.save("store.flush", |_| ())
    }

    fn sync(&self) -> io::Result<()> {
        self.save("store.sync", World::sync_to_platter)
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        self.0.before("store.open", None)?;
        Ok(entries_of(Of::Records, &self.0.world().disk.memory))
    }
}

impl Records {
    fn save(&self, call: &'static str, further: impl Fn(&mut World)) -> io::Result<()> {
        let failed = self.0.before(call, None).and_then(|()| {
            let full = self.0.world().disk_is_full();
            if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        });
        let mut world = self.0.world();
        world.disk.flush_failed = failed.is_err();
        world.truth.flush_failed |= failed.is_err();
        failed?;
        world.flush_to_kernel();
        further(&mut world);
        drop(world);
        self.0.behind(call, None)
    }
}

/// The events' table: losing it costs history only, so it just works, and counts.
pub struct Events(pub Arc<Sim>);

impl Table for Events {
    fn insert(&self, key: &[u8], value: Vec<u8>) -> io::Result<()> {
        self.0.before("store.put event", None)?;
        let mut world = self.0.world();
        world.events += 1;
        world.note_write(Of::Events, key, Some(value));
        Ok(())
    }

    fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.0.world().note_write(Of::Events, key, None);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        Ok(entries_of(Of::Events, &self.0.world().disk.memory))
    }
}
