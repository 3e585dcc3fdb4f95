//! What the running kernel can do with elements beyond the oldest one that is served, found by asking it. Not by its version:
//! distributions carry features back, and containers run on kernels that they do not name.
//!
//! docs/kernels.md has what else differs between kernels, and how that is met.

use super::batch::Batch;
use super::element::put_lift;
use crate::engine::subject::Subject;
use crate::netlink::socket::Socket;

/// What the kernel can do. The default is what every kernel can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    destroys: bool,
}

impl Kernel {
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

/// 255.255.255.255, from which no packet ever comes.
const NOBODY: Subject = Subject::V4(std::net::Ipv4Addr::BROADCAST);
