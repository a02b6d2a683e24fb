//! Runs whose output is lost. Where the log folder has been deleted under them, their init holds the deleted folder open and can make no
//! file in it: so until their next start, which makes the folder anew. Where its file system is full or read-only: so until that is over.
//!
//! Owns which folder each run was first seen with. One that was moved away and back is the same; one that somebody made in its place is
//! not, and init writes nothing there.

use crate::host::{FolderId, Refusal};
use crate::model::name::Name;
use crate::model::observed::{Life, Observed};
use crate::model::status::ConditionKind;
use crate::model::time::Timestamp;
use crate::plan::{Finding, Plan};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A run, told from every other of its name, also where its manifest was deleted and came back and runs are counted anew.
type Run = (u64, Option<Timestamp>);

/// By workload, the log folder of its run and whether it was there when last looked for.
#[derive(Debug, Default)]
pub struct LogFolders(BTreeMap<Name, Known>);

#[derive(Debug)]
struct Known {
    run: Run,
    /// None if it was gone at the first look.
    first: Option<FolderId>,
    lost: bool,
    refusal: Option<Refusal>,
}

impl LogFolders {
    /// Takes in which folder there is at the path of a workload's logs, and what it has against being written to.
    pub fn see(&mut self, name: &Name, seen: &Observed, found: Option<FolderId>, refusal: Option<Refusal>) {
        let instance = seen.instance.as_ref().filter(|instance| matches!(instance.life, Life::Running { .. }));
        let Some(run) = instance.map(|instance| (instance.number, instance.started)) else {
            self.0.remove(name);
            return;
        };
        let before = self.0.remove(name).filter(|known| known.run == run);
        let first = before.map_or(found, |known| known.first);
        self.0.insert(name.clone(), Known { run, first, lost: found.is_none() || found != first, refusal });
    }

    /// Tells it of those that still run as they did then.
    pub fn tell(&self, plan: &mut Plan, observed: &BTreeMap<Name, Observed>, folder: impl Fn(&Name) -> PathBuf) {
        for (name, known) in self.0.iter().filter(|(_, known)| known.lost || known.refusal.is_some()) {
            let instance = observed.get(name).and_then(|seen| seen.instance.as_ref());
            let runs = instance.is_some_and(|instance| (instance.number, instance.started) == known.run);
            if let Some(verdict) = plan.verdicts.get_mut(name).filter(|_| runs) {
                let (reason, message) = match known.refusal.filter(|_| !known.lost) {
                    Some(refusal) => (LOG_REFUSED, refused(&folder(name), refusal)),
                    None => (LOG_LOST, sentence(&folder(name))),
                };
                verdict.findings.push(Finding { kind: ConditionKind::Degraded, status: true, reason, message });
            }
        }
    }
}

pub const LOG_LOST: &str = "LogLost";

/// What is said of a run without its log folder.
pub fn sentence(folder: &Path) -> String {
    format!("its log folder {} is gone; its output is lost until its next start", folder.display())
}

const LOG_REFUSED: &str = "LogRefused";

fn refused(folder: &Path, refusal: Refusal) -> String {
    let (is, mend) = match refusal {
        Refusal::Full => ("full", "make room there"),
        Refusal::ReadOnly => ("mounted read-only", "mount it writable"),
    };
    format!("its log folder {} is on a file system that is {is}: what it prints is lost; {mend}", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::observed::Instance;

    #[test]
    fn a_folder_that_comes_back_is_the_same_and_one_made_in_its_place_is_not() {
        let name: Name = "web".parse().unwrap();
        let run = |number| {
            let life = Life::Running { pid: 7 };
            let instance = Some(Instance { number, record: None, started: None, began: None, life });
            Observed { instance, ..Observed::default() }
        };
        let (own, other) = (Some(FolderId { device: 1, inode: 1 }), Some(FolderId { device: 1, inode: 2 }));
        let mut folders = LogFolders::default();
        for (step, (number, found, lost)) in [
            (1, own, false),
            (1, None, true),
            (1, own, false),
            (1, other, true),
            (2, other, false),
            // A controller that finds it gone has not seen which one it was.
            (3, None, true),
            (3, own, true),
        ]
        .into_iter()
        .enumerate()
        {
            folders.see(&name, &run(number), found, None);
            assert_eq!(folders.0[&name].lost, lost, "step {step}");
        }
        folders.see(&name, &Observed::default(), None, Some(Refusal::Full));
        assert!(folders.0.is_empty(), "what does not run loses nothing");
    }
}
