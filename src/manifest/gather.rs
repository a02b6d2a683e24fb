//! All files of a folder to what is desired of the host.
//!
//! Guarantees: each name is wanted once, whoever claims it; a workload whose manifest is broken, unreadable or half-written is *held*: it
//! goes on as it is recorded (P1). Only a name that no file mentions any more is gone.

use super::Parsed;
use super::diagnostic::Diagnostic;
use super::tree::Place;
use crate::model::desired::{Desired, Wanted};
use crate::model::name::Name;
use crate::model::record::Origin;
use crate::model::spec::Spec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Puts the files together. `owners` tells which path each recorded workload came from: where two files claim one name, the one that has
/// it keeps it; where none has, the first path in order gets it. `settling` files have disappeared a moment ago: they still count, but
/// not against a file that is there, so that a rename is no conflict.
pub fn gather(
    files: &BTreeMap<String, Arc<Parsed>>,
    settling: &BTreeSet<String>,
    owners: &BTreeMap<Name, String>,
) -> (Desired, Vec<Diagnostic>) {
    let (mut desired, mut diagnostics) = (Desired::default(), Vec::new());
    for (name, mut claims) in claims(files) {
        if claims.iter().any(|(_, origin)| !settling.contains(&origin.path)) {
            claims.retain(|(_, origin)| !settling.contains(&origin.path));
        }
        let owner = owners.get(&name);
        let chosen = claims.iter().position(|(_, origin)| Some(&origin.path) == owner).unwrap_or(0);
        for (index, (spec, origin)) in claims.iter().enumerate() {
            if index == chosen {
                let wanted = Wanted { spec: Arc::clone(spec), origin: (*origin).clone() };
                desired.wanted.insert(name.clone(), wanted);
            } else {
                diagnostics.push(taken(&name, origin, claims[chosen].1));
            }
        }
    }
    for (path, parsed) in files {
        diagnostics.extend(parsed.diagnostics.iter().cloned());
        if parsed.broken {
            let owned = owners.iter().filter(|(_, owner)| *owner == path).map(|(name, _)| name);
            for name in owned.chain(parsed.claims.iter().filter(|name| owners.contains_key(name))) {
                if !desired.wanted.contains_key(name) {
                    desired.held.insert(name.clone(), path.clone());
                }
            }
        }
    }
    diagnostics.sort();
    (desired, diagnostics)
}

fn claims(files: &BTreeMap<String, Arc<Parsed>>) -> BTreeMap<Name, Vec<(&Arc<Spec>, &Origin)>> {
    let mut claims: BTreeMap<Name, Vec<(&Arc<Spec>, &Origin)>> = BTreeMap::new();
    for (spec, origin) in files.values().flat_map(|parsed| &parsed.workloads) {
        claims.entry(spec.name.clone()).or_default().push((spec, origin));
    }
    claims
}

fn taken(name: &Name, refused: &Origin, kept: &Origin) -> Diagnostic {
    Diagnostic::error(
        &refused.path,
        Place { line: refused.line, column: 1 },
        format!("name {name} is taken by {}:{}", kept.path, kept.line),
        format!("rename one of the two: `name: {name}-2`"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn check(files: &[(&str, &str)], owners: &[(&str, &str)]) -> String {
        check_settling(files, &[], owners)
    }

    fn check_settling(files: &[(&str, &str)], settling: &[&str], owners: &[(&str, &str)]) -> String {
        let settling = settling.iter().map(|path| (*path).to_owned()).collect();
        let files =
            files.iter().map(|(path, text)| ((*path).to_owned(), Arc::new(parse(path, text.as_bytes())))).collect();
        let owners = owners.iter().map(|(name, path)| (name.parse().unwrap(), (*path).to_owned())).collect();
        let (Desired { wanted, held }, diagnostics) = gather(&files, &settling, &owners);
        let wanted = wanted.iter().map(|(name, wanted)| format!("want {name} from {}\n", wanted.origin.path));
        let held = held.iter().map(|(name, path)| format!("hold {name} because of {path}\n"));
        wanted.chain(held).chain(diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n"))).collect()
    }

    #[test]
    fn the_file_that_has_a_name_keeps_it() {
        insta::assert_snapshot!(check(&[("a.yaml", "name: web\ncommand: a"), ("b.yaml", "name: web\ncommand: b")], &[("web", "b.yaml")]), @r"
        want web from b.yaml
        a.yaml:1:1: name web is taken by b.yaml:1
          help: rename one of the two: `name: web-2`
        ");
    }

    #[test]
    fn of_two_new_files_the_first_in_order_gets_the_name() {
        insta::assert_snapshot!(check(&[("b.yaml", "name: web\ncommand: b"), ("a.yaml", "name: web\ncommand: a")], &[]), @r"
        want web from a.yaml
        b.yaml:1:1: name web is taken by a.yaml:1
          help: rename one of the two: `name: web-2`
        ");
    }

    #[test]
    fn a_rename_hands_the_name_over_at_once() {
        let files = [("a.yaml", "name: web\ncommand: x"), ("b.yaml", "name: web\ncommand: x")];
        let owners = [("web", "a.yaml")];
        assert_eq!(check_settling(&files, &["a.yaml"], &owners), "want web from b.yaml\n");
        assert_eq!(check_settling(&files[..1], &["a.yaml"], &owners), "want web from a.yaml\n");
    }

    #[test]
    fn a_broken_file_holds_what_it_had_and_what_it_claims() {
        insta::assert_snapshot!(check(
            &[("web.yaml", "command: ["), ("db.yaml", ""), ("new.yaml", "name: cache\ncommand: 7 'x\n"), ("fresh.yaml", "comand: x")],
            &[("web", "web.yaml"), ("db", "db.yaml"), ("cache", "old.yaml"), ("gone", "gone.yaml")],
        ), @r"
        hold cache because of new.yaml
        hold db because of db.yaml
        hold web because of web.yaml
        db.yaml:1:1: is empty
          help: delete the file to stop its workload, or write the manifest; an empty file changes nothing
        fresh.yaml:1:1: command is missing
          help: add what to run, for example `command: sleep infinity`
        fresh.yaml:1:1: unknown field comand
          help: did you mean `command`?
        new.yaml:2:10: command is `7 \'x`, expected balanced quotes
          help: close the quote, or write the command as a list: `command: [program, argument]`
        web.yaml:1:10: is not readable YAML: unclosed bracket '['
          help: mend the file; `containerctl validate FILE` checks it before it is copied here
        ");
    }

    #[test]
    fn one_bad_document_holds_only_the_names_it_stood_for() {
        insta::assert_snapshot!(check(
            &[("all.yaml", "name: a\ncommand: x\n---\nname: b\ncommand: x\ncpu: -1\n---\nname: c\ncommand: x\n")],
            &[("a", "all.yaml"), ("b", "all.yaml"), ("c", "all.yaml")],
        ), @r"
        want a from all.yaml
        want c from all.yaml
        hold b because of all.yaml
        all.yaml:6:6: cpu is `-1`, which is negative
          help: write for example `cpu: 2`
        ");
    }
}
