//! Keeping the host off exclusive CPUs, where the controller was told to (`plan::fence` decides how).
//!
//! One look at a time, on a thread: when other CPUs become exclusive, and with each resync while there are some, as groups and interrupts
//! come and go. Where nothing is exclusive and nothing was moved, the host is not looked at.
//! Guarantees: what stood is on the disk before a lever is moved, and until it is put back; a host that is kept off is not written to.

use super::{Controller, Done, Job};
use crate::host::chain;
use crate::host::fence::{FenceError, Levers};
use crate::model::cpuset::CpuSet;
use crate::model::fence::{Fence, Refused};
use crate::plan::fence::{self, Steps};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the loop knows of it.
#[derive(Debug, Default)]
pub struct Fencing {
    /// What came of the last look.
    pub(super) fence: Fence,
    look: Look,
    /// Whether one has to come whatever is exclusive.
    due: bool,
    /// Whether the last one could not tell what was moved, or could not put it back.
    has_failed: bool,
}

/// Where a look is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Look {
    #[default]
    Idle,
    UnderWay,
    /// None is to be begun before the next resync.
    Waits,
}

impl Fencing {
    /// One that looks first: an earlier controller may have moved levers.
    pub(super) fn new() -> Fencing {
        Fencing { due: true, ..Fencing::default() }
    }

    /// It is time to look again, if there is anything to look after: an idle host is not to begin a thread for nothing.
    pub(super) fn look_again(&mut self) {
        if self.look == Look::Waits {
            self.look = Look::Idle;
        }
        self.due |= !self.fence.cpus.is_empty() || !self.fence.refused.is_empty() || self.has_failed;
    }

    /// Whether to look now, for these CPUs.
    fn begin(&mut self, fenced: &CpuSet) -> bool {
        if self.look != Look::Idle || !self.due && *fenced == self.fence.cpus {
            return false;
        }
        (self.look, self.due) = (Look::UnderWay, false);
        true
    }

    /// After a panic: the next resync looks again, and nothing before.
    pub(super) fn end(&mut self) {
        (self.look, self.has_failed) = (Look::Waits, true);
    }
}

impl Controller {
    /// Begins a look if there is something to do.
    pub(super) fn fence_if_due(&mut self) {
        if self.options.fence_system && !self.state.has_looked() {
            // Whom it is for is not known yet, and what an earlier controller keeps off is not to be let in for a moment.
            return;
        }
        let fenced = self.to_be_fenced();
        let fencing = &mut self.state.fencing;
        if !fencing.begin(&fenced) {
            return;
        }
        let (host, refused) = (Arc::clone(&self.host), fencing.fence.refused.clone());
        self.on_thread(Job::Fence, move || {
            let result = host.levers().map_or_else(
                || Ok(Fence::default()),
                // Who was kept off may have been what a partition was not granted for.
                |levers| fence(levers, &fenced, refused, || host.ask_again()),
            );
            Done::Fenced(fenced, result)
        });
    }

    /// The CPUs the host is to be kept off; none where nobody asked for that.
    fn to_be_fenced(&self) -> CpuSet {
        if !self.options.fence_system || self.host.levers().is_none() {
            return CpuSet::new();
        }
        fence::exclusive(&self.state.input(&self.state.desired, self.host.time()))
    }

    /// Whether the host is kept off what it is to be kept off, and nothing else, or there is nothing to be done about it for now.
    pub(super) fn is_fenced(&self) -> bool {
        match self.state.fencing.look {
            Look::Idle => self.to_be_fenced() == self.state.fencing.fence.cpus,
            Look::UnderWay => false,
            Look::Waits => true,
        }
    }

    pub(super) fn take_fence(&mut self, fenced: CpuSet, result: Result<Fence, FenceError>) {
        self.state.fencing.has_failed = result.is_err();
        let fence = result.unwrap_or_else(|error| {
            let why = chain(&error);
            tracing::error!(error = %why, cpus = %fenced, "cannot keep the host off exclusive CPUs, or give them back");
            // Told as asked, so that it waits for the next resync.
            let left = vec![format!("all of its processes ({})", why.lines().next().unwrap_or_default())];
            Fence { cpus: fenced, left, ..Fence::default() }
        });
        let before = &self.state.fencing.fence;
        if before.cpus != fence.cpus || before.left != fence.left {
            tracing::info!(cpus = %fence.cpus, left = ?fence.left, interrupts = ?fence.interrupts, "the host is kept off exclusive CPUs");
        }
        if fence.cpus.is_empty() && !fence.refused.is_empty() {
            tracing::warn!(refused = ?fence.refused, "not all of the host's cpusets could be put back; it is tried again with the next resync");
        }
        self.state.fencing.fence = fence;
        self.state.fencing.look = Look::Idle;
    }
}

