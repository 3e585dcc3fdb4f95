//! What the running kernel can do with elements beyond the oldest one that is served, found by asking it. Not by its version:
//! distributions carry features back, and containers run on kernels that they do not name.
//!
//! docs/kernels.md has what else differs between kernels, and how that is met.

use super::batch::Batch;
use super::element::put_lift;
use super::message::{attributes, be_u32, put_request};
use super::{SUBSYSTEM, kind};
use crate::netlink::socket::{Socket, SocketError};
use crate::types::BanTarget;

/// What the kernel can do. The default is what every kernel can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelFeatures {
    destroys: bool,
}

impl KernelFeatures {
    /// Any kernel with nf_tables and timed sets. Its ways work on every later one.
    #[must_use]
    pub const fn oldest() -> Self {
        Self { destroys: false }
    }

    /// One that can do all of this.
    pub(super) const fn of_later() -> Self {
        Self { destroys: true }
    }

    /// Asks the kernel. The table must be there; nothing in it changes. A kernel of which nothing can be found out is taken
    /// for the oldest.
    #[must_use]
    pub fn probe(socket: &mut Socket) -> Self {
        let (mut batch, later) = (Batch::new(), Self::of_later());
        put_lift(&mut batch, later, NOBODY);
        if socket.transact(&mut batch).is_ok() { later } else { Self::oldest() }
    }

    /// Whether elements can be taken out that may not be there (DESTROYSETELEM, Linux 6.3). A missing one fails the whole
    /// transaction otherwise.
    #[must_use]
    pub const fn destroys(self) -> bool {
        self.destroys
    }
}

/// The kernel's generation: the number of its tables' state, one more after each transaction that changed anything, whoever
/// sent it and whatever table it is about. It begins again after 2^32.
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, SocketError> {
    let mut request = Vec::new();
    put_request(&mut request, kind::GET_GENERATION, 0, |_| {});
    let mut generation = 0;
    socket.ask(&mut request, |message| {
        // Of no family, as no other answer is.
        let body = message.body.get(4..).filter(|_| message.kind == SUBSYSTEM << 8 | u16::from(kind::NEW_GENERATION));
        let number = attributes(body.unwrap_or_default()).find(|(kind, _)| *kind == GENERATION);
        generation = number.and_then(|(_, value)| be_u32(value)).unwrap_or(0);
    })?;
    Ok(generation)
}

/// Waits until all transactions that have begun are over and their notifications are in the queues of who listens: the
/// kernel takes one at a time. Changes nothing.
pub(crate) fn await_turn(socket: &mut Socket) {
    let mut batch = Batch::new();
    put_lift(&mut batch, KernelFeatures::of_later(), NOBODY);
    // Where it is refused, it has had its turn as well.
    let _ = socket.transact(&mut batch);
}

/// NFTA_GEN_ID.
const GENERATION: u16 = 1;

/// 255.255.255.255, from which no packet ever comes.
const NOBODY: BanTarget = BanTarget::V4(std::net::Ipv4Addr::BROADCAST);
