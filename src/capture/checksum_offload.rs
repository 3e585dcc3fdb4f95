//! Reads which TCP segments the kernel accepts without verifying their checksum. A sender on the same machine can leave
//! the sum to the network card (`CHECKSUM_PARTIAL`), and a virtual card can report that it has verified the sum
//! (`CHECKSUM_UNNECESSARY`). Where no real card is involved, the kernel then accepts any value.
//!
//! libpcap does not report that. A second packet socket does, in the header that virtual network cards use
//! (PACKET_VNET_HDR of packet(7), `struct virtio_net_hdr` of linux/virtio_net.h).

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, getsockopt, setsockopt, socket};
use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::{SockFilter, SockRef};

use crate::types::Timestamp;
use crate::wire::{self, Checksum, LinkType, Packet};

/// The last packets with a wrong checksum.
#[derive(Default)]
pub struct ChecksumOffload {
    /// `None` on hosts on which every packet arrives over a wire.
    socket: Option<OwnedFd>,
    entries: VecDeque<ChecksumEntry>,
    secret: RandomState,
    refresh_at: Timestamp,
}

/// A packet with a wrong checksum, or a loss of packets.
struct ChecksumEntry {
    /// Hash of the packet; `None` for a loss.
    packet: Option<u64>,
    /// True if the kernel accepts it with any checksum, or may do so.
    unverified: bool,
    /// Set at the first refresh.
    is_old: bool,
}

sockopt_impl!(
    /// Puts a virtio_net_hdr before each frame.
    VnetHeader,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool
);

sockopt_impl!(
    /// Numbers of received and dropped packets since the last query.
    Statistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats
);

impl ChecksumOffload {
    /// Opens the socket if it is not open yet. Without CAP_NET_RAW, the state of every packet is unknown.
    pub fn open(&mut self) {
        if self.socket.is_none() {
            self.socket = open().ok();
            self.entries.reserve(MAX_ENTRIES);
        }
    }

    /// True if the kernel verifies the checksum of `packet`, which is wrong, and so drops the packet. False if it
    /// accepts the packet unverified, or if that is unknown: for datagrams, and after packets were lost.
    pub fn verifies(&mut self, packet: &Packet) -> bool {
        if self.has_lost() {
            return false;
        }
        self.receive();
        self.damaged(packet).is_some_and(|packet| self.consume_verified(packet))
    }

    /// True if the kernel verifies all received copies of `packet`; removes one of them. Unverified copies stay, so
    /// that a verified copy for another host, which the sensor never looks up, does not answer for them.
    fn consume_verified(&mut self, packet: u64) -> bool {
        if self.has_lost() || self.entries.iter().any(|entry| entry.packet == Some(packet) && entry.unverified) {
            return false;
        }
        let place = self.entries.iter().position(|entry| entry.packet == Some(packet));
        place.and_then(|place| self.entries.remove(place)).is_some()
    }

    fn add(&mut self, packet: u64, unverified: bool) {
        if self.entries.len() == MAX_ENTRIES {
            self.record_loss();
        }
        self.entries.push_back(ChecksumEntry { packet: Some(packet), unverified, is_old: false });
    }

    /// Records a loss. Until the second refresh after it, the state of every packet is unknown.
    fn record_loss(&mut self) {
        self.entries.clear();
        self.entries.push_back(ChecksumEntry { packet: None, unverified: true, is_old: false });
    }

    /// True if a loss is recorded; its entry is always the first.
    fn has_lost(&self) -> bool {
        self.entries.front().is_some_and(|entry| entry.packet.is_none())
    }