/// Looks at the host's levers and moves those that have to be; tells once they are moved, if there were any.
pub fn fence(
    levers: &Levers,
    fenced: &CpuSet,
    refused: BTreeMap<String, Refused>,
    has_moved: impl FnOnce(),
) -> Result<Fence, FenceError> {
    let stood = levers.stood()?;
    if fenced.is_empty() && stood.levers.is_empty() {
        return Ok(Fence::default());
    }
    let seen = levers.look(&stood)?;
    let Steps { stood: during, pulls } = fence::steps(&seen, &stood, fenced, &refused);
    if during != stood {
        levers.remember(&during)?;
    }
    let mut refused = fence::still_refused(&seen, fenced, refused);
    for pull in &pulls {
        if let Err(why) = levers.pull(pull) {
            refused.insert(pull.lever.clone(), Refused { cpus: pull.cpus.clone(), why });
        }
    }
    if !pulls.is_empty() {
        has_moved();
    }
    let after = fence::afterwards(&stood, &during, &pulls, &refused);
    if after != during {
        levers.remember(&after)?;
    }
    Ok(fence::fence(&levers.look(&after)?, fenced, refused))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fence::Stood;
    use std::fs;
    use std::path::Path;

    /// A host of eight CPUs as files: two groups beside ours, one more beside the way down to it, an interrupt, a process in the root group
    /// and a thread of the kernel's.
    fn host(root: &Path) -> Levers {
        for (path, text) in [
            ("tree/cgroup.procs", "2\n7\n"),
            ("tree/system.slice/cpuset.cpus", "\n"),
            ("tree/user.slice/cpuset.cpus", "0-5\n"),
            ("tree/ours/cpuset.cpus", "\n"),
            ("tree/ours/beside/cpuset.cpus", "4-6\n"),
            ("tree/ours/workloads/x.workload/cpuset.cpus", "4-5\n"),
            ("proc/irq/24/smp_affinity_list", "0-7\n"),
            ("proc/irq/default_smp_affinity", "ff\n"),
            ("proc/7/cmdline", "daemon\0"),
            ("proc/2/cmdline", ""),
            ("online", "0-7\n"),
            ("possible", "0-7\n"),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Levers {
            tree: Some(root.join("tree")),
            own: "ours/workloads".to_owned(),
            proc: root.join("proc"),
            cpus: root.to_owned(),
            stamp: root.join("fence"),
            boot_id: "this".to_owned(),
        }
    }

    fn held(root: &Path) -> String {
        let levers = [
            "tree/system.slice/cpuset.cpus",
            "tree/user.slice/cpuset.cpus",
            "tree/ours/beside/cpuset.cpus",
            "tree/ours/workloads/x.workload/cpuset.cpus",
            "proc/irq/24/smp_affinity_list",
            "proc/irq/default_smp_affinity",
        ];
        levers.map(|lever| fs::read_to_string(root.join(lever)).unwrap().trim().to_owned()).join(" | ")
    }

    fn look(levers: &Levers, fenced: &CpuSet) -> Result<Fence, FenceError> {
        fence(levers, fenced, BTreeMap::new(), || ())
    }

    fn ask(levers: &Levers, fenced: &str) -> Fence {
        look(levers, &fenced.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_host_is_kept_off_and_let_in_again_by_whoever_finds_the_stamp() {
        let root = tempfile::tempdir().unwrap();
        let levers = host(root.path());
        let before = held(root.path());
        assert_eq!(before, " | 0-5 | 4-6 | 4-5 | 0-7 | ff");
        let fence = ask(&levers, "4-5");
        assert_eq!(held(root.path()), "0-3,6-7 | 0-3 | 6 | 4-5 | 0-3,6-7 | cf");
        assert_eq!(fence.left, ["processes of the root group, which has no cpuset"]);
        let stamp = fs::read_to_string(&levers.stamp).unwrap();
        // A second look writes nothing at all.
        fs::remove_file(&levers.stamp).unwrap();
        fs::write(&levers.stamp, &stamp).unwrap();
        let written = fs::metadata(&levers.stamp).unwrap().modified().unwrap();
        ask(&levers, "4-5");
        assert_eq!(fs::metadata(&levers.stamp).unwrap().modified().unwrap(), written);
        // Another controller, which was not told to keep anybody off.
        ask(&levers.clone(), "");
        assert_eq!((held(root.path()), levers.stamp.exists()), (before, false));
    }

    #[test]
    fn it_is_told_once_levers_were_moved_and_not_where_none_was() {
        let root = tempfile::tempdir().unwrap();
        let levers = host(root.path());
        let tells = |fenced: &str| {
            let mut told = None;
            fence(&levers, &fenced.parse().unwrap(), BTreeMap::new(), || told = Some(held(root.path()))).unwrap();
            told
        };
        assert_eq!(tells("4-5").as_deref(), Some("0-3,6-7 | 0-3 | 6 | 4-5 | 0-3,6-7 | cf"));
        assert_eq!(tells("4-5"), None, "an idle host is not written to");
        assert!(tells("").is_some() && tells("").is_none());
    }

    #[test]
    fn a_stamp_of_another_boot_moves_nothing_and_one_that_is_damaged_is_told() {
        let root = tempfile::tempdir().unwrap();
        let levers = host(root.path());
        ask(&levers, "4-5");
        let fenced = held(root.path());
        ask(&Levers { boot_id: "next".to_owned(), ..levers.clone() }, "");
        assert_eq!(held(root.path()), fenced, "what stands there is what that boot began with");
        fs::write(&levers.stamp, "{").unwrap();
        let error = look(&levers, &CpuSet::new()).unwrap_err();
        assert!(error.to_string().contains("cannot read") && error.to_string().contains("help: "), "{error}");
    }

    #[test]
    fn what_cannot_be_read_for_once_is_not_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let levers = host(root.path());
        let before = held(root.path());
        ask(&levers, "4-5");
        let (slice, aside) = (root.path().join("tree/system.slice/cpuset.cpus"), root.path().join("aside"));
        let stamp = || fs::read_to_string(&levers.stamp).unwrap();
        let stood = stamp();
        // A folder is read as no file can be: EISDIR, for one that is there all the same.
        fs::rename(&slice, &aside).unwrap();
        fs::create_dir(&slice).unwrap();
        let fence = ask(&levers, "4-5");
        assert!(fence.left[0].contains("whose cpuset cannot be read"), "{:?}", fence.left);
        assert_eq!(stamp(), stood);
        fs::remove_dir(&slice).unwrap();
        fs::rename(&aside, &slice).unwrap();
        // A folder that cannot be listed: nothing is known of any.
        let (irq, aside) = (root.path().join("proc/irq"), root.path().join("irqs"));
        fs::rename(&irq, &aside).unwrap();
        fs::write(&irq, "").unwrap();
        look(&levers, &CpuSet::new()).unwrap_err();
        assert_eq!(stamp(), stood);
        fs::remove_file(&irq).unwrap();
        fs::rename(&aside, &irq).unwrap();
        // One that is not beside the way any more is put back, whoever is fenced.
        let elsewhere = Levers { own: "user.slice/workloads".to_owned(), ..levers.clone() };
        ask(&elsewhere, "4-5");
        assert!(held(root.path()).contains(" | 0-5 | 4-6 |"), "{}", held(root.path()));
        ask(&levers, "");
        fs::write(root.path().join("tree/ours/cpuset.cpus"), "").unwrap();
        assert_eq!((held(root.path()), levers.stamp.exists()), (before, false));
    }

    #[test]
    fn after_a_panic_the_next_resync_looks_again_and_nothing_before() {
        let (mut fencing, fenced) = (Fencing::new(), "4-5".parse().unwrap());
        assert!(fencing.begin(&fenced) && !fencing.begin(&fenced));
        fencing.end();
        assert!(!fencing.begin(&fenced));
        fencing.look_again();
        assert!(fencing.begin(&fenced));
    }

    #[test]
    fn a_stamp_that_could_not_be_read_again_is_not_written_and_nothing_is_moved() {
        let root = tempfile::tempdir().unwrap();
        let levers = host(root.path());
        // Deep enough that each lever's path is long.
        let name = "x".repeat(250);
        let deep: std::path::PathBuf = std::iter::repeat_n(&*name, 11).collect();
        for number in 0..400 {
            let folder = root.path().join("tree").join(&deep).join(number.to_string());
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cpuset.cpus"), "0-7").unwrap();
        }
        let levers = Levers { own: format!("{}/ours", deep.display()), ..levers };
        let before = held(root.path());
        let error = look(&levers, &"4-5".parse().unwrap()).unwrap_err();
        assert!(chain(&error).contains("that are read again"), "{}", chain(&error));
        assert_eq!((held(root.path()), levers.stamp.exists()), (before, false));
    }

    #[test]
    fn where_nothing_can_be_remembered_nothing_is_moved() {
        let root = tempfile::tempdir().unwrap();
        let levers = Levers { stamp: root.path().join("gone/fence"), ..host(root.path()) };
        let before = held(root.path());
        look(&levers, &"4-5".parse().unwrap()).unwrap_err();
        assert_eq!(held(root.path()), before);
    }

    #[test]
    fn a_lever_that_is_refused_is_told_and_left_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let levers = host(root.path());
        // The kernel's answer cannot be had from a file; a folder is one that cannot be written.
        let interrupt = root.path().join("proc/irq/24/smp_affinity_list");
        let look = levers.look(&Stood::default()).unwrap();
        fs::remove_file(&interrupt).unwrap();
        fs::create_dir(&interrupt).unwrap();
        assert_eq!(look.levers.len(), 5);
        let pull = crate::model::fence::Pull {
            lever: interrupt.display().to_string(),
            value: "0".to_owned(),
            cpus: "0".parse().unwrap(),
            then: None,
        };
        assert!(levers.pull(&pull).unwrap_err().contains("directory"));
    }
}
