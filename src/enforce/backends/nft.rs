//! Implements the nftables backend.

use super::{BanBackend, CheckOutcome, Helpers, Opened};
use crate::config::Config;
use crate::enforce::OpenError;
use crate::enforce::nft::{Nft, RulesetError, RulesetSpec};
use crate::netlink::nft::{examine, foreign_objects, table_handle};
use crate::netlink::socket::Socket;
use crate::types::{Action, Expiry};

/// The nftables backend.
pub(super) struct NftBackend;

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

    fn open(&self, config: &Config, _helpers: &Helpers) -> Result<Opened, OpenError> {
        Ok(Opened::Inline(Box::new(Nft::from_config(config)?)))
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
