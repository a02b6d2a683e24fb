//! Manifests that are missing since the controller began to look.
//!
//! Problem: that a file has disappeared a moment ago is known to whoever has seen it there. A controller that starts while rsync or git
//! replaces files, or after it was killed in the middle of that, has seen none of them.
//! Approach: what a recorded workload was read from counts as seen. Where it is not there, it has been missing since the first look that
//! did not find it, and is gone by the rule that holds for every other file ([`settles_in`]). A path that was seen, or was waited for in
//! vain, is the folder's own to tell of from then on.
//!
//! Guarantees: until it is settled its workloads are held, and nothing is started for them; a place that cannot be used holds what was read
//! there for as long as that lasts; a file that is there under another path and claims the name has it at once.

use super::Parsed;
use crate::model::clock::Steady;
use crate::model::desired::{Desired, Held};
use crate::model::name::Name;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A file that is gone may be back in a moment: editors and rsync replace by removing. It is gone once nothing in the folder has changed
/// for this long.
pub const DELETION_SETTLES: Duration = Duration::from_secs(1);
/// A folder in which something changes all the time is not waited for longer than this: twenty times what a checkout of 200 files takes.
pub const DELETION_SETTLES_MAX: Duration = Duration::from_secs(10);

/// How long it is until a file counts as deleted that has been missing for so long, in a folder where nothing has changed for so long.
pub fn settles_in(missing_for: Duration, quiet_for: Duration) -> Duration {
    let quiet = DELETION_SETTLES.saturating_sub(quiet_for.min(missing_for));
    quiet.min(DELETION_SETTLES_MAX.saturating_sub(missing_for))
}

/// The manifest each recorded workload was read from.
pub type Owners = BTreeMap<Name, String>;

/// What a look at the folder found.
pub struct Look<'a> {
    pub files: &'a BTreeMap<String, Arc<Parsed>>,
    /// Entries and sub-folders that cannot be used, and why.
    pub unusable: &'a BTreeMap<String, String>,
    /// Whether something had changed since the look before.
    pub stirred: bool,
}

/// Which recorded manifests this controller has yet to see.
#[derive(Debug, Default)]
pub struct Away {
    /// Paths that it has seen, or has waited for in vain.
    known: BTreeSet<String>,
    /// Since when each of the others is missing.
    missing: BTreeMap<String, Steady>,
    /// When something in the folder was last found changed.
    stirred: Option<Steady>,
}

impl Away {
    /// Takes in a look. Answers when another one may settle something.
    pub fn look(&mut self, owners: &Owners, look: &Look<'_>, now: Steady) -> Option<Duration> {
        let Look { files, unusable, stirred } = look;
        let owned: BTreeSet<&String> = owners.values().collect();
        self.known.retain(|path| owned.contains(path));
        self.known.extend(files.keys().filter(|path| owned.contains(path)).cloned());
        let away = |path: &&&String| !self.known.contains(**path) && cover(unusable, path).is_none();
        let away: BTreeSet<String> = owned.iter().filter(away).map(|path| (*path).clone()).collect();
        self.missing.retain(|path, _| away.contains(path));
        let mut stirred = *stirred;
        for path in away {
            self.missing.entry(path).or_insert_with(|| {
                stirred = true;
                now
            });
        }
        if stirred {
            self.stirred = Some(now);
        }
        let quiet_for = self.stirred.map_or(Duration::MAX, |stirred| now.since(stirred));
        let mut again_in: Option<Duration> = None;
        self.missing.retain(|path, since| {
            let left = settles_in(now.since(*since), quiet_for);
            if left.is_zero() {
                self.known.insert(path.clone());
                return false;
            }
            again_in = Some(again_in.map_or(left, |other| other.min(left)));
            true
        });
        again_in
    }

    /// The folder was lost. It may come back file by file, and none of them has been missing since before that.
    pub fn lose_sight(&mut self) {
        self.missing.clear();
    }

    /// Has the workloads of manifests that were not seen yet go on as they are recorded.
    pub fn hold(&self, owners: &Owners, look: &Look<'_>, desired: &mut Desired) {
        for (name, path) in owners {
            let Desired { wanted, held, guarded: _, away, refused: _, elsewhere } = desired;
            let spoken_of = wanted.contains_key(name) || held.contains_key(name) || elsewhere.contains_key(name);
            if spoken_of || look.files.contains_key(path) {
                continue;
            }
            let finding = match cover(look.unusable, path) {
                Some(why) => why.clone(),
                None if self.known.contains(path) => continue,
                None => {
                    away.insert(name.clone());
                    format!(
                        "{path} was not there when the controller began to look; it counts as deleted if it stays away"
                    )
                }
            };
            held.insert(name.clone(), Held { path: path.clone(), revision: None, finding });
        }
    }

    /// The manifests that are waited for.
    pub fn missing(&self) -> impl Iterator<Item = &String> {
        self.missing.keys()
    }
}

