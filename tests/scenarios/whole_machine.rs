//! What changes the machine for everybody on it: fences around the host's own groups and interrupts, partitions, CPUs that are switched off.
//!
//! Only in the virtual machine, where `tests/run` has them run alone; nowhere else is a machine theirs to change.

use super::kernel;
use super::world::{World, eventually_or};
use containerctl::model::cpuset::CpuSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const TREE: &str = "/sys/fs/cgroup";
/// Looks often, so that nobody waits for half a minute.
const OFTEN: [&str; 2] = ["--resync", "300ms"];

/// Whether this machine is ours.
fn is_ours() -> bool {
    let is_ours = std::env::var_os("WHOLE_MACHINE").is_some();
    if !is_ours {
        println!("WHOLE_MACHINE is not set: nothing here changes a machine that is somebody else's");
    }
    is_ours
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn set(path: impl AsRef<Path>, value: &str) {
    fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
}

/// A group of the host's with a process in it.
struct Service {
    folder: PathBuf,
    process: std::process::Child,
}

impl Service {
    fn start(name: &str) -> Service {
        let folder = Path::new(TREE).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let process = std::process::Command::new("sleep").arg("infinity").spawn().unwrap();
        set(folder.join("cgroup.procs"), &process.id().to_string());
        Service { folder, process }
    }

    fn cpus(&self) -> String {
        text(self.folder.join("cpuset.cpus"))
    }

    fn may_run_on(&self) -> String {
        kernel::status(self.process.id(), "Cpus_allowed_list")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir(&self.folder);
    }
}

/// What is told of how exclusive the CPUs of `x` are: reason and message.
fn told(world: &World) -> (String, String) {
    let status = world.status("x");
    let found = status["conditions"].as_array().into_iter().flatten().find(|found| found["type"] == "Exclusive");
    let field = |key: &str| found.and_then(|found| found[key].as_str()).unwrap_or_default().to_owned();
    (field("reason"), field("message"))
}

fn wait_told(world: &World, reason: &str) -> String {
    eventually_or(|| told(world).0 == reason, || format!("{:?}, expected {reason}\n{}", told(world), world.log()));
    told(world).1
}

fn wait_fenced(world: &World) -> String {
    let is_fenced = || world.path("state/fence").exists() && ["PartlyFenced", "Partition"].contains(&&*told(world).0);
    eventually_or(is_fenced, || format!("{:?}\n{}", told(world), world.log()));
    told(world).1
}

fn put_exclusive(world: &World) -> String {
    world.put("x.yaml", "command: sleep infinity\ncpu: {class: exclusive, request: 2, smt: any}");
    world.wait_running("x");
    kernel::cpus(&world.group("x"))
}

fn interrupts() -> Vec<(PathBuf, String)> {
    let folders = fs::read_dir("/proc/irq").unwrap().flatten().map(|entry| entry.path());
    let mut all: Vec<_> =
        folders.map(|folder| folder.join("smp_affinity_list")).map(|path| (path.clone(), text(path))).collect();
    all.sort();
    all
}

#[test]
fn the_host_is_fenced_off_exclusive_cpus_and_let_in_again() {
    if !is_ours() {
        return;
    }
    let mut world = World::new();
    let options = [&OFTEN[..], &["--fence-system"]].concat();
    world.start(&options);
    let service = Service::start("service");
    let (everywhere, irqs) = (service.may_run_on(), interrupts());
    let cpus = put_exclusive(&world);
    let message = wait_fenced(&world);
    // From Linux 6.7 on a partition holds more than the fence can.
    let (is_partition, all_but) = (told(&world).0 == "Partition", "but for processes of the root group");
    assert!(is_partition || message.contains(all_but), "{message}");
    let is_off = |list: &str| list.parse::<CpuSet>().unwrap().is_disjoint(&cpus.parse().unwrap());
    assert!(is_off(&service.may_run_on()), "{} beside {cpus}", service.may_run_on());
    let moved = irqs.iter().filter(|(path, before)| !before.is_empty() && text(path) != *before).count();
    assert!(moved > 0 && message.contains("interrupts"), "{moved} interrupts moved: {message}");
    // Who comes later is kept off as well, and who was given other CPUs.
    let late = Service::start("late");
    eventually_or(|| is_off(&late.may_run_on()), || format!("{}\n{}", late.may_run_on(), world.log()));
    set(service.folder.join("cpuset.cpus"), "0-7");
    eventually_or(|| is_off(&service.may_run_on()), || service.may_run_on());
    for said in [world.ctl(&["explain", "x"]), world.ctl(&["topology"]), world.ctl(&["ps"])] {
        assert!(is_partition || said.out.contains("the host is kept off"), "{said:?}");
    }
    // A controller that comes after one that was killed goes on, one that is not told to fence opens what it finds fenced.
    world.kill_controller();
    world.start(&options);
    wait_fenced(&world);
    assert!(is_off(&service.may_run_on()));
    world.kill_controller();
    world.start(&OFTEN);
    eventually_or(
        || service.cpus() == "0-7" && ["", "0-7"].contains(&&*late.cpus()),
        || format!("{} {}\n{}", service.cpus(), late.cpus(), world.log()),
    );
    assert_eq!(interrupts(), irqs);
    assert!(is_partition || late.may_run_on() == everywhere, "{}", late.may_run_on());
    let reason = told(&world).0;
    assert!(["HostMayRun", "Partition"].contains(&&*reason), "{reason}");
    // And whoever gives its CPUs up.
    world.kill_controller();
    world.start(&options);
    wait_fenced(&world);
    world.delete("x.yaml");
    world.wait_gone("x");
    eventually_or(
        || service.cpus() == "0-7" && interrupts() == irqs,
        || format!("{} {:?}\n{}", service.cpus(), interrupts(), world.log()),
    );
    assert!(!world.path("state/fence").exists(), "there is nothing to remember");
}

#[test]
fn a_partition_is_told_as_the_kernel_grants_it() {
    if !is_ours() {
        return;
    }
    let mut world = World::new();
    world.start(&OFTEN);
    let service = Service::start("service");
    let cpus = put_exclusive(&world);
    let parent = Path::new(TREE).join(&world.parent);
    let held = |world: &World| kernel::read(&world.group("x"), &["cpuset.cpus.partition"]);
    if parent.join("cpuset.cpus.exclusive").exists() {
        // From Linux 6.7 on it is granted wherever we are.
        wait_told(&world, "Partition");
        assert_eq!((held(&world).as_str(), text(parent.join("cpuset.cpus.exclusive"))), ("root", cpus.clone()));
    } else {
        let message = wait_told(&world, "HostMayRun");
        assert!(held(&world).starts_with("root invalid") && message.contains(&held(&world)), "{message}");
        assert_eq!(service.may_run_on(), "0-7");
        // An administrator makes our group a partition: from then on ours can be.
        world.delete("x.yaml");
        world.wait_gone("x");
        set(parent.join("cpuset.cpus"), "2-7");
        set(parent.join("cpuset.cpus.partition"), "root");
        put_exclusive(&world);
        wait_told(&world, "Partition");
        assert_eq!(held(&world), "root");
    }
    let cpus: CpuSet = kernel::cpus(&world.group("x")).parse().unwrap();
    assert!(service.may_run_on().parse::<CpuSet>().unwrap().is_disjoint(&cpus));
    // The parent's effective set lacks them now. They are ours all the same, and others are given the rest.
    world.put("web.yaml", "command: sleep infinity");
    world.wait_running("web");
    let others: CpuSet = kernel::cpus(&world.group("web")).parse().unwrap();
    assert!(others.is_disjoint(&cpus) && !others.is_empty(), "{others} beside {cpus}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(kernel::cpus(&world.group("x")), cpus.to_string());
    assert_eq!((told(&world).0.as_str(), held(&world).as_str()), ("Partition", "root"), "{}", world.log());
    let steps = |world: &World| world.log().matches("step=").count();
    let before = steps(&world);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(steps(&world), before, "a partition that holds is left alone: {}", world.log());
    world.delete("x.yaml");
    world.wait_gone("x");
    assert!(text(parent.join("cpuset.cpus.exclusive")).is_empty());
    if text(parent.join("cpuset.cpus.partition")) == "root" {
        set(parent.join("cpuset.cpus.partition"), "member");
        set(parent.join("cpuset.cpus"), "0-7");
    }
}

/// Switches a CPU on or off. CPU 0 of this machine has no switch.
fn switch(cpu: u32, on: bool) {
    set(format!("/sys/devices/system/cpu/cpu{cpu}/online"), if on { "1" } else { "0" });
}

fn cpus_of(world: &World, name: &str) -> CpuSet {
    kernel::cpus(&world.group(name)).parse().unwrap()
}

/// Waits until the sets of these are so. The controller looks every 30 s by itself: what is sooner, it was told of.
fn wait_sets(world: &World, names: &[&str], good: impl Fn(&[CpuSet]) -> bool) {
    let sets = || names.iter().map(|name| cpus_of(world, name)).collect::<Vec<_>>();
    let shown = || sets().iter().map(ToString::to_string).collect::<Vec<_>>();
    let begun = Instant::now();
    eventually_or(|| good(&sets()), || format!("{names:?} stay on {:?}\n{}", shown(), world.log()));
    assert!(begun.elapsed() < Duration::from_secs(20), "only the resync has noticed");
    println!("{names:?} are on {:?} after {:?}", shown(), begun.elapsed());
}

#[test]
fn cpus_that_go_and_come_back_are_noticed_and_made_use_of() {
    if !is_ours() {
        return;
    }
    let world = World::running();
    let names = ["pinned", "web", "x"];
    world.put("pinned.yaml", "command: sleep infinity\ncpu: {class: pinned, request: 2}");
    world.put("web.yaml", "command: sleep infinity");
    world.put("x.yaml", "command: sleep infinity\ncpu: {class: exclusive, request: 2, smt: any}");
    let pids = names.map(|name| world.wait_running(name));
    let all: CpuSet = "0-7".parse().unwrap();
    wait_sets(&world, &names, |sets| sets[0].is_disjoint(&sets[2]) && sets[1] == all.difference(&sets[2]));
    // One of each: everybody has as many as before, elsewhere.
    let [last, also] = ["x", "pinned"].map(|name| cpus_of(&world, name).iter().last().unwrap());
    let off: CpuSet = [last, also].into_iter().collect();
    for cpu in off.iter() {
        switch(cpu, false);
    }
    wait_sets(&world, &names, |sets| {
        let counts = sets[0].len() == 2 && sets[2].len() == 2 && sets[0].is_disjoint(&sets[2]);
        counts && sets[1] == all.difference(&sets[2]).difference(&off)
    });
    let said = world.ctl(&["topology"]);
    assert!(said.out.contains(&format!("switched off: {off}")), "{said:?}");
    for cpu in off.iter() {
        switch(cpu, true);
    }
    wait_sets(&world, &names, |sets| sets[1] == all.difference(&sets[2]));
    // All but one: nobody is left without, nobody is ended, and the one that is no longer alone is told so.
    for cpu in 1..8 {
        switch(cpu, false);
    }
    wait_sets(&world, &names, |sets| sets.iter().all(|cpus| cpus.to_string() == "0"));
    eventually_or(|| told(&world).0 == "Shared", || format!("{:?}\n{}", told(&world), world.log()));
    for cpu in 1..8 {
        switch(cpu, true);
    }
    wait_sets(&world, &names, |sets| {
        let counts = sets[0].len() == 2 && sets[2].len() == 2 && sets[0].is_disjoint(&sets[2]);
        counts && sets[1] == all.difference(&sets[2])
    });
    eventually_or(|| told(&world).0 != "Shared", || format!("{:?}\n{}", told(&world), world.log()));
    assert_eq!(names.map(|name| world.wait_running(name)), pids, "{}", world.log());
}
