//! Records the database has not taken: they are in force, and are given to it again until it does.
//!
//! A step waits for its record to be kept, but not for ever: a disk that takes nothing must not keep a workload from being stopped or
//! started again. Then the step is taken all the same, and a crash before the disk recovers forgets what led to it.

use super::state::State;
use crate::model::clock::Time;
use crate::model::name::Name;
use crate::plan::{Act, Plan, Work};
use std::collections::BTreeMap;

/// Tries to keep a record before its step is taken without: with the doubling wait after each failure, a quarter of a second.
const TRIES_MAX: u32 = 3;

/// By workload, how often the database has refused its record in a row.
#[derive(Debug, Default)]
pub struct Unsaved(BTreeMap<Name, u32>);

impl Unsaved {
    /// Whether a step is to wait for its record.
    pub fn may_wait(&self, name: &Name) -> bool {
        self.0.get(name).is_none_or(|tries| *tries < TRIES_MAX)
    }

    pub fn saved(&mut self, name: &Name) {
        self.0.remove(name);
    }

    pub fn refused(&mut self, name: &Name) {
        *self.0.entry(name.clone()).or_insert(0) += 1;
    }
}

impl State {
    /// Has records that were refused put again: with the workload's step, or by themselves.
    pub fn add_unsaved(&self, plan: &mut Plan, now: Time) {
        for name in self.unsaved.0.keys() {
            let Some(record) = self.records.get(name) else { continue };
            if let Some(work) = plan.work.iter_mut().find(|work| work.name == *name) {
                if work.act != Act::Forget {
                    work.record.get_or_insert_with(|| record.clone());
                }
                continue;
            }
            match self.setbacks.get(name).map(|setback| setback.retry_at) {
                Some(retry_at) if now.steady < retry_at => {
                    let retry_at = now.wall_at(retry_at);
                    plan.wake_at = Some(plan.wake_at.map_or(retry_at, |at| at.min(retry_at)));
                }
                _ if self.in_flight.contains(name) => {}
                _ => plan.work.push(Work {
                    name: name.clone(),
                    record: Some(record.clone()),
                    act: Act::Remember,
                    reason: "the database has not taken it yet".to_owned(),
                    done: None,
                    failed: None,
                }),
            }
        }
    }
}
