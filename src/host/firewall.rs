//! Reads the rules of other programs that decide whether decoys can answer like services: filters, and translations of
//! addresses, by nftables and by legacy iptables.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use crate::netlink::nft::{Firewall, generation};
use crate::netlink::socket::Socket;

/// The tables of legacy iptables, which nftables does not list.
#[derive(Debug, Default)]
struct LegacyTables(Vec<File>);

impl LegacyTables {
    fn open() -> Self {
        Self(LEGACY.iter().filter_map(|path| File::open(path).ok()).collect())
    }

    /// True if one of them translates addresses. An unreadable table counts as translating.
    fn translate(&self) -> bool {
        let is_nat = |file: &File| {
            let mut names = [0; 256];
            let read = file.read_at(&mut names, 0).unwrap_or(0);
            names.get(..read).unwrap_or_default().split(|byte| *byte == b'\n').any(|name| name == b"nat")
        };
        let there = LEGACY.iter().filter(|path| fs::exists(path).unwrap_or(false)).count();
        there > self.0.len() || self.0.iter().any(is_nat)
    }
}

/// The table names, one per line, in the network namespace of the reader.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// The rules of other programs in the network namespace of the caller.
#[derive(Default)]
pub struct HostFirewall {
    legacy: LegacyTables,
    socket: Option<Socket>,
    generation: Option<u32>,
    rules: Firewall,
    max_new_tracked: Option<u32>,
}

impl HostFirewall {
    /// Opens what needs the initial privileges.
    pub fn open() -> Self {
        Self { legacy: LegacyTables::open(), ..Self::default() }
    }

    pub fn rules(&self) -> &Firewall {
        &self.rules
    }

    /// Maximum number of new connections tracked at once; `None` if no rule translates addresses.
    pub fn max_new_tracked(&self) -> Option<u32> {
        self.max_new_tracked
    }

    /// Reads the rules again if any have changed. An error counts as translation.
    pub fn refresh(&mut self) {
        if self.socket.is_none() {
            self.socket = Socket::open().ok();
        }
        let Some(socket) = &mut self.socket else { return };
        let generation = generation(socket).ok();
        if generation.is_none() || generation != self.generation {
            self.rules = Firewall::read(socket).unwrap_or(Firewall { translates: true, ..Firewall::default() });
            self.generation = generation;
        }
        let translates = self.rules.translates || self.legacy.translate();
        self.max_new_tracked = translates.then(max_new_tracked);
    }
}

/// Maximum number of new connections tracked at once: a quarter of the table size.
fn max_new_tracked() -> u32 {
    let text = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap_or_default();
    let most: u32 = text.trim().parse().unwrap_or(MIN_TRACKED);
    (most / 4).max(MIN_NEW_CONNECTIONS)
}

/// Assumed table size if the kernel does not report it: the minimum on a small machine.
const MIN_TRACKED: u32 = 8_192;

/// Minimum number of new connections that are tracked at once.
const MIN_NEW_CONNECTIONS: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_legacy_table_counts_as_nat() {
        let none = LegacyTables::default();
        assert_eq!(none.translate(), LEGACY.iter().any(|path| fs::exists(path).unwrap()));
        let directory = tempfile::tempdir().unwrap();
        for (names, translates) in [("filter\nnat\n", true), ("filter\nnatural\n", false), ("", false)] {
            let path = directory.path().join("names");
            fs::write(&path, names).unwrap();
            // As many tables as the kernel has.
            let tables = LegacyTables(LEGACY.iter().map(|_| File::open(&path).unwrap()).collect());
            assert_eq!(tables.translate(), translates, "{names}");
        }
    }
}
