//! Determines the targets that neither an operator nor another host can block.

use ipnet::IpNet;

use crate::engine::{Host, Protection};

/// Returns a protected prefix that overlaps `target`; of several, the one with the strictest protection, which
/// `--force` can override least.
pub(super) fn protected(host: &Host, target: IpNet) -> Option<(IpNet, Protection)> {
    let touches = |network: &IpNet| target.contains(network) || network.contains(&target);
    let why = |network: IpNet| {
        // Only the entry of a single own address is reported as own, not a network that contains or begins with one.
        let alone = network.prefix_len() == network.max_prefix_len();
        let own = alone && host.local.is_exact() && host.local.contains(network.addr());
        if own { Some(Protection::OwnAddress) } else { host.allow.covers(network) }
    };
    let touched = host.allow.networks().filter(touches);
    touched.filter_map(|network| Some((network, why(network)?))).min_by_key(|(_, why)| *why)
}
