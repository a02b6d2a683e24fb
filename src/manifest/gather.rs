//! All files of a folder to what is desired of the host.
//!
//! Guarantees: each name is wanted once, whoever claims it; a workload whose manifest is broken, unreadable or half-written is *held*: it
//! goes on as it is recorded (P1). Only a name that no file mentions any more, or only for other hosts, is gone.

mod cycles;
mod names;

use super::Parsed;
use super::diagnostic::{Diagnostic, Severity};
use super::tree::Place;
use crate::model::desired::{Desired, Held, Wanted};
use crate::model::label::{HostLabels, Mismatch};
use crate::model::name::Name;
use crate::model::record::Origin;
use crate::model::replica;
use crate::model::spec::Spec;
use names::{Told, keepers, rename, rename_either, taken};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type Files = BTreeMap<String, Arc<Parsed>>;

/// Puts the files together for the host with these labels. `owners` tells which path each recorded workload came from: where two files
/// claim one name, the one that has it keeps it, even while it is broken; where none has, the first path in order gets it. `settling`
/// files have disappeared a moment ago: they still count, but not against a file that is there, so that a rename is no conflict.
pub fn gather(
    files: &Files,
    settling: &BTreeSet<String>,
    owners: &BTreeMap<Name, String>,
    host: &HostLabels,
) -> (Desired, Vec<Diagnostic>) {
    let (mut desired, mut diagnostics) = (Desired::default(), Vec::new());
    let (claims, elsewhere) = claims(files, host);
    for (spec, origin, mismatch) in elsewhere {
        desired.elsewhere.insert(spec.name.clone(), format!("{} {mismatch}", origin.path));
        if spec.name == *spec.workload() {
            diagnostics.push(not_here(&spec.name, origin, &mismatch));
        }
    }
    let mut told = Told::default();
    let keepers = keepers(&claims, files, settling, owners);
    let mut refused = Vec::new();
    for (name, mut claims) in claims {
        if claims.iter().any(|(_, origin)| !settling.contains(&origin.path)) {
            claims.retain(|(_, origin)| !settling.contains(&origin.path));
        }
        let owner = owners.get(&name);
        let (kept, others): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|(spec, origin)| keepers[spec.workload()].is(origin));
        for (spec, origin) in others {
            let help = if owner.is_some() { rename(spec) } else { rename_either(spec) };
            let found = taken(spec, origin, &keepers[spec.workload()].to_string(), help);
            // It runs by what is refused now, perhaps under another path: P1. Of what the keeper had it asks for less.
            if owner.is_some_and(|owner| *owner != keepers[spec.workload()].path) {
                refused.push((name.clone(), origin.clone(), found.headline()));
            }
            if !settling.contains(&origin.path) {
                diagnostics.extend(told.once(found, spec));
            }
        }
        // From here on those of one document of each workload: the name is a replica's of one and the whole of another.
        if let Some(path) = owner.filter(|path| !settling.contains(*path) && still_claims(files.get(*path), &name)) {
            let others = kept.iter().filter(|(_, origin)| origin.path != *path);
            diagnostics
                .extend(others.filter_map(|(spec, origin)| told.once(taken(spec, origin, path, rename(spec)), spec)));
            continue;
        }
        let chosen = kept.iter().position(|(_, origin)| Some(&origin.path) == owner).unwrap_or(0);
        for (index, (spec, origin)) in kept.iter().enumerate() {
            if index == chosen {
                let wanted = Wanted { spec: Arc::clone(spec), origin: (*origin).clone() };
                desired.wanted.insert(name.clone(), wanted);
            } else {
                let keeper = kept[chosen].1;
                let help = if owner.is_some() { rename(spec) } else { rename_either(spec) };
                let found = taken(spec, origin, &format!("{}:{}", keeper.path, keeper.line), help);
                diagnostics.extend(told.once(found, spec));
            }
        }
    }
    for (name, origin, finding) in refused {
        if !desired.wanted.contains_key(&name) {
            let revision = Some(origin.revision).filter(|revision| !revision.is_empty());
            desired.held.insert(name, Held { path: origin.path, revision, finding });
        }
    }
    for (path, parsed) in files {
        diagnostics.extend(parsed.diagnostics.iter().cloned());
        if parsed.broken {
            let owned = owners.iter().filter(|(_, owner)| *owner == path).map(|(name, _)| name);
            // A claim to what another file has, and may ask less of, holds nothing.
            let claims = || parsed.claims.iter().filter(|claim| !desired.wanted.contains_key(&claim.name));
            let claimed: Vec<&Name> =
                owners.keys().filter(|name| claims().any(|claim| replica::is_of(&claim.name, name))).collect();
            for name in owned.chain(claimed) {
                let good_for_others = parsed.workloads.iter().any(|(spec, _)| spec.name == *name);
                if !desired.wanted.contains_key(name) && !good_for_others {
                    desired.held.insert(name.clone(), held(path, parsed, name));
                }
            }
        }
    }
    for claim in files.values().filter(|parsed| parsed.broken).flat_map(|parsed| &parsed.claims) {
        if !desired.wanted.contains_key(&claim.name) && !owners.contains_key(&claim.name) {
            desired.refused.insert(claim.name.clone(), claim.finding.clone());
        }
    }
    diagnostics.extend(cycles::refuse(&mut desired, files, owners));
    desired.elsewhere.retain(|name, _| !desired.wanted.contains_key(name) && !desired.held.contains_key(name));
    diagnostics.sort();
    (desired, diagnostics)
}

