//! Derives the ruleset from the configuration.

use std::array;
use std::time::Duration;

use super::{Nft, RulesetSpec, Trap};
use crate::config::{Config, Mode, ProtocolConfig};
use crate::netlink::socket::SocketError;
use crate::types::{Backend, Rate, Response};

impl RulesetSpec {
    /// The ruleset for the configuration.
    pub fn from_config(config: &Config) -> Self {
        let nft = &config.block.nft;
        Self {
            size: nft.size,
            action: nft.action,
            log_drops: nft.log_drops,
            own_source: config.blocks(),
            trap: trap(config),
            fleet: config.fleet.is_joined().then_some(config.fleet.accept.size),
            // Only the daemon knows the ports of the decoy listener.
            decoys: None,
            prefix_sets: config.block.widest_ipv4 < 32 || config.block.widest_ipv6 < 64,
        }
    }
}

/// The trap for ports that the sensor counts and blocks with nftables, unless a command must run before the block.
fn trap(config: &Config) -> Option<Trap> {
    let counts = |protocol: &ProtocolConfig| {
        matches!(protocol.mode, Mode::Stealth | Mode::Advanced) && protocol.block == Response::Block
    };
    let (tcp, udp) = (config.trap.tcp && counts(&config.tcp), config.trap.udp && counts(&config.udp));
    let first = config.block.run.first && config.block.method.contains(&Backend::Command);
    let blocks = config.block.method.contains(&Backend::Nft) && !first;
    let forgiven = config.detect.scan_trigger;
    // In whole seconds, as nft prints it.
    let whole = |span: Duration| Duration::from_secs(span.as_secs().max(1));
    let hold = Some(config.trap.hold).filter(|hold| tcp && !hold.is_zero());
    ((tcp || udp) && blocks).then(|| Trap {
        tcp,
        udp,
        forgiven,
        window: if forgiven == 0 && hold.is_none() { Duration::ZERO } else { whole(config.detect.window) },
        expiry: config.expire.span().map(whole).into(),
        ceiling: Rate::per_minute(config.block.max_new_bans_per_minute),
        nat64: array::from_fn(|index| u64::try_from(config.nat64.get(index)?.addr().to_bits() >> 64).ok()),
        named_interfaces: !config.interfaces.is_empty(),
        hold,
    })
}

impl Nft {
    /// Opens a handle of the table, with the ruleset that the configuration describes; does not change the kernel's
    /// table.
    ///
    /// # Errors
    /// See [`Nft::open`].
    pub fn from_config(config: &Config) -> Result<Self, SocketError> {
        let mut nft = Self::open()?;
        nft.spec = RulesetSpec::from_config(config);
        Ok(nft)
    }
}
