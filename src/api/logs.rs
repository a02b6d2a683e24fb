//! A workload's log files as one stream of lines, oldest first, and on as they grow.

use crate::model::time::Timestamp;
use axum::body::Bytes;
use http_body_util::channel::{Channel, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// Pieces read ahead of a slow reader.
const PIECES_MAX: usize = 4;
/// Bytes of one piece.
const PIECE_BYTES: usize = 64 * 1024;
/// Lines that `tail` can ask for.
const TAIL_MAX: usize = 100_000;
/// How long what is written after a wake-up is gathered: a chatty workload must not wake its reader for each write.
const GATHER: Duration = Duration::from_millis(50);
/// How often a followed log is looked at unasked: whether the reader has gone, and on a file system that tells nobody of changes.
const FOLLOW_EVERY: Duration = Duration::from_secs(5);
/// Older files than the one being written, `log.9` at most.
const OLDER_MAX: u32 = 9;

/// Which lines of a log are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// The last so many of them.
    pub tail: Option<usize>,
    /// Written then or later, and not later than then.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// And whatever comes after.
    pub follow: bool,
}

impl Ask {
    fn wants(&self, line: &[u8]) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let time = line.split(|&byte| byte == b' ').next().and_then(|time| str::from_utf8(time).ok());
        // What has no time is not ours; better told than hidden.
        let Some(time) = time.and_then(Timestamp::parse) else { return true };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }
}

/// The lines of the log in `folder` that are asked for. `held` is let go when the reading ends.
pub fn stream(folder: PathBuf, ask: Ask, held: impl Send + 'static) -> Channel<Bytes, io::Error> {
    let (body, channel) = Channel::new(PIECES_MAX);
    let (pieces, received) = mpsc::channel(PIECES_MAX);
    tokio::spawn(forward(received, body));
    // Ends when the log is read or the reader has gone; never while it is followed by somebody.
    spawn_blocking(move || {
        if let Err(error) = read(&folder, ask, &pieces) {
            tracing::debug!(path = %folder.display(), error = %error, "cannot read a log");
        }
        drop(held);
    });
    channel
}

async fn forward(mut pieces: mpsc::Receiver<Bytes>, mut body: Sender<Bytes, io::Error>) {
    while let Some(piece) = pieces.recv().await {
        if body.send_data(piece).await.is_err() {
            return;
        }
    }
}

/// The reader has gone.
struct Gone;

fn send(pieces: &mpsc::Sender<Bytes>, bytes: Vec<u8>) -> Result<(), Gone> {
    if bytes.is_empty() { Ok(()) } else { pieces.blocking_send(bytes.into()).map_err(|_| Gone) }
}

fn read(folder: &Path, ask: Ask, pieces: &mpsc::Sender<Bytes>) -> io::Result<()> {
    // Begun before anything is read, so that nothing is written unseen.
    let news = if ask.follow { News::of(folder) } else { None };
    // Opened before the older ones are read, so that what is written meanwhile is not lost between the two.
    let mut current = open(&folder.join("log"))?;
    let mut older: Vec<File> =
        (1..=OLDER_MAX).rev().filter_map(|n| open(&folder.join(format!("log.{n}"))).ok().flatten()).collect();
    // In the middle of a rotation there is none of the first name: the latest is the one to go on from.
    if current.is_none() {
        current = older.pop();
    }
    let files = older.into_iter().chain(match &current {
        Some(file) => Some(file.try_clone()?),
        None => None,
    });
    let sent = match ask.tail {
        None if ask.since.is_none() && ask.until.is_none() => send_all(files, pieces)?,
        _ => send_lines(files, ask, pieces)?,
    };
    if sent.is_err() {
        return Ok(());
    }
    while ask.follow && !pieces.is_closed() {
        match &news {
            Some(news) => news.wait(),
            None => std::thread::sleep(FOLLOW_EVERY),
        }
        if let Some(file) = &mut current
            && send_rest(file, pieces)?.is_err()
        {
            return Ok(());
        }
        let newest = open(&folder.join("log"))?;
        // None in the middle of a rotation: whoever forgot then what it had read would tell everything again.
        if newest.is_some() && inode(newest.as_ref()) != inode(current.as_ref()) {
            // It was rotated. What came since the look above is still to be sent, and whole files if that happened more than once.
            let missed = missed(folder, current.as_ref(), newest.as_ref());
            if send_all(current.take().into_iter().chain(missed), pieces)?.is_err() {
                return Ok(());
            }
            current = newest;
        }
    }
    Ok(())
}

