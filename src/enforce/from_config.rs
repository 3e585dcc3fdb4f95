//! Derives backend settings from the configuration: the ruleset, routes and hosts.deny.

use std::array;
use std::time::Duration;

use super::hosts_deny::{HostsDeny, TemplateError};
use super::nft::{RulesetSpec, Trap};
use super::route::{RouteError, Routes};
use crate::config::{BlockPolicy, Config, Mode, ProtocolConfig};
use crate::types::{Backend, Rate};

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
        matches!(protocol.mode, Mode::Stealth | Mode::Advanced) && protocol.block == BlockPolicy::Yes
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

impl Routes {
    /// Opens the socket for the configuration; changes nothing yet.
    ///
    /// # Errors
    /// See [`Routes::open`].
    pub fn from_config(config: &Config) -> Result<Self, RouteError> {
        Self::open(config.block.route, usize::try_from(config.block.nft.size).unwrap_or(usize::MAX))
    }
}

impl HostsDeny {
    /// The file and the template of the configuration, whether or not hosts.deny is a backend.
    ///
    /// # Errors
    /// See [`HostsDeny::new`].
    pub fn from_config(config: &Config) -> Result<Self, TemplateError> {
        let deny = &config.block.hosts_deny;
        Self::new(&deny.file, &deny.line)
    }
}
