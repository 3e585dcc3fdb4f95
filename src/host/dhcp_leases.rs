//! Reads the DHCP servers of this host from the lease files of systemd-networkd, dhclient and NetworkManager, if they
//! exist. Their packets arrive unsolicited at an open port when a lease is due for renewal. DHCPv6 servers are
//! identified by something other than an address, and are not included. [`crate::engine`] decides whether the addresses
//! are protected.
//!
//! References: dhclient.leases(5), sd_dhcp_lease_save in systemd's source, and RFC 2132 section 9.7 for the identifier.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::file_watch::{Files, address, beginning, end, in_order, lines, listing};

/// Maximum number of servers. Each becomes a protected address, so the list is limited.
pub const MAX_SERVERS: usize = 32;

/// Maximum number of lease files per directory; there is one per interface and network.
const MAX_FILES: usize = 64;

/// Maximum size of a lease. One of networkd or NetworkManager has about 300 bytes.
const MAX_LEASE: u64 = 16 << 10;

/// Number of bytes read from the end of a dhclient file. dhclient appends leases and rewrites the file only when it
/// starts: the newest ones are at the end.
const MAX_HISTORY: u64 = 64 << 10;

/// Maximum number of interfaces in one file of dhclient.
const MAX_INTERFACES: usize = 16;

/// Locations of leases. A missing directory counts as empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFiles {
    /// Directory of systemd-networkd; every file is a lease.
    pub networkd: PathBuf,
    /// Directories of dhclient: `dhclient*.leases`, and `dhclient-*.lease` if NetworkManager runs it.
    pub dhclient: Vec<PathBuf>,
    /// Directory of NetworkManager's own client: `internal-*.lease`.
    pub network_manager: PathBuf,
}

impl Default for LeaseFiles {
    /// /run/systemd/netif/leases, /var/lib/dhcp, /var/lib/dhclient and /var/lib/NetworkManager.
    fn default() -> Self {
        Self {
            networkd: "/run/systemd/netif/leases".into(),
            dhclient: ["/var/lib/dhcp", "/var/lib/dhclient", "/var/lib/NetworkManager"].map(PathBuf::from).into(),
            network_manager: "/var/lib/NetworkManager".into(),
        }
    }
}

impl LeaseFiles {
    /// The servers, sorted, without duplicates, at most [`MAX_SERVERS`]. Missing and unreadable files are ignored.
    pub fn read(&self) -> Vec<IpAddr> {
        self.read_at(SystemTime::now())
    }

    fn read_at(&self, now: SystemTime) -> Vec<IpAddr> {
        let plain = self.plain();
        let history = self.history();
        let servers = plain.iter().filter_map(|path| server(&beginning(path, MAX_LEASE)));
        let others = history.iter().flat_map(|path| last_servers(&end(path, MAX_HISTORY), now));
        in_order(servers.chain(others), MAX_SERVERS)
    }

    /// Files with one lease each, in KEY=value format.
    fn plain(&self) -> Vec<PathBuf> {
        let mut files = listing(&self.networkd, MAX_FILES, |_| true);
        let internal = |name: &str| name.starts_with("internal-") && name.ends_with(".lease");
        files.extend(listing(&self.network_manager, MAX_FILES, internal));
        files
    }

    /// Files of dhclient.
    fn history(&self) -> Vec<PathBuf> {
        let leases =
            |name: &str| name.starts_with("dhclient") && (name.ends_with(".leases") || name.ends_with(".lease"));
        self.dhclient.iter().flat_map(|directory| listing(directory, MAX_FILES, leases)).collect()
    }
}

impl Files for LeaseFiles {
    fn paths(&self) -> Vec<PathBuf> {
        // Directories too, for a file beyond the listing limit.
        let directories = [&self.networkd, &self.network_manager].into_iter().chain(&self.dhclient).cloned();
        directories.chain(self.plain()).chain(self.history()).collect()
    }
}

/// The server of one lease of networkd or NetworkManager. Newer releases of NetworkManager write only ADDRESS, which is
/// the address of the host, not of the server.
fn server(text: &[u8]) -> Option<IpAddr> {
    lines(text).filter_map(|line| line.strip_prefix("SERVER_ADDRESS=")).find_map(address)
}

