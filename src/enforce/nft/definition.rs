//! Implements the nftables backend for a configuration, and derives its ruleset from it.

use std::array;
use std::time::Duration;

use super::{Nft, RulesetError, RulesetSpec, Trap};
use crate::config::{Config, Mode, ProtocolConfig};
use crate::enforce::{BanBackend, CheckOutcome};
use crate::netlink::nft::{examine, foreign_objects, table_handle};
use crate::netlink::socket::{Socket, SocketError};
use crate::types::{Action, Backend, Expiry, Rate, Response};

/// The nftables backend.
pub(crate) struct NftBackend;

impl BanBackend for NftBackend {
    fn describe(&self, config: &Config) -> String {
        let nft = &config.block.nft;
        let action = match nft.action {
            Action::Drop => "dropped",
            Action::Reject => "rejected",
        };
        let logged = nft.log_drops.map_or_else(String::new, |rate| format!(", {rate} of them logged"));
        let ended = if nft.end_connections { ", open connections are closed" } else { "" };
        format!("table inet portsentry, up to {} bans in each set; packets are {action}{logged}{ended}", nft.size)
    }

    fn check(&self, config: &Config) -> CheckOutcome {
        CheckOutcome::required(table_state(&RulesetSpec::from_config(config)))
    }

    fn after_stop(&self, config: &Config) -> &'static str {
        match config.expire {
            Expiry::Never => "bans in nftables stay until they are lifted",
            Expiry::After(_) => "bans in nftables stay until they expire or are lifted",
        }
    }

    fn has_leftovers(&self, _config: &Config) -> bool {
        Socket::open().is_ok_and(|mut socket| matches!(table_handle(&mut socket), Ok(Some(_))))
    }

    fn discard_leftovers(&self, config: &Config, used: &str) -> Result<Option<String>, String> {
        let Ok(mut nft) = Nft::from_config(config) else { return Ok(None) };
        let note = || {
            format!(
                "table inet portsentry of an earlier run has been removed, because \"nft\" is not in block.method; its \
                 bans continue with {used}"
            )
        };
        match nft.remove() {
            Ok(was_there) => Ok(was_there.then(note)),
            Err(RulesetError::Socket(_)) => Ok(None),
            Err(error) => Err(format!("the table of an earlier run stays: {error}")),
        }
    }
}

/// What the daemon would find and do, as a clause that begins with a semicolon.
fn table_state(spec: &RulesetSpec) -> Result<String, RulesetError> {
    let mut socket = Socket::open()?;
    let (sizes, foreign) = (examine(&mut socket, spec)?, foreign_objects(&mut socket, spec)?);
    let foreign = if foreign.is_empty() { String::new() } else { format!("; it also contains {}", foreign.join(", ")) };
    Ok(match sizes {
        None => "; the daemon would create it".to_owned(),
        Some((blocked, blocked6)) if (blocked, blocked6) == (spec.size, spec.size) => format!("; it exists{foreign}"),
        Some((blocked, blocked6)) => {
            format!("; it exists, with sets of {blocked} and {blocked6} elements{foreign}")
        }
    })
}

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
