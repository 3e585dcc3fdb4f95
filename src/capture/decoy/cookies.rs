//! Decides whether the handshake of an accepted connection proves its source. While the queue of half-open connections
//! is full, the kernel answers SYNs with SYN cookies, and forgets them. A bare ACK that guesses a cookie, one in 2^29,
//! then completes a handshake that never took place: at the rate of a fast link a few an hour. An accepted socket does
//! not show its origin, but the kernel counts the cookies that it has received.
//!
//! References: the kernel's net/ipv4/syncookies.c, net/ipv4/proc.c.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The kernel's counters of SYN cookies in the network namespace in which it was opened. The default has none.
#[derive(Clone, Debug, Default)]
pub struct SynCookies(Option<Arc<File>>);

/// SYN cookies since the namespace was created, of services and decoys together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieCounts {
    pub sent: u64,
    /// Valid cookies in received segments, each of which has completed a handshake.
    pub received: u64,
}

impl SynCookies {
    /// Opens the counters before the sandbox denies it.
    pub fn open() -> Self {
        Self(File::open(NETSTAT).ok().map(Arc::new))
    }

    /// `None` if they cannot be read.
    pub fn counts(&self) -> Option<CookieCounts> {
        let mut text = [0; MAX_LEN];
        let read = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        CookieCounts::parse(std::str::from_utf8(text.get(..read)?).ok()?)
    }
}

impl CookieCounts {
    /// Reads a line of names and the line of their values.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt: "));
        let (names, values) = (lines.next()?, lines.next()?);
        let value = |wanted| {
            let column = names.split(' ').position(|name| name == wanted)?;
            values.split(' ').nth(column)?.parse().ok()
        };
        Some(Self { sent: value("SyncookiesSent")?, received: value("SyncookiesRecv")? })
    }
}

/// Tells handshakes that prove their source from those that may be forged.
pub(super) struct Handshakes {
    cookies: SynCookies,
    /// Cookies received before the last connections were accepted.
    received: Option<u64>,
    /// When this number was last seen to have changed; `None` if it has not changed since all queues were empty.
    changed_at: Option<Instant>,
}

impl Handshakes {
    pub(super) fn new(cookies: SynCookies) -> Self {
        let received = cookies.counts().map(|counts| counts.received);
        Self { cookies, received, changed_at: None }
    }

    /// True if a connection that was accepted since the last call may have been forged. `is_empty` returns whether no
    /// further connection waits.
    pub(super) fn may_be_forged(&mut self, now: Instant, is_empty: impl FnOnce() -> bool) -> bool {
        let received = self.cookies.counts().map(|counts| counts.received);
        self.observe_count(received, now, is_empty)
    }

    /// The kernel counts a cookie before the connection can be accepted. So the number changes before the first forged
    /// connection is judged, and connections that wait since then are accepted before a queue is empty.
    fn observe_count(&mut self, received: Option<u64>, now: Instant, is_empty: impl FnOnce() -> bool) -> bool {
        if received.is_none() || received != self.received {
            self.received = received;
            self.changed_at = Some(now);
        }
        let Some(changed_at) = self.changed_at else { return false };
        if now.saturating_duration_since(changed_at) > MAX_COOKIE_DELAY && is_empty() {
            self.changed_at = None;
        }
        true
    }
}

const NETSTAT: &str = "/proc/self/net/netstat";
/// The file has about 5 kB. The counters are in the first two lines, which one read returns.
const MAX_LEN: usize = 16 << 10;
/// Much longer than the kernel takes from counting a cookie to queueing its connection.
const MAX_COOKIE_DELAY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "TcpExt: SyncookiesSent SyncookiesRecv SyncookiesFailed\nTcpExt: 7 5 3\nIpExt: InNoRoutes\nIpExt: 9\n";

    #[test]
    fn cookie_counts_are_found_by_name() {
        assert_eq!(CookieCounts::parse(TEXT), Some(CookieCounts { sent: 7, received: 5 }));
        let moved = "IpExt: InNoRoutes\nIpExt: 9\nTcpExt: Other SyncookiesRecv SyncookiesSent\nTcpExt: 1 2 3\n";
        assert_eq!(CookieCounts::parse(moved), Some(CookieCounts { sent: 3, received: 2 }));
        for length in 0..TEXT.find("5 3").unwrap() {
            assert_eq!(CookieCounts::parse(&TEXT[..length]), None, "{length}");
        }
        assert!(SynCookies::open().counts().is_some(), "the running kernel has them");
        assert_eq!(SynCookies::default().counts(), None);
    }

    #[test]
    fn handshakes_after_cookies_are_unproven() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut handshakes = Handshakes { cookies: SynCookies::default(), received: Some(5), changed_at: None };
        assert!(!handshakes.observe_count(Some(5), after(0), || true));
        assert!(handshakes.observe_count(Some(6), after(1), || true), "a cookie was received");
        assert!(handshakes.observe_count(Some(6), after(2), || true), "it may be the cookie of this connection");
        assert!(handshakes.observe_count(Some(6), after(2_000), || false), "it may have waited since then");
        assert!(handshakes.observe_count(Some(6), after(2_001), || true), "this one, too; the next one has not");
        assert!(!handshakes.observe_count(Some(6), after(2_002), || true));
        assert!(handshakes.observe_count(Some(9), after(9_000), || true));
    }

    #[test]
    fn unreadable_counters_prove_nothing() {
        let mut handshakes = Handshakes::new(SynCookies::default());
        let start = Instant::now();
        for seconds in 0..9 {
            assert!(handshakes.may_be_forged(start + Duration::from_secs(seconds), || true), "{seconds}");
        }
    }
}