/// The servers of the last unexpired lease of each interface.
fn last_servers(text: &[u8], now: SystemTime) -> Vec<IpAddr> {
    let mut last: BTreeMap<String, Lease> = BTreeMap::new();
    let mut open: Option<Lease> = None;
    for line in lines(text) {
        if line == "lease {" {
            open = Some(Lease::default());
        } else if line == "}" {
            // The end of the file may start within a lease; such a lease is ignored.
            let Some(lease) = open.take() else { continue };
            if last.len() < MAX_INTERFACES || last.contains_key(&lease.interface) {
                last.insert(lease.interface.clone(), lease);
            }
        } else if let Some(lease) = &mut open {
            lease.parse_line(line);
        }
    }
    last.into_values()
        .filter(|lease| lease.expiry.is_none_or(|expiry| expiry > now))
        .filter_map(|lease| lease.server)
        .collect()
}

/// One lease of dhclient.
#[derive(Debug, Default)]
struct Lease {
    interface: String,
    server: Option<IpAddr>,
    /// `None` if the lease never expires or the format is unknown: its server then stays protected.
    expiry: Option<SystemTime>,
}

impl Lease {
    /// Adds one statement: dhclient writes each on a separate line.
    fn parse_line(&mut self, line: &str) {
        let Some((statement, _comment)) = line.split_once(';') else { return };
        let mut words = statement.split_whitespace();
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("interface"), Some(name), None, None) => self.interface = name.trim_matches('"').to_owned(),
            (Some("option"), Some("dhcp-server-identifier"), Some(server), None) => self.server = address(server),
            // `expire 3 2026/11/18 12:00:00;` in UTC, with the day of the week first; or `expire epoch 1794988800;`.
            (Some("expire"), Some("epoch"), Some(seconds), None) => {
                self.expiry = seconds.parse().ok().and_then(|s| UNIX_EPOCH.checked_add(Duration::from_secs(s)));
            }
            (Some("expire"), Some(_), Some(day), Some(time)) => {
                self.expiry = humantime::parse_rfc3339_weak(&format!("{} {time}", day.replace('/', "-"))).ok();
            }
            _ => {}
        }
    }
}

