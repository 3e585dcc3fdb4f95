//! Which targets are never blocked by the word of an operator or of another host.

use ipnet::IpNet;

use crate::engine::{Host, Protection};

/// A protected prefix that `target` touches: the one that `--force` could least do anything about.
pub(super) fn protected(host: &Host, target: IpNet) -> Option<(IpNet, Protection)> {
    let touches = |network: &IpNet| target.contains(network) || network.contains(&target);
    let why = |network: IpNet| {
        // An allowed network around it, or one that begins with an own address, says nothing of that address.
        let alone = network.prefix_len() == network.max_prefix_len();
        let own = alone && host.local.is_exact() && host.local.contains(network.addr());
        if own { Some(Protection::OwnAddress) } else { host.allow.covers(network) }
    };
    let touched = host.allow.networks().filter(touches);
    touched.filter_map(|network| Some((network, why(network)?))).min_by_key(|(_, why)| *why)
}
