//! Who has to leave so that somebody else fits.
//!
//! Problem: of workloads that may be stopped, choose as few as make room, and of equally few those that are missed least.
//! Approach: whoever holds nothing of what is lacking is no victim. If not even the absence of all others makes room, nobody is one. Then one
//! victim is tried, the lowest priority first, of these the youngest run, which loses least; then each pair in the same order; beyond that, all
//! leave and the most deserving are let stay one after the other while there is still room, once by priority and once by how little they hold: the
//! shorter list wins.
//! Guarantees: exactly the fewest where one or two do; never more than are needed, since each of them is missed; deterministic.

use super::{Ask, Ledger, lacks, place};
use crate::model::machine::Machine;
use crate::model::name::Name;
use std::cmp::Reverse;
use std::time::Duration;

/// Candidates among which pairs are tried: 276 placements of some 20 us, once for a newcomer that preempts at all.
const PAIRED_MAX: usize = 24;
/// Candidates at most, those that are missed least: more would make one decision of many milliseconds.
const CANDIDATES_MAX: usize = 256;

/// One that may be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    pub name: &'a Name,
    pub priority: i32,
    /// How long its run has gone on.
    pub age: Duration,
}

/// The candidates that have to go for `ask` to be placed. None if it fits as things are, or would not even then.
pub fn victims<'a>(
    machine: &Machine,
    ledger: &Ledger,
    ask: &Ask<'_>,
    mut candidates: Vec<Candidate<'a>>,
) -> Vec<&'a Name> {
    let lacking = lacks(machine, ledger, ask);
    candidates.retain(|one| ledger.get(one.name).is_some_and(|held| held.takes().any(|what| lacking.contains(&what))));
    candidates.sort_by_key(|one| (one.priority, one.age, one.name));
    candidates.truncate(CANDIDATES_MAX);
    if lacking.is_empty() || candidates.is_empty() {
        return Vec::new();
    }
    let mut trial = Trial { machine, ask, ledger: ledger.clone() };
    let all: Vec<&Name> = candidates.iter().map(|one| one.name).collect();
    if !trial.fits_without(&all) {
        return Vec::new();
    }
    if let Some(one) = all.iter().find(|one| trial.fits_without(&[one])) {
        return vec![one];
    }
    let paired = &all[..all.len().min(PAIRED_MAX)];
    // The second one as humble as can be, so that the worse of the two is as little missed as possible.
    let mut pairs = (1..paired.len()).flat_map(|second| (0..second).map(move |first| [paired[first], paired[second]]));
    if let Some(pair) = pairs.find(|pair| trial.fits_without(pair)) {
        return pair.to_vec();
    }
    let by_merit: Vec<&Name> = all.iter().rev().copied().collect();
    let mut by_size = by_merit.clone();
    by_size.sort_by_key(|name| {
        let requested = ledger.get(name).map(|held| (held.grant.gpus.len(), held.grant.requested));
        requested.map(|(gpus, requested)| (gpus, requested.memory, requested.cpu))
    });
    [by_merit, by_size]
        .into_iter()
        .map(|order| trial.without_those_who_may_stay(&order))
        .min_by_key(Vec::len)
        .unwrap_or(all)
}

struct Trial<'a> {
    machine: &'a Machine,
    ask: &'a Ask<'a>,
    ledger: Ledger,
}

