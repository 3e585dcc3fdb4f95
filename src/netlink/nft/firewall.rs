//! Determines how the rulesets of other programs affect decoys: whether addresses are translated, and which input
//! chains drop packets that no rule accepts. Reads the chains of all tables, and the rules of input chains.

use rustables::sys;

use super::message::{field, put_dump};
use super::table::TABLE;
use crate::netlink::message::{attributes, be_u32, text};
use crate::netlink::socket::{Socket, SocketError};

/// Relevant properties of the rulesets of other programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// True if a chain translates addresses.
    pub translates: bool,
    /// Input chains that drop or reject packets by default, and have no rule that accepts decoys.
    pub(crate) closed: Vec<InputChain>,
}

/// A base chain of the hook `input`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InputChain {
    /// Family of its table: its number (NFPROTO_*) and its name (ip, ip6 or inet).
    family: (u8, &'static str),
    /// The name of its table.
    table: String,
    name: String,
    drops: bool,
    /// True if only the program that created its table may add rules, as firewalld 2 does.
    owned: bool,
}

impl Firewall {
    /// Returns the reason why decoys cannot answer, and the commands that open the filter for them only, because
    /// services have no transparent sockets; `None` if no chain drops packets to decoys.
    pub fn silences_decoys(&self) -> Option<String> {
        let chains = self.closed.iter().map(|one| format!("{} {} {}", one.family.1, one.table, one.name));
        let commands = self.closed.iter().map(InputChain::opening_command);
        let (chains, commands): (Vec<_>, Vec<_>) = (chains.collect(), commands.collect());
        let owned = self.closed.iter().filter(|one| one.owned).map(|one| {
            format!(
                ". Only its owner may change table {} {}: first set NftablesTableOwner=no in /etc/firewalld/firewalld.conf \
                 and restart firewalld",
                one.family.1, one.table
            )
        });
        (!chains.is_empty()).then(|| {
            format!(
                "decoys cannot answer, because a firewall drops their packets (input chain {}); run {}{}",
                chains.join(", "),
                commands.join(" with "),
                owned.collect::<String>()
            )
        })
    }

    /// Reads the chains in the network namespace of the socket. Takes about 2 µs per chain.
    ///
    /// # Errors
    /// The kernel does not show its rules.
    pub fn read(socket: &mut Socket) -> Result<Self, SocketError> {
        let mut request = Vec::new();
        put_dump(&mut request, 0, sys::NFT_MSG_GETCHAIN, |_| {});
        let Self { translates, closed: inputs } = socket.dump(&mut request, Self::default, |found, message| {
            let Some((family, _, body)) = message.nft_of_any_family() else { return };
            let named = |kind| field(body, kind).and_then(text);
            let (Some(table), Some(kind)) = (named(sys::NFTA_CHAIN_TABLE), named(sys::NFTA_CHAIN_TYPE)) else {
                return;
            };
            found.translates |= kind == "nat";
            let hook = field(body, sys::NFTA_CHAIN_HOOK).and_then(|hook| be_u32(field(hook, sys::NFTA_HOOK_HOOKNUM)?));
            if let (Some(LOCAL_IN), Some(name), Some(family)) =
                (hook, named(sys::NFTA_CHAIN_NAME), FAMILIES.into_iter().find(|(number, _)| *number == family))
                && table != TABLE
            {
                let drops = field(body, sys::NFTA_CHAIN_POLICY).and_then(be_u32) == Some(DROP);
                let (table, name) = (table.to_owned(), name.to_owned());
                found.closed.push(InputChain { family, table, name, drops, owned: false });
            }
        })?;
        let mut closed = Vec::new();
        for mut chain in inputs {
            if chain.is_closed(socket)? {
                chain.owned = chain.is_owned(socket)?;
                closed.push(chain);
            }
        }
        Ok(Self { translates, closed })
    }
}

