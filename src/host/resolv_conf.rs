//! Reads the name servers of this host from resolv.conf and from the files behind a local stub resolver.
//! [`crate::engine`] decides whether they are exempt.
//!
//! References: resolv.conf(5), and systemd-resolved.service(8) for its stub.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::file_watch::{self, Files, parse_zoned};

/// Maximum size of the file: a resolv.conf has a few hundred bytes.
const MAX_SIZE: u64 = 64 * 1024;

/// Maximum number of servers per file. glibc uses the first three. Each one becomes a protected address, so the list is
/// limited.
const MAX_RESOLVERS: usize = 16;

/// Locations of the name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverFiles {
    /// The file that programs read.
    pub main: PathBuf,
    /// Files with the upstream servers, read if `main` contains a stub on this host.
    pub upstream: Vec<PathBuf>,
}

impl Default for ResolverFiles {
    /// /etc/resolv.conf, and the upstream files of systemd-resolved, NetworkManager, and resolvconf with dnsmasq.
    fn default() -> Self {
        let upstream =
            ["/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf", "/run/dnsmasq/resolv.conf"];
        Self { main: "/etc/resolv.conf".into(), upstream: upstream.map(PathBuf::from).into() }
    }
}

impl ResolverFiles {
    /// The name servers, sorted, without duplicates, at most 16 per file. A missing file counts as empty.
    ///
    /// # Errors
    ///
    /// An existing file cannot be read; returned with its path.
    pub fn read(&self) -> Result<Vec<IpAddr>, (PathBuf, io::Error)> {
        let mut resolvers = servers_in(&self.main)?;
        if resolvers.iter().any(IpAddr::is_loopback) {
            for path in &self.upstream {
                resolvers.extend(servers_in(path)?);
            }
        }
        resolvers.sort_unstable();
        resolvers.dedup();
        Ok(resolvers)
    }
}

impl Files for ResolverFiles {
    fn paths(&self) -> Vec<PathBuf> {
        std::iter::once(&self.main).chain(&self.upstream).cloned().collect()
    }
}

fn servers_in(path: &Path) -> Result<Vec<IpAddr>, (PathBuf, io::Error)> {
    match file_watch::read(path, MAX_SIZE) {
        Ok(text) => Ok(servers(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err((path.to_owned(), error)),
    }
}

/// The addresses after `nameserver` at the start of a line. Others are skipped, as in glibc.
fn servers(text: &[u8]) -> Vec<IpAddr> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.filter_map(server).take(MAX_RESOLVERS).collect()
}

fn server(line: &str) -> Option<IpAddr> {
    let rest = line.strip_prefix("nameserver")?;
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    let address = parse_zoned(rest.split_whitespace().next()?)?.to_canonical();
    (!address.is_unspecified()).then_some(address)
}

/// Parses any text as a resolv.conf. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &[u8]) {
    assert!(servers(text).len() <= MAX_RESOLVERS);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use tempfile::TempDir;

    use super::*;
    use crate::host::file_watch::{FileWatch, tests::assert_noticed_once};

    fn in_directory() -> (TempDir, ResolverFiles) {
        let directory = TempDir::new().unwrap();
        let [main, one, other] = ["resolv.conf", "upstream", "other"].map(|name| directory.path().join(name));
        (directory, ResolverFiles { main, upstream: vec![one, other] })
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        addresses.sort_unstable();
        addresses
    }

    #[test]
    fn name_servers_follow_glibc_syntax() {
        let text = b"# nameserver 192.0.2.1\n; nameserver 192.0.2.2\nsearch example.net\nnameserver 192.0.2.3\r\n\
            nameserver\t2001:db8::53 trailing words\nnameserver fe80::1%eth0\nnameserver ::ffff:192.0.2.4\n nameserver 192.0.2.5\n\
            nameserver192.0.2.6\nnameserver 192.0.2.256\nnameserver 192.0.2.7%eth0\nnameserver\nnameserver 0.0.0.0\nnameserver 192.0.2.8";
        let mut read = servers(text);
        read.sort_unstable();
        assert_eq!(read, addresses(&["192.0.2.3", "2001:db8::53", "fe80::1", "192.0.2.4", "192.0.2.8"]));
    }

    #[test]
    fn invalid_utf8_hides_no_other_line() {
        assert_eq!(servers(b"\xff\xfe\0\nnameserver \xff\nnameserver 192.0.2.1\n\0"), addresses(&["192.0.2.1"]));
    }

    #[test]
    fn endless_file_is_read_to_its_limit() {
        let (_directory, files) = in_directory();
        let mut text = "#".repeat(64 * 1024);
        text.push_str("\nnameserver 192.0.2.1\n");
        fs::write(&files.main, text).unwrap();
        assert!(files.read().unwrap().is_empty());
        fs::write(&files.main, (0..255).map(|n| format!("nameserver 192.0.2.{n}\n")).collect::<String>()).unwrap();
        assert_eq!(files.read().unwrap().len(), 16);
    }

    #[test]
    fn stub_resolver_upstreams_are_read() {
        let (_directory, files) = in_directory();
        fs::write(&files.upstream[0], "nameserver 198.51.100.53\n").unwrap();
        for stub in ["127.0.0.53", "127.0.0.54", "127.0.1.1", "::1"] {
            fs::write(&files.main, format!("nameserver {stub}\n")).unwrap();
            assert_eq!(files.read().unwrap(), addresses(&[stub, "198.51.100.53"]), "{stub}");
        }
        fs::write(&files.main, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(files.read().unwrap(), addresses(&["192.0.2.1"]));
    }

    #[test]
    fn missing_file_gives_no_addresses() {
        let (_directory, files) = in_directory();
        assert!(files.read().unwrap().is_empty());
        fs::create_dir(&files.main).unwrap();
        assert_eq!(files.read().unwrap_err().0, files.main);
    }

    #[test]
    fn changed_file_is_noticed_once() {
        let (directory, files) = in_directory();
        let new = directory.path().join("new");
        fs::write(&new, "nameserver 192.0.2.2\n").unwrap();
        let changes: [&dyn Fn(); 4] = [
            &|| fs::write(&files.main, "nameserver 192.0.2.1\n").unwrap(),
            &|| fs::rename(&new, &files.main).unwrap(),
            &|| fs::write(&files.upstream[1], "").unwrap(),
            &|| fs::remove_file(&files.main).unwrap(),
        ];
        assert_noticed_once(&mut FileWatch::new(files.clone()), &changes);
    }
}
