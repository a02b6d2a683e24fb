//! What has happened, kept in order and in bounds, for `containerctl events`.
//!
//! Owns a ring of events. The database has the same ones a moment later, so that they outlive the controller; losing them costs nothing
//! but history. Invariants: sequence numbers only grow, across restarts too; at most [`EVENTS_MAX`] are kept.

use crate::model::event::{Event, News};
use crate::model::name::Name;
use crate::model::time::Timestamp;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Events kept, over all workloads: some days of a host with fifty workloads that is looked after, some hours of one that is not; about a
/// megabyte in memory and as much in the database.
pub const EVENTS_MAX: usize = 4096;
/// How far back a repetition is looked for. What has scrolled further away is told anew.
const AGAIN_WITHIN: usize = 256;

/// The events so far, shared by the loop that writes and the API that reads.
#[derive(Debug)]
pub struct Journal {
    ring: Mutex<VecDeque<Event>>,
    /// The newest sequence number, for those who wait for more.
    newest: watch::Sender<u64>,
}

/// What the database has to do to hold the same as the ring: never more than twice what the ring holds, however long the database takes
/// nothing, because what it was never given it is not told to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub put: Vec<Event>,
    /// By sequence number: the oldest, and those that are counted on under a new number.
    pub remove: Vec<u64>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }

    /// An event is no longer in the ring.
    fn take_back(&mut self, sequence: u64) {
        // In order of their numbers, the lowest first.
        match self.put.binary_search_by_key(&sequence, |event| event.sequence) {
            Ok(at) => drop(self.put.remove(at)),
            Err(_) => self.remove.push(sequence),
        }
    }
}

impl Journal {
    /// Goes on from what an earlier controller has noted.
    pub fn new(mut earlier: Vec<Event>) -> Journal {
        earlier.sort_by_key(|event| event.sequence);
        let ring: VecDeque<Event> = earlier.into();
        let newest = ring.back().map_or(0, |event| event.sequence);
        Journal { ring: Mutex::new(ring), newest: watch::Sender::new(newest) }
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // A panic while the lock was held is a bug elsewhere; the ring is consistent between any two statements.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what has happened.
    pub fn note(&self, news: Vec<News>, now: Timestamp, changes: &mut Changes) {
        if news.is_empty() {
            return;
        }
        let mut ring = self.ring();
        let mut sequence = *self.newest.borrow();
        for news in news {
            sequence += 1;
            let again = ring.iter().rev().take(AGAIN_WITHIN).position(|event| news.is_again(event));
            let place = again.map(|back| ring.len() - 1 - back);
            let before = place.and_then(|place| ring.remove(place));
            if let Some(before) = &before {
                changes.take_back(before.sequence);
            }
            let News { severity, workload, reason, message, run } = news;
            let (count, first) = before.map_or((0, now), |event| (event.count, event.first));
            let count = count.saturating_add(1);
            let event = Event {
                sequence,
                severity,
                workload,
                reason: reason.to_owned(),
                message,
                run,
                count,
                first,
                last: now,
            };
            ring.push_back(event.clone());
            changes.put.push(event);
        }
        while ring.len() > EVENTS_MAX {
            if let Some(oldest) = ring.pop_front() {
                changes.take_back(oldest.sequence);
            }
        }
        drop(ring);
        self.newest.send_replace(sequence);
    }

    /// The events behind a sequence number, oldest first, of one workload or of all.
    pub fn after(&self, sequence: u64, workload: Option<&Name>) -> Vec<Event> {
        let wanted = |event: &&Event| {
            event.sequence > sequence && workload.is_none_or(|name| event.workload.as_ref() == Some(name))
        };
        self.ring().iter().filter(wanted).cloned().collect()
    }

    /// The newest sequence number, as it grows.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(journal: &Journal) -> Vec<String> {
        let show = |event: &Event| format!("{} {} x{}", event.sequence, event.message, event.count);
        journal.after(0, None).iter().map(show).collect()
    }

    #[test]
    fn what_happens_again_is_counted_and_moves_to_the_end() {
        let journal = Journal::new(Vec::new());
        let web: Name = "web".parse().unwrap();
        let mut changes = Changes::default();
        for (at, message) in ["ended", "oom", "ended"].into_iter().enumerate() {
            journal.note(vec![News::warning(&web, "Ended", message)], Timestamp(at as u64), &mut changes);
        }
        assert_eq!(told(&journal), ["2 oom x1", "3 ended x2"]);
        let newest = journal.after(2, Some(&web)).remove(0);
        assert_eq!((newest.first, newest.last), (Timestamp(0), Timestamp(2)));
        assert_eq!((changes.put.len(), changes.remove), (2, vec![]), "the first was never given to the database");
        assert_eq!(journal.after(0, Some(&"db".parse().unwrap())), []);
    }

    #[test]
    fn the_oldest_make_room_and_numbers_go_on_after_a_restart() {
        let journal = Journal::new(Vec::new());
        let mut changes = Changes::default();
        let news: Vec<News> = (0..EVENTS_MAX + 2).map(|n| News::of_host("Test", format!("{n}"))).collect();
        journal.note(news, Timestamp(0), &mut changes);
        assert_eq!((changes.put.len(), changes.put[0].sequence, changes.remove.len()), (EVENTS_MAX, 3, 0));
        let kept = journal.after(0, None);
        assert_eq!((kept.len(), kept[0].sequence), (EVENTS_MAX, 3));
        let next = Journal::new(kept);
        next.note(vec![News::of_host("Test", "more")], Timestamp(1), &mut changes);
        assert_eq!(*next.newest().borrow(), EVENTS_MAX as u64 + 3);
        assert_eq!((changes.put[0].sequence, changes.remove.len()), (4, 0));
        // Those of an earlier controller are in the database.
        let mut changes = Changes::default();
        next.note(vec![News::of_host("Test", "and more")], Timestamp(2), &mut changes);
        assert_eq!((changes.put.len(), changes.remove), (1, vec![4]));
    }
}
