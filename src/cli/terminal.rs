//! The caller's side of a terminal in a box: raw mode, size, and the bytes that go to and fro.
//!
//! Owns: the attributes of the caller's terminal while a command runs, put back on every way out; threads that copy. Invariants: nothing
//! is held back but one read; a reader that has gone ends the session; what the command wrote before its end is shown before ours.

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::Notify;

/// Bytes copied at once: what a terminal holds, and a page of a pipe.
const PIECE_BYTES: usize = 4096;

/// The caller's terminal in raw mode: each key goes to the command as it is typed. Dropping puts it back.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// None where standard input is no terminal.
    pub fn enter() -> anyhow::Result<Option<Raw>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin()).context("cannot read the settings of the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        let guard = Raw(before);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("cannot change the settings of the terminal")?;
        Ok(Some(guard))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to put back.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Gives the command's terminal the size of the caller's, where the caller has one.
pub fn copy_size(master: BorrowedFd<'_>) {
    let (input, output) = (io::stdin(), io::stdout());
    if let Ok(size) = tcgetwinsize(&output).or_else(|_| tcgetwinsize(&input)) {
        // Both are terminals, so there is nothing to fail; a wrong size is no reason to end a session.
        let _ = tcsetwinsize(master, size);
    }
}

/// Threads that copy what the command writes.
#[derive(Debug, Default)]
pub struct Relay {
    outputs: Vec<JoinHandle<()>>,
    /// Its closing tells them that no more will come.
    bell: Option<(OwnedFd, OwnedFd)>,
    /// Told when somebody who read the command's output has gone.
    pub gone: Arc<Notify>,
}

impl Relay {
    /// Copies `from` to `to` until its end.
    pub fn carry(&mut self, from: OwnedFd, to: OwnedFd) -> anyhow::Result<()> {
        if self.bell.is_none() {
            self.bell = Some(pipe()?);
        }
        let Some((heard, _)) = &self.bell else { return Ok(()) };
        let (heard, gone) = (heard.try_clone().context("cannot wait for output")?, Arc::clone(&self.gone));
        self.outputs.push(std::thread::spawn(move || {
            if carry(&from, &to, &heard) == Carried::ReaderGone {
                gone.notify_one();
            }
        }));
        Ok(())
    }

    /// Waits until everything that was written is through. The command has ended.
    pub fn finish(mut self) {
        self.bell = None;
        for output in self.outputs.drain(..) {
            let _ = output.join();
        }
    }
}

/// A pipe that no program we start inherits.
pub fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")
}

/// Copies what is typed to the command's terminal, in a thread that ends with the program: nobody can take back a read that waits.
pub fn feed(master: OwnedFd) {
    std::thread::spawn(move || {
        let input = io::stdin();
        let mut piece = [0; PIECE_BYTES];
        loop {
            match rustix::io::read(&input, &mut piece) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait(input.as_fd(), PollFlags::IN),
                Ok(len) if len > 0 => {
                    if write_whole(&master, piece.get(..len).unwrap_or_default()).is_err() {
                        return;
                    }
                }
                _ => break,
            }
        }
        // A terminal has no end of file; who reads lines from it takes this character for one (termios(3), VEOF).
        if let Ok(settings) = tcgetattr(&master) {
            let _ = write_whole(&master, &[settings.special_codes[SpecialCodeIndex::VEOF]]);
        }
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    All,
    ReaderGone,
}

/// Copies until `from` ends, or, once `heard` is closed, until it has no more.
fn carry(from: &OwnedFd, to: &OwnedFd, heard: &OwnedFd) -> Carried {
    let mut piece = [0; PIECE_BYTES];
    loop {
        let mut fds = [PollFd::new(from, PollFlags::IN), PollFd::new(heard, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return Carried::All,
            Ok(_) => {}
        }
        if fds[0].revents().is_empty() {
            return Carried::All;
        }
        match rustix::io::read(from, &mut piece) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A master answers EIO once nobody has the other side any more.
            Ok(0) | Err(_) => return Carried::All,
            Ok(len) => {
                if write_whole(to, piece.get(..len).unwrap_or_default()).is_err() {
                    return Carried::ReaderGone;
                }
            }
        }
    }
}

fn write_whole(to: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Whoever opened it for us may have said not to wait.
            Err(Errno::AGAIN) => wait(to.as_fd(), PollFlags::OUT),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, what: PollFlags) {
    // Only a signal can cut it short, and then the caller asks again.
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, what)], None);
}
