//! Queries that change nothing: the kernel's features, the number of transactions, and whether running transactions
//! have ended.

use rustables::sys;

use super::bans::put_lift;
use super::features::KernelFeatures;
use super::message::{field, put_request};
use crate::netlink::message::be_u32;
use crate::netlink::socket::{Batch, Socket, SocketError};
use crate::types::BanTarget;

impl KernelFeatures {
    /// Asks the kernel. The table must be there; nothing in it changes. A kernel of which nothing can be found out is taken
    /// for the oldest.
    #[must_use]
    pub fn probe(socket: &mut Socket) -> Self {
        if destroy_nothing(socket).is_ok() { Self::newest() } else { Self::oldest() }
    }
}

/// The kernel's generation: the number of its tables' state, one more after each transaction that changed anything, of
/// any sender and in any table. It begins again after 2^32.
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, SocketError> {
    let mut request = Vec::new();
    put_request(&mut request, sys::NFT_MSG_GETGEN, 0, |_| {});
    let mut generation = 0;
    socket.ask(&mut request, |message| {
        // Of no family, as no other answer is.
        let number = message.generation().and_then(|list| field(list, sys::NFTA_GEN_ID));
        generation = number.and_then(be_u32).unwrap_or(0);
    })?;
    Ok(generation)
}

/// Waits until all transactions that have begun are over and their notifications are in the queues of the listeners: the
/// kernel takes one at a time. Changes nothing.
pub(crate) fn await_turn(socket: &mut Socket) {
    // Where it is refused, it has had its turn as well.
    let _ = destroy_nothing(socket);
}

/// Destroys an element that is never there: 255.255.255.255, from which no packet ever comes.
fn destroy_nothing(socket: &mut Socket) -> Result<(), SocketError> {
    let mut batch = Batch::new();
    put_lift(&mut batch, KernelFeatures::newest(), BanTarget::V4(std::net::Ipv4Addr::BROADCAST));
    socket.transact(&mut batch)
}
