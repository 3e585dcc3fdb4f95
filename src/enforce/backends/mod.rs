//! The list of all backends. The section "A backend" of ARCHITECTURE.md lists the steps to add one.

mod backend;
mod command;
mod command_queue;
mod hosts_deny;
mod hosts_deny_queue;
mod nft;
mod route;

pub use backend::{BanBackend, CheckOutcome, Helpers, Opened};
pub use command_queue::CommandQueue;
pub use hosts_deny_queue::HostsDenyQueue;

use crate::types::Backend;

/// The implementation of `backend`.
pub fn implementation(backend: Backend) -> &'static dyn BanBackend {
    match backend {
        Backend::Nft => &nft::NftBackend,
        Backend::Route => &route::RouteBackend,
        Backend::HostsDeny => &hosts_deny::HostsDenyBackend,
        Backend::Command => &command::CommandBackend,
    }
}
