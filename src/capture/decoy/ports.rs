//! Selects the ports of decoys, and reports why ports cannot be opened.

use std::net::IpAddr;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{self, Config, Mode};
use crate::types::{PortSet, Protocol};

/// Descriptors reserved for other uses: netlink, capture and log sockets, and the connection that is being accepted.
const RESERVED_DESCRIPTORS: u64 = 64;

/// Decoy ports of both protocols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecoyPorts {
    pub tcp: PortSet,
    pub udp: PortSet,
    /// The listener of all TCP ports; `None` if each port has its own socket.
    pub shared: Option<SharedPorts>,
}

/// The ports that the listener of all TCP ports itself is bound to, at the loopback addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedPorts {
    /// At 127.0.0.1.
    pub v4: u16,
    /// At ::1; `None` if this host has no IPv6.
    pub v6: Option<u16>,
}

impl DecoyPorts {
    /// The ports that connect mode opens.
    pub fn from_config(config: &Config) -> Self {
        let ports = |protocol: &config::ProtocolConfig| match protocol.mode {
            Mode::Connect => protocol.monitored(),
            Mode::Off | Mode::Stealth | Mode::Advanced => PortSet::new(),
        };
        Self { tcp: ports(&config.tcp), udp: ports(&config.udp), shared: None }
    }

    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.each().into_iter().any(|(one, ports)| one == protocol && ports.contains(port))
    }

    /// True if a socket of a decoy is bound to `address` and `port`, so that no service is. The unspecified address
    /// means all addresses.
    pub fn holds(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        match (protocol, self.shared) {
            (Protocol::Tcp, Some(shared)) => {
                let own = if address.is_ipv4() { Some(shared.v4) } else { shared.v6 };
                address.is_loopback() && own == Some(port)
            }
            _ => self.contains(protocol, port),
        }
    }

    pub(super) fn each(&self) -> [(Protocol, &PortSet); 2] {
        [(Protocol::Tcp, &self.tcp), (Protocol::Udp, &self.udp)]
    }

    pub(super) fn ports_mut(&mut self, protocol: Protocol) -> &mut PortSet {
        if protocol == Protocol::Udp { &mut self.udp } else { &mut self.tcp }
    }
}

/// Why the listed ports cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DecoyError {
    #[error(
        "{ports} decoys need {needed} file descriptors, but the hard limit is {limit}; list fewer ports, or raise \
         the limit (LimitNOFILE={needed} in the service, ulimit -Hn {needed} in a shell)"
    )]
    Limit {
        /// Ports of both protocols.
        ports: u64,
        /// Descriptors that they need.
        needed: u64,
        /// Descriptors that the process may have.
        limit: u64,
    },
    #[error(
        "decoys on the {} ports {ports} need CAP_NET_BIND_SERVICE ({}); run as root, give the service \
         AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE, or list only ports of 1024 and above",
        protocol.name(),
        Errno::ACCESS
    )]
    Permission { protocol: Protocol, ports: PortSet },
    #[error(
        "cannot open a decoy: all {} ports {ports} are in use; list other ports, or use another mode",
        protocol.name()
    )]
    AllBusy { protocol: Protocol, ports: PortSet },
    #[error("cannot open a decoy on {} port {port}: {error}{}", protocol.name(), remedy(*error))]
    Open { protocol: Protocol, port: u16, error: Errno },
    #[error("cannot wait for connections to decoys: {0}")]
    Epoll(#[from] Errno),
}

/// The remedy if a systemd service may not open Internet sockets.
fn remedy(error: Errno) -> &'static str {
    if error == Errno::AFNOSUPPORT { "; install the drop-in connect-mode.conf from the package's examples" } else { "" }
}

/// Raises the limit of descriptors to the maximum.
///
/// # Errors
/// [`DecoyError::Limit`] if the maximum is too low for decoys on so many ports.
pub fn make_room(ports: u64) -> Result<(), DecoyError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    let needed = ports + RESERVED_DESCRIPTORS;
    match maximum {
        Some(limit) if limit < needed => Err(DecoyError::Limit { ports, needed, limit }),
        _ => Ok(()),
    }
}
