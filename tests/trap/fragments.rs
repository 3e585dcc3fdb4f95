//! Tests fragments that hide a SYN from the kernel's rules until the kernel has reassembled it. The daemon is stopped,
//! so that only the rules prevent an answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netns_lab::raw::{self, ACK, DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, SYN, TCP, UDP, identified};
use netns_lab::services::Services;
use netns_lab::{Lab, eventually};

use crate::Protocol::Tcp;
use crate::banned_at_last;

/// A closed port and an open one.
const PORTS: [u16; 2] = [901, 80];

/// Builds the fragments of a segment or datagram to a port.
struct Cut {
    name: &'static str,
    /// True if Linux reassembles them. It discards segments with overlapping fragments, and IPv6 segments whose first
    /// fragment ends inside a header.
    answered: bool,
    pieces: fn(&Ends, u16) -> Vec<Vec<u8>>,
}

struct Ends {
    v4: (Ipv4Addr, Ipv4Addr),
    v6: (Ipv6Addr, Ipv6Addr),
}

impl Ends {
    fn syn4(&self, port: u16) -> Vec<u8> {
        raw::segment_with(self.v4.0.into(), self.v4.1.into(), (40_404, port), SYN, &[0; 8])
    }

    fn syn6(&self, port: u16) -> Vec<u8> {
        raw::segment_with(self.v6.0.into(), self.v6.1.into(), (40_404, port), SYN, &[0; 8])
    }

    fn four(&self, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
        raw::ipv4(self.v4.0, self.v4.1, TCP, offset, more, payload)
    }

    fn six(&self, next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
        raw::ipv6(self.v6.0, self.v6.1, FRAGMENT, &raw::fragment(next, offset, more, payload))
    }

    /// The chain that begins with the header `next`, cut once.
    fn cut6(&self, next: u8, chain: &[u8], at: usize) -> Vec<Vec<u8>> {
        let (first, rest) = chain.split_at(at);
        vec![self.six(next, 0, true, first), self.six(next, u16::try_from(at / 8).unwrap(), false, rest)]
    }

    /// The fragment with hop-by-hop options before its fragment header.
    fn behind_options(&self, piece: &[u8]) -> Vec<u8> {
        raw::ipv6(self.v6.0, self.v6.1, HOP_BY_HOP, &raw::options(FRAGMENT, &piece[40..]))
    }

    fn cut4(&self, segment: &[u8], at: usize) -> Vec<Vec<u8>> {
        let (first, rest) = segment.split_at(at);
        vec![self.four(0, true, first), self.four(u16::try_from(at / 8).unwrap(), false, rest)]
    }
}

/// Eight bytes of a routing header with no segments left.
fn routing(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 0, 0, 0, 0, 0, 0][..], payload].concat()
}

/// Sixteen bytes of padding options.
fn long_options(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], payload].concat()
}

/// An IPv4 fragment with four bytes of options (NOP).
fn with_options(mut packet: Vec<u8>) -> Vec<u8> {
    packet[0] += 1;
    let length = (u16::try_from(packet.len()).unwrap() + 4).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet.splice(20..20, [1; 4]);
    packet
}

