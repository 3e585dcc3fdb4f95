//! Checks whether the program can open its own ports: those of connect mode, and the port of the metrics. Ports that a
//! running portsentry has open count as available.

use std::io::ErrorKind;
use std::net::TcpListener;

use rustix::thread::CapabilitySet;

use super::backends::may;
use super::warnings::Findings;
use crate::capture::decoy::{DecoyError, DecoyPorts, make_room};
use crate::config::Config;
use crate::control::status::Status;
use crate::engine::{Host, Listeners};
use crate::sandbox::InstanceLock;
use crate::types::{PortSet, Protocol};

/// Adds errors that prevent the start, and notes about skipped checks. `running` is the state of a daemon that answers.
pub(super) fn inspect(config: &Config, host: &Host, running: Option<&Status>, findings: &mut Findings) {
    let runs = InstanceLock::is_held();
    let mut decoys = DecoyPorts::from_config(config);
    if config.shares_decoys() {
        // A shared listener needs neither a descriptor nor a capability for each port, only one free port.
        let ports = std::mem::take(&mut decoys.tcp);
        if !ports.is_empty() && ports.without(&host.tcp.anywhere()).is_empty() {
            findings.wrong("tcp.ports", DecoyError::AllBusy { protocol: Protocol::Tcp, ports });
        }
    }
    let count = u64::from(decoys.tcp.len()) + u64::from(decoys.udp.len());
    if let Err(error) = make_room(count) {
        findings.wrong("tcp.ports", error);
    }
    for (key, protocol, ports, open) in
        [("tcp.ports", Protocol::Tcp, decoys.tcp, &host.tcp), ("udp.ports", Protocol::Udp, decoys.udp, &host.udp)]
    {
        match decoy_error(protocol, ports, open) {
            Some(DecoyError::AllBusy { .. }) if runs => findings.add_note(format!(
                "{key}: all of these ports are in use, by the running portsentry or by another program; stop \
                 portsentry to find out which"
            )),
            Some(error) => findings.wrong(key, error),
            None => {}
        }
    }
    let Some(address) = config.metrics.listen else { return };
    let is_own = running.is_some_and(|running| running.metrics == Some(address.to_string()));
    match TcpListener::bind(address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && runs && is_own => {}
        Err(error) if error.kind() == ErrorKind::AddrInUse && runs => {
            findings.add_note(format!(
                "metrics.listen: {address} is in use, by the running portsentry or by another program"
            ));
        }
        Err(error) => findings.wrong("metrics.listen", format!("cannot listen on {address}: {error}")),
        Ok(_) => {}
    }
}

/// The error if connect mode cannot open any of `ports`, or lacks the capability for one of them. Opens nothing.
fn decoy_error(protocol: Protocol, ports: PortSet, open: &Listeners) -> Option<DecoyError> {
    let free = ports.without(&open.anywhere());
    if !ports.is_empty() && free.is_empty() {
        return Some(DecoyError::AllBusy { protocol, ports });
    }
    let low: PortSet = free.iter().filter(|port| *port < 1024).collect();
    let denied = !low.is_empty() && rustix::process::geteuid().is_root() && !may(CapabilitySet::NET_BIND_SERVICE);
    denied.then_some(DecoyError::Permission { protocol, ports: low })
}
