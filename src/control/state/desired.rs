//! What is desired: what the folder says, what is recorded of what it said, and what of it is to be left alone.

use super::State;
use crate::control::folder::Scan;
use crate::manifest::Parsed;
use crate::manifest::away::{Away, Look, Owners};
use crate::manifest::diagnostic::Diagnostic;
use crate::manifest::gather::gather;
use crate::model::clock::Steady;
use crate::model::desired::{Desired, Held};
use crate::model::name::Name;
use crate::model::record::Record;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

impl State {
    /// Takes in what the folder says. Answers when another look may settle something.
    pub fn take_scan(&mut self, scan: Scan, now: Steady) -> Option<Duration> {
        let again_in = self.away.look(&self.owners(), &look(&scan), now);
        self.scan = Some(scan);
        self.folder_error = None;
        self.gather();
        again_in
    }

    /// Takes in that the folder cannot be looked at.
    pub fn lose_folder(&mut self, message: String) {
        self.folder_error = Some(message);
        self.away.lose_sight();
    }

    /// What has been seen of the folder is forgotten: a new look begins from nothing.
    pub fn look_anew(&mut self) {
        self.away = Away::default();
    }

    /// Works out what is desired. Until the folder has been read once, everything is held as it is.
    pub fn gather(&mut self) {
        let owners = self.owners();
        let (mut desired, diagnostics) = match &self.scan {
            Some(scan) => {
                let (mut desired, mut diagnostics) = gather(&scan.files, &scan.settling, &owners, &self.host);
                diagnostics.extend(scan.remarks.iter().cloned());
                self.away.hold(&owners, &look(scan), &mut desired);
                if let Some(why) = self.unread_part(scan) {
                    // What runs and is remembered nowhere may be what that says.
                    let explained = |name: &Name| {
                        owners.contains_key(name)
                            || desired.wanted.contains_key(name)
                            || desired.held.contains_key(name)
                    };
                    let unexplained: Vec<Name> = self
                        .observed
                        .iter()
                        .filter(|(name, seen)| {
                            !explained(name) && seen.group.as_ref().is_some_and(|group| group.populated)
                        })
                        .map(|(name, _)| name.clone())
                        .collect();
                    desired.held.extend(unexplained.into_iter().map(|name| (name, why.clone())));
                }
                (desired, diagnostics)
            }
            None => {
                // Whatever lies around may be explained by a manifest that has not been read yet.
                let mut held: BTreeMap<Name, Held> = self
                    .observed
                    .keys()
                    .map(|name| (name.clone(), unread("the manifests folder".to_owned())))
                    .collect();
                held.extend(owners.into_iter().map(|(name, path)| (name, unread(path))));
                (Desired { held, ..Desired::default() }, Vec::new())
            }
        };
        for (name, wanted) in &mut desired.wanted {
            if let Some(record) = self.records.get(name).filter(|record| record.spec == wanted.spec) {
                wanted.spec = Arc::clone(&record.spec);
            }
        }
        // What failed under another manifest may succeed under this one.
        self.setbacks.retain(|name, _| desired.wanted.get(name) == self.desired.wanted.get(name));
        self.desired = desired;
        self.diagnostics = diagnostics;
    }

    /// Whether the folder has been looked at, with or without success.
    pub fn has_looked(&self) -> bool {
        self.scan.is_some() || self.folder_error.is_some()
    }

    /// What would be desired if the folder held these files.
    pub fn imagine(&self, files: &BTreeMap<String, Arc<Parsed>>) -> (Desired, Vec<Diagnostic>) {
        gather(files, &BTreeSet::new(), &self.owners(), &self.host)
    }

    /// What of the folder says nothing now and may stand for anything, if there is such a thing.
    fn unread_part(&self, scan: &Scan) -> Option<Held> {
        let broken = scan.files.iter().filter(|(_, parsed)| parsed.broken).map(|(path, _)| path);
        let away =
            scan.settling.iter().chain(&scan.being_written).chain(scan.unusable.keys()).chain(self.away.missing());
        let path = broken.chain(away).next()?.clone();
        let finding = format!("nothing is known of it, and {path}, which cannot be read now, may be about it");
        Some(Held { path, revision: None, finding })
    }

    /// The manifest each workload came from, by record or, where the database was lost, by what runs.
    fn owners(&self) -> Owners {
        let running = self.observed.iter().filter_map(|(name, seen)| {
            let instance = seen.instance.as_ref()?;
            Some((name.clone(), instance.record.as_ref()?.origin.path.clone()))
        });
        let is_there = |path: &String| self.scan.as_ref().is_some_and(|scan| scan.files.contains_key(path));
        let path = |record: &Record| match &record.refused {
            // What it came from is gone, and what was to take its place was taken back and is there.
            Some(refused) if is_there(&refused.path) && !is_there(&record.origin.path) => refused.path.clone(),
            _ => record.origin.path.clone(),
        };
        let recorded = self.records.iter().map(|(name, record)| (name.clone(), path(record)));
        running.chain(recorded).collect()
    }
}

fn look(scan: &Scan) -> Look<'_> {
    Look { files: &scan.files, unusable: &scan.unusable, stirred: scan.stirred }
}

/// A manifest nobody has looked at yet.
fn unread(path: String) -> Held {
    Held { path, revision: None, finding: "it has not been read yet".to_owned() }
}