type Claims<'a> = BTreeMap<Name, Vec<(&'a Arc<Spec>, &'a Origin)>>;
type Elsewhere<'a> = Vec<(&'a Arc<Spec>, &'a Origin, Mismatch)>;

/// The good documents by name: those for this host, and those for others.
fn claims<'a>(files: &'a Files, host: &HostLabels) -> (Claims<'a>, Elsewhere<'a>) {
    let (mut claims, mut elsewhere) = (Claims::new(), Vec::new());
    for (spec, origin) in files.values().flat_map(|parsed| &parsed.workloads) {
        match host.mismatch(&spec.hosts) {
            None => claims.entry(spec.name.clone()).or_default().push((spec, origin)),
            Some(mismatch) => elsewhere.push((spec, origin, mismatch)),
        }
    }
    (claims, elsewhere)
}

/// Whether a broken file may still stand for a name: it says so, or nothing of it can be read.
fn still_claims(parsed: Option<&Arc<Parsed>>, name: &Name) -> bool {
    parsed.is_some_and(|parsed| {
        let unreadable = parsed.workloads.is_empty() && parsed.claims.is_empty();
        parsed.broken && (unreadable || parsed.claims.iter().any(|claim| replica::is_of(&claim.name, name)))
    })
}

fn held(path: &str, parsed: &Parsed, name: &Name) -> Held {
    let of_its_own =
        parsed.claims.iter().find(|claim| replica::is_of(&claim.name, name)).map(|claim| claim.finding.clone());
    let of_the_file = || parsed.diagnostics.iter().find(|found| found.severity == Severity::Error);
    let finding = of_its_own.or_else(|| of_the_file().map(Diagnostic::headline));
    Held {
        path: path.to_owned(),
        revision: Some(parsed.revision.clone()).filter(|revision| !revision.is_empty()),
        finding: finding.unwrap_or_else(|| "it is being written".to_owned()),
    }
}