/// Why a path cannot be used: it, or the folder it lies in, is told to be unusable.
fn cover<'a>(unusable: &'a BTreeMap<String, String>, path: &str) -> Option<&'a String> {
    let folder = path.split_once('/').map(|(folder, _)| folder);
    unusable.get(path).or_else(|| unusable.get(folder?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{gather, parse};
    use crate::model::label::HostLabels;

    /// A controller's looks, one after the other; `web` is recorded as of `web.yaml`, `api` as of `team/api.yaml`.
    #[derive(Default)]
    struct Looks {
        away: Away,
        unusable: BTreeMap<String, String>,
        now: Steady,
    }

    impl Looks {
        /// What becomes of both `after_ms`, if the folder holds these files then, and when to look again.
        fn look(&mut self, after_ms: u64, files: &[(&str, &str)], stirred: bool) -> String {
            self.now = self.now.plus(Duration::from_millis(after_ms));
            let owners: Owners =
                [("web", "web.yaml"), ("api", "team/api.yaml")].map(|(n, p)| (n.parse().unwrap(), p.to_owned())).into();
            let files = files.iter().map(|(path, text)| ((*path).to_owned(), Arc::new(parse(path, text.as_bytes()))));
            let files = files.collect();
            let look = Look { files: &files, unusable: &self.unusable, stirred };
            let again = self.away.look(&owners, &look, self.now);
            let (mut desired, _) = gather::gather(&files, &BTreeSet::new(), &owners, &HostLabels::default());
            self.away.hold(&owners, &look, &mut desired);
            let word = |name: &str| {
                let name: Name = name.parse().unwrap();
                match (desired.wanted.get(&name), desired.held.contains_key(&name), desired.away.contains(&name)) {
                    (Some(wanted), ..) => format!("of {}", wanted.origin.path),
                    (None, true, true) => "away".to_owned(),
                    (None, true, false) => "held".to_owned(),
                    (None, false, _) => "gone".to_owned(),
                }
            };
            let again = again.map_or("never".to_owned(), |wait| format!("{} ms", wait.as_millis()));
            format!("web {}, api {}, again {again}", word("web"), word("api"))
        }
    }

    const WEB: (&str, &str) = ("web.yaml", "command: a");
    const API: (&str, &str) = ("team/api.yaml", "command: a");

    #[test]
    fn what_is_missing_at_the_start_is_gone_after_a_second_of_quiet() {
        let mut looks = Looks::default();
        assert_eq!(looks.look(0, &[WEB], true), "web of web.yaml, api away, again 1000 ms");
        assert_eq!(looks.look(600, &[WEB], false), "web of web.yaml, api away, again 400 ms");
        assert_eq!(looks.look(100, &[WEB], true), "web of web.yaml, api away, again 1000 ms", "something stirs");
        assert_eq!(looks.look(1000, &[WEB], false), "web of web.yaml, api gone, again never");
        // From then on it is gone, until it is seen.
        assert_eq!(looks.look(1, &[WEB], true), "web of web.yaml, api gone, again never");
        assert_eq!(looks.look(1, &[WEB, API], true), "web of web.yaml, api of team/api.yaml, again never");
    }

    #[test]
    fn what_comes_back_in_time_was_never_gone() {
        let mut looks = Looks::default();
        assert_eq!(looks.look(0, &[], false), "web away, api away, again 1000 ms");
        assert_eq!(looks.look(990, &[WEB], true), "web of web.yaml, api away, again 1000 ms");
        assert_eq!(looks.look(990, &[WEB, API], true), "web of web.yaml, api of team/api.yaml, again never");
        // Seen once, it is the folder's to say when it goes.
        assert_eq!(looks.look(1, &[WEB], true), "web of web.yaml, api gone, again never");
    }

    #[test]
    fn a_folder_that_never_rests_is_waited_for_ten_seconds() {
        let mut looks = Looks::default();
        looks.look(0, &[WEB], true);
        for _ in 0..19 {
            assert!(looks.look(500, &[WEB], true).contains("api away"));
        }
        assert_eq!(looks.look(500, &[WEB], true), "web of web.yaml, api gone, again never");
    }

    #[test]
    fn a_folder_that_was_lost_meanwhile_begins_anew() {
        let mut looks = Looks::default();
        looks.look(0, &[], false);
        looks.away.lose_sight();
        assert_eq!(looks.look(60_000, &[], false), "web away, api away, again 1000 ms");
    }

    #[test]
    fn a_place_that_cannot_be_used_holds_what_was_read_there_for_as_long_as_that_lasts() {
        let mut looks =
            Looks { unusable: [("team".to_owned(), "team: is not mounted".to_owned())].into(), ..Looks::default() };
        assert_eq!(looks.look(0, &[WEB], true), "web of web.yaml, api held, again never");
        assert_eq!(looks.look(60_000, &[WEB], false), "web of web.yaml, api held, again never");
        looks.unusable.clear();
        assert_eq!(looks.look(1, &[WEB], false), "web of web.yaml, api away, again 1000 ms");
        looks.unusable.insert("web.yaml".to_owned(), "is a link to nothing".to_owned());
        assert_eq!(looks.look(1000, &[], false), "web held, api gone, again never");
    }

    #[test]
    fn a_file_that_was_renamed_while_nobody_looked_has_the_name_at_once() {
        let mut looks = Looks::default();
        let moved = ("team/web.yaml", "name: web\ncommand: a");
        assert_eq!(looks.look(0, &[moved, API], true), "web of team/web.yaml, api of team/api.yaml, again 1000 ms");
    }
}
