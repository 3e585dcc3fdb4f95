//! Captures frames from every interface of this host through libpcap's "any" device: one socket that also sees
//! interfaces that appear later, and reports the interface and the direction of each packet (LINKTYPE_LINUX_SLL2).
//!
//! The capture point is before netfilter, so packets of blocked sources arrive here as well.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use pcap::{Active, Capture, Linktype};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::wire::LinkType;

/// Bytes of a frame that are captured: 20 of the cooked header, 40 of IPv6, 288 of extension headers and 60 of TCP.
/// Longer extension headers are evidence by themselves ([`crate::wire::Transport::HiddenHeader`]). The whole TCP header
/// is needed to verify its checksum, which also works for data of up to about 350 bytes. With the kernel's own header
/// before each frame, 8 frames fill a page.
const SNAP: i32 = 416;

/// The ring buffer between kernel and program. The kernel pins its memory, so it is only large enough for the longest
/// time in which the program gets no processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// 4 MiB hold 8,192 packets: 34 ms at 240,000 packets/s, which is longer than a scheduling delay.
    Usual,
    /// 32 MiB hold 65,536 packets: 270 ms at the same rate. A virtual machine can lose one of its processors for a
    /// tenth of a second.
    Large,
}

impl Ring {
    /// Number of packets that the largest ring holds.
    pub const MAX_PACKETS: usize = 65_536;

    /// The size in bytes.
    const fn bytes(self) -> i32 {
        match self {
            Self::Usual => 4 << 20,
            Self::Large => 32 << 20,
        }
    }
}

/// Matches frames without a VLAN tag, according to the kernel's metadata (`SKF_AD_VLAN_TAG_PRESENT`, `SKF_AD_VLAN_TAG`
/// of `linux/filter.h`). A cooked frame does not show the tag, so its packet looks as if it were sent to this host. If
/// the host is in the VLAN, its VLAN device delivers the packet again without the tag. Number 0 is only a priority.
/// Further tags are left to [`super::filter`]. The kernel evaluates this expression only after libpcap's optimizer has
/// turned the offsets into constants. libpcap, which filters the first frame itself, knows the metadata only as single
/// bytes; the kernel loads the whole value in any case.
const UNTAGGED: &str = "link[4294963248] = 0 or link[4294963244] & 0xfff = 0";

const SLL2: Linktype = Linktype(276);

/// Why packets cannot be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "capturing packets needs CAP_NET_RAW ({0}); run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW"
    )]
    Permission(pcap::Error),
    #[error("libpcap does not support the link type LINUX_SLL2 ({0}); install libpcap 1.10 or newer")]
    NoSll2(pcap::Error),
    #[error(
        "libpcap refused the filter for the monitored ports ({error}); list fewer separate ports. The filter begins with {filter:.200}"
    )]
    Filter { error: pcap::Error, filter: String },
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
    /// Packets lost before the filter was set. The filter would have dropped most of them.
    unfiltered: u32,
}

impl Live {
    /// The link type of the frames.
    pub const LINK_TYPE: LinkType = LinkType::Sll2;

    /// Opens the capture with `filter` and a ring of this size. After it returns, packets are captured.
    pub fn open(filter: &str, ring: Ring) -> Result<Self, CaptureError> {
        let inactive = Capture::from_device("any").map_err(CaptureError::opening)?;
        let capture = inactive.immediate_mode(true).snaplen(SNAP).buffer_size(ring.bytes()).promisc(false).open();
        let mut capture = capture.map_err(CaptureError::opening)?;
        capture.set_datalink(SLL2).map_err(CaptureError::NoSll2)?;
        let mut live = Self { capture: capture.setnonblock()?, unfiltered: 0 };
        // libpcap does not set this flag, and every command would inherit a socket that sees all packets. Fails only
        // for a closed descriptor.
        let _ = fcntl_setfd(&live.capture, FdFlags::CLOEXEC);
        // Packets that are already in the ring and do not match the filter are discarded.
        let filter = format!("({UNTAGGED}) and ({filter})");
        live.capture.filter(&filter, true).map_err(|error| CaptureError::Filter { error, filter })?;
        live.unfiltered = live.dropped()?;
        Ok(live)
    }

    /// Passes at most `most` waiting frames with their capture times to `each`, and returns their number.
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

    /// Number of packets that passed the filter but were dropped because the ring was full. Wraps around.
    pub fn dropped(&mut self) -> Result<u32, CaptureError> {
        Ok(self.capture.stats()?.dropped.wrapping_sub(self.unfiltered))
    }
}

impl AsFd for Live {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.capture.as_fd()
    }
}
