//! The order of steps, and what must never be cut short.

use super::*;
use crate::model::isolation::{ResourceLimits, Security};
use crate::model::spec::User;

fn volume(source: &str, target: &str, read_only: bool) -> Volume {
    let source = VolumeSource::Host(source.to_owned());
    Volume { source, target: target.to_owned(), read_only, suid: false, dev: false }
}

fn process(command: &[&str]) -> Process {
    Process {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        env: BTreeMap::new(),
        workdir: "/".to_owned(),
        user: User { uid: 0, gid: 0 },
        rootfs: Rootfs::Host,
        volumes: vec![volume("/srv/data", "/mnt", true), volume("/srv/out", "/run/a/out", false)],
        network: Network::Host,
        security: Security::default(),
        rlimits: ResourceLimits::new(),
        oom_score_adj: 0,
    }
}

static HIDDEN: Hidden = Hidden { root: Vec::new(), volumes: Vec::new() };
static CEILINGS: Ceilings = Ceilings { hard: BTreeMap::new(), oom_score_adj_min: 0 };

fn plan<'a>(name: &'a Name, process: &'a Process, env: &'a BTreeMap<String, String>) -> Plan<'a> {
    let (mountpoint, dev) = (Path::new("/run/containerctl/root"), Path::new("/run/containerctl/dev"));
    Plan {
        name,
        process,
        env,
        tasks: &[],
        shows_cgroup: true,
        mountpoint,
        layer: None,
        dev,
        mounts: &[],
        hidden: &HIDDEN,
        ids: None,
        ceilings: &CEILINGS,
        landlock: 0,
        logs: Logs::default(),
        foreground: false,
    }
}

#[test]
fn volumes_are_held_before_the_host_is_out_of_reach_and_mounted_last() {
    let (name, process, env) = ("web".parse().unwrap(), process(&["x"]), BTreeMap::new());
    let shown: Vec<String> = steps(&plan(&name, &process, &env)).unwrap().iter().map(describe).collect();
    let at = |text: &str| {
        shown.iter().position(|step| step == text).unwrap_or_else(|| panic!("{text} is not in {shown:#?}"))
    };
    assert!(at("take hold of /srv/data") < at("make the new root at /run/containerctl/root"));
    assert!(at("mount tmpfs at /run") < at("make the folder /run/a"));
    assert!(at("mount proc at /proc") < at("lay /proc/sys over /proc/sys"));
    assert_eq!(at("mount it at /run/a/out"), shown.len() - 1);
}

#[test]
fn a_program_is_looked_for_as_a_shell_does() {
    assert_eq!(candidates("ls", "/bin::/x"), ["/bin/ls", "./ls", "/x/ls"]);
    assert_eq!(candidates("./ls", "/bin"), ["./ls"]);
}

#[test]
fn a_nul_byte_never_cuts_a_text_short() {
    let (name, process, env) = ("web".parse().unwrap(), process(&["a\0b"]), BTreeMap::new());
    assert!(
        matches!(run(&plan(&name, &process, &env), Vec::new()), Err(ConfineError::Nul { text }) if text.ends_with("a\0b"))
    );
}
