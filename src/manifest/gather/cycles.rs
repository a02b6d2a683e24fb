//! Manifests that wait for each other in a circle: refused with the circle named, and nothing of theirs is ended for it.

use super::Files;
use crate::manifest::diagnostic::Diagnostic;
use crate::manifest::tree::Place;
use crate::manifest::{Parsed, order};
use crate::model::desired::{Desired, Held, Wanted};
use crate::model::name::Name;
use crate::model::replica;
use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

/// Refuses those that wait for each other in a circle; what is recorded goes on as it is, replicas included that a refused manifest asks no
/// more for: it was never accepted.
pub(super) fn refuse(desired: &mut Desired, files: &Files, owners: &BTreeMap<Name, String>) -> Vec<Diagnostic> {
    let cycles = order::cycles(&desired.wanted);
    let goes_round = |wanted: &Wanted| cycles.contains_key(wanted.spec.workload());
    let (refused, wanted): (BTreeMap<Name, Wanted>, _) =
        mem::take(&mut desired.wanted).into_iter().partition(|(_, wanted)| goes_round(wanted));
    desired.wanted = wanted;
    let mut diagnostics = Vec::new();
    for (workload, circle) in &cycles {
        let of_it = |(_, wanted): &(&Name, &Wanted)| wanted.spec.workload() == workload;
        let Some((_, Wanted { origin, .. })) = refused.iter().find(of_it) else { continue };
        let found = Diagnostic::error(
            &origin.path,
            Place { line: origin.line, column: 1 },
            format!("after of {workload} goes round in a circle: {circle}"),
            "none of them could ever start first: take one of the names out of its `after`",
        );
        let held =
            Held { path: origin.path.clone(), revision: Some(origin.revision.clone()), finding: found.headline() };
        // A name of the same form that another file has is another workload's.
        let is_its = |name: &Name, path: &String| {
            let says = |parsed: &Arc<Parsed>| {
                let claimed = parsed.claims.iter().any(|claim| replica::is_of(&claim.name, name));
                claimed || parsed.workloads.iter().any(|(spec, _)| spec.name == *name)
            };
            let moved = *path == origin.path || !files.get(path).is_some_and(says);
            refused.contains_key(name) || moved && !desired.wanted.contains_key(name)
        };
        let known = owners.iter().filter(|(name, path)| replica::is_of(workload, name) && is_its(name, path));
        desired.held.extend(known.map(|(name, _)| (name.clone(), held.clone())));
        let unknown = refused.iter().filter(of_it).map(|(name, _)| name).filter(|name| !owners.contains_key(*name));
        desired.refused.extend(unknown.map(|name| (name.clone(), held.finding.clone())));
        diagnostics.push(found);
    }
    diagnostics
}

#[cfg(test)]
mod tests {
    use crate::manifest::gather::tests::check;

    #[test]
    fn a_manifest_refused_for_a_circle_ends_no_replica_that_it_asks_no_more_for() {
        let files = [
            ("a.yaml", "name: a\ncommand: a\nreplicas: 1\nafter: [b]\n---\nname: b.1\ncommand: x"),
            ("b.yaml", "command: b\nafter: [a]"),
        ];
        let said =
            check(&files, &[("a", "a.yaml"), ("a.1", "a.yaml"), ("b", "b.yaml"), ("b.1", "a.yaml"), ("ax", "a.yaml")]);
        let held: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("hold ")?.split(' ').next()).collect();
        assert_eq!(held, ["a", "a.1", "b"], "{said}");
    }

    #[test]
    fn a_workload_that_moved_out_of_a_file_that_is_still_there_keeps_its_replicas() {
        let files = [("all.yaml", "name: db\ncommand: d"), ("web.yaml", "name: web\ncommand: w\nafter: [web]")];
        let said = check(&files, &[("db", "all.yaml"), ("web", "all.yaml"), ("web.1", "all.yaml")]);
        assert!(said.contains("hold web ") && said.contains("hold web.1 "), "{said}");
    }

    #[test]
    fn a_circle_is_named_and_only_its_members_are_refused() {
        insta::assert_snapshot!(check(
            &[
                ("a.yaml", "command: x\nafter: [b.1, free]\nreplicas: 2"),
                ("b.yaml", "command: x\nafter: [c]\nreplicas: 2"),
                ("c.yaml", "command: x\nafter: [a, unknown]"),
                ("late.yaml", "command: x\nafter: [a]"),
                ("free.yaml", "command: x"),
            ],
            &[("c", "c.yaml")],
        ), @"
        want free from free.yaml
        want late from late.yaml
        hold c because of c.yaml:1:1: after of c goes round in a circle: c -> a -> b -> c
        a.yaml:1:1: after of a goes round in a circle: a -> b -> c -> a
          help: none of them could ever start first: take one of the names out of its `after`
        b.yaml:1:1: after of b goes round in a circle: b -> c -> a -> b
          help: none of them could ever start first: take one of the names out of its `after`
        c.yaml:1:1: after of c goes round in a circle: c -> a -> b -> c
          help: none of them could ever start first: take one of the names out of its `after`
        ");
    }
}
