//! How many of a workload there are to be, and what has to be there before.

use super::diagnostic::Problems;
use super::fields::Map;
use crate::model::name::Name;
use crate::model::replica::{self, REPLICAS_MAX, Replica};
use crate::model::spec::{Kind, REPLICA_VARIABLE, Spec};
use std::collections::{BTreeMap, BTreeSet};

/// Names in one `after`: more than anybody can reason about.
pub const AFTER_MAX: usize = 64;

/// Reads `replicas`: the first of them stands for all until [`expand`].
pub fn replicas(
    map: &Map<'_>,
    kind: Kind,
    name: Option<&Name>,
    env: Option<&BTreeMap<String, String>>,
    problems: &mut Problems,
) -> Option<Replica> {
    let field = map.get("replicas", problems)?;
    let count = field.integer(1..=REPLICAS_MAX, problems)?;
    if kind == Kind::Job && count > 1 {
        field.wrong("1 for a job", "a job is done once; give several jobs a name each", problems);
    }
    if env.is_some_and(|env| env.contains_key(REPLICA_VARIABLE)) {
        let message = format!("env.{REPLICA_VARIABLE} is set by the controller for a workload with `replicas`");
        problems.error(field.at(), message, "delete the variable, or delete `replicas`");
    }
    let of = name?.clone();
    if replica::name(&of, count - 1).is_none() {
        let help = "shorten the name; replicas are called NAME.1, NAME.2 and so on";
        problems.error(field.at(), format!("name {of} is too long for {count} replicas"), help);
    }
    Some(Replica { of, index: 0, count })
}

/// Reads `after`.
pub fn after(map: &Map<'_>, name: Option<&Name>, replica: Option<&Replica>, problems: &mut Problems) -> BTreeSet<Name> {
    let Some(field) = map.get("after", problems) else { return BTreeSet::new() };
    let Some(items) = field.list(problems) else { return BTreeSet::new() };
    if items.len() > AFTER_MAX {
        field.wrong(&format!("at most {AFTER_MAX} names"), "name what it needs itself, not what that needs", problems);
        return BTreeSet::new();
    }
    let mut after = BTreeSet::new();
    for item in items {
        match item.text(problems).map(str::parse::<Name>) {
            Some(Ok(other)) if name == Some(&other) || replica.is_some_and(|own| replica::is_of(&own.of, &other)) => {
                item.wrong("the name of another workload", "delete it; it would wait for itself for ever", problems);
            }
            Some(Ok(other)) => {
                after.insert(other);
            }
            Some(Err(reason)) => {
                let help = "write the names of workloads, for example `after: [db]`";
                problems.error(item.at(), format!("{} {reason}", item.name), help);
            }
            None => {}
        }
    }
    after
}

/// One spec for each replica. They differ in the name and the number alone.
pub fn expand(spec: Spec) -> Vec<Spec> {
    let Some(Replica { of, count, .. }) = spec.replica.clone() else { return vec![spec] };
    let nth = |index| {
        let name = replica::name(&of, index)?;
        Some(Spec { name, replica: Some(Replica { of: of.clone(), index, count }), ..spec.clone() })
    };
    (0..count).filter_map(nth).collect()
}

#[cfg(test)]
mod tests {
    use crate::manifest::parse;

    fn check(text: &str) -> String {
        let parsed = parse("web.yaml", text.as_bytes());
        let names = parsed.workloads.iter().map(|(spec, _)| format!("{} after {:?}\n", spec.name, spec.after));
        names.chain(parsed.diagnostics.iter().map(|found| format!("{found}\n"))).collect()
    }

    #[test]
    fn one_document_makes_several_workloads() {
        insta::assert_snapshot!(check("command: a\nreplicas: 3\nafter: [db, cache]"), @r#"
        web after {Name("cache"), Name("db")}
        web.1 after {Name("cache"), Name("db")}
        web.2 after {Name("cache"), Name("db")}
        "#);
    }

    #[test]
    fn numbers_and_names_that_cannot_be_are_refused() {
        insta::assert_snapshot!(check("command: a\nreplicas: 2\nafter: [web.1]"), @"
        web.yaml:3:9: after[0] is `web.1`, expected the name of another workload
          help: delete it; it would wait for itself for ever
        ");
        insta::assert_snapshot!(check("command: a\nreplicas: 0\nafter: [web]"), @"
        web.yaml:2:11: replicas is `0`, expected 1..=256
          help: write a whole number from 1 to 256
        web.yaml:3:9: after[0] is `web`, expected the name of another workload
          help: delete it; it would wait for itself for ever
        ");
        insta::assert_snapshot!(check("command: a\nreplicas: 257\nafter: db"), @"
        web.yaml:2:11: replicas is `257`, expected 1..=256
          help: write a whole number from 1 to 256
        web.yaml:3:8: after is `db`, expected a list
          help: write `after: [first, second]`
        ");
        insta::assert_snapshot!(check("command: a\nreplicas: 2\nkind: job\nafter: [../db]"), @"
        web.yaml:2:11: replicas is `2`, expected 1 for a job
          help: a job is done once; give several jobs a name each
        web.yaml:4:9: after[0] contains '/', expected letters, digits, `-`, `_` and `.`
          help: write the names of workloads, for example `after: [db]`
        ");
        insta::assert_snapshot!(check("command: a\nreplicas: 2\nenv: {CONTAINERCTL_REPLICA: x}"), @"
        web.yaml:2:11: env.CONTAINERCTL_REPLICA is set by the controller for a workload with `replicas`
          help: delete the variable, or delete `replicas`
        ");
        insta::assert_snapshot!(check(&format!("command: a\nreplicas: 11\nname: {}", "x".repeat(61))), @"
        web.yaml:2:11: name xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx is too long for 11 replicas
          help: shorten the name; replicas are called NAME.1, NAME.2 and so on
        ");
        insta::assert_snapshot!(check("name: web.1\ncommand: a\n---\nname: web\ncommand: a\nreplicas: 2"), @"
        web.1 after {}
        web.yaml:4:1: name web.1 is given to two documents of this file
          help: rename one of them
        ");
    }
}
