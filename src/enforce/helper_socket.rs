//! Provides the sockets between the daemon and its helper processes, with one JSON message per datagram. A reader accepts
//! exactly the output of the writer; anything else is invalid.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

use crate::types::printable::masked_to;

/// Maximum length of a text in a message, in bytes.
pub(super) const MAX_TEXT_LEN: usize = 16 << 10;

/// The bytes of `message`. Fails only for a time before 1970.
pub(super) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(message)?)
}

/// The message of which `bytes` are the encoding.
pub(super) fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let message = serde_json::from_slice(bytes).ok()?;
    encode(&message).is_ok_and(|encoded| encoded == bytes).then_some(message)
}

/// Serialises a text, truncated if it is too long. Terminal control characters are replaced, because a reason may quote
/// a name that an attacker chose.
pub(super) fn serialize_plain<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&masked_to(text, '?', MAX_TEXT_LEN))
}

/// Both ends of a socket for a helper: the daemon's and its own.
///
/// # Errors
/// The system cannot create the socket.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Why a helper ends before the daemon does.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    #[error("the daemon sent an invalid request: this process ends")]
    InvalidRequest,
    #[error("cannot receive from the daemon: {0}")]
    System(#[from] io::Error),
}

/// The daemon's next request; `None` if it has hung up.
pub(super) fn next_request<T: Serialize + DeserializeOwned>(
    socket: &OwnedFd,
    buffer: &mut [u8],
) -> Result<Option<T>, HelperError> {
    match retry_on_intr(|| recv(socket, &mut *buffer, RecvFlags::TRUNC)) {
        Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(None),
        Ok((_, length)) => buffer.get(..length).and_then(decode).map(Some).ok_or(HelperError::InvalidRequest),
        Err(error) => Err(HelperError::System(error.into())),
    }
}

/// Sends `message`; with [`SendFlags::DONTWAIT`], it fails instead of waiting for room.
///
/// # Errors
/// The other end is closed, or there is no room.
pub fn send_message(socket: impl AsFd, message: &impl Serialize, flags: SendFlags) -> io::Result<()> {
    let bytes = encode(message)?;
    Ok(retry_on_intr(|| send(&socket, &bytes, SendFlags::NOSIGNAL | flags)).map(drop)?)
}

/// The next message, of at most `max_len` bytes; `None` if it is invalid, or there are no more.
pub(super) fn receive<T>(socket: impl AsFd, max_len: usize, read: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    let mut buffer = vec![0; max_len];
    let (_, length) = retry_on_intr(|| recv(&socket, buffer.as_mut_slice(), RecvFlags::TRUNC)).ok()?;
    buffer.get(..length).and_then(read)
}

/// The next message, of at most `max_len` bytes; `None` if it is invalid, or there are no more.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if nothing arrives before `deadline`, or a system call fails.
pub fn receive_before<T: Serialize + DeserializeOwned>(
    socket: impl AsFd,
    max_len: usize,
    deadline: Instant,
) -> io::Result<Option<T>> {
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(receive(socket, max_len, decode)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// True if `bytes` are a whole message of this kind.
#[cfg(test)]
pub(super) fn is<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    decode::<T>(bytes).is_some()
}
