//! How a run is begun in a group that was just made: limits, the host's paths as they are now, the box, and then the process.

use super::Linux;
use crate::host::asking::Question;
use crate::host::confine::{self, Plan};
use crate::host::facts::throttle_counts;
use crate::host::processes::Run;
use crate::host::sources::{self, Hidden, Own};
use crate::host::spawn::{Namespaces, Spawn, Stdio, spawn};
use crate::host::traces::make_private;
use crate::host::{Host, HostError, Start, chain, dev, layers};
use crate::init::wire;
use crate::model::cgroup::Generation;
use crate::model::isolation::{Changes, Rootfs};
use crate::model::name::Name;
use crate::model::record::Record;
use crate::model::spec;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// What a box needs of the host's folders.
pub(super) struct Paths {
    /// With the host's paths resolved.
    process: spec::Process,
    tasks: Vec<PathBuf>,
    hidden: Hidden,
    layer: Option<PathBuf>,
    /// The folder that becomes its `/dev`.
    dev: PathBuf,
    /// What its devices need to be shown.
    mounts: Vec<(String, String)>,
}

impl Linux {
    pub(super) fn confine<'a>(
        &'a self,
        record: &'a Record,
        env: &'a BTreeMap<String, String>,
        paths: &'a Paths,
    ) -> Plan<'a> {
        Plan {
            name: &record.spec.name,
            process: &paths.process,
            env,
            tasks: &paths.tasks,
            shows_cgroup: self.backend.support().generation == Generation::Unified,
            mountpoint: &self.mountpoint,
            layer: paths.layer.as_deref(),
            dev: &paths.dev,
            mounts: &paths.mounts,
            hidden: &paths.hidden,
            ids: record.ids.filter(|_| record.spec.process.security.user_namespace),
            ceilings: &self.ceilings,
            landlock: self.landlock,
            logs: record.spec.logs,
            foreground: self.options.foreground,
        }
    }

    /// The folders to keep out of sight, and the host's paths, are where they are now: behind a link that is swapped, that changes.
    pub(super) fn paths(&self, record: &Record) -> Result<Paths, HostError> {
        let Record { spec, .. } = record;
        let process = self.resolved(&spec.process)?;
        let mut hidden = sources::hidden(&process, &self.own_folders())?;
        hidden.root.extend(throttle_counts(Path::new("/sys/devices/system/cpu")));
        let kept = matches!(spec.process.rootfs.directory(), Some((_, Changes::Kept)));
        let layers = self.options.layers.as_ref().filter(|_| kept);
        Ok(Paths {
            tasks: self.backend.tasks(&spec.name),
            hidden,
            process,
            layer: layers.map(|layers| layers::folder(layers, &spec.name)),
            dev: if nodes(record).next().is_some() {
                dev::own(&self.options.runtime, &spec.name)
            } else {
                self.dev.clone()
            },
            mounts: mounts(record),
        })
    }

    /// The host's paths resolved; what it may write is known from then on, before it can have written anything.
    fn resolved(&self, process: &spec::Process) -> Result<spec::Process, HostError> {
        if !sources::names_any(process) {
            return Ok(process.clone());
        }
        // Nothing is held while a file system is asked that may not answer.
        let first = self.ask_for(process)?;
        self.written.lock().unwrap_or_else(PoisonError::into_inner).extend(sources::written(&first));
        // Once more, so that its own volumes count the first time as they do the second.
        self.ask_for(process)
    }

    fn ask_for(&self, process: &spec::Process) -> Result<spec::Process, HostError> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let process = process.clone();
        self.asking.ask(move |question| sources::resolved(&process, &written, &|path| question.next(path)))
    }

    /// The controller's own folders as they are; if one does not answer, as they were last seen.
    fn own_folders(&self) -> Vec<Own> {
        let folders = self.options.hidden.clone();
        let look = |folder: &PathBuf, question: &Question| Own::look_at(folder, &|path| question.next(path));
        let seen = self.asking.ask(move |question| folders.iter().map(|folder| look(folder, question)).collect());
        let mut known = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        match seen {
            Ok(seen) => *known = seen,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot look at the folders that are hidden from workloads; they are where they were");
            }
        }
        known.clone()
    }

    pub(super) fn begin(&self, start: &Start<'_>, instance: &File) -> Result<(), HostError> {
        let record = start.record;
        let name = &record.spec.name;
        for write in start.writes {
            self.backend.write(name, write)?;
        }
        HostError::all(self.check(name, start.writes)?)?;
        let directory = self.backend.directory(name)?;
        let paths = self.paths(record)?;
        paths.layer.as_deref().map_or(Ok(()), layers::prepare)?;
        let granted: BTreeMap<&str, &str> = nodes(record).collect();
        if !granted.is_empty() {
            dev::prepare_own(&self.options.runtime, name, &granted)?;
        }
        let plan = self.confine(record, start.env, &paths);
        let security = &record.spec.process.security;
        let filters = self.seccomp.filters(&security.seccomp, &security.capabilities)?;
        let order = wire::order(&confine::steps(&plan)?, &confine::run(&plan, filters)?);
        let logs = self.log_folder(name);
        make_private(&logs)?;
        let logs = File::open(&logs).map_err(|source| HostError::Logs { path: logs, source })?;
        let spawned = spawn(
            &self.image,
            &Spawn {
                name: name.as_str(),
                order: &order,
                cgroup: directory.as_ref().map(AsFd::as_fd),
                namespaces: Namespaces::New,
                instance: instance.as_fd(),
                logs: logs.as_fd(),
                stdio: if self.options.foreground { Stdio::Inherit } else { Stdio::Null },
            },
        )?;
        let run: Run = (name.clone(), record.instance);
        // It runs: to take it back for want of a watch would lose what it does meanwhile. The look that follows watches it again.
        if let Err(error) = self.processes.add(&run, spawned.pid, spawned.pidfd, Some(spawned.report)) {
            tracing::warn!(workload = %name, error = %chain(&error), "cannot watch a run that was just started");
        }
        Ok(())
    }

    /// Takes away what a failed start has made. The first error is the one to report, so these are not. Where the kill fails, nobody knows
    /// whether something lives: its traces tell the next pass what that is, and how it ended.
    pub(super) fn undo(&self, name: &Name, instance: u64) {
        if self.backend.kill(name).is_err() {
            return;
        }
        let _ = self.backend.remove(name);
        let _ = self.traces.abandon(name, instance);
        let _ = dev::remove(&self.options.runtime, name);
    }
}

/// The device nodes a run is granted: where in its box, and which of the host's.
fn nodes(record: &Record) -> impl Iterator<Item = (&str, &str)> {
    let leases = record.grant.iter().flat_map(|grant| &grant.gpus);
    leases.flat_map(|lease| lease.exposure.nodes.iter().map(|(inside, host)| (inside.as_str(), host.as_str())))
}

/// What is to be shown for its devices, less what it sees anyway: the host's own view has everything but what is private to a box.
fn mounts(record: &Record) -> Vec<(String, String)> {
    let leases = record.grant.iter().flat_map(|grant| &grant.gpus);
    let all: BTreeMap<&String, &String> = leases.flat_map(|lease| &lease.exposure.mounts).collect();
    let is_seen = |target: &str, source: &str| {
        let private = ["/run/", "/tmp/", "/dev/", "/var/run/"].iter().any(|folder| target.starts_with(folder));
        target == source && !private && record.spec.process.rootfs == Rootfs::Host
    };
    let wanted = all.into_iter().filter(|(target, source)| !is_seen(target, source));
    wanted.map(|(target, source)| (target.clone(), source.clone())).collect()
}
