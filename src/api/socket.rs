//! The socket: who may open it, and the server behind it.

use super::{Api, router};
use crate::host::cgroup::is_below;
use axum::serve::Listener;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Group, chown};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Members of this group may use the socket, if there is such a group.
const GROUP: &str = "containerctl";

/// Connections at a time, of which each `wait` and each `events --follow` is one: enough for people and their scripts, and far below the
/// descriptors that starting workloads needs.
const CONNECTIONS_MAX: usize = 200;

/// What keeps the socket from being opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another controller listens at {path}\n  help: stop it, or give this one another --socket")]
    Taken { path: PathBuf },
    #[error("{path} is there and is no socket\n  help: remove it if it is not needed, or name another --socket")]
    Occupied { path: PathBuf },
    #[error("cannot listen at {path}: {source}\n  help: make the folder it lies in, or name another --socket")]
    Listen { path: PathBuf, source: io::Error },
}

/// Opens the socket, in place of one that nobody listens at any more.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Listen { path: path.to_owned(), source };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(SocketError::Taken { path: path.to_owned() });
    }
    // What is not a socket was put there by somebody who may want it.
    if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(SocketError::Occupied { path: path.to_owned() });
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Nobody but us gets in before the group is set.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener.map_err(failed)?;
    if let Ok(Some(group)) = Group::from_name(GROUP) {
        chown(path, None, Some(group.gid)).map_err(|errno| failed(errno.into()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    }
    Ok(listener)
}

/// Answers requests until the task is dropped, but not a workload's: what is below `cgroup_parent` has no business here, whatever uid it has
/// and however it came by the socket. Listens at each socket that `fresh` brings instead of the one before.
pub async fn serve(listener: UnixListener, fresh: mpsc::Receiver<UnixListener>, api: Api, cgroup_parent: String) {
    let listener =
        Outsiders { listener, fresh, cgroup_parent, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), full: false };
    if let Err(error) = axum::serve(listener, router(api)).await {
        tracing::error!(error = %error, "the API has stopped");
    }
}

/// Accepts connections of everybody but workloads.
struct Outsiders {
    listener: UnixListener,
    fresh: mpsc::Receiver<UnixListener>,
    cgroup_parent: String,
    places: Arc<Semaphore>,
    /// Whether the last one found no place.
    full: bool,
}

impl Listener for Outsiders {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        loop {
            // Safe to cancel: a connection, and a socket, that nobody has taken yet stays where it is.
            let (stream, address) = tokio::select! {
                accepted = Listener::accept(&mut self.listener) => accepted,
                Some(listener) = self.fresh.recv() => {
                    self.listener = listener;
                    continue;
                }
            };
            let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
            match peer {
                Some(pid) if is_below(pid, &self.cgroup_parent) => {
                    tracing::warn!(pid, "a workload tried to talk to the controller and was refused");
                }
                _ => match Arc::clone(&self.places).try_acquire_owned() {
                    Ok(place) => {
                        self.full = false;
                        return (Guest { stream, _place: place }, address);
                    }
                    // Closed: better than to wait for those that may stay for a day.
                    Err(_) => {
                        if !std::mem::replace(&mut self.full, true) {
                            tracing::warn!(
                                connections = CONNECTIONS_MAX,
                                "the API is full: connections are closed; help: look who waits for or follows the controller, `ss -xp`"
                            );
                        }
                    }
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection, and its place among those there may be.
struct Guest {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Guest {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o007, 0, "open to everybody");
        assert!(matches!(listen(&path), Err(SocketError::Taken { .. })));
        drop(live);
        fs::write(folder.path().join("precious"), "x").unwrap();
        assert!(matches!(listen(&folder.path().join("precious")), Err(SocketError::Occupied { .. })));
        let missing = listen(&folder.path().join("no/s")).unwrap_err();
        assert!(missing.to_string().contains("help:"), "{missing}");
    }

    #[tokio::test]
    async fn connections_are_bounded_and_their_places_are_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_fresh, fresh) = mpsc::channel(1);
        let mut outsiders = Outsiders {
            listener: listen(&path).unwrap(),
            fresh,
            cgroup_parent: "nobody".to_owned(),
            places: Arc::new(Semaphore::new(1)),
            full: false,
        };
        let connect = || std::os::unix::net::UnixStream::connect(&path).unwrap();
        let (_first, mut second) = (connect(), connect());
        let (guest, _) = outsiders.accept().await;
        let next = tokio::time::timeout(std::time::Duration::from_millis(100), outsiders.accept()).await;
        assert!(next.is_err(), "there was no place");
        assert_eq!(io::Read::read(&mut second, &mut [0]).unwrap(), 0, "it was closed");
        drop(guest);
        let _third = connect();
        outsiders.accept().await;
    }
}
