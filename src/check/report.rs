//! Holds the result of a check, before it is rendered as text or JSON.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::backends::BackendCheck;
use super::warnings::Findings;
use crate::config::Config;
use crate::engine::Protection;
use crate::types::PortSet;

pub(super) struct Report {
    /// The file; `None` for the built-in configuration.
    pub(super) file: Option<String>,
    pub(super) config: Config,
    pub(super) tcp: Watched,
    pub(super) udp: Watched,
    pub(super) interfaces: Vec<Interface>,
    pub(super) protected: Vec<(IpNet, Protection)>,
    pub(super) names: BTreeMap<String, Result<Vec<IpAddr>, String>>,
    pub(super) backends: Vec<BackendCheck>,
    pub(super) findings: Findings,
}

pub(super) struct Watched {
    pub(super) ports: PortSet,
    /// Ports in use, whose probes are not evidence.
    pub(super) left_out: PortSet,
    /// Ports that are in use on some addresses and monitored on the others. 0.0.0.0 and :: stand for all addresses of a
    /// family.
    pub(super) partly: Vec<(u16, IpAddr)>,
}

pub(super) struct Interface {
    pub(super) name: String,
    pub(super) up: bool,
    /// Why it is not monitored; `None` if it is.
    pub(super) unwatched: Option<&'static str>,
    pub(super) addresses: Vec<IpNet>,
}
