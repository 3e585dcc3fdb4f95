//! Defines the matrix as data. Each row is a test of that name.

use std::net::IpAddr;

use crate::cell::Family::{V4, V6};
use crate::cell::Outcome::{Blocked, Logged};
use crate::cell::{Family, Means, Outcome, Row, run_row};
use netns_lab::raw::{self, ACK, DESTINATION, FIN, FRAGMENT, HOP_BY_HOP, SYN, TCP};

const BOTH: &[Family] = &[V4, V6];
const FOUR: &[Family] = &[V4];
const SIX: &[Family] = &[V6];

const NORMAL: &str = "TCP SYN/Normal scan";
const NORMAL_CUT: &str = "TCP SYN/Normal scan (fragmented)";
const FIN_ONLY: &str = "TCP FIN scan";
const ILLEGAL: &str = "Unknown Type: TCP illegal flags scan";
const XMAS: &str = "TCP XMAS scan";
const CUT: &str = "TCP fragment scan";
const DATAGRAM: &str = "UDP scan";

const BUILT_IN: &str = "";
const UDP_BLOCKS: &str = "[udp]\nblock = true\n";
const SCTP_COUNTS: &str = "[detect]\nsctp = true\n";
const ACK_BANS: &str = "[detect]\nack = \"ban\"\n";
const ICMP_COUNTS: &str = "[detect]\nicmp = true\n";
const ICMP_BLOCKS: &str = "[udp]\nblock = true\n[detect]\nicmp = true\n";

/// A single probe leads to a ban with any threshold.
const BLOCKED_AT_FIRST: [Outcome; 2] = [Blocked(1), Blocked(1)];
/// Counted, with two ports forgiven.
const THIRD: [Outcome; 2] = [Blocked(3), Blocked(1)];
/// The same, but only logged.
const ONLY_LOGGED: [Outcome; 2] = [Logged(3), Logged(1)];

macro_rules! rows {
    ($($name:ident: $scan:literal, $families:ident, $settings:ident, $means:expr, $class:expr => $outcome:ident;)*) => {
        /// The rows, in the order of the document.
        pub(crate) const ROWS: &[Row] = &[$(Row {
            scan: $scan,
            means: $means,
            families: $families,
            settings: $settings,
            class: $class,
            forgiving: $outcome[0],
            strict: $outcome[1],
        }),*];

        $(#[test]
        fn $name() {
            run_row(ROWS.iter().find(|row| row.scan == $scan && row.settings == $settings).unwrap());
        })*
    };
}

