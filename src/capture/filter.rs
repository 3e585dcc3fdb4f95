//! Builds the text of a BPF filter (pcap-filter(7)) from the monitored ports. The filter may pass too many packets,
//! because the engine judges each packet again, but it must never drop a packet that is evidence.
//!
//! Two pitfalls of the filter language are avoided. In a filter for both families, `tcp[13]` silently means IPv4 only.
//! So IPv6 is tested by its own offsets, and packets with extension headers pass to the decoder unfiltered. A load
//! beyond the end of a packet rejects the packet, so fragments that are too short for the flags are matched before the
//! flags are read.

use crate::engine::{Host, Settings};
use crate::types::PortSet;
use crate::wire::{MAX_TAGS, SLL2_HEADER};

/// The packets that the filter must pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// TCP ports that are monitored by packet capture.
    pub tcp: PortSet,
    /// UDP ports that are monitored by packet capture.
    pub udp: PortSet,
    /// The host's own ephemeral ports (net.ipv4.ip_local_port_range). Answers of its own connections arrive there at
    /// full speed with ACK set, so the filter passes only segments without ACK to these ports.
    pub ephemeral: PortSet,
    /// SCTP INIT.
    pub sctp: bool,
    /// ICMP and ICMPv6 requests.
    pub icmp: bool,
    /// Indexes of the interfaces; empty: all.
    pub interfaces: Vec<u32>,
    /// Indexes of the excluded interfaces: loopback.
    pub without: Vec<u32>,
}

/// Maximum number of separate ranges in a list of ports. Compile time grows with the square (26 ports take 1 ms, 400
/// one second, 2,000 three minutes), and the kernel accepts 4,096 instructions at most. A longer list is covered by
/// fewer and wider ranges.
const RANGES: usize = 100;

impl Wanted {
    /// The packets that can be evidence on `host`. Ports with a listener on every address are excluded: packets to them
    /// are never evidence, and the service may be busy.
    pub fn new(settings: &Settings, host: &Host) -> Self {
        Self {
            tcp: settings.tcp.ports.without(&host.tcp.everywhere()),
            udp: settings.udp.ports.without(&host.udp.everywhere()),
            ephemeral: host.ephemeral.clone(),
            sctp: settings.sctp,
            icmp: settings.icmp,
            interfaces: host.interfaces.clone(),
            without: host.loopback.clone(),
        }
    }

    /// The filter's text for a cooked capture (LINKTYPE_LINUX_SLL2), the only link type with directions and interfaces.
    pub fn to_filter(&self) -> String {
        let mut any = Vec::new();
        if !self.tcp.is_empty() {
            self.tcp_terms(&mut any);
        }
        if !self.udp.is_empty() {
            let (to, from) = (ports("udp", "dst", &self.udp), ports("udp", "src", &self.udp));
            any.push(format!("udp and {to}"));
            any.push(format!("outbound and udp and {from}"));
        }
        if self.sctp {
            any.push("sctp".to_owned());
        }
        if self.icmp {
            any.push("icmp or icmp6".to_owned());
        }
        if any.is_empty() {
            // Matches no packet: no frame is shorter than one byte.
            return "less 1".to_owned();
        }
        any.push("ip6 and (ip6[6] = 0 or ip6[6] = 43 or ip6[6] = 44 or ip6[6] = 60)".to_owned());
        any.push(stacked_tags());
        let mut text = format!("({})", any.join(") or ("));
        let indexes = |list: &[u32]| list.iter().map(|i| format!("ifindex {i}")).collect::<Vec<_>>().join(" or ");
        if !self.interfaces.is_empty() {
            text = format!("({}) and ({text})", indexes(&self.interfaces));
        }
        if !self.without.is_empty() {
            text = format!("not ({}) and ({text})", indexes(&self.without));
        }
        text
    }

