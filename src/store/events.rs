//! Events in the database: a tree of its own, keyed by sequence number, nothing that anything depends on.

use super::{Found, Store, StoreError, Table};
use crate::model::codec;
use crate::model::event::Event;

impl Store {
    /// Keeps events and drops others; durable with the next sync.
    pub fn keep_events(&self, put: &[Event], remove: &[u64]) -> Result<(), StoreError> {
        for sequence in remove {
            self.events.remove(&sequence.to_be_bytes()).map_err(StoreError::Events)?;
        }
        for event in put {
            // A value of ours that has no JSON does not exist.
            let Ok(bytes) = codec::encode_event(event) else { continue };
            self.events.insert(&event.sequence.to_be_bytes(), bytes).map_err(StoreError::Events)?;
        }
        self.wake();
        Ok(())
    }
}

/// Every event that can be read. The others are counted among the losses.
pub fn read(events: &dyn Table, found: &mut Found) -> Result<(), StoreError> {
    let entries = events.entries().map_err(StoreError::Events)?;
    let before = found.events.len();
    for (key, value) in &entries {
        match codec::decode_event(value) {
            Ok(event) => found.events.push(event),
            // No key of ours is of another length.
            Err(_) => found.unread.extend(key.as_slice().try_into().map(u64::from_be_bytes)),
        }
    }
    let unread = entries.len() - (found.events.len() - before);
    if unread > 0 {
        found.losses.push(format!("{unread} of {} events are damaged, or of a newer containerctl", entries.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::Severity;
    use crate::model::time::Timestamp;
    use crate::store::Place;

    #[test]
    fn events_outlive_the_store_in_order() {
        let state = tempfile::tempdir().unwrap();
        let event = |sequence| Event {
            sequence,
            severity: Severity::Normal,
            workload: None,
            reason: "Test".to_owned(),
            message: String::new(),
            run: None,
            count: 1,
            first: Timestamp(1),
            last: Timestamp(2),
        };
        let open = || {
            let spare = state.path().join("spare");
            Store::open(Place { state: state.path(), spare: &spare, turned: Box::new(|| ()) }).unwrap()
        };
        let (store, found) = open();
        assert_eq!(found.events, []);
        store.keep_events(&[event(1), event(300), event(2)], &[]).unwrap();
        store.keep_events(&[], &[1]).unwrap();
        drop(store);
        let (_, found) = open();
        assert_eq!((found.events, found.losses.len()), (vec![event(2), event(300)], 0));
    }

    #[test]
    fn an_event_that_is_damaged_is_missed_and_said() {
        let state = tempfile::tempdir().unwrap();
        let spare = state.path().join("spare");
        let open = || Store::open(Place { state: state.path(), spare: &spare, turned: Box::new(|| ()) }).unwrap();
        let (store, _) = open();
        store.events.insert(&7_u64.to_be_bytes(), b"\x01nonsense".to_vec()).unwrap();
        drop(store);
        let (store, found) = open();
        assert_eq!(found.losses, ["1 of 1 events are damaged, or of a newer containerctl"]);
        // Once is enough.
        store.keep_events(&[], &found.unread).unwrap();
        drop(store);
        assert_eq!(open().1.losses, [] as [String; 0]);
    }
}