/// Word of changes in a log folder (inotify(7)): an idle log costs its followers nothing.
struct News(OwnedFd);

impl News {
    /// None where the kernel has no more of these to give; then the log is looked at now and then.
    fn of(folder: &Path) -> Option<News> {
        let news = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&news, folder, what).ok()?;
        Some(News(news))
    }

    fn wait(&self) {
        let limit = Timespec { tv_sec: FOLLOW_EVERY.as_secs().cast_signed(), tv_nsec: 0 };
        // Interrupted or in time, what follows is another look.
        if matches!(poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit)), Ok(1)) {
            std::thread::sleep(GATHER);
            // What it says does not matter, only that it is taken: the next wait is for what comes after.
            let mut events = [0; 4096];
            while matches!(rustix::io::read(&self.0, &mut events), Ok(len) if len > 0) {}
        }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The files between the one that was read and the one that is written now, oldest first. All there are if the former has gone.
fn missed(folder: &Path, read: Option<&File>, newest: Option<&File>) -> Vec<File> {
    let mut files: Vec<File> = Vec::new();
    for number in 1..=OLDER_MAX {
        let Ok(Some(file)) = open(&folder.join(format!("log.{number}"))) else { break };
        let found = inode(Some(&file));
        if read.is_some() && found == inode(read) {
            break;
        }
        // A rotation meanwhile shows a file again under its next name.
        if found != inode(newest) && files.iter().all(|file| inode(Some(file)) != found) {
            files.push(file);
        }
    }
    files.reverse();
    files
}

fn inode(file: Option<&File>) -> Option<u64> {
    file.and_then(|file| file.metadata().ok()).map(|found| found.ino())
}

fn send_all(files: impl Iterator<Item = File>, pieces: &mpsc::Sender<Bytes>) -> io::Result<Result<(), Gone>> {
    for mut file in files {
        if send_rest(&mut file, pieces)?.is_err() {
            return Ok(Err(Gone));
        }
    }
    Ok(Ok(()))
}

fn send_rest(file: &mut File, pieces: &mpsc::Sender<Bytes>) -> io::Result<Result<(), Gone>> {
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let len = file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        if len == 0 {
            return Ok(Ok(()));
        }
        if send(pieces, piece).is_err() {
            return Ok(Err(Gone));
        }
    }
}

