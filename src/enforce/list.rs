//! Maps each [`Backend`] to its definition. The section "A backend" of ARCHITECTURE.md lists the steps to add one.

use super::{BackendDefinition, command, hosts_deny, nft, route};
use crate::types::Backend;

/// The definition of `backend`.
pub fn definition(backend: Backend) -> &'static dyn BackendDefinition {
    match backend {
        Backend::Nft => &nft::NftDefinition,
        Backend::Route => &route::RouteDefinition,
        Backend::HostsDeny => &hosts_deny::HostsDenyDefinition,
        Backend::Command => &command::CommandDefinition,
    }
}