impl InputChain {
    /// A rule of nft in a chain of iptables-nft makes ufw and `iptables -P` fail: `ufw disable` would leave IPv6
    /// closed.
    fn opening_command(&self) -> String {
        match (self.family.1, self.table.as_str(), self.name.as_str()) {
            (family @ ("ip" | "ip6"), "filter", "INPUT") => {
                format!("`{family}tables-nft -I INPUT -m socket --transparent --nowildcard -j ACCEPT`")
            }
            (family, table, name) => format!("`nft insert rule {family} {table} {name} socket transparent 1 accept`"),
        }
    }

    fn is_owned(&self, socket: &mut Socket) -> Result<bool, SocketError> {
        let mut request = Vec::new();
        put_dump(&mut request, self.family.0, sys::NFT_MSG_GETTABLE, |_| {});
        socket.dump(&mut request, bool::default, |owned, message| {
            let Some((_, _, body)) = message.nft_of_any_family() else { return };
            let is_its_table = field(body, sys::NFTA_TABLE_NAME).and_then(text) == Some(&self.table);
            *owned |= is_its_table && field(body, sys::NFTA_TABLE_OWNER).is_some();
        })
    }

    fn is_closed(&self, socket: &mut Socket) -> Result<bool, SocketError> {
        let mut request = Vec::new();
        put_dump(&mut request, self.family.0, sys::NFT_MSG_GETRULE, |fields| {
            fields.put_text(sys::NFTA_RULE_TABLE, &self.table);
            fields.put_text(sys::NFTA_RULE_CHAIN, &self.name);
        });
        // Whether a rule accepts decoys, and whether the last rule drops everything.
        let start = || (false, self.drops);
        let (opens, drops) = socket.dump(&mut request, start, |found, message| {
            let Some((_, sys::NFT_MSG_NEWRULE, body)) = message.nft_of_any_family() else { return };
            if field(body, sys::NFTA_RULE_CHAIN).and_then(text) != Some(&self.name) {
                return;
            }
            let rule = field(body, sys::NFTA_RULE_EXPRESSIONS).unwrap_or_default();
            let expressions = attributes(rule).filter_map(|(_, one)| {
                let data = field(one, sys::NFTA_EXPR_DATA).unwrap_or_default();
                Some((field(one, sys::NFTA_EXPR_NAME).and_then(text)?, data))
            });
            let expressions: Vec<(&str, &[u8])> = expressions.collect();
            let verdict = expressions.iter().find_map(|(name, data)| match *name {
                "reject" => Some(DROP),
                "immediate" => verdict(data),
                "target" if is_reject(data) => Some(DROP),
                _ => None,
            });
            let always = expressions.iter().all(|(name, data)| match *name {
                "counter" | "log" | "immediate" | "reject" => true,
                "target" => is_reject(data),
                _ => false,
            });
            found.0 |= verdict == Some(ACCEPT)
                && expressions.iter().any(|(name, data)| match *name {
                    "socket" => true,
                    "match" => extension(data) == Some("socket"),
                    _ => false,
                });
            found.1 = match (always, verdict) {
                (true, Some(DROP)) => true,
                (true, Some(ACCEPT)) => false,
                // Behind a jump the policy decides as well.
                _ => self.drops,
            };
        })?;
        Ok(drops && !opens)
    }
}

/// True for the target with which iptables-nft rejects.
fn is_reject(target: &[u8]) -> bool {
    extension(target) == Some("REJECT")
}

/// The name of a match or target of iptables.
fn extension(data: &[u8]) -> Option<&str> {
    field(data, EXTENSION_NAME).and_then(text)
}

/// The kernel verdict of an immediate expression.
fn verdict(immediate: &[u8]) -> Option<u32> {
    let data = field(immediate, sys::NFTA_IMMEDIATE_DATA)?;
    be_u32(field(field(data, sys::NFTA_DATA_VERDICT)?, sys::NFTA_VERDICT_CODE)?)
}

/// Table families that can contain an input chain, by NFPROTO_*.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
/// NFTA_TARGET_NAME and NFTA_MATCH_NAME, of nf_tables_compat.h.
const EXTENSION_NAME: u16 = 1;
/// NF_INET_LOCAL_IN.
const LOCAL_IN: u32 = 1;
/// NF_DROP.
const DROP: u32 = 0;
/// NF_ACCEPT.
const ACCEPT: u32 = 1;
