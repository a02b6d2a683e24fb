//! A witness beside the database: how far it was, and what it held, when it was last on the disk.
//!
//! Problem: sled 0.34 takes a log that breaks off (a zeroed segment, a lost file of a large record, a file that was cut) for one that ends
//! there. What came later is gone, or as it was before, and nothing says so. Approach: each change has a number, which the database keeps;
//! after each sync the newest number, and a digest of all entries, are written to a small file that is not sled's. A database that is
//! opened at a lower number, or at the same with other entries, has lost something.
//!
//! Guarantees: whatever was on the disk and is missing is noticed, as long as the witness is there; no crash at any instant is taken for a
//! loss, because the number of a change is in the log before the change, and in the witness only after both. Two slots are written in turn,
//! so that a power cut can tear the newer one only, and the older speaks of less.
//! Caveat: of a database that is ahead of its witness (a kill between a flush and the sync) only the number is compared.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// One slot, with room to spare in what a disk writes at once: a sector.
const SLOT_BYTES: usize = 512;
const SLOTS: u64 = 2;
/// The version of what a slot says.
const VERSION: &str = "1";

/// How far a database is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Of the newest change.
    pub number: u64,
    /// Of all entries.
    pub digest: Digest,
}

/// A sum over entries that does not depend on their order, so that a change costs only itself. It is to tell damage, not malice: whoever can
/// write the one file can write the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    #[must_use]
    pub fn with(self, table: u8, key: &[u8], value: &[u8]) -> Digest {
        Digest(self.0.wrapping_add(of(table, key, value)))
    }

    #[must_use]
    pub fn without(self, table: u8, key: &[u8], value: &[u8]) -> Digest {
        Digest(self.0.wrapping_sub(of(table, key, value)))
    }
}

/// Two checksums of one entry, forwards and backwards, so that entries that collide in one differ in the other.
fn of(table: u8, key: &[u8], value: &[u8]) -> u64 {
    let sum = |parts: [&[u8]; 3]| {
        let mut hasher = crc32fast::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        u64::from(hasher.finalize())
    };
    sum([&[table], key, value]) << 32 | sum([value, key, &[table]])
}

/// What the witness says; none if there is none, or if it is damaged.
pub fn read(path: &Path) -> Option<Mark> {
    let bytes = fs::read(path).ok()?;
    bytes.chunks(SLOT_BYTES).filter_map(parse).max_by_key(|mark| mark.number)
}

/// Writes it down, on the disk. The file has its size from the beginning, so that a full disk takes it as well.
pub fn write(path: &Path, mark: Mark) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let slot = mark.number % SLOTS;
    let at = slot * u64::try_from(SLOT_BYTES).unwrap_or(u64::MAX);
    if file.metadata()?.len() == 0 {
        file.write_all_at(&vec![b'\n'; SLOT_BYTES * 2], 0)?;
    }
    file.write_all_at(&text(mark), at)?;
    file.sync_data()
}

fn text(Mark { number, digest: Digest(digest) }: Mark) -> Vec<u8> {
    let said = format!("{VERSION} {number} {digest:016x}");
    let mut bytes = format!("{said} {:08x}\n", crc32fast::hash(said.as_bytes())).into_bytes();
    bytes.resize(SLOT_BYTES, b'\n');
    bytes
}

fn parse(slot: &[u8]) -> Option<Mark> {
    let line = std::str::from_utf8(slot).ok()?.lines().next()?;
    let (said, checksum) = line.rsplit_once(' ')?;
    if u32::from_str_radix(checksum, 16).ok()? != crc32fast::hash(said.as_bytes()) {
        return None;
    }
    let mut words = said.split(' ');
    let (VERSION, number, digest) = (words.next()?, words.next()?, words.next()?) else { return None };
    Some(Mark { number: number.parse().ok()?, digest: Digest(u64::from_str_radix(digest, 16).ok()?) })
}

/// What is to be said of a database that was opened at `found`, none if it has no number, in a sentence; none if nothing is missing.
pub fn compare(database: &Path, found: Option<Mark>, witness: Option<Mark>) -> Option<String> {
    let lost =
        "some of what was saved is missing, or as it was before; what runs is adopted, and told of by its traces";
    let database = database.display();
    let found = found.filter(|found| found.number > 0);
    match (found, witness) {
        // One of number zero was laid beside an empty database.
        (None, None) | (_, Some(Mark { number: 0, .. })) => None,
        (Some(Mark { number, .. }), None) => Some(format!(
            "the witness of the database {database} is gone, which was at change {number}: whether anything is missing cannot be told"
        )),
        (None, Some(Mark { number, .. })) => {
            Some(format!("the database {database} has lost its contents, {number} changes: {lost}"))
        }
        (Some(found), Some(witness)) if found.number < witness.number => Some(format!(
            "the database {database} has lost its end: it is at change {}, and {} were on the disk: {lost}",
            found.number, witness.number
        )),
        (Some(found), Some(witness)) if found.number == witness.number && found.digest != witness.digest => Some(
            format!("the database {database} holds something else than at change {} was saved: {lost}", found.number),
        ),
        (Some(_), Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u64) -> Mark {
        Mark { number, digest: Digest(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)) }
    }

    #[test]
    fn it_says_what_was_written_last_and_torn_what_was_written_before() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("witness");
        assert_eq!(read(&path), None);
        for number in 1..5 {
            write(&path, mark(number)).unwrap();
            assert_eq!(read(&path), Some(mark(number)));
            assert_eq!(fs::metadata(&path).unwrap().len(), 1024, "its size is as it was");
        }
        let good = fs::read(&path).unwrap();
        for at in 0..20 {
            let mut torn = good.clone();
            // The newest is the one of an even number.
            torn[at] ^= 1;
            fs::write(&path, &torn).unwrap();
            assert_eq!(read(&path), Some(mark(3)), "byte {at}");
        }
        fs::write(&path, "").unwrap();
        assert_eq!(read(&path), None);
    }

    #[test]
    fn a_digest_depends_on_each_entry_and_not_on_their_order() {
        let (a, b) = ((0, b"a".as_slice(), b"1".as_slice()), (1, b"b".as_slice(), b"2".as_slice()));
        let both = |first: (u8, &[u8], &[u8]), second: (u8, &[u8], &[u8])| {
            Digest::default().with(first.0, first.1, first.2).with(second.0, second.1, second.2)
        };
        assert_eq!(both(a, b), both(b, a));
        assert_eq!(both(a, b).without(a.0, a.1, a.2), Digest::default().with(b.0, b.1, b.2));
        assert_ne!(both(a, b), both(a, (0, b.1, b.2)), "the table counts");
        assert_ne!(both(a, b), both(a, (b.0, b.1, b"3")));
    }

    #[test]
    fn only_what_is_missing_is_told() {
        let told = |found: Option<Mark>, witness: Option<Mark>| compare(Path::new("db"), found, witness).is_some();
        let other = Mark { digest: Digest(1), ..mark(5) };
        for (found, witness, expected) in [
            (None, None, false),
            (Some(mark(0)), None, false),
            (None, Some(mark(0)), false),
            (Some(mark(1)), Some(mark(0)), false),
            (Some(mark(5)), Some(mark(5)), false),
            // Killed before it was written down.
            (Some(mark(6)), Some(mark(5)), false),
            (Some(mark(5)), Some(other), true),
            (Some(mark(4)), Some(mark(5)), true),
            (None, Some(mark(5)), true),
            (Some(mark(5)), None, true),
        ] {
            assert_eq!(told(found, witness), expected, "{found:?} {witness:?}");
        }
    }
}
