//! The table of nft/portsentry.nft to one transaction that creates it, or to the verdict that it is already there.
//! Changes nothing that it finds.

use netlink_packet_core::NetlinkMessage;
use netlink_packet_netfilter::nftables::{NfTablesMessage, SetAttribute, SetDescription, SetFlags, SetMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use rustables::error::BuilderError;
use rustables::expr::{
    Bitwise, Cmp, CmpOp, Counter, HighLevelPayload, IPv4HeaderField, IPv6HeaderField, Immediate, Lookup, Meta,
    MetaType, NetworkHeaderField, Register, VerdictKind,
};
use rustables::{Chain, ChainPolicy, ChainType, Hook, HookClass, MsgType, ProtocolFamily, Rule, Table};
use rustix::io::Errno;

use super::batch::Batch;
use super::message::{Messages, put_request};
use super::shape::Shape;
use super::{CHAIN, Set, TABLE, flag, kind};
use crate::netlink::socket::{Socket, SocketError};

/// What can be chosen about the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RulesetSpec {
    /// How many elements `blocked` and `blocked6` hold, each. Reading a set takes time with the square of it.
    pub size: u32,
}

impl Default for RulesetSpec {
    fn default() -> Self {
        Self { size: 131_072 }
    }
}

/// Where the table came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It was not there and is now.
    Created,
    /// It was there as it should be. Its sets may have another size than was asked for.
    Adopted {
        /// Size of `blocked`.
        blocked: u32,
        /// Size of `blocked6`.
        blocked6: u32,
    },
}

