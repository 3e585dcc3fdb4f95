//! Sends many independent requests in one datagram and returns the kernel's answer to each. Needed for the routing
//! tables, which have no transactions.

use netlink_packet_core::NLM_F_ACK;

use super::{Answer, Socket, SocketError, receive, send};
use crate::netlink::message::{Message, Messages};

impl Socket {
    /// Sends requests in one datagram. The kernel executes each independently, in this order. `take` receives the
    /// answers with their indexes from 0: a requested object or a refusal. A request without an answer succeeded.
    pub(crate) fn each(
        &mut self,
        requests: &mut [u8],
        mut take: impl FnMut(usize, Result<&Message<'_>, SocketError>),
    ) -> Result<(), SocketError> {
        let first = self.sequence;
        let mut rest = &mut *requests;
        while let Some((request, later)) = split_message(rest) {
            self.number(request);
            // Acknowledgements for all would fill the receive buffer. Errors are sent in any case, and before this
            // acknowledgement.
            if later.is_empty()
                && let Some(flags) = request.get_mut(6..8).and_then(<[u8]>::first_chunk_mut)
            {
                *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
            }
            rest = later;
        }
        let count = self.sequence.wrapping_sub(first);
        if count == 0 {
            return Ok(());
        }
        send(&self.inner, requests)?;
        loop {
            for message in Messages(receive(&self.inner, &mut self.replies)?) {
                let number = message.sequence.wrapping_sub(first);
                // Others are late answers to an abandoned request.
                let Some(place) = usize::try_from(number).ok().filter(|_| number < count) else { continue };
                let Some(answer) = Answer::read(&message) else {
                    take(place, Ok(&message));
                    continue;
                };
                if let Some(refusal) = answer.refusal(number.saturating_add(1)) {
                    take(place, Err(refusal));
                }
                if number.saturating_add(1) == count {
                    return Ok(());
                }
            }
        }
    }
}

/// Splits `bytes` after its first message.
fn split_message(bytes: &mut [u8]) -> Option<(&mut [u8], &mut [u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    // A length of zero would cause an endless loop.
    if length == 0 { None } else { bytes.split_at_mut_checked(length.next_multiple_of(4)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_datagram_gives_no_message() {
        let mut bytes = [16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(2);
        let (request, later) = split_message(&mut bytes).unwrap();
        assert_eq!((request.len(), later.len()), (16, 16));
        for lie in [0_u32, 33, u32::MAX] {
            bytes[..4].copy_from_slice(&lie.to_ne_bytes());
            assert!(split_message(&mut bytes).is_none(), "{lie}");
        }
        for end in 0..4 {
            assert!(split_message(&mut bytes[..end]).is_none());
        }
    }
}
