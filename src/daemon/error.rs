//! Defines the errors that end the daemon, or keep it from starting.

use std::io;
use std::net::SocketAddr;

use crate::capture::decoy::DecoyError;
use crate::capture::live::CaptureError;
use crate::config::ConfigErrors;
use crate::enforce::OpenError;
use crate::enforce::command::RunError;
use crate::enforce::hosts_deny::TemplateError;
use crate::enforce::nft::{BlockError, RulesetError};
use crate::host::network::HostError;
use crate::host::snapshot::NoInterface;
use crate::netlink::sock_diag::SockDiagError;
use crate::netlink::socket::SocketError;
use crate::sandbox::{HandoverError, InstanceLockError, Untrusted};
use crate::sensor::SensorError;

/// Why the daemon cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error(transparent)]
    InstanceLockError(#[from] InstanceLockError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Listeners(#[from] SockDiagError),
    #[error(transparent)]
    NoInterface(#[from] NoInterface),
    #[error(transparent)]
    Netlink(#[from] SocketError),
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    #[error(transparent)]
    Backend(#[from] OpenError),
    #[error("block.hosts_deny: {0}")]
    HostsDeny(#[from] TemplateError),
    #[error("block.run: {0}")]
    Run(#[from] RunError),
    #[error("notify.command: {0}")]
    Notify(RunError),
    #[error("{0}")]
    NoHelper(String),
    #[error("cannot update the kernel's allow-list: {0}")]
    Protect(BlockError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Decoy(#[from] DecoyError),
    #[error("cannot listen on {address} (metrics.listen): {error}; {}", remedy(error))]
    Metrics { address: SocketAddr, error: io::Error },
    #[error("the sensor ended: {0}")]
    Sensor(#[from] SensorError),
    #[error("the sensor thread panicked (see the log above); existing bans stay active")]
    SensorGone,
    #[error("cannot {doing}: {error}")]
    System { doing: &'static str, error: io::Error },
}

impl DaemonError {
    /// For `map_err`: the system's error when the program tried to do `doing`.
    pub(super) fn system<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::System { doing, error: error.into() }
    }
}

/// Remedy if an address cannot be listened on.
fn remedy(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) {
        "the systemd unit forbids Internet sockets: install the drop-in internet.conf from the package's examples"
    } else {
        "choose another port, or stop the program that uses it"
    }
}