fn not_here(name: &Name, origin: &Origin, mismatch: &Mismatch) -> Diagnostic {
    let at = Place { line: origin.line, column: 1 };
    let help = "as meant, if it is for other hosts; else start the controller with the label: --label KEY=VALUE";
    Diagnostic { severity: Severity::Info, ..Diagnostic::error(&origin.path, at, format!("{name} {mismatch}"), help) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::manifest::parse;

    pub(in crate::manifest) fn check(files: &[(&str, &str)], owners: &[(&str, &str)]) -> String {
        check_settling(files, &[], owners)
    }

    fn check_settling(files: &[(&str, &str)], settling: &[&str], owners: &[(&str, &str)]) -> String {
        let settling = settling.iter().map(|path| (*path).to_owned()).collect();
        let files =
            files.iter().map(|(path, text)| ((*path).to_owned(), Arc::new(parse(path, text.as_bytes())))).collect();
        let owners = owners.iter().map(|(name, path)| (name.parse().unwrap(), (*path).to_owned())).collect();
        let host = HostLabels::new("edge-7", "x86_64", &["role=cpu".parse().unwrap()]);
        let (Desired { wanted, held, guarded: _, away: _, refused: _, elsewhere }, diagnostics) =
            gather(&files, &settling, &owners, &host);
        let wanted = wanted.iter().map(|(name, wanted)| format!("want {name} from {}\n", wanted.origin.path));
        let held = held.iter().map(|(name, held)| format!("hold {name} because of {}\n", held.finding));
        let elsewhere = elsewhere.iter().map(|(name, why)| format!("stop {name}: {why}\n"));
        wanted
            .chain(held)
            .chain(elsewhere)
            .chain(diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")))
            .collect()
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
          help: rename one of the two: `name: web-2`; a controller that runs one of them keeps that one
        ");
    }

    #[test]
    fn a_workload_has_all_its_replicas_from_one_file() {
        let files = [("a.yaml", "name: web\ncommand: a"), ("b.yaml", "name: web\ncommand: b\nreplicas: 3")];
        insta::assert_snapshot!(check(&files, &[]), @r"
        want web from a.yaml
        b.yaml:1:1: name web is taken by a.yaml:1
          help: rename one of the two: `name: web-2`; a controller that runs one of them keeps that one
        ");
        insta::assert_snapshot!(check(&files, &[("web", "b.yaml"), ("web.1", "b.yaml")]), @r"
        want web from b.yaml
        want web.1 from b.yaml
        want web.2 from b.yaml
        a.yaml:1:1: name web is taken by b.yaml:1
          help: rename one of the two: `name: web-2`
        ");
        // It runs by what is refused now.
        insta::assert_snapshot!(check(&files, &[("web", "a.yaml"), ("web.1", "b.yaml")]), @r"
        want web from a.yaml
        hold web.1 because of b.yaml:1:1: name web.1 is taken by a.yaml:1
        b.yaml:1:1: name web is taken by a.yaml:1
          help: rename one of the two: `name: web-2`
        ");
        // The keeper has just asked for less, and the other for more.
        let fewer = check(&files, &[("web", "a.yaml"), ("web.1", "a.yaml")]);
        assert!(!fewer.contains("hold "), "{fewer}");
        // The file that had them has just gone.
        let owners = [("web", "b.yaml"), ("web.1", "b.yaml")];
        insta::assert_snapshot!(check_settling(&files, &["b.yaml"], &owners), @r"
        want web from a.yaml
        hold web.1 because of b.yaml:1:1: name web.1 is taken by a.yaml:1
        ");
    }

    #[test]
    fn a_rename_beside_a_refused_file_changes_nothing() {
        let [renamed, refused] = ["name: web\ncommand: b\nreplicas: 3", "name: web\ncommand: a"];
        let files = [("a.yaml", refused), ("b.yaml", renamed), ("c.yaml", renamed)];
        let owners = [("web", "b.yaml"), ("web.1", "b.yaml"), ("web.2", "b.yaml")];
        let said = check_settling(&files, &["b.yaml"], &owners);
        assert!(said.starts_with("want web from c.yaml\nwant web.1 from c.yaml\nwant web.2 from c.yaml\n"), "{said}");
        // Renamed and edited at once: which of the two is meant nobody knows, and nobody is ended for it.
        let files = [files[0], files[1], ("c.yaml", "name: web\ncommand: c\nreplicas: 3")];
        let said = check_settling(&files, &["b.yaml"], &owners);
        assert!(said.contains("hold web.1 ") && said.contains("hold web.2 "), "{said}");
    }

    #[test]
    fn a_rename_hands_the_name_over_at_once() {
        let files = [("a.yaml", "name: web\ncommand: x"), ("b.yaml", "name: web\ncommand: x")];
        let owners = [("web", "a.yaml")];
        assert_eq!(check_settling(&files, &["a.yaml"], &owners), "want web from b.yaml\n");
        assert_eq!(check_settling(&files[..1], &["a.yaml"], &owners), "want web from a.yaml\n");
    }

    #[test]
    fn a_broken_file_holds_no_replica_that_a_good_one_asks_no_more_for() {
        let files = [("also-web.yaml", "name: web\ncommand: a\nreplicas: 1"), ("web.yaml", "name: web\ncomand: a")];
        let said = check(&files, &[("web", "also-web.yaml"), ("web.1", "also-web.yaml")]);
        assert!(said.starts_with("want web from also-web.yaml\n") && !said.contains("hold "), "{said}");
    }

    #[test]
    fn a_broken_file_holds_what_it_had_and_what_it_claims() {
        insta::assert_snapshot!(check(
            &[("web.yaml", "command: ["), ("db.yaml", ""), ("new.yaml", "name: cache\ncommand: 7 'x\n"), ("fresh.yaml", "comand: x")],
            &[("web", "web.yaml"), ("db", "db.yaml"), ("cache", "old.yaml"), ("gone", "gone.yaml")],
        ), @r"
        hold cache because of new.yaml:2:10: command is `7 \'x`, expected balanced quotes
        hold db because of db.yaml:1:1: is empty
        hold web because of web.yaml:1:10: is not readable YAML: unclosed bracket '['
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
        hold b because of all.yaml:6:6: cpu is `-1`, which is negative
        all.yaml:6:6: cpu is `-1`, which is negative
          help: write for example `cpu: 2`
        ");
    }

    #[test]
    fn a_broken_owner_keeps_its_name_and_one_that_let_go_of_it_does_not() {
        let good = ("b.yaml", "name: web\ncommand: b");
        insta::assert_snapshot!(check(&[("a.yaml", "name: web\ncommand: ["), good], &[("web", "a.yaml")]), @r"
        hold web because of a.yaml:2:10: is not readable YAML: unclosed bracket '['
        a.yaml:2:10: is not readable YAML: unclosed bracket '['
          help: mend the file; `containerctl validate FILE` checks it before it is copied here
        b.yaml:1:1: name web is taken by a.yaml
          help: rename one of the two: `name: web-2`
        ");
        insta::assert_snapshot!(check(&[("a.yaml", "name: web\ncomand: a"), good], &[("web", "a.yaml")]), @r"
        hold web because of a.yaml:1:1: command is missing
        a.yaml:1:1: command is missing
          help: add what to run, for example `command: sleep infinity`
        a.yaml:2:1: unknown field comand
          help: did you mean `command`?
        b.yaml:1:1: name web is taken by a.yaml
          help: rename one of the two: `name: web-2`
        ");
        insta::assert_snapshot!(check(&[("a.yaml", "name: db\ncomand: a"), good], &[("web", "a.yaml")]), @r"
        want web from b.yaml
        a.yaml:1:1: command is missing
          help: add what to run, for example `command: sleep infinity`
        a.yaml:2:1: unknown field comand
          help: did you mean `command`?
        ");
        assert_eq!(
            check_settling(&[("a.yaml", "["), good], &["a.yaml"], &[("web", "a.yaml")]).lines().next(),
            Some("want web from b.yaml")
        );
    }

    #[test]
    fn a_manifest_for_other_hosts_is_no_error_and_takes_no_name() {
        insta::assert_snapshot!(check(
            &[
                ("a.yaml", "name: web\nhosts: {role: gpu}\ncommand: a"),
                ("b.yaml", "name: web\nhosts: {role: cpu, hostname: edge-7}\ncommand: b"),
                ("c.yaml", "hosts: {zone: a}\ncommand: c"),
                ("d.yaml", "command: ["),
                ("e.yaml", "name: d\nhosts: {role: gpu}\ncommand: d"),
                ("f.yaml", "name: f\nhosts: {role: gpu}\ncommand: f\n---\nname: g\ncomand: g\n"),
            ],
            &[("web", "a.yaml"), ("c", "c.yaml"), ("d", "d.yaml"), ("f", "f.yaml"), ("g", "f.yaml")],
        ), @r"
        want web from b.yaml
        hold d because of d.yaml:1:10: is not readable YAML: unclosed bracket '['
        hold g because of f.yaml:5:1: command is missing
        stop c: c.yaml is for hosts with zone=a; this one has no label zone
        stop f: f.yaml is for hosts with role=gpu; this one has role=cpu
        a.yaml:1:1: note: web is for hosts with role=gpu; this one has role=cpu
          help: as meant, if it is for other hosts; else start the controller with the label: --label KEY=VALUE
        c.yaml:1:1: note: c is for hosts with zone=a; this one has no label zone
          help: as meant, if it is for other hosts; else start the controller with the label: --label KEY=VALUE
        d.yaml:1:10: is not readable YAML: unclosed bracket '['
          help: mend the file; `containerctl validate FILE` checks it before it is copied here
        e.yaml:1:1: note: d is for hosts with role=gpu; this one has role=cpu
          help: as meant, if it is for other hosts; else start the controller with the label: --label KEY=VALUE
        f.yaml:1:1: note: f is for hosts with role=gpu; this one has role=cpu
          help: as meant, if it is for other hosts; else start the controller with the label: --label KEY=VALUE
        f.yaml:5:1: command is missing
          help: add what to run, for example `command: sleep infinity`
        f.yaml:6:1: unknown field comand
          help: did you mean `command`?
        ");
    }

    #[test]
    fn replicas_have_names_of_their_own_and_nobody_elses() {
        let files = [("web.yaml", "command: a\nreplicas: 3"), ("x.yaml", "name: web.1\ncommand: b")];
        insta::assert_snapshot!(check(&files, &[]), @"
        want web from web.yaml
        want web.1 from web.yaml
        want web.2 from web.yaml
        x.yaml:1:1: name web.1 is taken by web.yaml:1
          help: rename one of the two: `name: web.1-2`; a controller that runs one of them keeps that one
        ");
        insta::assert_snapshot!(check(&files, &[("web.1", "x.yaml")]), @"
        want web from web.yaml
        want web.1 from x.yaml
        want web.2 from web.yaml
        web.yaml:1:1: name web.1 is taken by x.yaml:1
          help: rename one of the two: `name: web-2`
        ");
        // All of them in two files: said once.
        insta::assert_snapshot!(check(&[files[0], ("y.yaml", "name: web\ncommand: b\nreplicas: 2")], &[]), @"
        want web from web.yaml
        want web.1 from web.yaml
        want web.2 from web.yaml
        y.yaml:1:1: name web is taken by web.yaml:1
          help: rename one of the two: `name: web-2`; a controller that runs one of them keeps that one
        ");
        // A file that breaks keeps all its replicas, even if it is moved at the same time.
        insta::assert_snapshot!(check(&[("z.yaml", "name: web\ncomand: a")], &[("web", "web.yaml"), ("web.2", "web.yaml"), ("webby", "web.yaml")]), @"
        hold web because of z.yaml:1:1: command is missing
        hold web.2 because of z.yaml:1:1: command is missing
        z.yaml:1:1: command is missing
          help: add what to run, for example `command: sleep infinity`
        z.yaml:2:1: unknown field comand
          help: did you mean `command`?
        ");
    }
}