fn send_lines(
    files: impl Iterator<Item = File>,
    ask: Ask,
    pieces: &mpsc::Sender<Bytes>,
) -> io::Result<Result<(), Gone>> {
    let lines = ask.tail.map(|lines| lines.min(TAIL_MAX));
    let mut last: VecDeque<Vec<u8>> = VecDeque::new();
    let mut bytes = 0;
    for file in files {
        let mut reader = BufReader::new(file);
        loop {
            let mut line = Vec::new();
            if reader.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if !ask.wants(&line) {
                continue;
            }
            bytes += line.len();
            last.push_back(line);
            match lines {
                Some(lines) if last.len() > lines => {
                    last.pop_front();
                }
                // Nothing has to be held back for its end.
                None if bytes >= PIECE_BYTES => {
                    bytes = 0;
                    if send(pieces, last.drain(..).flatten().collect()).is_err() {
                        return Ok(Err(Gone));
                    }
                }
                _ => {}
            }
        }
        // A handle that goes on being followed stands where the last line ended, which the buffer may have read past.
        let at = reader.stream_position()?;
        reader.into_inner().seek(SeekFrom::Start(at))?;
    }
    Ok(send(pieces, last.into_iter().flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::fs;
    use std::io::Write;

    async fn collect(folder: &Path, tail: Option<usize>) -> String {
        let body = stream(folder.to_owned(), Ask { tail, ..Ask::default() }, ()).collect().await.unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn files_are_read_oldest_first_and_a_tail_spans_them() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(collect(folder.path(), None).await, "", "no log yet");
        fs::write(folder.path().join("log.2"), "a\nb\n").unwrap();
        fs::write(folder.path().join("log.1"), "c\n").unwrap();
        fs::write(folder.path().join("log"), "d\ne\n").unwrap();
        assert_eq!(collect(folder.path(), None).await, "a\nb\nc\nd\ne\n");
        assert_eq!(collect(folder.path(), Some(3)).await, "c\nd\ne\n");
        assert_eq!(collect(folder.path(), Some(0)).await, "");
    }

    #[test]
    fn a_window_of_time_is_cut_out_and_what_has_no_time_is_told() {
        let at = |text| Timestamp::parse(text).unwrap();
        let (since, until) = (Some(at("2026-11-24T10:00:01Z")), Some(at("2026-11-24T10:00:02Z")));
        let ask = Ask { since, until, ..Ask::default() };
        for (line, wanted) in [
            ("2026-11-24T10:00:00.999999999Z stdout F a", false),
            ("2026-11-24T10:00:01.000000000Z stdout F b", true),
            ("2026-11-24T10:00:02.000000000Z stdout F c", true),
            ("2026-11-24T10:00:02.100000000Z stdout F d", false),
            ("torn", true),
        ] {
            assert_eq!(ask.wants(line.as_bytes()), wanted, "{line}");
        }
    }

    #[tokio::test]
    async fn a_look_in_the_middle_of_a_rotation_tells_nothing_twice() {
        for moved_before in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            let turn = || fs::rename(path("log"), path("log.1")).unwrap();
            fs::write(path("log"), "one\n").unwrap();
            if moved_before {
                turn();
            }
            let mut body = stream(folder.path().to_owned(), Ask { follow: true, ..Ask::default() }, ());
            let mut seen = String::new();
            for wanted in ["one\n", "one\ntwo\n"] {
                while seen.len() < wanted.len() {
                    let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.unwrap();
                    seen += std::str::from_utf8(&frame.unwrap().unwrap().into_data().unwrap()).unwrap();
                }
                assert_eq!(seen, wanted);
                if wanted == "one\n" {
                    if !moved_before {
                        turn();
                    }
                    // Time for a look.
                    tokio::time::sleep(4 * GATHER).await;
                    fs::write(path("log"), "two\n").unwrap();
                }
            }
        }
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_across_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("log"), "one\n").unwrap();
        let mut body = stream(folder.path().to_owned(), Ask { tail: Some(10), follow: true, ..Ask::default() }, ());
        let mut seen = String::new();
        for (step, wanted) in ["one\n", "one\ntwo\n", "one\ntwo\nthree\nfour\n"].into_iter().enumerate() {
            match step {
                1 => File::options().append(true).open(path("log")).unwrap().write_all(b"two\n").unwrap(),
                2 => {
                    File::options().append(true).open(path("log")).unwrap().write_all(b"three\n").unwrap();
                    fs::rename(path("log"), path("log.1")).unwrap();
                    fs::write(path("log"), "four\n").unwrap();
                }
                _ => {}
            }
            while seen.len() < wanted.len() {
                let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.unwrap();
                seen += std::str::from_utf8(&frame.unwrap().unwrap().into_data().unwrap()).unwrap();
            }
            assert_eq!(seen, wanted);
        }
    }
}