    /// Time at which [`ChecksumOffload::refresh`] has work to do.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.socket.as_ref().map(|_| self.refresh_at)
    }

    /// If due, empties the socket buffer, and discards entries that are older than the previous refresh.
    pub fn refresh(&mut self, now: Timestamp) {
        if self.next_due().is_none_or(|due| due > now) {
            return;
        }
        self.refresh_at = now.after(REFRESH_INTERVAL);
        self.receive();
        self.entries.retain(|entry| !entry.is_old);
        self.entries.iter_mut().for_each(|entry| entry.is_old = true);
    }

    fn receive(&mut self) {
        let mut buffer = [0; VNET_HEADER + SNAP as usize];
        for _ in 0..MAX_PACKETS {
            let Some(socket) = &self.socket else { return };
            match recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((_, length)) => self.read(buffer.get(..length).unwrap_or_default()),
                Err(Errno::AGAIN) => {
                    if !getsockopt(socket, Statistics).is_ok_and(|seen| seen.tp_drops == 0) {
                        self.record_loss();
                    }
                    return;
                }
                // The kernel cannot describe this packet.
                Err(_) => self.record_loss(),
            }
        }
        self.record_loss();
    }

    fn read(&mut self, received: &[u8]) {
        let Some((header, frame)) = received.split_at_checked(VNET_HEADER) else { return };
        let unverified = header.first().is_some_and(|flags| flags & UNVERIFIED != 0);
        for link in [LinkType::Ethernet, LinkType::Raw] {
            let decoded = wire::decode(link, frame).ok();
            if let Some(packet) = decoded.and_then(|packet| self.damaged(&packet)) {
                self.add(packet, unverified);
            }
        }
    }

    /// The hash of a packet whose checksum is wrong.
    fn damaged(&self, packet: &Packet) -> Option<u64> {
        let is_wrong = matches!(packet.checksum.verify(), Checksum::Bad | Checksum::Blank);
        is_wrong.then(|| self.secret.hash_one((packet.source, packet.destination, packet.checksum.payload())))
    }
}

/// Opens a socket that receives, on all interfaces, the segments that can be probes, each behind a virtio_net_hdr.
fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    SockRef::from(&socket).attach_filter(&FILTER)?;
    setsockopt(&socket, VnetHeader, &true)?;
    // Without CAP_NET_ADMIN the buffer stays smaller.
    let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER);
    Ok(socket)
}

/// Length of `struct virtio_net_hdr`, whose first byte contains the flags.
const VNET_HEADER: usize = 10;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM and VIRTIO_NET_HDR_F_DATA_VALID.
const UNVERIFIED: u8 = 1 | 2;

/// Captured bytes of each frame. No packet that [`super::live`] captures whole is longer.
const SNAP: u16 = 512;

/// Interval between two refreshes.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Size of the receive buffer in bytes: room for ten thousand SYNs between two refreshes. The kernel drops the rest.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Maximum number of packets received at once.
const MAX_PACKETS: usize = 32_768;

/// Maximum number of entries, enough for one batch of the capture. If a flood exceeds it, all entries are discarded.
const MAX_ENTRIES: usize = 512;

