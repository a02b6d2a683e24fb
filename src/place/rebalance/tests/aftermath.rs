//! What becomes of moves that did harm.

use super::*;

/// A crowd of which two are moved within the node, and nobody across.
fn near_crowd() -> Bench {
    let mut bench = crowd();
    bench.settings.far_enter_permille = u32::MAX;
    bench
}

impl Bench {
    /// Has everybody use so much of a CPU, and wait so long, where they began and elsewhere.
    fn wait(&mut self, usage: u32, here: u32, elsewhere: Option<u32>) {
        let first: CpuSet = "0-1,8-9".parse().unwrap();
        for member in self.members.values_mut() {
            let wait = if member.cpus == first { Some(here) } else { elsewhere };
            (member.usage, member.wait) = (Some(MilliCpu(usage)), wait.map(MilliCpu));
        }
    }

    /// The verdict on `a` once there is one; of each tick it is told what those wait who were moved.
    fn verdict(&mut self, usage: u32, here: u32, elsewhere: impl Fn(u64) -> Option<u32>) -> Verdict {
        for tick in 0..30 {
            self.wait(usage, here, elsewhere(tick));
            let decision = self.tick();
            self.apply(&decision.moves);
            if let Some(verdict) = decision.verdicts.into_iter().find(|verdict| verdict.name.as_str() == "a") {
                return verdict;
            }
        }
        panic!("no verdict in {} s", self.at_ms / 1000);
    }
}

#[test]
fn a_move_back_that_no_pass_takes_up_is_proposed_again_and_told_once() {
    let mut bench = near_crowd();
    let (mut proposed, mut told) = (Vec::new(), 0);
    for _ in 0..60 {
        bench.wait(900, 9, Some(200));
        let decision = bench.tick();
        told += decision.verdicts.iter().filter(|verdict| verdict.name.as_str() == "a").count();
        let is_back = |made: &Move| made.name.as_str() == "a" && made.rung == Rung::Revert;
        if decision.moves.iter().any(is_back) {
            proposed.push(bench.at_ms / 1000);
        }
        let taken_up = |made: &&Move| !is_back(made) || proposed.len() > 3;
        let taken_up: Vec<Move> = decision.moves.iter().filter(taken_up).cloned().collect();
        bench.apply(&taken_up);
    }
    assert_eq!((proposed, told), (vec![70, 90, 110, 130], 1));
    let track = &bench.balancer.tracks[0];
    assert_eq!(track.cpus.to_string(), "0-1,8-9");
    let history = track.history.as_deref().unwrap();
    let banned: Vec<String> = history.bans.iter().map(|ban| ban.cpus.to_string()).collect();
    assert_eq!((banned, &history.watch), (vec!["2-3,10-11".to_owned()], &None));
}

#[test]
fn who_may_not_be_moved_goes_back_once_it_may() {
    let mut bench = near_crowd();
    let a: Name = "a".parse().unwrap();
    let mut backs = Vec::new();
    for tick in 0..60 {
        bench.wait(900, 9, Some(200));
        bench.members.get_mut(&a).unwrap().fixed = (5..40).contains(&tick).then(|| "a step is under way".to_owned());
        let decision = bench.tick();
        let back = decision.moves.iter().find(|made| made.name == a && made.rung == Rung::Revert);
        backs.extend(back.map(|_| bench.at_ms / 1000));
        bench.apply(&decision.moves);
    }
    assert_eq!(backs, [205]);
}

#[test]
fn nobody_is_taken_back_from_beside_its_device() {
    let mut bench = near_crowd();
    let a: Name = "a".parse().unwrap();
    bench.wait(900, 9, Some(200));
    bench.run(2);
    bench.members.get_mut(&a).unwrap().within = Some("2-7,10-15".parse().unwrap());
    assert_eq!(bench.verdict(900, 9, |_| Some(200)).outcome, Outcome::WorseEverywhere);
}

#[test]
fn saturated_work_that_waits_more_is_taken_back_too() {
    // Four fifths of its time, with four times the threads it may use CPUs; then all but a fiftieth.
    let verdict = near_crowd().verdict(1000, 4000, |_| Some(49_000));
    assert_eq!((verdict.before, verdict.after, verdict.outcome), (Some(800), Some(980), Outcome::Reverted));
}

#[test]
fn a_wait_that_is_not_told_is_no_better_wait() {
    // A fifth of its time instead of a tenth; every other reading after the move does not say so.
    let verdict = near_crowd().verdict(900, 100, |tick| (tick % 2 == 0).then_some(225));
    assert_eq!((verdict.before, verdict.after, verdict.outcome), (Some(100), Some(200), Outcome::Reverted));
    // Where most of them do not, nothing is known.
    let verdict = near_crowd().verdict(900, 100, |tick| (tick % 3 == 0).then_some(225));
    assert_eq!((verdict.before, verdict.after, verdict.outcome), (None, None, Outcome::Kept));
}
