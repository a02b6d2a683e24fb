//! What somebody else has done to a running workload's cgroup, told by two sightings between which nothing of ours was done.

use crate::model::event::News;
use crate::model::name::Name;
use crate::model::observed::{Group, Observed};
use std::collections::BTreeSet;

/// Pids that are named, smallest first: enough to see whom it hit, and one line of a terminal.
const PIDS_MAX: usize = 8;

/// In sentences. What is done about it is the planner's business, and told with its step.
pub fn news(name: &Name, before: &Observed, seen: &Observed, strays: &BTreeSet<u32>) -> Vec<News> {
    let mut found = Vec::new();
    match (&before.group, &seen.group) {
        (Some(_), None) => found.push("somebody has removed its cgroup".to_owned()),
        (Some(before), Some(now)) => {
            found.extend(frozen(before, now));
            for (file, value) in before.settings.iter() {
                match now.settings.get(file) {
                    Some(held) if held == value => {}
                    Some(held) => found.push(format!("somebody has changed {file} from {value:?} to {held:?}")),
                    None => found.push(format!("somebody has removed the cgroup that has its {file}")),
                }
            }
        }
        (None, _) => {}
    }
    if !strays.is_empty() {
        let pids: Vec<String> = strays.iter().take(PIDS_MAX).map(ToString::to_string).collect();
        let more = match strays.len().saturating_sub(PIDS_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        found.push(format!("somebody has moved pid {}{more} out of its cgroup", pids.join(", ")));
    }
    found.into_iter().map(|text| told(name, text)).collect()
}

/// The same, where a step of ours lies between the two sightings: what it may have changed says nothing of anybody else. Nothing of ours
/// freezes a group.
pub fn beside_a_step(name: &Name, before: &Observed, seen: &Observed) -> Option<News> {
    let (before, now) = (before.group.as_ref()?, seen.group.as_ref()?);
    frozen(before, now).map(|text| told(name, text))
}

fn frozen(before: &Group, now: &Group) -> Option<String> {
    (now.frozen && !before.frozen).then(|| "somebody has frozen it".to_owned())
}

fn told(name: &Name, text: String) -> News {
    News::warning(name, "Drift", text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cgroup::Settings;

    fn seen(settings: &[(&str, &str)], frozen: bool) -> Observed {
        let settings: Settings = settings.iter().map(|(file, value)| ((*file).to_owned(), *value)).collect();
        let group = Group { settings, populated: true, frozen };
        Observed { group: Some(group), ..Observed::default() }
    }

    #[test]
    fn every_kind_of_meddling_is_told_and_nothing_else() {
        let name: Name = "web".parse().unwrap();
        let before = seen(&[("cpu.max", "50000 100000"), ("pids.max", "512")], false);
        let check = |now: &Observed, strays: &[u32]| {
            let strays = strays.iter().copied().collect();
            news(&name, &before, now, &strays).into_iter().map(|news| news.message).collect::<Vec<_>>()
        };
        assert_eq!(check(&before, &[]), Vec::<String>::new());
        assert_eq!(
            check(&seen(&[("cpu.max", "max 100000")], true), &[7, 9]),
            [
                "somebody has frozen it",
                "somebody has changed cpu.max from \"50000 100000\" to \"max 100000\"",
                "somebody has removed the cgroup that has its pids.max",
                "somebody has moved pid 7, 9 out of its cgroup",
            ]
        );
        let many: Vec<u32> = (1..=512).collect();
        assert_eq!(
            check(&before, &many),
            ["somebody has moved pid 1, 2, 3, 4, 5, 6, 7, 8 and 504 more out of its cgroup"]
        );
        assert_eq!(check(&Observed::default(), &[]), ["somebody has removed its cgroup"]);
        let frozen = beside_a_step(&name, &before, &seen(&[("cpu.max", "max 100000")], true)).unwrap();
        assert_eq!((frozen.reason, frozen.message.as_str()), ("Drift", "somebody has frozen it"));
        assert_eq!(beside_a_step(&name, &before, &seen(&[("cpu.max", "max 100000")], false)), None, "it may be ours");
    }
}
