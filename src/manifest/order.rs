//! Workloads that wait for each other in a circle.
//!
//! Guarantee: exactly the members of a circle are refused, each with the whole circle; what only waits for one of them is not.

use crate::model::desired::Wanted;
use crate::model::name::Name;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

type Edges<'a> = BTreeMap<&'a Name, BTreeSet<&'a Name>>;

/// Each workload that is in a circle, and the shortest one it is in: `a -> b -> a`. Replicas count as their workload.
pub fn cycles(wanted: &BTreeMap<Name, Wanted>) -> BTreeMap<Name, String> {
    let mut edges = Edges::new();
    for Wanted { spec, .. } in wanted.values() {
        let others = spec.after.iter().map(|other| wanted.get(other).map_or(other, |wanted| wanted.spec.workload()));
        edges.entry(spec.workload()).or_default().extend(others);
    }
    // Whoever waits for nobody who waits is in no circle. Most often that leaves nothing, at once.
    loop {
        let waiting: BTreeSet<&Name> = edges
            .iter()
            .filter(|(_, others)| others.iter().any(|other| edges.contains_key(other)))
            .map(|(name, _)| *name)
            .collect();
        if waiting.len() == edges.len() {
            break;
        }
        edges.retain(|name, _| waiting.contains(name));
    }
    edges.keys().filter_map(|name| Some(((*name).clone(), circle(&edges, name)?))).collect()
}

/// The shortest way from a workload back to itself.
fn circle(edges: &Edges<'_>, start: &Name) -> Option<String> {
    let mut came_from: BTreeMap<&Name, &Name> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(name) = queue.pop_front() {
        for other in edges.get(name).into_iter().flatten().copied() {
            if other == start {
                let mut way = vec![start.as_str()];
                let mut at = name;
                while at != start {
                    way.push(at.as_str());
                    at = came_from.get(at)?;
                }
                way.push(start.as_str());
                way.reverse();
                return Some(way.join(" -> "));
            }
            if !came_from.contains_key(other) {
                came_from.insert(other, name);
                queue.push_back(other);
            }
        }
    }
    None
}
