//! Describes, checks and opens the route backend for a configuration.

use super::{RouteError, Routes};
use crate::config::Config;
use crate::enforce::{BackendDefinition, BanBackend, CheckOutcome, OpenError};
use crate::types::RouteKind;

/// The definition of the route backend.
pub(crate) struct RouteDefinition;

impl BackendDefinition for RouteDefinition {
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

    fn open(&self, config: &Config) -> Result<Option<Box<dyn BanBackend>>, OpenError> {
        Ok(Some(Box::new(open(config)?)))
    }
}

fn open(config: &Config) -> Result<Routes, RouteError> {
    Routes::open(config.block.route, usize::try_from(config.block.nft.size).unwrap_or(usize::MAX))
}
