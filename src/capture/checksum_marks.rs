//! Reads which TCP segments the kernel accepts without verifying their checksum. A sender on the same machine can leave
//! the sum to the network card (`CHECKSUM_PARTIAL`), and a virtual card can report that it has verified the sum
//! (`CHECKSUM_UNNECESSARY`). Where no real card is involved, the kernel then accepts any value.
//!
//! libpcap does not report these marks. A second packet socket does, in the header that virtual network cards use
//! (PACKET_VNET_HDR of packet(7), `struct virtio_net_hdr` of linux/virtio_net.h).

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket};
use nix::{libc, setsockopt_impl, sockopt_impl};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::{SockFilter, SockRef};

use crate::types::Timestamp;
use crate::wire::{self, Checksum, LinkType, Packet};

/// The marks of the last packets with a wrong checksum.
#[derive(Default)]
pub struct ChecksumMarks {
    /// `None` on hosts on which every packet arrives over a wire.
    socket: Option<OwnedFd>,
    marks: VecDeque<Mark>,
    secret: RandomState,
    refresh_at: Timestamp,
}

/// The mark of one packet.
struct Mark {
    /// Hash of the packet.
    packet: u64,
    /// True if the kernel accepts it with any checksum.
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

impl ChecksumMarks {
    /// Receives the marks of packets from now on, if it does not already. Without CAP_NET_RAW none are known.
    pub fn open(&mut self) {
        if self.socket.is_none() {
            self.socket = open().ok();
            self.marks.reserve(MAX_MARKS);
        }
    }

    /// True if `packet`, whose checksum is wrong and which has just arrived, has no such mark. The kernel then drops it.
    /// False if it has a mark, or if that is unknown: for datagrams, and if packets were lost.
    pub fn verifies(&mut self, packet: &Packet) -> bool {
        self.receive();
        let Some(packet) = self.damaged(packet) else { return false };
        // Equal packets arrive in the same order at both sockets. Each mark answers one question.
        let place = self.marks.iter().position(|mark| mark.packet == packet);
        place.and_then(|place| self.marks.remove(place)).is_some_and(|mark| !mark.unverified)
    }

    /// Time at which [`ChecksumMarks::refresh`] has work to do.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.socket.as_ref().map(|_| self.refresh_at)
    }

    /// If due, makes room for further packets, and forgets marks without a question.
    pub fn refresh(&mut self, now: Timestamp) {
        if self.next_due().is_none_or(|due| due > now) {
            return;
        }
        self.refresh_at = now.after(REFRESH);
        self.receive();
        self.marks.retain(|mark| !mark.is_old);
        self.marks.iter_mut().for_each(|mark| mark.is_old = true);
    }

    fn receive(&mut self) {
        let Some(socket) = &self.socket else { return };
        let mut buffer = [0; VNET_HEADER + SNAP as usize];
        for _ in 0..MAX_WAITING {
            let received = match recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((_, length)) => buffer.get(..length).unwrap_or_default(),
                Err(Errno::AGAIN) => break,
                // The kernel cannot describe this packet, or an interface went down.
                Err(_) => continue,
            };
            let Some((header, frame)) = received.split_at_checked(VNET_HEADER) else { continue };
            let unverified = header.first().is_some_and(|flags| flags & UNVERIFIED != 0);
            for link in [LinkType::Ethernet, LinkType::Raw] {
                let decoded = wire::decode(link, frame).ok();
                let Some(packet) = decoded.and_then(|packet| self.damaged(&packet)) else { continue };
                if self.marks.len() == MAX_MARKS {
                    self.marks.pop_front();
                }
                self.marks.push_back(Mark { packet, unverified, is_old: false });
            }
        }
    }

    /// The hash of a packet whose checksum is wrong.
    fn damaged(&self, packet: &Packet) -> Option<u64> {
        let is_wrong = matches!(packet.checksum.verify(), Checksum::Bad | Checksum::Blank);
        is_wrong.then(|| self.secret.hash_one((packet.source, packet.destination, packet.checksum.payload())))
    }
}

/// Opens a socket that receives the segments of all interfaces that can be probes, and their marks.
fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    SockRef::from(&socket).attach_filter(&FILTER)?;
    setsockopt(&socket, VnetHeader, &true)?;
    // Without CAP_NET_ADMIN the buffer stays smaller.
    let _ = setsockopt(&socket, RcvBufForce, &BUFFER);
    Ok(socket)
}

/// Length of `struct virtio_net_hdr`, whose first byte contains the flags.
const VNET_HEADER: usize = 10;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM and VIRTIO_NET_HDR_F_DATA_VALID.
const UNVERIFIED: u8 = 1 | 2;

/// Bytes of a frame: no packet that [`super::live`] captures whole is longer.
const SNAP: u16 = 512;

/// Interval between two refreshes.
const REFRESH: Duration = Duration::from_secs(1);

/// Bytes of the receive buffer: some ten thousand SYNs between two refreshes. Segments without room have no mark.
const BUFFER: usize = 8 << 20;

/// Maximum number of packets received at once.
const MAX_WAITING: usize = 32_768;

/// Maximum number of marks. The packets of one batch of the capture have room; in a flood, the oldest are forgotten.
const MAX_MARKS: usize = 512;

/// Passes incoming TCP segments with SYN or without ACK, and IPv6 packets with extension headers. Other segments belong
/// to connections, and are too many.
const FILTER: [SockFilter; 27] = [
    SockFilter::new(LOAD_BYTE, 0, 0, PACKET_TYPE),
    SockFilter::new(JUMP_EQUAL, 0, 1, PACKET_OUTGOING),
    DROP,
    SockFilter::new(LOAD_BYTE, 0, 0, IP),
    SockFilter::new(AND, 0, 0, 0xf0),
    SockFilter::new(JUMP_EQUAL, 0, 9, 0x60),
    // IPv6. Behind the fixed header, the flags are always at the same place.
    SockFilter::new(LOAD_BYTE, 0, 0, IP + 6),
    SockFilter::new(JUMP_EQUAL, 5, 0, TCP),
    SockFilter::new(JUMP_EQUAL, 3, 0, HOP_BY_HOP),
    SockFilter::new(JUMP_EQUAL, 2, 0, ROUTING),
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
const LOAD_BYTE_AT_INDEX: u16 = 0x50;
const AND: u16 = 0x54;
const SHIFT_LEFT: u16 = 0x64;
const TO_INDEX: u16 = 0x07;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_PKTTYPE`.
const PACKET_TYPE: u32 = 0xffff_f004;
/// `SKF_NET_OFF`: offsets from the network header, whatever the link layer.
const IP: u32 = 0xfff0_0000;
const PACKET_OUTGOING: u32 = 4;
/// Protocol numbers.
const TCP: u32 = 6;
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const DESTINATION_OPTIONS: u32 = 60;
/// Flags of TCP.
const ACK: u32 = 0x10;
const SYN_ACK: u32 = 0x12;