/// Fragments of which none shows the SYN to a rule that reads flags.
const HIDING: [Cut; 16] = [
    Cut { name: "IPv4, 8 bytes", answered: true, pieces: |ends, port| ends.cut4(&ends.syn4(port), 8) },
    Cut {
        name: "IPv4, 8 and 8 bytes",
        answered: true,
        pieces: |ends, port| {
            let syn = ends.syn4(port);
            vec![ends.four(0, true, &syn[..8]), ends.four(1, true, &syn[8..16]), ends.four(2, false, &syn[16..])]
        },
    },
    Cut {
        name: "IPv4, 8 bytes after IP options",
        answered: true,
        pieces: |ends, port| ends.cut4(&ends.syn4(port), 8).into_iter().map(with_options).collect(),
    },
    Cut {
        name: "IPv4, 15 bytes with ACK, of which Linux takes 8",
        answered: true,
        pieces: |ends, port| {
            let syn = ends.syn4(port);
            let mut first = syn[..15].to_vec();
            first[13] = ACK.to_be_bytes()[1];
            vec![ends.four(0, true, &first), ends.four(1, false, &syn[8..])]
        },
    },
    Cut {
        name: "IPv4, SYN over the ACK of the first fragment",
        answered: false,
        pieces: |ends, port| {
            let syn = ends.syn4(port);
            let mut first = syn[..16].to_vec();
            first[13] = ACK.to_be_bytes()[1];
            vec![ends.four(0, true, &first), ends.four(1, false, &syn[8..])]
        },
    },
    Cut { name: "IPv6, 8 bytes", answered: false, pieces: |ends, port| ends.cut6(TCP, &ends.syn6(port), 8) },
    Cut {
        name: "IPv6, 8 bytes after hop-by-hop options",
        answered: false,
        pieces: |ends, port| {
            ends.cut6(TCP, &ends.syn6(port), 8).into_iter().map(|piece| ends.behind_options(&piece)).collect()
        },
    },
    Cut {
        name: "IPv6, between two destination options headers",
        answered: true,
        pieces: |ends, port| {
            let chain = raw::options(DESTINATION, &raw::options(TCP, &ends.syn6(port)));
            ends.cut6(DESTINATION, &chain, 8)
        },
    },
    Cut {
        name: "IPv6, between destination options and TCP",
        answered: false,
        pieces: |ends, port| ends.cut6(DESTINATION, &raw::options(TCP, &ends.syn6(port)), 8),
    },
    Cut {
        name: "IPv6, 8 bytes of TCP after destination options",
        answered: false,
        pieces: |ends, port| ends.cut6(DESTINATION, &raw::options(TCP, &ends.syn6(port)), 16),
    },
    Cut {
        name: "IPv6, between a routing header and TCP",
        answered: false,
        pieces: |ends, port| ends.cut6(ROUTING, &routing(TCP, &ends.syn6(port)), 8),
    },
    Cut {
        name: "IPv6, between a routing header and destination options",
        answered: true,
        pieces: |ends, port| ends.cut6(ROUTING, &routing(DESTINATION, &raw::options(TCP, &ends.syn6(port))), 8),
    },
    Cut {
        name: "IPv6, between hop-by-hop options, fragment and two options headers",
        answered: true,
        pieces: |ends, port| {
            let chain = raw::options(DESTINATION, &raw::options(TCP, &ends.syn6(port)));
            ends.cut6(DESTINATION, &chain, 8).into_iter().map(|piece| ends.behind_options(&piece)).collect()
        },
    },
    Cut {
        name: "IPv6, inside destination options",
        answered: false,
        pieces: |ends, port| ends.cut6(DESTINATION, &long_options(TCP, &ends.syn6(port)), 8),
    },
    Cut {
        name: "IPv6, 15 bytes",
        answered: false,
        pieces: |ends, port| {
            let syn = ends.syn6(port);
            vec![ends.six(TCP, 0, true, &syn[..15]), ends.six(TCP, 1, false, &syn[8..])]
        },
    },
    Cut {
        name: "IPv6, SYN over the ACK of the first fragment",
        answered: false,
        pieces: |ends, port| {
            let syn = ends.syn6(port);
            let mut first = syn[..16].to_vec();
            first[13] = ACK.to_be_bytes()[1];
            vec![ends.six(TCP, 0, true, &first), ends.six(TCP, 1, false, &syn[8..])]
        },
    },
];

/// Fragments with whole TCP flags.
const HONEST: [Cut; 6] = [
    Cut { name: "IPv4, 16 bytes", answered: true, pieces: |ends, port| ends.cut4(&ends.syn4(port), 16) },
    Cut {
        name: "IPv4, 16 bytes after IP options",
        answered: true,
        pieces: |ends, port| ends.cut4(&ends.syn4(port), 16).into_iter().map(with_options).collect(),
    },
    Cut { name: "IPv6, 24 bytes", answered: true, pieces: |ends, port| ends.cut6(TCP, &ends.syn6(port), 24) },
    Cut { name: "IPv6, atomic", answered: true, pieces: |ends, port| vec![ends.six(TCP, 0, false, &ends.syn6(port))] },
    Cut {
        name: "IPv6, 24 bytes after destination options",
        answered: true,
        pieces: |ends, port| ends.cut6(DESTINATION, &raw::options(TCP, &ends.syn6(port)), 32),
    },
    Cut {
        name: "IPv6, atomic after hop-by-hop options",
        answered: true,
        pieces: |ends, port| vec![ends.behind_options(&ends.six(TCP, 0, false, &ends.syn6(port)))],
    },
];

/// A counter of the victim's network stack.
fn stack(lab: &Lab, counter: &str) -> u64 {
    let text = lab.run("victim", "nstat", &["-asz", counter]);
    let value = text.split_whitespace().skip_while(|word| *word != counter).nth(1);
    value.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{counter}: {text}"))
}

/// Segments that the victim has sent.
fn answers(lab: &Lab) -> u64 {
    stack(lab, "TcpOutSegs")
}

fn ends(lab: &Lab) -> Ends {
    Ends { v4: (lab.v4("other"), lab.victim_v4("other")), v6: (lab.v6("other"), lab.victim_v6("other")) }
}