/// Parses any text as a lease. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &[u8]) {
    let _ = server(text);
    assert!(last_servers(text, UNIX_EPOCH).len() <= MAX_INTERFACES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::file_watch::{FileWatch, tests::assert_noticed_once};
    use std::fs;
    use tempfile::TempDir;

    const LEASE: &str = "lease {\n  interface \"eth0\";\n  fixed-address 192.0.2.50;\n  option subnet-mask 255.255.255.0;\n  \
        option dhcp-lease-time 7200;\n  option dhcp-server-identifier 192.0.2.1;\n  renew 3 2026/11/18 11:00:00;\n  \
        rebind 3 2026/11/18 11:45:00;\n  expire 3 2026/11/18 12:00:00;\n}\n";

    fn in_directory() -> (TempDir, LeaseFiles) {
        let directory = TempDir::new().unwrap();
        let [networkd, dhclient, network_manager] =
            ["networkd", "dhclient", "manager"].map(|name| directory.path().join(name));
        [&networkd, &dhclient, &network_manager].iter().for_each(|directory| fs::create_dir(directory).unwrap());
        (directory, LeaseFiles { networkd, dhclient: vec![dhclient], network_manager })
    }

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339_weak(text).unwrap()
    }

    fn servers(text: &str, now: &str) -> Vec<String> {
        last_servers(text.as_bytes(), at(now)).iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn dhclient_lease_names_server_until_expiry() {
        assert_eq!(servers(LEASE, "2026-11-18 11:59:59"), ["192.0.2.1"]);
        assert!(servers(LEASE, "2026-11-18 12:00:00").is_empty());
        let local = LEASE.replace("3 2026/11/18 12:00:00;", "epoch 1795003200; # Wed Nov 18 12:00:00 2026");
        assert_eq!(servers(&local, "2026-11-18 11:59:59"), ["192.0.2.1"]);
        assert!(servers(&local, "2026-11-18 12:00:00").is_empty());
        for for_ever in ["never", "epoch x", "3 2026/99/99 12:00:00", "epoch 18446744073709551615"] {
            let text = LEASE.replace("3 2026/11/18 12:00:00", for_ever);
            assert_eq!(servers(&text, "2099-01-01 00:00:00"), ["192.0.2.1"], "{for_ever}");
        }
    }

    #[test]
    fn last_lease_of_interface_counts() {
        let newer = LEASE.replace("192.0.2.1;", "192.0.2.2;");
        let other = LEASE.replace("eth0", "eth1").replace("192.0.2.1;", "198.51.100.1;");
        let now = "2026-11-18 11:00:00";
        assert_eq!(servers(&format!("{LEASE}{newer}{other}"), now), ["192.0.2.2", "198.51.100.1"]);
        let over = newer.replace("2026/11/18 12", "2026/11/18 10");
        assert!(servers(&format!("{LEASE}{over}"), now).is_empty());
    }

    #[test]
    fn ipv6_lease_hides_no_other_lease() {
        let v6 = "lease6 {\n  interface \"eth0\";\n  ia-na 52:54:00:12 {\n    starts 1794988800;\n    iaaddr 2001:db8::5 {\n      \
            max-life 4000;\n    }\n  }\n  option dhcp6.server-id 0:1:0:1:2b:3c;\n}\n";
        assert_eq!(servers(&format!("{v6}{LEASE}{v6}"), "2026-11-18 11:00:00"), ["192.0.2.1"]);
    }

    #[test]
    fn truncated_lease_is_ignored() {
        for end in 0..LEASE.len() - 2 {
            assert!(servers(&LEASE[..end], "2026-11-18 11:00:00").is_empty(), "{end}");
        }
        for start in 1..LEASE.len() {
            assert!(servers(&LEASE[start..], "2026-11-18 11:00:00").is_empty(), "{start}");
        }
    }

    #[test]
    fn every_client_and_server_is_read() {
        let (_directory, files) = in_directory();
        fs::write(files.networkd.join("2"), "# This is private data.\nADDRESS=192.0.2.50\nSERVER_ADDRESS=192.0.2.3\n")
            .unwrap();
        fs::write(files.networkd.join("3"), b"\xff\nSERVER_ADDRESS=nobody\nSERVER_ADDRESS=127.0.0.1\n").unwrap();
        fs::write(files.dhclient[0].join("dhclient.eth0.leases"), LEASE).unwrap();
        fs::write(files.dhclient[0].join("dhcpd.leases"), LEASE.replace("192.0.2.1;", "192.0.2.9;")).unwrap();
        let internal = |name: &str, text: &str| fs::write(files.network_manager.join(name), text).unwrap();
        internal("internal-a-eth0.lease", "ADDRESS=192.0.2.50\nSERVER_ADDRESS=192.0.2.4\n");
        internal("internal-b-eth1.lease", "ADDRESS=192.0.2.50\n");
        internal("timestamps", "SERVER_ADDRESS=192.0.2.5\n");
        let read: Vec<_> = files.read_at(at("2026-11-18 11:00:00")).iter().map(IpAddr::to_string).collect();
        assert_eq!(read, ["192.0.2.1", "192.0.2.3", "192.0.2.4"]);
    }

    #[test]
    fn long_history_is_read_from_its_end() {
        let (_directory, files) = in_directory();
        let newest = LEASE.replace("192.0.2.1;", "192.0.2.2;");
        fs::write(files.dhclient[0].join("dhclient.leases"), LEASE.repeat(1_000) + &newest).unwrap();
        let read = || files.read_at(at("2026-11-18 11:00:00"));
        assert_eq!(read(), ["192.0.2.2".parse::<IpAddr>().unwrap()]);
        for n in 0..100 {
            fs::write(files.networkd.join(n.to_string()), format!("SERVER_ADDRESS=10.0.0.{n}\n")).unwrap();
        }
        assert_eq!(read().len(), MAX_SERVERS);
    }

    #[test]
    fn changed_lease_is_noticed_once() {
        let (_directory, files) = in_directory();
        let path = files.dhclient[0].join("dhclient.leases");
        let changes: [&dyn Fn(); 4] = [
            &|| fs::write(&path, LEASE).unwrap(),
            &|| fs::write(&path, LEASE.repeat(2)).unwrap(),
            &|| fs::write(files.networkd.join("2"), "SERVER_ADDRESS=192.0.2.3\n").unwrap(),
            &|| fs::remove_file(&path).unwrap(),
        ];
        assert_noticed_once(&mut FileWatch::new(files.clone()), &changes);
    }
}
