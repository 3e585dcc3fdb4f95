//! Determines the targets that neither an operator nor another host can block.

use ipnet::IpNet;

use crate::engine::{Host, Protection};

/// Returns a protected prefix that overlaps `target`; of several, the one with the strictest protection, which
/// `--force` can override least.
pub(super) fn protected(host: &Host, target: IpNet) -> Option<(IpNet, Protection)> {
    let touches = |network: &IpNet| target.contains(network) || network.contains(&target);
    let touched = host.allow.networks().filter(touches);
    touched.filter_map(|network| Some((network, host.allow.covers(network)?))).min_by_key(|(_, why)| *why)
}
