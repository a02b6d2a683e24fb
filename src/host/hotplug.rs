//! Being told when CPUs and memory come and go, by the kernel's own messages (netlink(7), NETLINK_KOBJECT_UEVENT).
//!
//! A message only says "look at the machine again"; what is in it is not believed, for anybody with the right may send one. Where none come, in
//! a network namespace of a container, the next resync notices.

#![allow(unsafe_code, reason = "tokio cannot see that a socket keeps its descriptor to itself until it is dropped")]

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's messages, as opposed to udev's.
const KERNEL_GROUP: u32 = 1;
/// More than the kernel puts into one (`UEVENT_BUFFER_SIZE`, 2048).
const MESSAGE_BYTES_MAX: usize = 4096;

/// A socket the kernel tells of devices on.
#[derive(Debug)]
pub struct Hotplug(Option<AsyncFd<OwnedFd>>);

impl Hotplug {
    /// To be called on the runtime.
    pub fn watch() -> Hotplug {
        let open = || -> io::Result<AsyncFd<OwnedFd>> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
            bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
            // SAFETY: what is registered must name the same open socket until it is deregistered. The socket is moved in, so nobody else can
            // close it, and AsyncFd deregisters it before it drops it.
            let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
            Ok(registered?)
        };
        let told = open().inspect_err(|error| {
            tracing::warn!(error = %error, "cannot listen for CPUs and memory that come and go; they are noticed with the next resync");
        });
        Hotplug(told.ok())
    }

    /// Completes when a CPU, a node or memory may have come or gone since the last time. Safe to cancel: nothing is awaited between taking
    /// a message and answering.
    pub async fn changed(&self) {
        let Some(socket) = &self.0 else { return pending().await };
        // Not in the future itself, which is the controller's.
        let mut message = vec![0; MESSAGE_BYTES_MAX];
        loop {
            let Ok(mut ready) = socket.readable().await else { return pending().await };
            let taken = ready.try_io(|socket| Ok(recv(socket, message.as_mut_slice(), RecvFlags::empty())?.1));
            match taken {
                Ok(Ok(length)) if !is_about_the_machine(&message[..length.min(MESSAGE_BYTES_MAX)]) => {}
                // Some were lost (ENOBUFS): any of them may have been one.
                Ok(Ok(_) | Err(_)) => return,
                // Nothing more to take.
                Err(_) => {}
            }
        }
    }
}

/// Whether a message `ACTION@DEVPATH`, and what follows after a zero byte, names a CPU, a node or a block of memory.
fn is_about_the_machine(message: &[u8]) -> bool {
    let head = message.split(|byte| *byte == 0).next().unwrap_or_default();
    let head = String::from_utf8_lossy(head);
    let path = head.split_once('@').map_or("", |(_, path)| path);
    ["cpu/cpu", "node/node", "memory/memory"]
        .iter()
        .any(|kind| path.strip_prefix("/devices/system/").is_some_and(|device| device.starts_with(kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_is_made_of_is_looked_at() {
        for message in [
            "offline@/devices/system/cpu/cpu5\0ACTION=offline\0DEVPATH=/devices/system/cpu/cpu5\0",
            "online@/devices/system/cpu/cpu5",
            "add@/devices/system/node/node1\0",
            "remove@/devices/system/memory/memory40\0",
        ] {
            assert!(is_about_the_machine(message.as_bytes()), "{message}");
        }
        for message in [
            "add@/devices/virtual/net/veth0\0DEVPATH=/devices/system/cpu/cpu5\0",
            "change@/devices/system/cpufreq\0",
            "bind@/devices/pci0000:00/0000:00:04.0\0",
            "offline",
            "",
        ] {
            assert!(!is_about_the_machine(message.as_bytes()), "{message}");
        }
    }
}