#[test]
fn hidden_syn_gets_no_answer() {
    let lab = Lab::new(&["other"]);
    let _services = Services::open(&lab, &[80]);
    let (ends, mut wire, mut number) = (ends(&lab), lab.wire("other"), 0);
    let mut send = |cut: &Cut, port, reversed| {
        let mut pieces = (cut.pieces)(&ends, port);
        if reversed {
            pieces.reverse();
        }
        number += 1;
        pieces.into_iter().for_each(|piece| wire.send(&identified(number, piece)));
    };
    // Without the program, Linux answers; otherwise this test would show nothing.
    for (cut, port) in HIDING.iter().flat_map(|cut| PORTS.map(|port| (cut, port))) {
        for reversed in [false, true] {
            let before = answers(&lab);
            send(cut, port, reversed);
            match cut.answered {
                true => eventually(cut.name, || answers(&lab) > before),
                false => {
                    banned_at_last(&lab);
                    assert_eq!(answers(&lab), before, "{}", cut.name);
                }
            }
        }
    }
    let daemon = Tcp.start(&lab, "");
    daemon.frozen(|| {
        for cut in &HONEST {
            let before = answers(&lab);
            send(cut, 80, false);
            eventually(cut.name, || answers(&lab) > before);
        }
        for cut in &HIDING {
            let before = answers(&lab);
            for (port, reversed) in PORTS.into_iter().flat_map(|port| [(port, false), (port, true)]) {
                send(cut, port, reversed);
            }
            assert!(banned_at_last(&lab).is_empty() && lab.set("suspects").is_empty(), "{}", cut.name);
            assert_eq!(answers(&lab), before, "{}", cut.name);
        }
    });
    lab.expect_ban(ends.v4.0.into());
    lab.expect_ban(lab.v6_network("other").into());
    daemon.expect_line(&format!("attackalert: TCP fragment scan from host: {0}/{0}", ends.v4.0));
    daemon.expect_line(&format!("attackalert: TCP fragment scan from host: {0}/{0}", ends.v6.0));
    daemon.stop();
}

/// With connection tracking the kernel reassembles before the rules, which then see an ordinary SYN.
#[test]
fn tracked_fragments_are_counted_as_syns() {
    let lab = Lab::new(&["other"]);
    lab.nft(
        "add table inet f; add chain inet f i { type filter hook input priority 0; }; add rule inet f i ct state new",
    );
    let daemon = Tcp.start(&lab, "");
    let (ends, mut wire) = (ends(&lab), lab.wire("other"));
    let chained = |port| ends.cut6(DESTINATION, &raw::options(DESTINATION, &raw::options(TCP, &ends.syn6(port))), 8);
    daemon.frozen(|| {
        for (number, port) in (901..904).enumerate() {
            let number = u16::try_from(number).unwrap();
            for piece in ends.cut4(&ends.syn4(port), 8).into_iter().chain(chained(port)) {
                wire.send(&identified(number, piece));
            }
        }
        lab.expect_ban(ends.v4.0.into());
        lab.expect_ban(lab.v6_network("other").into());
        assert_eq!(answers(&lab), 0);
    });
    daemon.stop();
}

/// DNS, IPsec and tunnels send fragments of other protocols, of any length.
#[test]
fn fragments_of_other_protocols_pass() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (ends, mut wire) = (ends(&lab), lab.wire("other"));
    let datagrams = || ["UdpNoPorts", "Udp6NoPorts"].map(|counter| stack(&lab, counter));
    let [four, six] = [
        raw::udp(ends.v4.0.into(), ends.v4.1.into(), (53, 40_000))[20..].to_vec(),
        raw::udp(ends.v6.0.into(), ends.v6.1.into(), (53, 40_000))[40..].to_vec(),
    ];
    for (offset, more, range) in [(0, true, 0..8), (1, false, 8..16)] {
        wire.send(&raw::ipv4(ends.v4.0, ends.v4.1, UDP, offset, more, &four[range.clone()]));
        wire.send(&ends.six(UDP, offset, more, &six[range]));
    }
    eventually("both arrive", || datagrams() == [1, 1]);
    // ESP: a first fragment whose contents no rule can read.
    const ESP: u8 = 50;
    let reassembled = || ["IpReasmOKs", "Ip6ReasmOKs"].map(|counter| stack(&lab, counter));
    for (offset, more) in [(0, true), (1, false)] {
        wire.send(&identified(7, raw::ipv4(ends.v4.0, ends.v4.1, ESP, offset, more, &[0; 8])));
        wire.send(&identified(7, ends.six(ESP, offset, more, &[0; 8])));
    }
    eventually("both arrive", || reassembled() == [2, 2]);
    // RFC 7112: such a datagram is discarded.
    for piece in ends.cut6(DESTINATION, &raw::options(DESTINATION, &raw::options(UDP, &six)), 8) {
        wire.send(&identified(8, piece));
    }
    assert!(banned_at_last(&lab).is_empty() || lab.banned() == [IpAddr::from(lab.v6_network("other"))]);
    assert_eq!(datagrams(), [1, 1]);
    daemon.stop();
}
