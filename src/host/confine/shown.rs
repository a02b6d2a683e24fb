//! What a granted device needs beside its nodes: files and folders of the host, read-only, as a CDI spec names them.
//!
//! Unlike volumes they are shown with the owners they have on disk: libraries everybody may read need none of ours, and a file system that
//! cannot map owners is no reason to refuse a device.

use super::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, ConfineError, FIRST_VOLUME_SLOT, Plan, Steps, make_way, text};
use crate::host::gpu::cdi::MOUNTS_MAX;
use crate::init::wire::Step;
use crate::model::spec::VOLUMES_MAX;

/// Behind the slots of the volumes.
const FIRST_SLOT: u64 = FIRST_VOLUME_SLOT + VOLUMES_MAX as u64;

/// Takes hold of them, before the host is out of reach. Links are followed: whoever wrote the spec is root, or as good.
pub(super) fn grab(plan: &Plan<'_>, steps: &mut Steps) -> Result<(), ConfineError> {
    if plan.mounts.len() > MOUNTS_MAX {
        return Err(ConfineError::Mounts { count: plan.mounts.len() });
    }
    for (slot, (_, source)) in (FIRST_SLOT..).zip(plan.mounts) {
        let set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
        steps.push(Step::Grab { slot, path: text(source)?, set, clear: 0, recursive: 1, links: 1 });
    }
    Ok(())
}

pub(super) fn attach(plan: &Plan<'_>, steps: &mut Steps) -> Result<(), ConfineError> {
    for (slot, (target, _)) in (FIRST_SLOT..).zip(plan.mounts) {
        let make = make_way(plan, target, steps)?;
        steps.push(Step::Attach { slot, target: text(target)?, make: u64::from(make) });
    }
    Ok(())
}
