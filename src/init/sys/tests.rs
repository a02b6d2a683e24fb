//! The kernel's numbers as written down here against the ones the libc crate has from its headers.

use super::*;

#[test]
fn constants_are_the_ones_libc_knows() {
    let pairs: &[(u64, u64)] = &[
        (AT_FDCWD as u64, libc::AT_FDCWD as u64),
        (AT_EMPTY_PATH.into(), libc::AT_EMPTY_PATH as u64),
        (AT_RECURSIVE.into(), libc::AT_RECURSIVE as u64),
        (O_CREAT.into(), libc::O_CREAT as u64),
        (O_TRUNC.into(), libc::O_TRUNC as u64),
        (O_APPEND.into(), libc::O_APPEND as u64),
        (O_NONBLOCK.into(), libc::O_NONBLOCK as u64),
        (O_DIRECTORY.into(), libc::O_DIRECTORY as u64),
        (O_NOFOLLOW.into(), libc::O_NOFOLLOW as u64),
        (O_CLOEXEC.into(), libc::O_CLOEXEC as u64),
        (O_PATH.into(), libc::O_PATH as u64),
        (CLONE_VM, libc::CLONE_VM as u64),
        (CLONE_VFORK, libc::CLONE_VFORK as u64),
        (SIGKILL as u64, libc::SIGKILL as u64),
        (SIGPIPE as u64, libc::SIGPIPE as u64),
        (SIGCHLD as u64, libc::SIGCHLD as u64),
        (SI_KERNEL as u64, libc::SI_KERNEL as u64),
        (SIG_SETMASK.into(), libc::SIG_SETMASK as u64),
        (WNOHANG as u64, libc::WNOHANG as u64),
        (POLLIN as u64, libc::POLLIN as u64),
        (PR_SET_PDEATHSIG as u64, libc::PR_SET_PDEATHSIG as u64),
        (PR_SET_DUMPABLE as u64, libc::PR_SET_DUMPABLE as u64),
        (PR_SET_NAME as u64, libc::PR_SET_NAME as u64),
        (PR_CAPBSET_DROP as u64, libc::PR_CAPBSET_DROP as u64),
        (PR_SET_NO_NEW_PRIVS as u64, libc::PR_SET_NO_NEW_PRIVS as u64),
        (PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT as u64),
        (PR_CAP_AMBIENT_CLEAR_ALL as u64, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64),
        (MNT_DETACH as u64, libc::MNT_DETACH as u64),
        (OPEN_TREE_CLONE.into(), u64::from(libc::OPEN_TREE_CLONE)),
        (MOVE_MOUNT_F_EMPTY_PATH.into(), u64::from(libc::MOVE_MOUNT_F_EMPTY_PATH)),
        (SIGXFSZ as u64, libc::SIGXFSZ as u64),
        (MOVE_MOUNT_T_SYMLINKS.into(), u64::from(libc::MOVE_MOUNT_T_SYMLINKS)),
        (Errno::PERM.0 as u64, libc::EPERM as u64),
        (Errno::NOENT.0 as u64, libc::ENOENT as u64),
        (Errno::INTR.0 as u64, libc::EINTR as u64),
        (Errno::AGAIN.0 as u64, libc::EAGAIN as u64),
        (Errno::ACCES.0 as u64, libc::EACCES as u64),
        (Errno::EXIST.0 as u64, libc::EEXIST as u64),
        (Errno::NOTDIR.0 as u64, libc::ENOTDIR as u64),
        (Errno::INVAL.0 as u64, libc::EINVAL as u64),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn call_numbers_are_the_ones_libc_knows() {
    let pairs: &[(usize, i64)] = &[
        (nr::READ, libc::SYS_read),
        (nr::WRITE, libc::SYS_write),
        (nr::CLOSE, libc::SYS_close),
        (nr::POLL, libc::SYS_poll),
        (nr::LSEEK, libc::SYS_lseek),
        (nr::MMAP, libc::SYS_mmap),
        (nr::MUNMAP, libc::SYS_munmap),
        (nr::RT_SIGACTION, libc::SYS_rt_sigaction),
        (nr::RT_SIGPROCMASK, libc::SYS_rt_sigprocmask),
        (nr::WRITEV, libc::SYS_writev),
        (nr::CLONE, libc::SYS_clone),
        (nr::EXECVE, libc::SYS_execve),
        (nr::WAIT4, libc::SYS_wait4),
        (nr::KILL, libc::SYS_kill),
        (nr::CHDIR, libc::SYS_chdir),
        (nr::UMASK, libc::SYS_umask),
        (nr::SETSID, libc::SYS_setsid),
        (nr::SETGROUPS, libc::SYS_setgroups),
        (nr::SETRESUID, libc::SYS_setresuid),
        (nr::SETRESGID, libc::SYS_setresgid),
        (nr::CAPSET, libc::SYS_capset),
        (nr::PIVOT_ROOT, libc::SYS_pivot_root),
        (nr::PRCTL, libc::SYS_prctl),
        (nr::MOUNT, libc::SYS_mount),
        (nr::UMOUNT2, libc::SYS_umount2),
        (nr::SETHOSTNAME, libc::SYS_sethostname),
        (nr::CLOCK_GETTIME, libc::SYS_clock_gettime),
        (nr::EXIT_GROUP, libc::SYS_exit_group),
        (nr::OPENAT, libc::SYS_openat),
        (nr::MKDIRAT, libc::SYS_mkdirat),
        (nr::UNLINKAT, libc::SYS_unlinkat),
        (nr::RENAMEAT, libc::SYS_renameat),
        (nr::UNSHARE, libc::SYS_unshare),
        (nr::FACCESSAT, libc::SYS_faccessat),
        (nr::PRLIMIT64, libc::SYS_prlimit64),
        (nr::SCHED_SETSCHEDULER, libc::SYS_sched_setscheduler),
        (nr::SCHED_SETAFFINITY, libc::SYS_sched_setaffinity),
        (nr::SETPRIORITY, libc::SYS_setpriority),
        (nr::CLOSE_RANGE, libc::SYS_close_range),
        (nr::SIGNALFD4, libc::SYS_signalfd4),
        (nr::DUP3, libc::SYS_dup3),
        (nr::PIPE2, libc::SYS_pipe2),
        (nr::EXECVEAT, libc::SYS_execveat),
        (nr::OPEN_TREE, libc::SYS_open_tree),
        (nr::MOVE_MOUNT, libc::SYS_move_mount),
        (nr::MOUNT_SETATTR, libc::SYS_mount_setattr),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(i64::try_from(*ours).unwrap(), *theirs);
    }
}
