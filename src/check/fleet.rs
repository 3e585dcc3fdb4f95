//! Checks `[fleet]`: whether the password is protected from other users, and whether the server accepts this host.

use super::warnings::Findings;
use crate::config::{Config, Mode, Warning};
use crate::fleet::{self, FleetError, SetupError};

/// Number of distinct ports with a completed handshake that other hosts accept as proof.
const PROOF_PORTS: u8 = 5;

/// Adds warnings and notes, after an attempt to connect. None of them prevents the daemon from starting.
pub(super) fn inspect(config: &Config, findings: &mut Findings) {
    if !config.fleet.is_joined() {
        return;
    }
    if config.tcp.mode == Mode::Connect && config.detect.scan_trigger < PROOF_PORTS - 1 {
        let message = format!(
            "this host bans after {} completed handshakes, but other hosts of the fleet accept only {PROOF_PORTS} as \
             proven evidence; write {}",
            config.detect.scan_trigger + 1,
            PROOF_PORTS - 1
        );
        findings.warnings.push(Warning::new("detect.scan_trigger", message));
    }
    let (key, error) = match fleet::probe(&config.fleet) {
        Ok(()) => return findings.add_note(format!("the fleet's server accepts the user {}", config.fleet.user())),
        Err(FleetError::Setup(SetupError::Password { error, .. }))
            if error.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            let note = "this user cannot read fleet.credentials, so the connection to the fleet's server was not checked; \
                 run this with sudo";
            return findings.add_note(note);
        }
        Err(error @ FleetError::Setup(SetupError::Certificates { .. })) => ("fleet.ca_file", error),
        Err(error @ FleetError::Setup(SetupError::ServerName(_) | SetupError::NotJoined)) => ("fleet.url", error),
        Err(error @ FleetError::Setup(_)) => ("fleet.credentials", error),
        Err(error) => ("fleet.url", error),
    };
    findings.warnings.push(Warning::new(key, error.to_string()));
}