impl Trial<'_> {
    fn fits_without(&mut self, gone: &[&Name]) -> bool {
        let held: Vec<_> =
            gone.iter().filter_map(|name| Some(((*name).clone(), self.ledger.get(name)?.clone()))).collect();
        for name in gone {
            self.ledger.remove(name);
        }
        let fits = place(self.machine, &self.ledger, &self.ask.on_trial()).is_ok();
        for (name, holding) in held {
            self.ledger.put(name, holding);
        }
        fits
    }

    /// Who is left of these when each in turn stays if there is room all the same.
    fn without_those_who_may_stay<'n>(&mut self, first_to_stay: &[&'n Name]) -> Vec<&'n Name> {
        let mut gone = first_to_stay.to_vec();
        for name in first_to_stay {
            let rest: Vec<&Name> = gone.iter().copied().filter(|other| other != name).collect();
            if self.fits_without(&rest) {
                gone = rest;
            }
        }
        gone.sort_by_key(|name| Reverse(first_to_stay.iter().position(|other| other == name)));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topology::tests::flat;
    use crate::model::units::Bytes;
    use crate::place::tests::{machine, place_all, spec};
    use proptest::prelude::*;

    /// Who goes for `ask` of those that run, all with their priority and their age in seconds.
    fn check(running: &[(&str, &str, i32, u64)], ask: &str) -> String {
        let host = machine(flat(4));
        let workloads: Vec<(&str, &str)> = running.iter().map(|(name, fields, ..)| (*name, *fields)).collect();
        let (ledger, _) = place_all(&host, &workloads);
        let names: Vec<Name> = running.iter().map(|(name, ..)| name.parse().unwrap()).collect();
        let candidates = names.iter().zip(running).map(|(name, (_, _, priority, age))| Candidate {
            name,
            priority: *priority,
            age: Duration::from_secs(*age),
        });
        let asker = spec("asker", ask);
        let gone = victims(&host, &ledger, &Ask::of(&asker, None), candidates.collect());
        gone.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_fewest_go_then_the_lowest_then_the_youngest() {
        let running = [
            ("a", "memory: {request: 4Gi}", 0, 100),
            ("b", "memory: {request: 4Gi}", 0, 10),
            ("c", "memory: {request: 6Gi}", 5, 1),
            ("d", "cpu: {request: 1}", -9, 0),
        ];
        assert_eq!(check(&running, "memory: {request: 6Gi}"), "b", "the youngest of the lowest that do");
        assert_eq!(check(&running, "memory: {request: 8Gi}"), "c", "one of a higher priority rather than two");
        assert_eq!(check(&running, "memory: {request: 10Gi}"), "b a", "of the pairs the lower one");
        assert_eq!(check(&running, "memory: {request: 16Gi}"), "b a c", "all three, and not who holds none of it");
        assert_eq!(check(&running, "memory: {request: 17Gi}"), "", "nobody goes for what cannot be");
        assert_eq!(check(&running, "memory: {request: 2Gi}"), "", "nobody goes for what fits");
        assert_eq!(check(&running, "cpu: {request: 4}"), "d", "of what is lacking, not of what is not");
    }

    #[test]
    fn devices_and_exclusive_cpus_are_made_room_for_too() {
        let running = [
            ("one", "gpu: true", 0, 5),
            ("two", "gpu: 2", 0, 5),
            ("alone", "cpu: {class: exclusive, request: 2}", 0, 5),
        ];
        assert_eq!(check(&running, "gpu: 2"), "two");
        assert_eq!(check(&running, "gpu: 3"), "one two");
        assert_eq!(check(&running, "cpu: {class: exclusive, request: 3}"), "alone");
    }

    proptest! {
        #[test]
        fn each_victim_is_needed_and_together_they_make_room(
            held in proptest::collection::vec((1u64..8, -3i32..3, 0u64..9), 1..7),
            wanted in 1u64..18,
        ) {
            let host = machine(flat(4));
            let fields: Vec<(String, String)> = held
                .iter()
                .enumerate()
                .map(|(index, (memory, ..))| (format!("w{index}"), format!("memory: {{request: {memory}Gi}}")))
                .collect();
            let workloads: Vec<(&str, &str)> = fields.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
            let (ledger, _) = place_all(&host, &workloads);
            let names: Vec<Name> = fields.iter().map(|(name, _)| name.parse().unwrap()).collect();
            let candidates = names.iter().zip(&held).map(|(name, (_, priority, age))| Candidate {
                name,
                priority: *priority,
                age: Duration::from_secs(*age),
            });
            let asker = spec("asker", &format!("memory: {{request: {wanted}Gi}}"));
            let ask = Ask::of(&asker, None);
            let gone = victims(&host, &ledger, &ask, candidates.collect());
            let mut trial = Trial { machine: &host, ask: &ask, ledger: ledger.clone() };
            let fits = trial.fits_without(&[]);
            prop_assert_eq!(gone.is_empty(), fits || Bytes(wanted << 30) > host.memory);
            prop_assert!(gone.is_empty() || trial.fits_without(&gone));
            // No smaller set would do, whichever it is.
            let holders: Vec<&Name> = names.iter().filter(|name| ledger.get(name).is_some()).collect();
            for chosen in 0u32..1 << holders.len() {
                let set: Vec<&Name> = (0..holders.len()).filter(|at| chosen & (1 << at) != 0).map(|at| holders[at]).collect();
                if set.len() < gone.len() {
                    prop_assert!(!trial.fits_without(&set), "{set:?} would do, {gone:?} were chosen");
                }
            }
        }
    }
}