rows! {
    syn: "nmap -sS", BOTH, BUILT_IN, Means::Tool, NORMAL => THIRD;
    connect: "nmap -sT", BOTH, BUILT_IN, Means::Tool, NORMAL => THIRD;
    fin: "nmap -sF", BOTH, BUILT_IN, Means::Tool, FIN_ONLY => BLOCKED_AT_FIRST;
    null: "nmap -sN", BOTH, BUILT_IN, Means::Tool, "TCP NULL scan" => BLOCKED_AT_FIRST;
    xmas: "nmap -sX", BOTH, BUILT_IN, Means::Tool, XMAS => BLOCKED_AT_FIRST;
    maimon: "nmap -sM", BOTH, BUILT_IN, Means::Tool, "TCP FIN/ACK (Maimon) scan" => ONLY_LOGGED;
    maimon_banned: "nmap -sM", BOTH, ACK_BANS, Means::Tool, "TCP FIN/ACK (Maimon) scan" => THIRD;
    ack: "nmap -sA", BOTH, BUILT_IN, Means::Tool, "TCP ACK/Window scan" => ONLY_LOGGED;
    ack_banned: "nmap -sA", BOTH, ACK_BANS, Means::Tool, "TCP ACK/Window scan" => THIRD;
    window: "nmap -sW", BOTH, BUILT_IN, Means::Tool, "TCP ACK/Window scan" => ONLY_LOGGED;
    window_banned: "nmap -sW", BOTH, ACK_BANS, Means::Tool, "TCP ACK/Window scan" => THIRD;
    syn_fin: "nmap -sS --scanflags SYNFIN", BOTH, BUILT_IN, Means::Tool, ILLEGAL => BLOCKED_AT_FIRST;
    syn_rst: "nmap -sS --scanflags SYNRST", BOTH, BUILT_IN, Means::Tool, ILLEGAL => BLOCKED_AT_FIRST;
    all_six: "nmap -sS --scanflags URGACKPSHRSTSYNFIN", BOTH, BUILT_IN, Means::Tool, ILLEGAL => BLOCKED_AT_FIRST;
    psh: "nmap -sS --scanflags PSH", BOTH, BUILT_IN, Means::Tool, ILLEGAL => BLOCKED_AT_FIRST;
    urg: "nmap -sS --scanflags URG", BOTH, BUILT_IN, Means::Tool, ILLEGAL => BLOCKED_AT_FIRST;
    source_port: "nmap -sS -g 53", BOTH, BUILT_IN, Means::Tool, NORMAL => THIRD;
    source_port_20: "nmap -sS -g 20", BOTH, BUILT_IN, Means::Tool, NORMAL => THIRD;
    data: "nmap -sS --data-length 20", BOTH, BUILT_IN, Means::Tool, NORMAL => THIRD;
    low_ttl: "nmap -sS --ttl 1", FOUR, BUILT_IN, Means::Tool, NORMAL => THIRD;
    ip_options: "nmap -sS --ip-options R", FOUR, BUILT_IN, Means::Tool, NORMAL => THIRD;
    polite: "nmap -sS -T2 --scan-delay 200ms", BOTH, BUILT_IN, Means::Tool, NORMAL => THIRD;
    pieces_of_8: "nmap -sS -f", FOUR, BUILT_IN, Means::Tool, CUT => BLOCKED_AT_FIRST;
    fin_in_pieces_of_8: "nmap -sF -f", FOUR, BUILT_IN, Means::Tool, CUT => BLOCKED_AT_FIRST;
    pieces_of_16: "nmap -sS -f -f", FOUR, BUILT_IN, Means::Tool, NORMAL_CUT => THIRD;
    fin_in_pieces_of_16: "nmap -sF -f -f", FOUR, BUILT_IN, Means::Tool, "TCP FIN scan (fragmented)" => THIRD;
    mtu_16: "nmap -sS --mtu 16", FOUR, BUILT_IN, Means::Tool, NORMAL_CUT => THIRD;
    mtu_24: "nmap -sS --mtu 24 --data-length 20", FOUR, BUILT_IN, Means::Tool, NORMAL_CUT => THIRD;
    udp: "nmap -sU", BOTH, BUILT_IN, Means::Tool, DATAGRAM => ONLY_LOGGED;
    udp_blocked: "nmap -sU", BOTH, UDP_BLOCKS, Means::Tool, DATAGRAM => THIRD;
    sctp: "nmap -sY", BOTH, SCTP_COUNTS, Means::Tool, "SCTP INIT scan" => THIRD;
    echo: "nmap -sn -PE --disable-arp-ping", BOTH, ICMP_COUNTS, Means::Tool, "ICMP sweep" => ONLY_LOGGED;
    echo_blocked: "nmap -sn -PE --disable-arp-ping", BOTH, ICMP_BLOCKS, Means::Tool, "ICMP sweep" => THIRD;
    timestamp: "nmap -sn -PP --disable-arp-ping", FOUR, ICMP_COUNTS, Means::Tool, "ICMP sweep" => ONLY_LOGGED;
    netmask: "nmap -sn -PM --disable-arp-ping", FOUR, ICMP_COUNTS, Means::Tool, "ICMP sweep" => ONLY_LOGGED;
    masscan: "masscan --rate 1000", BOTH, BUILT_IN, Means::Tool, NORMAL => THIRD;
    zmap: "zmap -M tcp_synscan", FOUR, BUILT_IN, Means::Tool, NORMAL => THIRD;
    zmap_udp: "zmap -M udp", FOUR, UDP_BLOCKS, Means::Tool, DATAGRAM => THIRD;
    hping_syn: "hping3 -S", FOUR, BUILT_IN, Means::Tool, NORMAL => THIRD;
    hping_fin: "hping3 -F", FOUR, BUILT_IN, Means::Tool, FIN_ONLY => BLOCKED_AT_FIRST;
    hping_ack: "hping3 -A", FOUR, BUILT_IN, Means::Tool, "TCP ACK/Window scan" => ONLY_LOGGED;
    hping_ack_banned: "hping3 -A", FOUR, ACK_BANS, Means::Tool, "TCP ACK/Window scan" => THIRD;
    hping_push: "hping3 -P", FOUR, BUILT_IN, Means::Tool, ILLEGAL => BLOCKED_AT_FIRST;
    hping_xmas: "hping3 -F -P -U", FOUR, BUILT_IN, Means::Tool, XMAS => BLOCKED_AT_FIRST;
    hping_ece: "hping3 -X", FOUR, BUILT_IN, Means::Tool, ILLEGAL => BLOCKED_AT_FIRST;
    hping_cwr: "hping3 -Y", FOUR, BUILT_IN, Means::Tool, ILLEGAL => BLOCKED_AT_FIRST;
    hping_fragments: "hping3 -S -f", FOUR, BUILT_IN, Means::Tool, NORMAL_CUT => THIRD;
    hping_udp: "hping3 -2", FOUR, UDP_BLOCKS, Means::Tool, DATAGRAM => THIRD;
    reserved_bits: "SYN with a reserved bit", BOTH, BUILT_IN, Means::Raw(reserved), ILLEGAL => BLOCKED_AT_FIRST;
    overlap: "SYN over the flags of an ACK in the first fragment (RFC 3128)", FOUR, BUILT_IN, Means::Raw(overlapping), CUT => BLOCKED_AT_FIRST;
    tiny_six: "SYN in fragments of 8 bytes", SIX, BUILT_IN, Means::Raw(tiny), CUT => BLOCKED_AT_FIRST;
    split_six: "SYN in fragments of 16 bytes", SIX, BUILT_IN, Means::Raw(split), NORMAL_CUT => THIRD;
    atomic: "SYN behind an atomic fragment header", SIX, BUILT_IN, Means::Raw(behind_atomic), NORMAL => THIRD;
    destination: "SYN behind destination options", SIX, BUILT_IN, Means::Raw(behind_destination), NORMAL => THIRD;
    hop_by_hop: "SYN behind hop-by-hop options", SIX, BUILT_IN, Means::Raw(behind_hop_by_hop), NORMAL => THIRD;
    chain: "FIN behind three extension headers", SIX, BUILT_IN, Means::Raw(behind_three), FIN_ONLY => BLOCKED_AT_FIRST;
    hidden: "first fragment that ends in destination options (RFC 7112)", SIX, BUILT_IN, Means::Raw(cut_in_options), CUT => BLOCKED_AT_FIRST;
}