    fn tcp_terms(&self, any: &mut Vec<String>) {
        // A fragment 8 bytes into a TCP segment, which overlaps the flags of the first fragment. It has no ports.
        any.push("ip and ip[9] = 6 and ip[6:2] & 0x1fff = 1".to_owned());
        // A first fragment, whose flags may be missing. Otherwise every segment except answers: SYN/ACK, and RST
        // without SYN. RST with SYN, and FIN or RST in addition to SYN and ACK, pass because no stack sends them. To
        // ephemeral ports, all other segments with ACK and without SYN are excluded as well.
        let first = "ip[6:2] & 0x3fff = 0x2000";
        let fixed = self.tcp.without(&self.ephemeral);
        let ephemeral = self.tcp.without(&fixed);
        for (set, four, six) in [
            (&fixed, "tcp[13] & 6 != 4 and tcp[13] & 23 != 18", "ip6[53] & 6 != 4 and ip6[53] & 23 != 18"),
            (
                &ephemeral,
                "tcp[13] & 20 = 0 or (tcp[13] & 2 != 0 and tcp[13] & 23 != 18)",
                "ip6[53] & 20 = 0 or (ip6[53] & 2 != 0 and ip6[53] & 23 != 18)",
            ),
        ] {
            if !set.is_empty() {
                let to = ports("tcp", "dst", set);
                any.push(format!("{to} and ((ip and ({first} or ({four}))) or (ip6 and ({six})))"));
            }
        }
        // A SYN or SYN/ACK that this host sends from a monitored port shows that the port is in use.
        let from = ports("tcp", "src", &self.tcp);
        any.push(format!("outbound and {from} and ((ip and tcp[13] & 2 != 0) or (ip6 and ip6[53] & 2 != 0))"));
    }
}

/// Packets behind further VLAN tags with number 0. Linux removes any number of these tags, but the capture point is
/// behind the first one only. A tag with another number leads to a VLAN device, which delivers the packet without tags.
/// Up to [`MAX_TAGS`] tags are checked here; packets with more pass to the decoder. The EtherType of the frame is not
/// checked, because it differs: the kernel sees that of a tag, and libpcap, which filters the first frames again, sees
/// that of the packet. No IPv4 header begins like this, and few IPv6 headers do.
fn stacked_tags() -> String {
    let is_tag = |at: usize| format!("(link[{at}:2] = 0x8100 or link[{at}:2] = 0x88a8)");
    let is_zero = |at: usize| format!("link[{at}:2] & 0xfff = 0");
    let first = SLL2_HEADER;
    let is_ip = |at: usize| format!("link[{at}:2] = 0x800 or link[{at}:2] = 0x86dd");
    let last = first + 4 * MAX_TAGS - 2;
    let behind = (1..MAX_TAGS).rev().fold(format!("{} or {}", is_ip(last), is_tag(last)), |inner, number| {
        let (kind, tag) = (first + 4 * number - 2, first + 4 * number);
        format!("{} or ({} and {} and ({inner}))", is_ip(kind), is_tag(kind), is_zero(tag))
    });
    format!("{} and ({behind})", is_zero(first))
}

/// Formats a port list as "(dst portrange 1-112 or dst port 8080)", with at most [`RANGES`] ranges.
fn ports(protocol: &str, side: &str, set: &PortSet) -> String {
    let terms: Vec<String> = cover(set, RANGES)
        .into_iter()
        .map(|(first, last)| match first == last {
            true => format!("{protocol} {side} port {first}"),
            false => format!("{protocol} {side} portrange {first}-{last}"),
        })
        .collect();
    format!("({})", terms.join(" or "))
}

/// At most `most` ranges that contain all of `set` and as few other ports as possible. Closes the narrowest gaps.
fn cover(set: &PortSet, most: usize) -> Vec<(u16, u16)> {
    let ranges = set.ranges();
    if ranges.len() <= most {
        return ranges;
    }
    let mut gaps: Vec<(u16, u16)> =
        ranges.iter().zip(ranges.iter().skip(1)).map(|((_, end), (start, _))| (start - end, *start)).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    let kept: std::collections::BTreeSet<u16> = gaps.into_iter().take(most - 1).map(|(_, start)| start).collect();
    let mut covered: Vec<(u16, u16)> = Vec::with_capacity(most);
    for (first, last) in ranges {
        match covered.last_mut() {
            Some((_, end)) if !kept.contains(&first) => *end = last,
            _ => covered.push((first, last)),
        }
    }
    covered
}

#[cfg(test)]
mod tests {
    use pcap::{BpfProgram, Capture, Linktype};

    use super::*;
    use crate::wire::fixtures::{honest_ipv6, ipv4_packet};

    fn compiled(wanted: &Wanted) -> BpfProgram {
        Capture::dead(Linktype(276)).unwrap().compile(&wanted.to_filter(), true).unwrap()
    }

