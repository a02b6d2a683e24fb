//! Events in the database: a tree of its own, keyed by sequence number, nothing that anything depends on.

use super::{Store, StoreError, Table};
use crate::model::event::Event;

impl Store {
    /// Keeps events and drops others; durable with the next sync.
    pub fn keep_events(&self, put: &[Event], remove: &[u64]) -> Result<(), StoreError> {
        for sequence in remove {
            self.events.remove(&sequence.to_be_bytes()).map_err(StoreError::Events)?;
        }
        for event in put {
            // A value of ours that has no JSON does not exist.
            let Ok(json) = serde_json::to_vec(event) else { continue };
            self.events.insert(&event.sequence.to_be_bytes(), json).map_err(StoreError::Events)?;
        }
        self.wake();
        Ok(())
    }
}

/// Every event that can be read. One that cannot be read is of another version or damaged, and no loss worth a word.
pub fn read(events: &dyn Table) -> Result<Vec<Event>, StoreError> {
    let entries = events.entries().map_err(StoreError::Events)?;
    Ok(entries.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
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
        assert_eq!(found.events, [event(2), event(300)]);
    }
}
