//! Describes, checks and opens the nftables backend, and derives its ruleset from the configuration.

use std::array;
use std::time::Duration;

use super::{Nft, RulesetError, RulesetSpec, Trap};
use crate::config::{BlockPolicy, Config, Mode, ProtocolConfig};
use crate::enforce::{BackendDefinition, BanBackend, CheckOutcome, OpenError};
use crate::netlink::nft::{examine, foreign_objects};
use crate::netlink::socket::{Socket, SocketError};
use crate::types::{Action, Backend, Rate};

/// The definition of the nftables backend.
pub(crate) struct NftDefinition;

impl BackendDefinition for NftDefinition {
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

    fn open(&self, config: &Config) -> Result<Option<Box<dyn BanBackend>>, OpenError> {
        Ok(Some(Box::new(Nft::from_config(config)?)))
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
