//! Sends many independent requests in one datagram and returns the kernel's answer to each. Needed for the routing
//! tables, which have no transactions.

use super::{Answer, Socket, SocketError, receive, send};
use crate::netlink::message::{Message, Messages, number};

impl Socket {
    /// Sends requests in one datagram. The kernel executes each independently, in this order. `take` receives the
    /// answers with their indexes from 0: a requested object or a refusal. A request without an answer succeeded.
    pub(crate) fn each(
        &mut self,
        requests: &mut [u8],
        mut take: impl FnMut(usize, Result<&Message<'_>, SocketError>),
    ) -> Result<(), SocketError> {
        let first = self.sequence;
        // The kernel reports errors also for requests without NLM_F_ACK, and before it acknowledges the last one.
        self.sequence = number(requests, first);
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