    #[test]
    fn filters_stay_below_kernel_limit() {
        let scattered: PortSet = (1..=65_535).step_by(7).collect();
        let lists = ["", "1-1024,1433,3306,3389,8080", "1-65535"].map(|text| text.parse::<PortSet>().unwrap());
        for tcp in lists.iter().chain([&scattered]) {
            for udp in [&lists[0], &lists[1]] {
                for (sctp, icmp) in [(false, false), (true, true)] {
                    for interfaces in [vec![], vec![3, 4]] {
                        let ephemeral = "32768-60999".parse().unwrap();
                        let (tcp, udp, without) = (tcp.clone(), udp.clone(), vec![1]);
                        let wanted = Wanted { tcp, udp, ephemeral, sctp, icmp, interfaces, without };
                        let length = compiled(&wanted).get_instructions().len();
                        assert!(length <= 4_096, "{length} instructions for {}", wanted.to_filter());
                    }
                }
            }
        }
    }

    /// A TCP segment in an incoming cooked frame, over either family.
    fn frame(v6: bool, port: u16, flags: u8) -> Vec<u8> {
        let [high, low] = port.to_be_bytes();
        let segment = [0x9d, 0xd4, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0];
        let (kind, packet) = match v6 {
            true => ([0x86, 0xdd], honest_ipv6(6, &segment)),
            false => ([0x08, 0x00], ipv4_packet(6, 0, 20, &segment)),
        };
        [&kind[..], &[0, 0, 0, 0, 0, 2, 0, 1, 0, 6], &[0; 8], &packet].concat()
    }

    #[test]
    fn filter_passes_evidence_but_not_answers() {
        use crate::engine::Class;
        use crate::wire::TcpFlags;
        let wanted =
            Wanted { tcp: "23,40000".parse().unwrap(), ephemeral: "32768-60999".parse().unwrap(), ..Wanted::default() };
        let program = compiled(&wanted);
        for flags in 0..64_u8 {
            let class = Class::of_tcp(TcpFlags(flags.into()));
            // The filter drops segments with ACK to ephemeral ports, because replies arrive there at full speed.
            let fast = matches!(class, Some(Class::Ack | Class::Maimon));
            for v6 in [false, true] {
                let passes = |port| program.filter(&frame(v6, port, flags));
                assert_eq!(passes(23), class.is_some(), "{flags:#x}");
                assert_eq!(passes(40_000), class.is_some() && !fast, "{flags:#x} to an ephemeral port");
                assert!(!passes(24), "{flags:#x} to a port that is not monitored");
            }
        }
    }

    #[test]
    fn filter_passes_stacked_zero_tags_only() {
        let wanted = Wanted { tcp: "23".parse().unwrap(), ..Wanted::default() };
        let program = compiled(&wanted);
        let passes = |kind: [u8; 2], tags: &[u16], inner: [u8; 2]| {
            let mut frame = frame(false, 24, 2);
            let tags: Vec<u8> = tags
                .iter()
                .enumerate()
                .flat_map(|(number, tag)| {
                    let next = if number + 1 == tags.len() { inner } else { [0x81, 0] };
                    [tag.to_be_bytes(), next].concat()
                })
                .collect();
            frame[..2].copy_from_slice(&kind);
            frame.splice(20..20, tags);
            program.filter(&frame)
        };
        let (ip, tag) = ([0x08, 0], [0x81, 0]);
        for tags in 1..=8 {
            assert!(passes(tag, &vec![0; tags], ip) && passes(ip, &vec![0; tags], ip), "{tags} tags");
            assert!(passes([0x88, 0xa8], &vec![0xe000; tags], [0x86, 0xdd]), "{tags} tags with a priority");
        }
        assert!(!passes(tag, &[5], ip) && !passes(tag, &[0, 0, 5], ip), "a VLAN device hands these over");
        assert!(!passes(tag, &[0], [0x88, 0x64]), "no IP");
    }

    #[test]
    fn cover_contains_every_port_in_fewest_ranges() {
        let set: PortSet = "1-10,12-20,500,900-1000,1002".parse().unwrap();
        assert_eq!(cover(&set, 3), [(1, 20), (500, 500), (900, 1002)]);
        assert_eq!(cover(&set, 1), [(1, 1002)]);
        assert_eq!(cover(&set, 99), set.ranges());
    }
}
