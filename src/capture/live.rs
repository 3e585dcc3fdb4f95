//! Captures frames from every interface of this host through libpcap's "any" device: one socket that also sees
//! interfaces that appear later, and reports the interface and the direction of each packet (LINKTYPE_LINUX_SLL2).
//!
//! The capture point is before netfilter, so packets of blocked sources arrive here as well.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use pcap::{Active, Capture, Linktype};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::wire::LinkType;

/// Bytes of a frame that are captured: 20 of the cooked header, 40 of IPv6, 288 of extension headers (longer ones are
/// evidence by themselves, [`crate::wire::Transport::HiddenHeader`]) and 60 of TCP, so that its checksum can be verified, as
/// it can of data up to some 350 bytes. With what the kernel puts before each, 8 of them fill a page.
const SNAP: i32 = 416;

/// The ring between kernel and program. Memory that the kernel pins, so not more than it takes to ride out the time in which
/// the program does not have the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// 4 MiB hold 8,192 packets, 34 ms of 240,000 a second: more than a scheduling delay.
    Usual,
    /// 32 MiB hold 65,536 packets, 270 ms of as many: a virtual machine can be without one of its processors for a tenth of a
    /// second.
    Large,
}

impl Ring {
    /// Packets that the largest one holds.
    pub const MOST: usize = 65_536;

    /// Its size.
    const fn bytes(self) -> i32 {
        match self {
            Self::Usual => 4 << 20,
            Self::Large => 32 << 20,
        }
    }
}

/// Frames without the tag of a VLAN, by what the kernel has noted of it (`SKF_AD_VLAN_TAG_PRESENT`, `SKF_AD_VLAN_TAG` of
/// `linux/filter.h`): a cooked frame does not show it, and has the packet behind it as if it were there for this host. Where
/// the host is in the VLAN, its VLAN device hands the packet over once more, without the tag. Number 0 is a priority alone. Further tags are for
/// [`super::filter`].
/// Only the kernel can run this, and only after libpcap's optimizer has made constants of the offsets.
const UNTAGGED: &str = "link[4294963248] = 0 or link[4294963244:2] & 0xfff = 0";

/// LINKTYPE_LINUX_SLL2.
const SLL2: Linktype = Linktype(276);

/// Why nothing can be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The process lacks CAP_NET_RAW.
    #[error(
        "capturing packets needs CAP_NET_RAW ({0}); run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW"
    )]
    Permission(pcap::Error),
    /// libpcap is too old for the cooked captures that are needed.
    #[error("libpcap cannot give cooked captures of version 2 ({0}); install libpcap 1.10 or newer")]
    NoSll2(pcap::Error),
    /// The filter was refused.
    #[error(
        "libpcap refuses the filter for the monitored ports ({error}); monitor fewer separate ports. The filter: {filter}"
    )]
    Filter {
        /// What libpcap said.
        error: pcap::Error,
        /// The filter's text.
        filter: String,
    },
    /// Anything else.
    #[error("cannot capture packets: {0}")]
    Other(#[from] pcap::Error),
}

impl CaptureError {
    fn opening(error: pcap::Error) -> Self {
        let text = error.to_string().to_lowercase();
        if text.contains("permi") { Self::Permission(error) } else { Self::Other(error) }
    }
}

/// A running capture on all interfaces.
pub struct Live {
    capture: Capture<Active>,
    /// Lost before the filter was there: it would not have let most of them through.
    unfiltered: u32,
}

impl Live {
    /// Opens the capture with a filter and so much room; from its return on, packets are caught.
    pub fn open(filter: &str, ring: Ring) -> Result<Self, CaptureError> {
        let inactive = Capture::from_device("any").map_err(CaptureError::opening)?;
        let capture = inactive.immediate_mode(true).snaplen(SNAP).buffer_size(ring.bytes()).promisc(false).open();
        let mut capture = capture.map_err(CaptureError::opening)?;
        capture.set_datalink(SLL2).map_err(CaptureError::NoSll2)?;
        let mut live = Self { capture: capture.setnonblock()?, unfiltered: 0 };
        // libpcap does not: every command that is run would get a socket that sees all packets. It fails only without one.
        let _ = fcntl_setfd(&live.capture, FdFlags::CLOEXEC);
        live.set_filter(filter)?;
        live.unfiltered = live.dropped()?;
        Ok(live)
    }

    /// What the frames look like.
    #[must_use]
    pub fn link_type(&self) -> LinkType {
        LinkType::Sll2
    }

    /// Puts a filter in the place of none; what is in the ring already goes.
    fn set_filter(&mut self, filter: &str) -> Result<(), CaptureError> {
        let filter = &format!("({UNTAGGED}) and ({filter})");
        self.capture.filter(filter, true).map_err(|error| CaptureError::Filter { error, filter: filter.to_owned() })
    }

    /// Hands over at most `most` waiting frames with their capture times, and says how many there were.
    pub fn drain(&mut self, most: usize, mut each: impl FnMut(&[u8], SystemTime)) -> Result<usize, CaptureError> {
        let drained = self.capture.dispatch(Some(most), |packet| {
            let ts = packet.header.ts;
            let seconds = u64::try_from(ts.tv_sec).unwrap_or(0);
            let micros = u64::try_from(ts.tv_usec).unwrap_or(0);
            each(packet.data, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros));
        });
        match drained {
            Ok(count) => Ok(count),
            Err(pcap::Error::TimeoutExpired) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Packets that would have passed the filter since it was there, but the ring was full. It wraps around.
    pub fn dropped(&mut self) -> Result<u32, CaptureError> {
        Ok(self.capture.stats()?.dropped.wrapping_sub(self.unfiltered))
    }
}

impl AsFd for Live {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.capture.as_fd()
    }
}
