//! Orders read back as they were written, and nothing else is read.

use super::*;
use std::ffi::CString;

fn run_order() -> RunOrder {
    RunOrder {
        log_bytes_max: 1 << 20,
        log_files_max: 3,
        terminal: true,
        uid: 1000,
        gid: 1001,
        host_uid: 101_000,
        host_gid: 101_001,
        capabilities: 1 << 10,
        no_new_privileges: true,
        filters: vec![vec![6, 7], vec![8]],
        groups: vec![4, 24],
        workdir: c"/srv".into(),
        candidates: vec![c"/bin/sleep".into(), c"/usr/bin/sleep".into()],
        argv: vec![c"sleep".into(), c"".into(), c"infinity".into()],
        envp: vec![c"A=b".into()],
    }
}

/// A mapping starts on a page, so the test's buffer has to be aligned too.
fn aligned(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        })
        .collect()
}

fn bytes_of(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: u64s may be seen as bytes; the slice borrows the words for as long as it lives.
    unsafe { words.align_to_mut::<u8>() }.1
}

#[test]
fn an_order_reads_back_as_it_was_written() {
    let steps = [
        Step::WriteFile { path: c"/sys/fs/cgroup/cpu/web/tasks", content: c"0" },
        Step::NewSession {},
        Step::Mount { source: c"proc", target: c"/proc", fstype: c"proc", flags: 14, data: c"" },
        Step::EnterRoot { mountpoint: c"/run/x" },
        Step::ActAs { id: 7 },
        Step::Overlay { place: c"/run/x", flags: 4 },
        Step::Folder { path: c"/proc", make: 1 },
    ];
    let mut words = aligned(&order(&steps, &run_order()));
    let (read, mut run) = decode(bytes_of(&mut words)).unwrap();
    assert_eq!(read.map(Result::unwrap).collect::<Vec<_>>(), steps);
    assert_eq!((run.uid, run.gid, run.groups), (1000, 1001, &[4, 24][..]));
    assert_eq!((run.capabilities, run.filters), (1 << 10, &[2, 6, 7, 1, 8][..]));
    assert_eq!(run.workdir, c"/srv");
    assert_eq!(run.candidates.iter().map(CString::from).collect::<Vec<_>>(), run_order().candidates);
    let argv = run.argv.pointers();
    // SAFETY: three strings and the NULL after them were encoded above.
    let words = unsafe { std::slice::from_raw_parts(argv, 4) };
    assert!(words[3].is_null());
    // SAFETY: the pointer names a NUL-terminated string inside `words`.
    assert_eq!(unsafe { CStr::from_ptr(words[2].cast()) }, c"infinity");
}

#[test]
fn every_truncation_and_every_flipped_byte_is_refused_or_read_without_a_panic() {
    let whole = order(&[Step::Hostname { name: c"web" }], &run_order());
    for len in 0..whole.len() {
        let mut words = aligned(&whole[..len]);
        let bytes = &mut bytes_of(&mut words)[..len];
        assert!(decode(bytes).is_err(), "{len} bytes of {} were accepted", whole.len());
    }
    for at in 0..whole.len() {
        let mut words = aligned(&whole);
        let bytes = bytes_of(&mut words);
        bytes[at] ^= 0xff;
        if let Ok((steps, mut run)) = decode(bytes) {
            steps.for_each(drop);
            run.argv.pointers();
        }
    }
}
