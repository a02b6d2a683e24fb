//! What becomes `/`: the host's view, or a directory.
//!
//! A directory is shown without what is mounted below it, so that what somebody has mounted there to work in it (`/proc`, `/dev`) stays
//! theirs. Read-only it is one mount. With changes it is the lower layer of an overlay: the upper one lies on a tmpfs, memory of the
//! workload's and gone with its mount namespace, or in the state folder. With a user namespace both layers on disk are shown through
//! id-mapped mounts, so that root inside owns root's files and no file on disk belongs to an id of the workload's range. Everything in the
//! directory is looked for after it has become `/`: no link in it leads out.

use super::{
    ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, ConfineError, DEV_SLOT, FIRST_VOLUME_SLOT, LAYER_SLOT, Plan,
    ROOT_SLOT, Steps, TMPFS_SIZE, mount, path_text, text,
};
use crate::init::wire::Step;
use crate::model::isolation::{Changes, IDS, IdRange, Rootfs, VolumeSource};
use crate::model::spec::Volume;
use std::path::Path;

/// What the box mounts on, in the order in which that happens.
const FOLDERS: [&str; 5] = ["/dev", "/proc", "/tmp", "/run", "/sys"];

/// Everything from the host's view to the new root. Volumes are taken hold of before the host is out of reach.
pub(super) fn enter(plan: &Plan<'_>, steps: &mut Steps) -> Result<(), ConfineError> {
    // Nothing mounted from here on reaches the host, and nothing the host mounts later gets in unmasked.
    steps.push(mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")?);
    if let Rootfs::Host = plan.process.rootfs {
        grab(plan, "/", 1, steps)?;
    }
    // The runtime directory's file system may be mounted `nodev`; this copy of a part of it is where devices work.
    let set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC;
    steps.push(Step::Grab {
        slot: DEV_SLOT,
        path: path_text(plan.dev)?,
        set,
        clear: ATTR_NODEV,
        recursive: 1,
        links: 1,
    });
    for (slot, volume) in (FIRST_VOLUME_SLOT..).zip(&plan.process.volumes) {
        let Volume { source, target: _, read_only, suid, dev } = volume;
        let VolumeSource::Host(source) = source else { continue };
        let unless = |allowed: bool, attr| if allowed { 0 } else { attr };
        let set = unless(!read_only, ATTR_RDONLY) | unless(*suid, ATTR_NOSUID) | unless(*dev, ATTR_NODEV);
        steps.push(Step::Grab { slot, path: text(source)?, set, clear: 0, recursive: 1, links: 0 });
    }
    super::shown::grab(plan, steps)?;
    if let Rootfs::Directory { path, changes } = &plan.process.rootfs {
        return directory(plan, path, *changes, steps);
    }
    let mountpoint = path_text(plan.mountpoint)?;
    steps.push(Step::Attach { slot: ROOT_SLOT, target: mountpoint.clone(), make: 0 });
    steps.push(Step::EnterRoot { mountpoint });
    Ok(())
}

fn grab(plan: &Plan<'_>, path: &str, recursive: u64, steps: &mut Steps) -> Result<(), ConfineError> {
    let set = ATTR_RDONLY | ATTR_NODEV | suid(plan);
    steps.push(Step::Grab { slot: ROOT_SLOT, path: text(path)?, set, clear: 0, recursive, links: 0 });
    Ok(())
}

/// Set-user-id bits count in a directory whose workload may get more than it has; the host's never do.
fn suid(plan: &Plan<'_>) -> u64 {
    let counts = plan.process.rootfs.directory().is_some() && !plan.process.security.no_new_privileges;
    if counts { 0 } else { ATTR_NOSUID }
}

fn directory(plan: &Plan<'_>, path: &str, changes: Changes, steps: &mut Steps) -> Result<(), ConfineError> {
    if plan.ids.is_some() {
        // Owners have to be mapped before a mount is seen anywhere, and that takes a /proc of our own pid namespace. This one is over the
        // host's, in a view that nobody will see again.
        steps.push(mount("proc", "/proc", "proc", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "")?);
        map_users(plan, steps);
    }
    // The slash at the end is for a file to be refused here, by its name.
    let path = format!("{}/", path.trim_end_matches('/'));
    grab(plan, &path, 0, steps)?;
    map_owners(plan, ROOT_SLOT, Path::new(&path), steps)?;
    match changes {
        Changes::Refused => {
            let mountpoint = path_text(plan.mountpoint)?;
            steps.push(Step::Attach { slot: ROOT_SLOT, target: mountpoint.clone(), make: 0 });
            steps.push(Step::EnterRoot { mountpoint });
        }
        Changes::Discarded => overlay(plan, None, steps)?,
        Changes::Kept => overlay(plan, plan.layer, steps)?,
    }
    let make = u64::from(changes != Changes::Refused);
    for path in FOLDERS {
        steps.push(Step::Folder { path: text(path)?, make });
    }
    Ok(())
}

/// The layers are put together on a tmpfs that also is the upper one, where `kept` is no folder of the host for that.
fn overlay(plan: &Plan<'_>, kept: Option<&Path>, steps: &mut Steps) -> Result<(), ConfineError> {
    let part = |name: &str| path_text(&plan.mountpoint.join(name));
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    let place = path_text(plan.mountpoint)?;
    let (tmpfs, data) = (c"tmpfs", text(format!("mode=700,{TMPFS_SIZE}"))?);
    steps.push(Step::Mount { source: tmpfs.into(), target: place.clone(), fstype: tmpfs.into(), flags, data });
    for name in ["lower", "layers", "root"] {
        steps.push(Step::Mkdir { path: part(name)?, mode: 0o700 });
    }
    steps.push(Step::Attach { slot: ROOT_SLOT, target: part("lower")?, make: 0 });
    if let Some(kept) = kept {
        let set = ATTR_NOSUID | ATTR_NODEV;
        steps.push(Step::Grab { slot: LAYER_SLOT, path: path_text(kept)?, set, clear: 0, recursive: 0, links: 1 });
        map_owners(plan, LAYER_SLOT, kept, steps)?;
        steps.push(Step::Attach { slot: LAYER_SLOT, target: part("layers")?, make: 0 });
    }
    if let Some(IdRange { first }) = plan.ids {
        // Until the box stands, what is made in it is made as its own root.
        steps.push(Step::ActAs { id: first.into() });
    }
    let suid = if suid(plan) == 0 { 0 } else { libc::MS_NOSUID };
    steps.push(Step::Overlay { place, flags: libc::MS_NODEV | suid });
    steps.push(Step::EnterRoot { mountpoint: part("root")? });
    Ok(())
}

/// The end of what [`enter`] began.
pub(super) fn leave(plan: &Plan<'_>, steps: &mut Steps) {
    if plan.process.rootfs.is_writable() && plan.ids.is_some() {
        steps.push(Step::ActAs { id: 0 });
    }
}

/// Makes the user namespace, if there is to be one.
pub(super) fn map_users(plan: &Plan<'_>, steps: &mut Steps) {
    if let Some(IdRange { first }) = plan.ids {
        steps.push(Step::MapUsers { first: first.into(), count: IDS.into() });
    }
}

/// Shows the owners of what is in a slot through the user namespace, if there is one.
pub(super) fn map_owners(plan: &Plan<'_>, slot: u64, source: &Path, steps: &mut Steps) -> Result<(), ConfineError> {
    if plan.ids.is_some() {
        steps.push(Step::MapOwners { slot, source: path_text(source)? });
    }
    Ok(())
}
