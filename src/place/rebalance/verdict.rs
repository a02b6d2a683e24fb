//! What became of earlier moves: waits before and after, and back where it got worse.

use super::groups::{Groups, Place};
use super::smooth::Smooth;
use super::track::{Clock, Track, Watch};
use crate::model::balance::{Move, Outcome, Rung, Verdict};
use crate::model::cpuset::CpuSet;

/// Judges the moves that have been watched for long enough, and takes back those that did harm, as many as a tick has moves for; the
/// rest are judged with the next tick.
pub fn judge(tracks: &mut [Track], groups: &Groups, clock: &Clock<'_>) -> (Vec<Verdict>, Vec<Move>) {
    let due: Vec<usize> = (0..tracks.len()).filter(|at| watch_due(&tracks[*at], clock).is_some()).collect();
    let (mut verdicts, mut moves) = (Vec::new(), Vec::new());
    for at in due {
        // The other half of a swap has been judged with its partner.
        let Some(watch) = watch_due(&tracks[at], clock).cloned() else { continue };
        let waits = Waits::of(&watch);
        if !waits.are_worse(clock) {
            end(&mut tracks[at], None, clock);
            verdicts.push(waits.verdict(&tracks[at], watch.from, Outcome::Kept));
            continue;
        }
        let partner = partner(tracks, at, &watch);
        let room = clock.settings.moves_max.saturating_sub(moves.len());
        let there = Waits { before: Some(pressure(tracks, groups, &watch.from)), after: waits.after };
        if groups.are_open(&watch.from) && there.are_worse(clock) {
            let both: Vec<usize> = std::iter::once(at).chain(partner).collect();
            if both.len() > room {
                continue;
            }
            for one in &both {
                let Some(watch) = tracks[*one].history.as_deref().and_then(|history| history.watch.clone()) else {
                    continue;
                };
                let with = both.iter().find(|other| *other != one).map(|other| tracks[*other].name.clone());
                moves.push(back(&tracks[*one], &watch, with));
                verdicts.push(Waits::of(&watch).verdict(&tracks[*one], watch.from, Outcome::Reverted));
                let left = tracks[*one].cpus.clone();
                end(&mut tracks[*one], Some(left), clock);
            }
        } else {
            let here = tracks[at].cpus.clone();
            end(&mut tracks[at], Some(here), clock);
            verdicts.push(waits.verdict(&tracks[at], watch.from, Outcome::WorseEverywhere));
        }
    }
    (verdicts, moves)
}

fn watch_due<'a>(track: &'a Track, clock: &Clock<'_>) -> Option<&'a Watch> {
    let watch = track.history.as_deref()?.watch.as_ref()?;
    (watch.measured_ms >= clock.settings.watch_ms).then_some(watch)
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

fn back(track: &Track, watch: &Watch, with: Option<crate::model::name::Name>) -> Move {
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

/// Wait of those who use these CPUs' groups, in permille of what they ask for: what it would come back to.
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
    let sums = tracks
        .iter()
        .filter(is_there)
        .fold((0, 0), |(wait, demand), track| (wait + track.wait.map_or(0, Smooth::get), demand + track.demand()));
    permille(sums.0, sums.1)
}

/// Waits in permille of demand.
#[derive(Clone, Copy, Debug)]
struct Waits {
    before: Option<u32>,
    after: Option<u32>,
}

impl Waits {
    fn of(watch: &Watch) -> Waits {
        match watch.wait_before {
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
