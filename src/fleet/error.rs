//! Defines the errors of `portsentry fleet`.

use std::io;

use super::connect::SetupError;
use super::server::ServerError;
use crate::config::ConfigErrors;

/// Why `portsentry fleet` fails.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("{url}: {error}")]
    Server { url: String, error: ServerError },
    #[error("cannot set up the log")]
    Log,
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

impl FleetError {
    pub(super) fn system(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::System(doing, error)
    }
}
