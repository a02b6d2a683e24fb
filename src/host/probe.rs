//! Asking a workload: a connection or a GET on its loopback, a command in its box.
//!
//! Owns one try and its bounds: its time, the bytes that are read, the processes it may leave (none). Never judges an answer beyond good,
//! bad and not to be had, which `plan::probe` does.
//!
//! Approach: a connection is made in the workload's network namespace, by a thread that enters it and ends; a socket stays in the
//! namespace it was made in (network_namespaces(7)), so the rest is done from here. A command runs the way `exec` runs one, in a
//! cgroup of its own inside the workload's, which is killed when its time is up and emptied when it has ended: a probe can neither
//! outlive its try nor leave anything behind, whatever it forks.

mod command;

use super::exec::Target;
use super::linux::Linux;
use super::processes::is_alive;
use super::traces::Process;
use super::{Ask, chain};
use crate::model::isolation::Network;
use crate::model::probe::{Answer, Check};
use crate::model::units::format_duration;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use std::io::{self, Read, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of an HTTP answer that are read up to the end of its head. Servers refuse to send, and proxies to pass, more than 8 to 16 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 100;
/// How much of a body is waited for once the head has decided: a server that is hung up on in the middle logs an error every period.
const BODY_BYTES_MAX: usize = 64 * 1024;
const BODY_WAIT: Duration = Duration::from_millis(50);

impl Linux {
    /// One try.
    pub(super) fn ask(&self, ask: &Ask<'_>) -> Answer {
        let deadline = Instant::now() + ask.probe.timeout;
        let answer = match &ask.probe.check {
            Check::Exec { command } => self.execute(ask, command, deadline),
            Check::Http { port, path, host } => self
                .connect(ask, *port, deadline)
                .and_then(|mut stream| get(&mut stream, *port, path, host.as_deref(), deadline)),
            Check::Tcp { port } => self.connect(ask, *port, deadline).map(drop),
        };
        match answer {
            Ok(()) => Answer::Good,
            Err(Refusal::Bad(why)) => Answer::Bad(why),
            Err(Refusal::Late) => Answer::Bad(format!("no answer within {}", format_duration(ask.probe.timeout))),
            Err(Refusal::Unasked(why)) => Answer::Unasked(why),
        }
    }

    /// The run that is to be asked, if it is still there.
    fn target(&self, ask: &Ask<'_>) -> Result<Target, Refusal> {
        let trace = self.traces.newest(ask.name).map_err(|error| unasked(&error))?;
        let trace = trace.filter(|trace| trace.number == ask.instance && trace.end.is_none());
        let run = trace.and_then(|trace| Some((trace.boxed.record?, trace.started?.command)));
        let lacking = || Refusal::Unasked("it has ended, or the traces of its start are lost".to_owned());
        run.map(|(record, process)| Target { record, process }).ok_or_else(lacking)
    }

    fn connect(&self, ask: &Ask<'_>, port: u16, deadline: Instant) -> Result<TcpStream, Refusal> {
        match ask.network {
            Network::Host => dial(port, deadline),
            Network::None => {
                let process = self.target(ask)?.process;
                // A thread of its own: one that could not come back from there must not be used for anything else.
                thread::scope(|scope| {
                    let there = thread::Builder::new().name("probe".to_owned()).spawn_scoped(scope, || {
                        enter_network(process)?;
                        dial(port, deadline)
                    });
                    let there = there.map_err(|error| unasked(&error))?;
                    there.join().unwrap_or_else(|_| Err(Refusal::Unasked("a bug in containerctl".to_owned())))
                })
            }
        }
    }
}

/// Why there is no good answer.
#[derive(Debug)]
enum Refusal {
    Bad(String),
    /// The time is up.
    Late,
    Unasked(String),
}

fn unasked(error: &dyn std::error::Error) -> Refusal {
    Refusal::Unasked(chain(error))
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        match error.kind() {
            // What a socket says whose read or write has timed out (socket(7), SO_RCVTIMEO).
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Refusal::Late,
            _ => Refusal::Bad(error.to_string()),
        }
    }
}

/// Why there is no connection: the workload's doing, or that we have run out of something.
fn refused(error: &io::Error) -> Refusal {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::ConnectionRefused, _) => Refusal::Bad("connection refused".to_owned()),
        (io::ErrorKind::TimedOut, _) => Refusal::Late,
        (_, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)) => unasked(error),
        _ => Refusal::Bad(error.to_string()),
    }
}

/// What is left of the time.
fn left(deadline: Instant) -> Result<Duration, Refusal> {
    Some(deadline.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero()).ok_or(Refusal::Late)
}

/// Has this thread see the network of that process.
fn enter_network(process: Process) -> Result<(), Refusal> {
    let gone = || Refusal::Unasked("it has ended".to_owned());
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
    // Checked with the descriptor in hand: it is on that process then, and not on one that was given its number since.
    if !is_alive(process) {
        return Err(gone());
    }
    move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::NETWORK).map_err(|errno| unasked(&errno))
}

/// A connection to the loopback that this thread sees. Some programs listen on `localhost` and get ::1 alone.
fn dial(port: u16, deadline: Instant) -> Result<TcpStream, Refusal> {
    let to = |address| TcpStream::connect_timeout(&address, left(deadline)?).map_err(|error| refused(&error));
    match to(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
        // The first refusal is the one to tell: a host without IPv6 has another.
        Err(Refusal::Bad(why)) => to(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).map_err(|_| Refusal::Bad(why)),
        result => result,
    }
}

/// Asks, reads the head of the answer, and as much of the rest as is polite.
fn get(stream: &mut TcpStream, port: u16, path: &str, host: Option<&str>, deadline: Instant) -> Result<(), Refusal> {
    let host = host.map_or_else(|| format!("localhost:{port}"), str::to_owned);
    let version = env!("CARGO_PKG_VERSION");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: containerctl/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let status = loop {
        let mut chunk = [0; 4096];
        stream.set_read_timeout(Some(left(deadline)?))?;
        let len = stream.read(&mut chunk)?;
        answer.extend_from_slice(&chunk[..len]);
        if let Some(status) = status(&answer)? {
            break status;
        }
        if len == 0 {
            return Err(Refusal::Bad("the connection was closed before an answer".to_owned()));
        }
        if answer.len() > HEAD_BYTES_MAX {
            return Err(Refusal::Bad(format!("the answer's head is longer than {HEAD_BYTES_MAX} bytes")));
        }
    };
    hear_out(stream, deadline);
    if (200..400).contains(&status) { Ok(()) } else { Err(Refusal::Bad(format!("answered {status}"))) }
}

/// The status of an answer, once its head is there.
fn status(answer: &[u8]) -> Result<Option<u16>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(answer) {
        Ok(httparse::Status::Complete(_)) => Ok(response.code),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(Refusal::Bad(format!("the answer is no HTTP: {error}"))),
    }
}

/// Lets a server say what it has to say, within reason.
fn hear_out(stream: &mut TcpStream, deadline: Instant) {
    let deadline = deadline.min(Instant::now() + BODY_WAIT);
    let mut heard = 0;
    let mut chunk = [0; 4096];
    while heard < BODY_BYTES_MAX {
        let Ok(left) = left(deadline) else { return };
        match stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut chunk)) {
            Ok(0) | Err(_) => return,
            Ok(len) => heard += len,
        }
    }
}

#[cfg(test)]
mod tests;
