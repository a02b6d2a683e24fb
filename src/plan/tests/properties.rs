//! Promises that hold whatever happens.

use super::World;
use crate::model::name::Name;
use crate::model::observed::Life;
use crate::model::time::Timestamp;
use proptest::prelude::*;
use std::time::Duration;

/// One thing that may happen to a world.
#[derive(Clone, Debug)]
enum Happening {
    Write(u8, &'static str),
    Delete(u8),
    Exit(u8, i32),
    Wait(u64),
    SetClock(u64),
    LoseDatabase,
    Pass,
}

fn happening() -> impl Strategy<Value = Happening> {
    let text = prop_oneof![
        Just("command: a"),
        Just("command: b\ncpu: 1"),
        Just("command: a\ncpu: {class: exclusive, request: 1}"),
        Just("comand: a"),
        Just(""),
        Just("command: a\ngpu: true"),
        Just("command: a\ngpu: 2\nkind: job"),
        Just("command: a\ncpu: {class: pinned, request: 2}"),
        Just("command: a\nsuspend: true"),
        Just("command: a\nrestart: never"),
        Just("command: a\ncpu: {class: exclusive, request: 2}\ngpu: {memory: 9Gi}"),
    ];
    prop_oneof![
        4 => (0u8..5, text).prop_map(|(n, text)| Happening::Write(n, text)),
        1 => (0u8..5).prop_map(Happening::Delete),
        2 => (0u8..5, 0i32..2).prop_map(|(n, code)| Happening::Exit(n, code)),
        2 => (0u64..20_000).prop_map(Happening::Wait),
        1 => (0u64..100_000_000).prop_map(Happening::SetClock),
        1 => Just(Happening::LoseDatabase),
        4 => Just(Happening::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn whatever_happens_the_promises_hold(happenings in proptest::collection::vec(happening(), 1..40)) {
        let mut world = World::new(4);
        for happening in happenings {
            match happening {
                Happening::Write(n, text) => { world.file(&format!("w{n}.yaml"), text); }
                Happening::Delete(n) => { world.files.remove(&format!("w{n}.yaml")); }
                Happening::Exit(n, code) => {
                    let name: Name = format!("w{n}").parse().unwrap();
                    let runs = world.observed.get(&name).and_then(|seen| seen.instance.as_ref());
                    if runs.is_some_and(|instance| matches!(instance.life, Life::Running { .. })) {
                        world.exit_code(name.as_str(), code);
                    }
                }
                Happening::Wait(millis) => { world.after(millis); }
                Happening::SetClock(millis) => { world.set_clock(Timestamp(millis)); }
                Happening::LoseDatabase => world.records.clear(),
                Happening::Pass => { world.pass(); }
            }
            if world.plan().work.is_empty() {
                world.assert_exclusive_is_exclusive();
            }
        }
        // In the end: it settles, and a second pass over a settled world is empty.
        for _ in 0..40 {
            world.settle();
            match world.plan().wake_at {
                Some(wake_at) if wake_at.since(world.now) < Duration::from_hours(1) => { world.sleep(); }
                _ => break,
            }
        }
        prop_assert_eq!(world.plan().work, vec![]);
    }
}
