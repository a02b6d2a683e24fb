//! The simulated disk below the database: what the process has written, what the kernel has, and what is on the platter.
//!
//! `kill -9` loses what the kernel was not given: of the writes since the last flush some first ones are there, the last of them perhaps
//! torn. A power cut loses what was not synced.

use crate::world::{Event, Sim, World};
use containerctl::model::codec;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::store::{Entry, Table};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// As in the store: milliseconds after which a sync that failed is tried again.
const SYNC_AGAIN: u64 = 5_000;

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
pub struct Disk {
    /// As the process sees it.
    pub memory: Contents,
    /// Writes the kernel has not been given, in order; none is a removal.
    pending: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    kernel: Contents,
    platter: Contents,
    pub full_until: u64,
    syncing: bool,
    events: Contents,
    /// The last flush failed: what is only in memory may be lost, and the controller has been told.
    pub flush_failed: bool,
}

impl Disk {
    pub fn record(&self, name: &Name) -> Option<Record> {
        codec::decode(self.memory.get(name.as_str().as_bytes())?).ok()
    }

    /// What a controller would find now.
    pub fn flushed(&self, name: &Name) -> Option<Record> {
        codec::decode(self.kernel.get(name.as_str().as_bytes())?).ok()
    }

    fn write(contents: &mut Contents, (key, value): (Vec<u8>, Option<Vec<u8>>)) {
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
            Disk::write(&mut self.disk.kernel, write);
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
            self.disk.platter = self.disk.kernel.clone();
        }
    }

    /// What `kill -9` leaves.
    pub fn lose_memory(&mut self) {
        let pending = std::mem::take(&mut self.disk.pending);
        let kept = usize::try_from(self.rng.below(pending.len() as u64 + 1)).unwrap_or(0);
        self.lost_writes |= kept < pending.len();
        let torn = self.stormy && self.rng.chance(1_000);
        for (at, (key, mut value)) in pending.into_iter().take(kept).enumerate() {
            if torn
                && at + 1 == kept
                && let Some(bytes) = &mut value
            {
                let cut = usize::try_from(self.rng.below(bytes.len() as u64)).unwrap_or(0);
                bytes.truncate(cut);
                let name = String::from_utf8_lossy(&key).into_owned();
                self.say(|| format!("disk: the record of {name} is torn"));
                if let Ok(name) = name.parse() {
                    self.excuse_all(&name);
                    self.truth.torn.insert(name);
                }
            }
            Disk::write(&mut self.disk.kernel, (key, value));
        }
        self.forget_what_is_lost();
        self.excuse_the_untold();
        self.disk.memory = self.disk.kernel.clone();
        (self.disk.flush_failed, self.disk.syncing) = (false, false);
    }

    /// Nothing survives but the platter.
    pub fn power_cut(&mut self) {
        self.lost_writes = true;
        self.disk.pending.clear();
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
        self.0.before(call, name.as_ref())?;
        {
            let mut world = self.0.world();
            Disk::write(&mut world.disk.memory, (key.to_vec(), value.clone()));
            world.disk.pending.push((key.to_vec(), value));
            world.step(name.as_ref());
            world.say(|| format!("{call} {}", String::from_utf8_lossy(key)));
            if !std::mem::replace(&mut world.disk.syncing, true) {
                let (delay, boot) = (world.rng.below(25), world.kernel.boot);
                world.after(delay, Event::Synced(boot));
            }
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
        let failed = self.0.before("store.flush", None).and_then(|()| {
            let full = self.0.world().disk_is_full();
            if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        });
        let mut world = self.0.world();
        world.disk.flush_failed = failed.is_err();
        world.truth.flush_failed |= failed.is_err();
        failed?;
        world.flush_to_kernel();
        drop(world);
        self.0.behind("store.flush", None)
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        self.0.before("store.open", None)?;
        Ok(self.0.world().disk.memory.clone().into_iter().collect())
    }
}

/// The events' table: losing it costs history only, so it just works, and counts.
pub struct Events(pub Arc<Sim>);

impl Table for Events {
    fn insert(&self, key: &[u8], value: Vec<u8>) -> io::Result<()> {
        self.0.before("store.put event", None)?;
        let mut world = self.0.world();
        world.events += 1;
        world.disk.events.insert(key.to_vec(), value);
        Ok(())
    }

    fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.0.world().disk.events.remove(key);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        Ok(self.0.world().disk.events.clone().into_iter().collect())
    }
}
