//! The host's levers as text: what they hold, what is written, what is remembered.

use super::*;

const SLICE: &str = "/sys/fs/cgroup/system.slice/cpuset.cpus";
const IRQ: &str = "/proc/irq/24/smp_affinity_list";
const NEW_IRQS: &str = "/proc/irq/default_smp_affinity";

/// A host of eight CPUs, whose levers are moved as the steps say.
struct Levers {
    seen: Surroundings,
    stood: Stood,
    refused: BTreeMap<String, Refused>,
}

impl Levers {
    fn new(levers: &[(&str, &str)]) -> Levers {
        let levers = levers.iter().map(|(lever, held)| ((*lever).to_owned(), (*held).to_owned())).collect();
        let seen = Surroundings {
            online: "0-7".parse().unwrap(),
            possible: "0-9".parse().unwrap(),
            levers,
            ..Surroundings::default()
        };
        Levers { seen, stood: Stood::default(), refused: BTreeMap::new() }
    }

    /// Keeps the host off these, and prints what was written.
    fn fence(&mut self, fenced: &str) -> String {
        let steps = steps(&self.seen, &self.stood, &fenced.parse().unwrap(), &self.refused);
        let mut shown = String::new();
        for Pull { lever, value, .. } in &steps.pulls {
            shown += &format!("{lever} = {value:?}\n");
            self.seen.levers.insert(lever.clone(), value.trim_end().to_owned());
        }
        self.stood = afterwards(&self.stood, &steps.stood, &steps.pulls, &self.refused);
        shown
    }
}