/// Passes incoming TCP segments with SYN or without ACK, and IPv6 packets with extension headers. Other segments belong
/// to connections, and are too many. Passes all frames with a second VLAN tag, which the kernel may remove.
const FILTER: [SockFilter; 32] = [
    SockFilter::new(LOAD_BYTE, 0, 0, PACKET_TYPE),
    SockFilter::new(JUMP_EQUAL, 0, 1, PACKET_OUTGOING),
    DROP,
    SockFilter::new(LOAD_HALF, 0, 0, ETHER_TYPE),
    SockFilter::new(JUMP_EQUAL, 1, 0, VLAN),
    SockFilter::new(JUMP_EQUAL, 0, 1, SERVICE_VLAN),
    PASS,
    SockFilter::new(LOAD_BYTE, 0, 0, IP),
    SockFilter::new(AND, 0, 0, 0xf0),
    SockFilter::new(JUMP_EQUAL, 0, 10, 0x60),
    // IPv6. Behind the fixed header, the flags are always at the same place.
    SockFilter::new(LOAD_BYTE, 0, 0, IP + 6),
    SockFilter::new(JUMP_EQUAL, 6, 0, TCP),
    SockFilter::new(JUMP_EQUAL, 4, 0, HOP_BY_HOP),
    SockFilter::new(JUMP_EQUAL, 3, 0, ROUTING),
    SockFilter::new(JUMP_EQUAL, 2, 0, FRAGMENT),
    SockFilter::new(JUMP_EQUAL, 1, 0, DESTINATION_OPTIONS),
    DROP,
    PASS,
    SockFilter::new(LOAD_BYTE, 0, 0, IP + 53),
    SockFilter::new(JUMP, 0, 0, 8),
    // IPv4. The flags are behind the options.
    SockFilter::new(LOAD_BYTE, 0, 0, IP + 9),
    SockFilter::new(JUMP_EQUAL, 1, 0, TCP),
    DROP,
    SockFilter::new(LOAD_BYTE, 0, 0, IP),
    SockFilter::new(AND, 0, 0, 0x0f),
    SockFilter::new(SHIFT_LEFT, 0, 0, 2),
    SockFilter::new(TO_INDEX, 0, 0, 0),
    SockFilter::new(LOAD_BYTE_AT_INDEX, 0, 0, IP + 13),
    // The flags.
    SockFilter::new(AND, 0, 0, SYN_ACK),
    SockFilter::new(JUMP_EQUAL, 0, 1, ACK),
    DROP,
    PASS,
];
const DROP: SockFilter = SockFilter::new(RETURN, 0, 0, 0);
const PASS: SockFilter = SockFilter::new(RETURN, 0, 0, SNAP as u32);

/// Instructions of linux/bpf_common.h and linux/filter.h, for example `BPF_LD | BPF_B | BPF_ABS`.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE_AT_INDEX: u16 = 0x50;
const AND: u16 = 0x54;
const SHIFT_LEFT: u16 = 0x64;
const TO_INDEX: u16 = 0x07;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_PKTTYPE`.
const PACKET_TYPE: u32 = 0xffff_f004;
/// `SKF_AD_OFF + SKF_AD_PROTOCOL`.
const ETHER_TYPE: u32 = 0xffff_f000;
/// `SKF_NET_OFF`: offsets from the network header, whatever the link layer.
const IP: u32 = 0xfff0_0000;
const PACKET_OUTGOING: u32 = 4;
const VLAN: u32 = 0x8100;
const SERVICE_VLAN: u32 = 0x88a8;
/// Protocol numbers.
const TCP: u32 = 6;
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const DESTINATION_OPTIONS: u32 = 60;
/// Flags of TCP.
const ACK: u32 = 0x10;
const SYN_ACK: u32 = 0x12;

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u64 = 7;

    /// The result for [`PACKET`] after these entries: a packet (`None` for a loss), and whether the kernel accepts
    /// it with any checksum.
    fn answer(arrived: impl IntoIterator<Item = (Option<u64>, bool)>) -> bool {
        let mut offload = ChecksumOffload::default();
        for (packet, unverified) in arrived {
            match packet {
                Some(packet) => offload.add(packet, unverified),
                None => offload.record_loss(),
            }
        }
        offload.consume_verified(PACKET)
    }

    /// The sensor does not look up copies that this host does not accept, for example one for another host.
    #[test]
    fn unverified_copy_outweighs_verified_copies() {
        let (verified, unverified, other) = ((Some(PACKET), false), (Some(PACKET), true), (Some(8), true));
        assert!(answer([verified]) && answer([other, verified, verified]));
        assert!(!answer([]) && !answer([other]) && !answer([unverified]));
        assert!(!answer([verified, unverified]) && !answer([unverified, verified]));
    }

    #[test]
    fn checksum_state_is_unknown_after_loss() {
        let (verified, lost) = ((Some(PACKET), false), (None, true));
        assert!(!answer([lost, verified]) && !answer([verified, lost]));
        let others = (0..).map(|number| (Some(1_000 + number), false)).take(MAX_ENTRIES);
        assert!(!answer(others.chain([verified])), "a full list counts as a loss");
    }
}
