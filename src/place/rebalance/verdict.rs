//! What became of earlier moves: waits before and after, and back where it got worse.

use super::groups::{Groups, Place};
use super::track::{Clock, Track, Watch};
use crate::model::balance::{Member, Move, Outcome, Rung, Verdict};
use crate::model::cpuset::CpuSet;
use crate::model::name::Name;

/// Judges the moves that have been watched for long enough, and takes back those that did harm, as many as a tick has moves for; the
/// rest are judged with the next tick. A move is watched until it is seen to be back: what no pass takes up is proposed again.
pub fn judge(
    tracks: &mut [Track],
    members: &[(&Name, &Member)],
    groups: &Groups,
    clock: &Clock<'_>,
) -> (Vec<Verdict>, Vec<Move>) {
    let due: Vec<usize> = (0..tracks.len()).filter(|at| watch_due(&tracks[*at], clock).is_some()).collect();
    let (mut verdicts, mut moves): (Vec<Verdict>, Vec<Move>) = (Vec::new(), Vec::new());
    for at in due {
        let Some(watch) = watch_due(&tracks[at], clock).cloned() else { continue };
        if moves.iter().any(|made| made.name == tracks[at].name) {
            // The other half of a swap was judged with its partner.
            continue;
        }
        let waits = Waits::of(&watch);
        if !waits.are_worse(clock) {
            end(&mut tracks[at], None, clock);
            verdicts.push(waits.verdict(&tracks[at], watch.from, Outcome::Kept));
            continue;
        }
        let there = Waits { before: Some(pressure(tracks, groups, &watch.from)), after: waits.after };
        if !may_return(members[at].1, groups, &watch.from) || !there.are_worse(clock) {
            let here = tracks[at].cpus.clone();
            end(&mut tracks[at], Some(here), clock);
            verdicts.push(waits.verdict(&tracks[at], watch.from, Outcome::WorseEverywhere));
            continue;
        }
        let both: Vec<usize> = std::iter::once(at).chain(partner(tracks, at, &watch)).collect();
        let room = clock.settings.moves_max.saturating_sub(moves.len());
        // Who may not be moved now goes back once it may.
        if both.len() > room || both.iter().any(|one| members[*one].1.fixed.is_some()) {
            continue;
        }
        for one in &both {
            let with = both.iter().find(|other| *other != one).map(|other| tracks[*other].name.clone());
            let Some(watch) = take_back(&mut tracks[*one], clock) else { continue };
            moves.push(back(&tracks[*one], &watch, with));
            if !watch.is_told {
                verdicts.push(Waits::of(&watch).verdict(&tracks[*one], watch.from, Outcome::Reverted));
            }
        }
    }
    (verdicts, moves)
}

/// Keeps a workload away from where it did badly, from now on. Answers the watch as it was; it goes on until the workload is elsewhere.
fn take_back(track: &mut Track, clock: &Clock<'_>) -> Option<Watch> {
    let history = track.history.as_deref_mut()?;
    let watch = history.watch.clone()?;
    history.ban(track.cpus.clone(), clock);
    history.watch = Some(Watch { is_told: true, ..watch.clone() });
    Some(watch)
}

/// Whether it may have the CPUs it came from.
fn may_return(member: &Member, groups: &Groups, from: &CpuSet) -> bool {
    groups.are_open(from) && member.within.as_ref().is_none_or(|within| from.is_subset(within))
}

/// The watch of a workload that is to be judged: it has lasted, and no proposal is on its way.
fn watch_due<'a>(track: &'a Track, clock: &Clock<'_>) -> Option<&'a Watch> {
    let history = track.history.as_deref()?;
    let watch = history.watch.as_ref()?;
    (history.pending.is_none() && watch.measured_ms >= clock.settings.watch_ms).then_some(watch)
}

/// Who took its place, if that one is still there and still watched.
fn partner(tracks: &[Track], at: usize, watch: &Watch) -> Option<usize> {
    let name = watch.with.as_ref()?;
    let found = tracks.binary_search_by(|track| track.name.cmp(name)).ok()?;
    let theirs = tracks[found].history.as_deref()?.watch.as_ref()?;
    (theirs.with.as_ref() == Some(&tracks[at].name) && tracks[found].cpus == watch.from).then_some(found)
}

/// Ends the watch, and keeps the workload away from where it did badly.
fn end(track: &mut Track, ban: Option<CpuSet>, clock: &Clock<'_>) {
    let Some(history) = track.history.as_deref_mut() else { return };
    history.watch = None;
    if let Some(cpus) = ban {
        history.ban(cpus, clock);
    }
}

fn back(track: &Track, watch: &Watch, with: Option<Name>) -> Move {
    let Waits { before, after } = Waits::of(watch);
    let share =
        |wait: Option<u32>| wait.map_or_else(|| "unknown".to_owned(), |wait| format!("{}.{} %", wait / 10, wait % 10));
    Move {
        name: track.name.clone(),
        from: track.cpus.clone(),
        to: watch.from.clone(),
        rung: Rung::Revert,
        with,
        gain: 0,
        cost: 0,
        reason: format!("waited {} of its time before the move and {} after it", share(before), share(after)),
    }
}

/// Wait of those who use these CPUs' groups, in permille of what they ask for: what it would come back to. Who tells no wait tells nothing of it.
fn pressure(tracks: &[Track], groups: &Groups, cpus: &CpuSet) -> u32 {
    let of = |place: &Place| match place {
        Place::Whole(group) | Place::Seats(group) => vec![*group],
        Place::Several(list) => list.clone(),
        Place::Nowhere => Vec::new(),
    };
    let there = of(&groups.place(cpus));
    let is_there = |track: &&Track| match &track.place {
        Some(Place::Whole(group) | Place::Seats(group)) => there.contains(group),
        _ => false,
    };
    let told = tracks.iter().filter(is_there).filter_map(|track| Some((track.wait?.get(), track.asked())));
    let (wait, asked) = told.fold((0, 0), |sums, (wait, asked)| (sums.0 + wait, sums.1 + asked));
    permille(wait, asked)
}

/// Waits in permille of demand.
#[derive(Clone, Copy, Debug)]
struct Waits {
    before: Option<u32>,
    after: Option<u32>,
}

impl Waits {
    /// Of a watch most of which had no wait nothing is known: a wait that is not told is no better wait.
    fn of(watch: &Watch) -> Waits {
        match watch.wait_before.filter(|_| 2 * watch.unknown_ms <= watch.measured_ms) {
            Some(before) => Waits {
                before: Some(permille(before, watch.demand_before)),
                after: Some(permille(watch.wait_after, watch.demand_after)),
            },
            None => Waits { before: None, after: None },
        }
    }

    fn are_worse(self, clock: &Clock<'_>) -> bool {
        let (Some(before), Some(after)) = (self.before, self.after) else { return false };
        let settings = clock.settings;
        u64::from(after) * 100 > u64::from(before) * (100 + u64::from(settings.worse_percent))
            && after > before + settings.worse_permille
    }

    fn verdict(self, track: &Track, from: CpuSet, outcome: Outcome) -> Verdict {
        let Waits { before, after } = self;
        Verdict { name: track.name.clone(), from, to: track.cpus.clone(), before, after, outcome }
    }
}

fn permille(part: u64, whole: u64) -> u32 {
    u32::try_from(1000 * part / whole.max(1)).unwrap_or(u32::MAX).min(1000)
}