/// Why the table is not in force.
#[derive(Debug, thiserror::Error)]
pub enum RulesetError {
    /// There is a table of this name, and it is not ours.
    #[error(
        "table inet {TABLE} exists and {difference}; portsentry changes nothing that it did not create. Save what is \
         yours in it, then remove it with `nft delete table inet {TABLE}` and start again, or load nft/portsentry.nft"
    )]
    Foreign {
        /// The first thing that differs.
        difference: String,
    },
    /// The kernel lacks something that the rules need.
    #[error(
        "the kernel refused {object} of table inet {TABLE}: {errno}; the rules need nf_tables with sets, counters and \
         the family inet: load the modules nf_tables and nft_counter, or use a kernel that has them"
    )]
    Lacking {
        /// What it refused.
        object: String,
        /// Its reason.
        errno: Errno,
    },
    /// Others created and removed the table again and again.
    #[error("somebody else keeps creating and deleting table inet {TABLE}; stop that, then start portsentry again")]
    Contended,
    /// A rule that contradicts itself.
    #[error(
        "the rules of table inet {TABLE} could not be built: {0}; this is a defect of portsentry, please report it"
    )]
    Unbuildable(#[from] rustables::error::BuilderError),
    /// The socket failed, or the kernel does not let us.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Creates the table, or adopts one that is as it should be.
///
/// # Errors
/// [`RulesetError::Foreign`] where a table of this name has other contents, and what the kernel refuses.
pub fn install(socket: &mut Socket, spec: &RulesetSpec) -> Result<Installed, RulesetError> {
    let mut batch = Batch::new();
    put_ruleset(&mut batch, *spec)?;
    let mut wanted = Shape::default();
    Messages(batch.messages()).for_each(|message| wanted.absorb(&message));
    for _ in 0..ATTEMPTS {
        let found = match read(socket) {
            Ok(found) => found,
            // Gone while it was being read.
            Err(error) if error.is(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        if found.exists() {
            return match wanted.difference(&found, RULE_TEXTS) {
                Some(difference) => Err(RulesetError::Foreign { difference }),
                None => Ok(Installed::Adopted {
                    blocked: found.size(Set::Blocked.name()),
                    blocked6: found.size(Set::Blocked6.name()),
                }),
            };
        }
        match socket.transact(&mut batch) {
            Ok(()) => return Ok(Installed::Created),
            // Somebody was quicker: see what it is.
            Err(SocketError::Refused { errno: Errno::EXIST, .. }) => {}
            Err(SocketError::Refused { message, errno, .. }) => {
                return Err(RulesetError::Lacking { object: object(message), errno });
            }
            Err(error) => return Err(error.into()),
        }
        batch.clear();
        put_ruleset(&mut batch, *spec)?;
    }
    Err(RulesetError::Contended)
}

/// The size of `set` as the kernel has it; ENOENT where it is gone.
pub(crate) fn set_size(socket: &mut Socket, set: Set) -> Result<u32, SocketError> {
    let mut request = Vec::new();
    put_request(&mut request, kind::GET_SET, 0, |fields| {
        fields.put_text(1, TABLE);
        fields.put_text(2, set.name());
    });
    let mut shape = Shape::default();
    socket.ask(&mut request, |message| shape.absorb(message))?;
    Ok(shape.size(set.name()))
}

/// What the kernel has under the table's name.
fn read(socket: &mut Socket) -> Result<Shape, SocketError> {
    let mut shape = Shape::default();
    let mut request = Vec::new();
    put_request(&mut request, kind::GET_TABLE, 0, |fields| fields.put_text(1, TABLE));
    match socket.ask(&mut request, |message| shape.absorb(message)) {
        Ok(()) => {}
        Err(error) if error.is(Errno::NOENT) => return Ok(shape),
        // nfnetlink answers so where it knows no subsystem of that number.
        Err(SocketError::Refused { errno: errno @ (Errno::INVAL | Errno::OPNOTSUPP), .. }) => {
            return Err(SocketError::NoNfTables(errno));
        }
        Err(error) => return Err(error),
    }
    for kind in [kind::GET_SET, kind::GET_CHAIN, kind::GET_RULE] {
        put_request(&mut request, kind, flag::DUMP, |fields| fields.put_text(1, TABLE));
        shape = socket.dump(&mut request, || shape.clone(), Shape::absorb)?;
    }
    Ok(shape)
}

/// Appends the messages that create everything: table, sets, chain, rules, in the order that [`object`] names.
fn put_ruleset(batch: &mut Batch, spec: RulesetSpec) -> Result<(), BuilderError> {
    let table = Table::new(ProtocolFamily::Inet).with_name(TABLE).with_flags(0_u32);
    // Exclusive: a table that somebody created meanwhile is looked at, not written into.
    batch.splice(&rustables_messages(|messages| messages.add(&table, MsgType::Add)), flag::EXCL);
    for (id, set) in (1..).zip(SETS) {
        batch.splice(&set_message(set, id, spec), flag::EXCL);
    }
    let chain = Chain::new(&table)
        .with_name(CHAIN)
        .with_hook(Hook::new(HookClass::PreRouting, PRIORITY))
        .with_type(ChainType::Filter)
        .with_policy(ChainPolicy::Accept);
    let rules = rules(&chain)?;
    let messages = rustables_messages(|messages| {
        messages.add(&chain, MsgType::Add);
        messages.add_iter(rules.into_iter(), MsgType::Add);
    });
    batch.splice(&messages, 0);
    Ok(())
}

/// What the message at `place` of that transaction creates.
fn object(place: u32) -> String {
    let place = usize::try_from(place).unwrap_or(usize::MAX);
    let first_rule = 3 + SETS.len();
    match place {
        0 | 1 => "the table itself".to_owned(),
        _ if place < first_rule - 1 => {
            SETS.get(place - 2).map_or_else(String::new, |set| format!("set {}", set.name()))
        }
        _ if place < first_rule => format!("chain {CHAIN}"),
        _ => RULE_TEXTS.get(place - first_rule).map_or_else(String::new, |rule| format!("the rule `{rule}`")),
    }
}

/// The rules, as [`RULE_TEXTS`] reads. Allowed first, so that no ban reaches who is protected.
fn rules(chain: &Chain) -> Result<Vec<Rule>, BuilderError> {
    let saddr4 = HighLevelPayload::Network(NetworkHeaderField::IPv4(IPv4HeaderField::Saddr));
    let saddr6 = HighLevelPayload::Network(NetworkHeaderField::IPv6(IPv6HeaderField::Saddr));
    let from = |family: u8, source: HighLevelPayload| -> Result<Rule, BuilderError> {
        let rule = Rule::new(chain)?.with_expr(Meta::new(MetaType::NfProto));
        Ok(rule.with_expr(Cmp::new(CmpOp::Eq, [family])).with_expr(source.build()))
    };
    let within =
        |rule: Rule, set: Set| rule.with_expr(Lookup::default().with_set(set.name()).with_sreg(Register::Reg1));
    let accept = |rule: Rule| rule.with_expr(Immediate::new_verdict(VerdictKind::Accept));
    let drop = |rule: Rule| rule.with_expr(Counter::default()).with_expr(Immediate::new_verdict(VerdictKind::Drop));
    let slash_64 = Bitwise::new((u128::MAX << 64).to_be_bytes(), [0; 16])?;
    Ok(vec![
        accept(within(from(IPV4, saddr4)?, Set::Allowed)),
        accept(within(from(IPV6, saddr6)?, Set::Allowed6)),
        drop(within(from(IPV4, saddr4)?, Set::Blocked)),
        drop(within(from(IPV6, saddr6)?.with_expr(slash_64), Set::Blocked6)),
        drop(within(from(IPV6, saddr6)?, Set::Blocked6)),
    ])
}

/// The messages that rustables builds, without the BEGIN and END that it puts around them.
fn rustables_messages(fill: impl FnOnce(&mut rustables::Batch)) -> Vec<u8> {
    let mut messages = rustables::Batch::new();
    fill(&mut messages);
    let mut bytes = messages.finalize();
    bytes.truncate(bytes.len().saturating_sub(MARK));
    bytes.drain(..MARK.min(bytes.len()));
    bytes
}

/// The message that creates `set`.
fn set_message(set: Set, id: u32, spec: RulesetSpec) -> Vec<u8> {
    let (key_type, key_length) = match set {
        Set::Blocked | Set::Allowed => (NFT_TYPE_IPV4, 4),
        Set::Blocked6 | Set::Allowed6 => (NFT_TYPE_IPV6, 16),
    };
    let (flags, size) = match set {
        Set::Blocked | Set::Blocked6 => (SetFlags::Eval | SetFlags::Timeout, Some(spec.size)),
        Set::Allowed | Set::Allowed6 => (SetFlags::Interval, None),
    };
    let attributes = [
        SetAttribute::Table(TABLE.to_owned()),
        SetAttribute::Name(set.name().to_owned()),
        SetAttribute::Flags(flags),
        SetAttribute::KeyType(key_type),
        SetAttribute::KeyLen(key_length),
        SetAttribute::Id(id),
    ];
    let size = size.map(|size| SetAttribute::Description(vec![SetDescription::Size(size)]));
    let message = SetMessage { attributes: attributes.into_iter().chain(size).collect() };
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, NfTablesMessage::NewSet(message)));
    message.header.flags = flag::REQUEST | flag::CREATE;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The sets in the order of nft/portsentry.nft.
const SETS: [Set; 4] = [Set::Blocked, Set::Blocked6, Set::Allowed, Set::Allowed6];

/// The rules as nft/portsentry.nft has them.
const RULE_TEXTS: &[&str] = &[
    "ip saddr @allowed accept",
    "ip6 saddr @allowed6 accept",
    "ip saddr @blocked counter drop",
    "ip6 saddr & ffff:ffff:ffff:ffff:: @blocked6 counter drop",
    "ip6 saddr @blocked6 counter drop",
];

/// `raw - 10`: before connection tracking and before everybody's raw tables.
const PRIORITY: i32 = -310;
/// Attempts to find or create the table while others do the same.
const ATTEMPTS: u32 = 4;
/// Length of BEGIN and of END.
const MARK: usize = 20;
/// NFPROTO_IPV4 and NFPROTO_IPV6.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// Numbers that nft gives to its types ipv4_addr and ipv6_addr, so that it knows how to print the elements.
const NFT_TYPE_IPV4: u32 = 7;
const NFT_TYPE_IPV6: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn built() -> Shape {
        let mut batch = Batch::new();
        put_ruleset(&mut batch, RulesetSpec::default()).unwrap();
        let mut shape = Shape::default();
        Messages(batch.messages()).for_each(|message| shape.absorb(&message));
        shape
    }

    #[test]
    fn every_message_of_the_ruleset_has_a_name() {
        let mut batch = Batch::new();
        put_ruleset(&mut batch, RulesetSpec::default()).unwrap();
        let names: Vec<_> = (1..).zip(Messages(batch.messages())).map(|(place, _)| object(place)).collect();
        assert_eq!(names.len(), 1 + SETS.len() + 1 + RULE_TEXTS.len());
        assert_eq!(names[1], "set blocked");
        assert_eq!(names[5], "chain prerouting");
        assert_eq!(names[6], "the rule `ip saddr @allowed accept`");
        assert_eq!(names[10], "the rule `ip6 saddr @blocked6 counter drop`");
    }

    #[test]
    fn the_ruleset_has_no_difference_from_itself_whatever_its_size() {
        let mut batch = Batch::new();
        put_ruleset(&mut batch, RulesetSpec { size: 7 }).unwrap();
        let mut smaller = Shape::default();
        Messages(batch.messages()).for_each(|message| smaller.absorb(&message));
        assert_eq!(built().difference(&smaller, RULE_TEXTS), None);
        assert_eq!((smaller.size("blocked"), built().size("blocked6"), built().size("allowed")), (7, 131_072, 0));
    }

    #[test]
    fn a_ruleset_cut_after_any_message_differs() {
        let mut batch = Batch::new();
        put_ruleset(&mut batch, RulesetSpec::default()).unwrap();
        let count = Messages(batch.messages()).count();
        for taken in 1..count {
            let mut part = Shape::default();
            Messages(batch.messages()).take(taken).for_each(|message| part.absorb(&message));
            assert!(built().difference(&part, RULE_TEXTS).is_some(), "{taken}");
        }
    }
}
