//! What changes the machine for everybody on it: fences around the host's own groups and interrupts, partitions, CPUs that are switched off.
//!
//! Only in the virtual machine, where `tests/run` has them run alone; nowhere else is a machine theirs to change.

use super::kernel;
use super::world::{World, eventually_or};
use std::fs;
use std::path::{Path, PathBuf};

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
    let is_off =
        |list: &str| list.parse::<containerctl::model::cpuset::CpuSet>().unwrap().is_disjoint(&cpus.parse().unwrap());
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
    let cpus: containerctl::model::cpuset::CpuSet = kernel::cpus(&world.group("x")).parse().unwrap();
    assert!(service.may_run_on().parse::<containerctl::model::cpuset::CpuSet>().unwrap().is_disjoint(&cpus));
    // The parent's effective set lacks them now. They are ours all the same, and others are given the rest.
    world.put("web.yaml", "command: sleep infinity");
    world.wait_running("web");
    let others: containerctl::model::cpuset::CpuSet = kernel::cpus(&world.group("web")).parse().unwrap();
    assert!(others.is_disjoint(&cpus) && !others.is_empty(), "{others} beside {cpus}");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(kernel::cpus(&world.group("x")), cpus.to_string());
    assert_eq!((told(&world).0.as_str(), held(&world).as_str()), ("Partition", "root"), "{}", world.log());
    let steps = |world: &World| world.log().matches("step=").count();
    let before = steps(&world);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(steps(&world), before, "a partition that holds is left alone: {}", world.log());
    world.delete("x.yaml");
    world.wait_gone("x");
    assert!(text(parent.join("cpuset.cpus.exclusive")).is_empty());
    if text(parent.join("cpuset.cpus.partition")) == "root" {
        set(parent.join("cpuset.cpus.partition"), "member");
        set(parent.join("cpuset.cpus"), "0-7");
    }
}
