//! The system calls that look at and make files in a root that is not trusted.
//!
//! While init sets up, its own descriptors lie open on folders of the host, and a link in a root directory could lead to one by way of
//! `/proc/self/fd` (CVE-2024-21626). So nothing is made through such a link (openat2(2), `RESOLVE_NO_MAGICLINKS`).

use super::{
    AT_EMPTY_PATH, AT_FDCWD, CStr, Errno, Fd, O_CLOEXEC, O_DIRECTORY, O_PATH, Result, check, close, nr, syscall,
};

pub const RESOLVE_NO_MAGICLINKS: u64 = 2;
pub const RESOLVE_NO_SYMLINKS: u64 = 4;

/// Opens, and resolves the path as `resolve` says.
pub fn openat2(dir: Fd, path: &CStr, flags: u32, mode: u32, resolve: u64) -> Result<Fd> {
    // struct open_how.
    let how: [u64; 3] = [flags.into(), mode.into(), resolve];
    call!(nr::OPENAT2, dir, path.as_ptr(), how.as_ptr(), size_of_val(&how)).map(|fd| fd as Fd)
}

pub fn mkdir(path: &CStr, mode: u32) -> Result<()> {
    // As long as any path may be (PATH_MAX).
    let mut parent = [0u8; 4096];
    let bytes = path.to_bytes_with_nul();
    let slash = bytes.iter().rposition(|&byte| byte == b'/');
    let (dir, name) = match slash {
        None => (c".", path),
        Some(at) => {
            let (head, tail) = bytes.split_at(at + 1);
            parent
                .get_mut(..head.len())
                .filter(|place| place.len() < 4096)
                .ok_or(Errno::NAMETOOLONG)?
                .copy_from_slice(head);
            let name = CStr::from_bytes_with_nul(tail).map_err(|_| Errno::INVAL)?;
            (CStr::from_bytes_until_nul(&parent).map_err(|_| Errno::INVAL)?, name)
        }
    };
    let dir = openat2(AT_FDCWD, dir, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, RESOLVE_NO_MAGICLINKS)?;
    let result = call!(nr::MKDIRAT, dir, name.as_ptr(), mode).map(drop);
    close(dir);
    result
}

pub fn fchmod(fd: Fd, mode: u32) -> Result<()> {
    call!(nr::FCHMOD, fd, mode).map(drop)
}

/// Who owns a file, and what may be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    /// Permissions, without the kind of file.
    pub mode: u32,
}

pub fn owner(fd: Fd) -> Result<Owner> {
    const BASIC: u32 = 0x7ff;
    // struct statx: four words of mask, block size and attributes, then links, uid, gid, and the mode in the low half of a word.
    let mut stat = [0u32; 64];
    call!(nr::STATX, fd, c"".as_ptr(), AT_EMPTY_PATH, BASIC, stat.as_mut_ptr())?;
    Ok(Owner { uid: stat[5], gid: stat[6], mode: stat[7] & 0o7777 })
}

/// Takes this id for files alone (setfsuid(2)), and back every capability that the kernel takes away with it.
pub fn act_as(id: u32) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    // They answer the id before, never an error; one that may not be taken is not there afterwards.
    call!(nr::SETFSGID, id)?;
    call!(nr::SETFSUID, id)?;
    if call!(nr::SETFSUID, u32::MAX)? != id as usize || call!(nr::SETFSGID, u32::MAX)? != id as usize {
        return Err(Errno::PERM);
    }
    let header: [u32; 2] = [VERSION_3, 0];
    let mut data = [0u32; 6];
    call!(nr::CAPGET, header.as_ptr(), data.as_mut_ptr())?;
    // Effective, permitted, inheritable; twice.
    (data[0], data[3]) = (data[1], data[4]);
    call!(nr::CAPSET, header.as_ptr(), data.as_ptr()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn owners_are_read_as_the_standard_library_reads_them() {
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::File::open("/tmp").unwrap();
        let known = file.metadata().unwrap();
        let expected = Owner { uid: known.uid(), gid: known.gid(), mode: known.permissions().mode() & 0o7777 };
        assert_eq!(owner(file.as_raw_fd()), Ok(expected));
    }

    #[test]
    fn no_folder_is_made_behind_a_link_to_a_descriptor() {
        const ELOOP: Errno = Errno(40);
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let held = std::fs::File::open(outside.path()).unwrap();
        symlink(format!("/proc/self/fd/{}", held.as_raw_fd()), inside.path().join("way-out")).unwrap();
        symlink("real", inside.path().join("fine")).unwrap();
        let path = |name: &str| CString::new(inside.path().join(name).as_os_str().as_bytes()).unwrap();
        assert_eq!(mkdir(&path("way-out/x"), 0o755), Err(ELOOP));
        assert_eq!(mkdir(&path("real"), 0o755), Ok(()));
        assert_eq!(mkdir(&path("fine/x"), 0o755), Ok(()));
        assert_eq!(mkdir(&path("real/x"), 0o755), Err(Errno::EXIST));
        assert!(!outside.path().join("x").exists() && inside.path().join("real/x").is_dir());
    }
}