fn reserved(source: IpAddr, target: IpAddr, port: u16) -> Vec<Vec<u8>> {
    vec![raw::tcp(source, target, port, SYN | 0x200)]
}

/// An ACK, then a fragment at 8 bytes that would turn it into a SYN. The second fragment counts.
fn overlapping(source: IpAddr, target: IpAddr, port: u16) -> Vec<Vec<u8>> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (source, target) else { return Vec::new() };
    let [ack, syn] = [ACK, SYN].map(|flags| raw::segment(source, target, (40_404, port), flags));
    // The first fragment to port 80 looks like a normal connection; only the overlap is suspicious.
    vec![raw::ipv4(from, to, TCP, 1, false, &syn[8..]), raw::ipv4(from, to, TCP, 0, true, &ack[..16])]
}

fn six(source: IpAddr, target: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    raw::packet(source, target, next, payload)
}

fn segment(source: IpAddr, target: IpAddr, port: u16) -> Vec<u8> {
    raw::segment(source, target, (40_404, port), SYN)
}

fn tiny(source: IpAddr, target: IpAddr, port: u16) -> Vec<Vec<u8>> {
    pieces(source, target, &segment(source, target, port), 8)
}

fn split(source: IpAddr, target: IpAddr, port: u16) -> Vec<Vec<u8>> {
    pieces(source, target, &segment(source, target, port), 16)
}

fn pieces(source: IpAddr, target: IpAddr, segment: &[u8], size: usize) -> Vec<Vec<u8>> {
    let count = segment.chunks(size).count();
    let piece = |(number, piece): (usize, &[u8])| {
        let offset = u16::try_from(number * size / 8).expect("a short segment");
        six(source, target, FRAGMENT, &raw::fragment(TCP, offset, number + 1 < count, piece))
    };
    segment.chunks(size).enumerate().map(piece).collect()
}

fn behind_atomic(source: IpAddr, target: IpAddr, port: u16) -> Vec<Vec<u8>> {
    vec![six(source, target, FRAGMENT, &raw::fragment(TCP, 0, false, &segment(source, target, port)))]
}

fn behind_destination(source: IpAddr, target: IpAddr, port: u16) -> Vec<Vec<u8>> {
    vec![six(source, target, DESTINATION, &raw::options(TCP, &segment(source, target, port)))]
}

fn behind_hop_by_hop(source: IpAddr, target: IpAddr, port: u16) -> Vec<Vec<u8>> {
    vec![six(source, target, HOP_BY_HOP, &raw::options(TCP, &segment(source, target, port)))]
}

fn behind_three(source: IpAddr, target: IpAddr, port: u16) -> Vec<Vec<u8>> {
    let segment = raw::segment(source, target, (40_404, port), FIN);
    let inner = raw::fragment(DESTINATION, 0, false, &raw::options(TCP, &segment));
    vec![six(source, target, HOP_BY_HOP, &raw::options(FRAGMENT, &inner))]
}

fn cut_in_options(source: IpAddr, target: IpAddr, port: u16) -> Vec<Vec<u8>> {
    let chain = raw::options(DESTINATION, &raw::options(TCP, &segment(source, target, port)));
    let (first, rest) = chain.split_at(8);
    vec![
        six(source, target, FRAGMENT, &raw::fragment(DESTINATION, 0, true, first)),
        six(source, target, FRAGMENT, &raw::fragment(DESTINATION, 1, false, rest)),
    ]
}
