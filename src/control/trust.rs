//! Who may write manifests: whoever may decides what root runs.
//!
//! A folder or file counts only if nobody but root, the controller's own user, the user behind `sudo` or one named with `--trust-owner`
//! can write it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const GROUP_OR_OTHERS_WRITE: u32 = 0o022;

/// The users whose files are believed.
#[derive(Clone, Debug)]
pub struct Trust {
    owners: Vec<u32>,
    /// Believed, with a warning: the user who called sudo.
    sudo: Option<u32>,
    /// Nothing that is read runs: anybody may have written it.
    anyone: bool,
}

/// Somebody else could change what runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error("{path} can be written by its group or by everybody (mode {mode:04o})\n  help: chmod go-w {path}")]
    Writable { path: PathBuf, mode: u32 },
    #[error(
        "{path} belongs to uid {uid}, who could run anything as root\n  help: chown root {path}, or start the controller with --trust-owner {uid}"
    )]
    Owner { path: PathBuf, uid: u32 },
}

/// What was found of something that is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Trusted,
    /// The user behind sudo: worth a warning.
    Sudo(u32),
}

impl Trust {
    /// Root, `own`, those in `named`; and with a warning the user that `SUDO_UID` names.
    pub fn new(own: u32, named: &[u32], sudo_uid: Option<&str>) -> Trust {
        let mut owners = vec![0, own];
        owners.extend_from_slice(named);
        Trust { owners, sudo: sudo_uid.and_then(|uid| uid.parse().ok()), anyone: false }
    }

    /// For looking at manifests without running them.
    pub fn anyone() -> Trust {
        Trust { owners: Vec::new(), sudo: None, anyone: true }
    }

    /// Checks what is known of a folder or file.
    pub fn check(&self, path: &Path, found: &Metadata) -> Result<Owner, Untrusted> {
        let (mode, uid) = (found.mode() & 0o7777, found.uid());
        if self.anyone {
            return Ok(Owner::Trusted);
        }
        if mode & GROUP_OR_OTHERS_WRITE != 0 {
            return Err(Untrusted::Writable { path: path.to_owned(), mode });
        }
        if self.owners.contains(&uid) {
            Ok(Owner::Trusted)
        } else if self.sudo == Some(uid) {
            Ok(Owner::Sudo(uid))
        } else {
            Err(Untrusted::Owner { path: path.to_owned(), uid })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_trusted_users_may_be_able_to_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let own = fs::metadata(path).unwrap().uid();
        let set = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let check = |trust: &Trust| trust.check(path, &fs::metadata(path).unwrap());
        let ours = Trust::new(own, &[], None);
        for (mode, fine) in [(0o755, true), (0o700, true), (0o775, false), (0o757, false), (0o1777, false)] {
            set(mode);
            assert_eq!(check(&ours).is_ok(), fine, "{mode:o}");
        }
        set(0o755);
        std::os::unix::fs::chown(path, Some(4242), None).unwrap();
        assert_eq!(check(&ours), Err(Untrusted::Owner { path: path.to_owned(), uid: 4242 }));
        assert_eq!(check(&Trust::new(own, &[4242], None)), Ok(Owner::Trusted));
        assert_eq!(check(&Trust::new(own, &[], Some("4242"))), Ok(Owner::Sudo(4242)));
        assert!(check(&Trust::new(own, &[], Some("x"))).is_err());
        assert!(check(&ours).unwrap_err().to_string().contains("help: chown root"));
    }
}