#[test]
fn what_was_there_before_comes_back_word_for_word() {
    let mut host = Levers::new(&[(SLICE, ""), (IRQ, "4-7"), (NEW_IRQS, "ff")]);
    let before = host.seen.clone();
    insta::assert_snapshot!(host.fence("4-5"), @r#"
    /proc/irq/24/smp_affinity_list = "6-7"
    /proc/irq/default_smp_affinity = "cf"
    /sys/fs/cgroup/system.slice/cpuset.cpus = "0-3,6-9"
    "#);
    assert_eq!(host.fence("4-5"), "", "a host that is kept off is not written to");
    insta::assert_snapshot!(host.fence("2,4-5"), @r#"
    /proc/irq/default_smp_affinity = "cb"
    /sys/fs/cgroup/system.slice/cpuset.cpus = "0-1,3,6-9"
    "#);
    insta::assert_snapshot!(host.fence(""), @r#"
    /proc/irq/24/smp_affinity_list = "4-7"
    /proc/irq/default_smp_affinity = "ff"
    /sys/fs/cgroup/system.slice/cpuset.cpus = "\n"
    "#);
    assert_eq!((&host.seen, host.stood.levers.len()), (&before, 0));
}

#[test]
fn what_somebody_else_has_set_since_is_what_is_kept_and_put_back() {
    let mut host = Levers::new(&[(SLICE, "")]);
    host.fence("4-5");
    host.seen.levers.insert(SLICE.to_owned(), "0-5".to_owned());
    assert_eq!(host.fence("4-5"), format!("{SLICE} = \"0-3\"\n"));
    assert_eq!(host.fence(""), format!("{SLICE} = \"0-5\"\n"));
    host.fence("4-5");
    // Somebody gave it other CPUs than ours and than before: they are not ours to take back.
    host.seen.levers.insert(SLICE.to_owned(), "1".to_owned());
    assert_eq!(host.fence(""), "");
    assert_eq!(host.seen.levers[SLICE], "1");
}

#[test]
fn nobody_is_left_without_a_cpu_and_a_refusal_is_not_asked_for_again() {
    let mut host = Levers::new(&[(SLICE, "4-5"), (IRQ, "0-7")]);
    let refused = Refused { cpus: "0-3,6-7".parse().unwrap(), why: "Input/output error".to_owned() };
    host.refused.insert(IRQ.to_owned(), refused);
    assert_eq!(host.fence("4-5"), "");
    assert_eq!(host.stood.levers.len(), 0, "nothing to put back where nothing was moved");
    let fence = fence(&host.seen, &"4-5".parse().unwrap(), host.refused.clone());
    assert_eq!(fence.left, [format!("those below {SLICE}, which has no other CPUs")]);
    assert_eq!(fence.interrupts, ["24 (Input/output error)"]);
    assert_eq!(host.fence("4"), format!("{IRQ} = \"0-3,5-7\"\n{SLICE} = \"5\"\n"), "other CPUs are another question");
}

#[test]
fn a_crash_between_remembering_and_writing_loses_nothing() {
    for fences in [&["4-5"][..], &["4", "4-5"], &["4", "4-5", "5"], &["4-5", ""]] {
        for is_written in [false, true] {
            let mut host = Levers::new(&[(SLICE, "0-6")]);
            let (last, first) = fences.split_last().unwrap();
            for fenced in first {
                host.fence(fenced);
            }
            let Steps { stood, pulls } = steps(&host.seen, &host.stood, &last.parse().unwrap(), &host.refused);
            host.stood = stood;
            if is_written {
                host.seen.levers.extend(pulls.into_iter().map(|pull| (pull.lever, pull.value)));
            }
            host.fence("");
            assert_eq!((&*host.seen.levers[SLICE], host.stood.levers.len()), ("0-6", 0), "{fences:?} {is_written}");
        }
    }
}

#[test]
fn what_was_moved_before_a_refusal_is_still_put_back() {
    let mut host = Levers::new(&[(SLICE, "")]);
    host.fence("4");
    let fenced = "4-5".parse().unwrap();
    let Steps { stood, pulls } = steps(&host.seen, &host.stood, &fenced, &host.refused);
    host.refused.insert(SLICE.to_owned(), Refused { cpus: pulls[0].cpus.clone(), why: "Device busy".to_owned() });
    host.stood = afterwards(&host.stood, &stood, &pulls, &host.refused);
    assert_eq!(host.fence("4-5"), "");
    host.refused.clear();
    assert_eq!(host.fence(""), format!("{SLICE} = \"\\n\"\n"));
}

#[test]
fn an_interrupt_that_is_bound_to_exclusive_cpus_alone_is_moved_and_comes_back() {
    let mut host = Levers::new(&[(IRQ, "4-5"), ("/proc/irq/25/smp_affinity_list", "4,9"), (SLICE, "4,8")]);
    let before = host.seen.clone();
    insta::assert_snapshot!(host.fence("4-5"), @r#"
    /proc/irq/24/smp_affinity_list = "0-3,6-7"
    /proc/irq/25/smp_affinity_list = "0-3,6-7"
    "#);
    assert_eq!(host.fence("4-5"), "");
    host.fence("");
    assert_eq!((&host.seen, host.stood.levers.len()), (&before, 0));
    // With every CPU exclusive there is nowhere else, and a group that has none left that is switched on is left alone.
    assert_eq!(host.fence("0-7"), "");
    let fence = fence(&host.seen, &"0-7".parse().unwrap(), BTreeMap::new());
    assert_eq!(fence.interrupts, ["24, 25 (no other CPUs)"]);
    assert_eq!(fence.left, [format!("those below {SLICE}, which has no other CPUs")]);
}

#[test]
fn a_group_has_cpus_that_are_switched_on_later() {
    let mut host = Levers::new(&[(SLICE, "")]);
    assert_eq!(host.fence("4-5"), format!("{SLICE} = \"0-3,6-9\"\n"));
    host.seen.online = host.seen.possible.clone();
    assert_eq!(host.fence("4-5"), "");
}

#[test]
fn a_lever_that_cannot_be_read_is_remembered() {
    let mut host = Levers::new(&[(SLICE, "0-6"), (IRQ, "4-7")]);
    host.fence("4-5");
    let stood = host.stood.clone();
    let held = host.seen.levers.remove(SLICE).unwrap();
    host.seen.unread.insert(SLICE.to_owned());
    assert_eq!((host.fence("4-5"), &host.stood), (String::new(), &stood));
    // One that is only known by what was remembered is put back.
    host.seen.unread.clear();
    host.seen.strays.insert(SLICE.to_owned(), held);
    assert_eq!(host.fence("4-5"), format!("{SLICE} = \"0-6\"\n"));
    assert_eq!(host.stood.levers.len(), 1);
}
