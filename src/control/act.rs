//! Carrying out one piece of work. Makes no choice: what to do and what to remember were decided by the planner.
//!
//! If power fails or the controller is killed between any two lines, the next pass sees where things are and goes on from there: the
//! record is put first, and what is seen is never forgotten before the record that speaks of it is flushed.

use crate::host::cgroup::CgroupError;
use crate::host::{Host, HostError, Start, chain};
use crate::model::observed::Observed;
use crate::plan::{Act, Work};
use crate::store::{Store, StoreError};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a start was planned without a record")]
    NoRecord,
}

impl ActError {
    /// Whether it only has to be tried again in a moment: the kernel takes some milliseconds to empty a cgroup whose last process is gone.
    pub fn is_momentary(&self) -> bool {
        matches!(self, ActError::Host(HostError::Cgroup(CgroupError::Remove { source, .. })) if source.raw_os_error() == Some(libc::EBUSY))
    }
}

/// What the decision was made on.
pub struct Known {
    pub seen: Observed,
    /// Whether it is recorded that nothing follows its last run, or nothing before its next time comes.
    pub over: bool,
}

/// What became of a record on the way to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// There was none to keep.
    Nothing,
    Record,
    Refused,
}

/// What came of a piece of work.
pub struct Acted {
    pub kept: Kept,
    pub result: Result<(), ActError>,
}

/// Does it, once what is to be remembered is. Where `may_wait` is false the database has refused
/// the record before, and the step does not wait for it any more.
pub fn act(host: &dyn Host, store: &Store, work: &mut Work, known: &Known, may_wait: bool) -> Acted {
    let kept = match work.record.as_ref().map(|record| store.put(&work.name, record)) {
        None => Kept::Nothing,
        Some(Ok(())) => Kept::Record,
        Some(Err(error)) if may_wait || work.act == Act::Remember => {
            work.is_refused_at(host.time());
            return Acted { kept: Kept::Refused, result: Err(error.into()) };
        }
        Some(Err(error)) => {
            tracing::error!(workload = %work.name, error = %chain(&error), "cannot remember a step; it is taken all the same");
            Kept::Refused
        }
    };
    work.is_done_at(host.time());
    let result = take_step(host, store, work, known);
    let kept = match work.afterwards(result.is_ok()).map(|record| store.put(&work.name, record)) {
        None => kept,
        Some(Ok(())) => Kept::Record,
        Some(Err(error)) => {
            tracing::error!(workload = %work.name, error = %chain(&error), "cannot remember what became of a step");
            Kept::Refused
        }
    };
    Acted { kept, result }
}

fn take_step(host: &dyn Host, store: &Store, work: &Work, known: &Known) -> Result<(), ActError> {
    let name = &work.name;
    match &work.act {
        Act::Remember => {}
        Act::Start { writes, env } => {
            let record = work.record.as_ref().ok_or(ActError::NoRecord)?;
            host.start(&Start { record, writes, env })?;
        }
        Act::Resize { writes, shrink } => host.resize(name, writes, *shrink)?,
        Act::Restore { writes, shrink } => host.restore(name, writes, *shrink)?,
        Act::Stop { signal } => {
            let instance = known.seen.instance.as_ref().map_or(0, |instance| instance.number);
            host.stop(name, instance, *signal)?;
        }
        Act::Kill => host.kill(name)?,
        Act::Clear => {
            // How it ended must be on the disk before the traces that say so are removed. A disk that is full does not keep a workload
            // from being started again: then the exit is remembered in memory only. But what is not to run again keeps its traces till then,
            // because a controller that knew neither would run it.
            if let Err(error) = store.sync() {
                if known.over {
                    return Err(error.into());
                }
                tracing::error!(workload = %name, error = %chain(&error), "cannot save how a run ended");
            }
            host.clear(name)?;
        }
        Act::Forget => {
            host.forget(name)?;
            store.remove(name)?;
        }
    }
    Ok(())
}

/// What a step is called, in the log and where one hangs.
pub fn step_name(act: &Act) -> &'static str {
    match act {
        Act::Remember => "remember",
        Act::Start { .. } => "start",
        Act::Resize { .. } => "resize",
        Act::Restore { .. } => "restore",
        Act::Stop { .. } => "stop",
        Act::Kill => "kill",
        Act::Clear => "clear",
        Act::Forget => "forget",
    }
}
