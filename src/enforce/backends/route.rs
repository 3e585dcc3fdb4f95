//! Implements the route backend.

use super::{BanBackend, CheckOutcome, Helpers, Opened};
use crate::config::Config;
use crate::enforce::OpenError;
use crate::enforce::route::{RouteError, Routes};
use crate::types::{RouteKind, Timestamp};

/// The route backend.
pub(super) struct RouteBackend;

impl BanBackend for RouteBackend {
    fn describe(&self, config: &Config) -> String {
        match config.block.route {
            RouteKind::Blackhole => "a blackhole route".to_owned(),
            RouteKind::Unreachable => "an unreachable route".to_owned(),
            RouteKind::Prohibit => "a prohibit route".to_owned(),
            RouteKind::Via(gateway) => format!("a route via {gateway}"),
        }
    }

    fn check(&self, config: &Config) -> CheckOutcome {
        CheckOutcome::required(open(config).map(|_| String::new()))
    }

    fn open(&self, config: &Config, _helpers: &Helpers) -> Result<Opened, OpenError> {
        Ok(Opened::Inline(Box::new(open(config)?)))
    }

    fn weakness(&self) -> Option<&'static str> {
        Some("a route stops only the answers: packets of a blocked source still arrive; \"nft\" stops both")
    }

    fn after_stop(&self, _config: &Config) -> &'static str {
        "routes of bans stay until the next start removes the expired ones"
    }

    fn has_leftovers(&self, config: &Config) -> bool {
        let found = open(config).and_then(|mut routes| routes.leftovers());
        found.is_ok_and(|found| !found.is_empty())
    }

    fn discard_leftovers(&self, config: &Config, used: &str) -> Result<Option<String>, String> {
        let Ok(mut routes) = open(config) else { return Ok(None) };
        let Ok(found) = routes.leftovers() else { return Ok(None) };
        match routes.remove_stale(Timestamp::default()).error {
            None if found.is_empty() => Ok(None),
            None => Ok(Some(format!(
                "routes of earlier bans have been removed, because \"route\" is not in block.method: {}; the bans \
                 continue with {used}",
                found.len()
            ))),
            Some(error) => Err(format!(
                "routes of earlier bans stay: {error}; remove them with `ip route flush proto 112` and \
                 `ip -6 route flush proto 112`"
            )),
        }
    }
}

fn open(config: &Config) -> Result<Routes, RouteError> {
    Routes::open(config.block.route, usize::try_from(config.block.nft.size).unwrap_or(usize::MAX))
}
