//! Opens the connection to the fleet's server: a socket on this host, or TCP with TLS.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::{Fleet, FleetUrl};

/// Timeout for connecting to the server, and for each of its answers.
pub(super) const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// The CA certificates that Debian and Ubuntu trust.
const SYSTEM_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Maximum length of a password in bytes.
const MAX_PASSWORD_LEN: usize = 1024;

/// Why the settings of `[fleet]` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("fleet.url is empty, so this host is not in a fleet; see fleet.md in /usr/share/doc/portsentry-nft/docs")]
    NotJoined,
    #[error("cannot read the password file {path}: {error}; create it with mode 0600, owned by portsentry-fleet")]
    Password { path: PathBuf, error: io::Error },
    #[error("other users can read {path} (mode {mode:04o}); run: chmod 0600 {path}", path = .path.display())]
    PasswordMode { path: PathBuf, mode: u32 },
    #[error("{path} is empty or has more than one line; write only the user's password to it", path = .path.display())]
    NoPassword { path: PathBuf },
    #[error("cannot read the certificates in {path}: {error}; set fleet.ca_file to the file of the fleet's CA", path = .path.display())]
    Certificates { path: PathBuf, error: String },
    #[error("{0} is not a valid server name for TLS; correct fleet.url")]
    ServerName(String),
}

/// The address of the server, with the password and the certificates for it.
pub(super) struct Endpoint {
    pub(super) url: FleetUrl,
    pub(super) user: String,
    pub(super) password: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Endpoint {
    /// Reads the password and the certificates.
    ///
    /// # Errors
    /// One of them is missing, or other users can read the password.
    pub(super) fn open(fleet: &Fleet) -> Result<Self, SetupError> {
        let url = fleet.url.clone().ok_or(SetupError::NotJoined)?;
        let password = read_password(&fleet.credentials)?;
        let tls = match &url {
            FleetUrl::Unix(_) => None,
            FleetUrl::Tls { host, .. } => {
                let name = ServerName::try_from(host.clone()).map_err(|_| SetupError::ServerName(host.clone()))?;
                let path = fleet.ca_file.as_deref().unwrap_or(Path::new(SYSTEM_CA_FILE));
                Some((TlsConnector::from(Arc::new(client_config(path)?)), name))
            }
        };
        Ok(Self { url, user: fleet.user().to_owned(), password, tls })
    }

    /// Connects to the server within [`SERVER_TIMEOUT`].
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        timeout(SERVER_TIMEOUT, self.open_stream()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn open_stream(&self) -> io::Result<Box<dyn Stream>> {
        match (&self.url, &self.tls) {
            (FleetUrl::Unix(path), _) => Ok(Box::new(UnixStream::connect(path).await?)),
            (FleetUrl::Tls { host, port }, Some((connector, name))) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(connector.connect(name.clone(), stream).await?))
            }
            (FleetUrl::Tls { .. }, None) => Err(io::Error::other("no CA certificates are loaded")),
        }
    }
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Reads the password file: one line, in a file that only its owner can read.
pub(super) fn read_password(path: &Path) -> Result<String, SetupError> {
    let failed = |error| SetupError::Password { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SetupError::PasswordMode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(MAX_PASSWORD_LEN as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.len() > MAX_PASSWORD_LEN || password.contains(['\r', '\n']) {
        return Err(SetupError::NoPassword { path: path.to_owned() });
    }
    Ok(password.to_owned())
}

fn client_config(path: &Path) -> Result<ClientConfig, SetupError> {
    let failed = |error: String| SetupError::Certificates { path: path.to_owned(), error };
    let text = fs::read(path).map_err(|error| failed(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        // The system's list may contain certificates that rustls does not accept. They are skipped.
        let _ = roots.add(certificate.map_err(|error| failed(format!("{error:?}")))?);
    }
    if roots.is_empty() {
        return Err(failed("the file contains no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| failed(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn password_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        for (text, mode, password) in [
            ("secret\n", 0o600, Some("secret")),
            ("secret", 0o400, Some("secret")),
            ("secret\n", 0o640, None),
            ("secret\n", 0o604, None),
            ("", 0o600, None),
            ("\n", 0o600, None),
            ("a\nb\n", 0o600, None),
        ] {
            let _ = fs::remove_file(&path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_password(&path).ok().as_deref(), password, "{text:?} with mode {mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "x".repeat(MAX_PASSWORD_LEN + 1)).unwrap();
        assert!(read_password(&path).is_err());
    }
}
