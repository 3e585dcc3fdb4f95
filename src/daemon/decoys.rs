//! Derives the rules for the listener that completes connections to all closed ports, and announces the decoys. Also
//! monitors two effects by which a scanner can tell decoys from services: rules of other programs (connections are
//! tracked only if addresses are translated, and a filter may drop packets to decoys) and SYN cookies.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::log_writer::LogWriter;
use crate::capture::decoy::{DecoyPorts, Decoys, SharedListener, SynCookies};
use crate::config::{Config, Mode};
use crate::enforce::nft::DecoyRules;
use crate::events::event::EventKind;
use crate::host::firewall::HostFirewall;
use crate::netlink::nft::Firewall;
use crate::sensor::{SensorCommand, SensorMetrics};
use crate::types::{Protocol, counted, update};

/// Maximum number of connect-mode ports with a log line each at the start; as many as classic PortSentry could listen
/// on.
const MAX_PORT_LINES: usize = 64;

/// Returns the listener for all TCP ports with the rules that redirect to it, in connect mode with nftables. Without it
/// each port gets its own socket.
pub(super) fn rules(
    opened: Option<Result<SharedListener, Errno>>,
    surroundings: &mut FirewallWatch,
    log: &mut LogWriter,
) -> (Option<SharedListener>, Option<DecoyRules>) {
    let listener = opened.transpose().unwrap_or_else(|error| {
        let text = format!("connect mode opens one socket per port, because the kernel refused a shared one: {error}");
        log.emit(EventKind::Error(text));
        None
    });
    let rules = listener.as_ref().map(|listener| {
        let ports = listener.ports;
        surroundings.firewall.refresh();
        DecoyRules { v4: ports.v4, v6: ports.v6, max_new_tracked: surroundings.firewall.max_new_tracked() }
    });
    (listener, rules)
}

/// Effects of other programs' rules on the decoys.
#[derive(Default)]
pub(super) struct FirewallWatch {
    firewall: HostFirewall,
    /// SYNs to decoys and their answers before the last change of the rules of others.
    counted: (u64, u64),
    /// True at the first poll after a change. The sensor may not have counted all earlier answers.
    has_changed: bool,
    cookies: CookieWatch,
    /// Why decoys cannot answer like services; `None` if they can.
    pub(super) notice: Option<String>,
}

impl FirewallWatch {
    /// Opens what needs the initial privileges.
    pub(super) fn open(config: &Config) -> Self {
        let firewall = if config.shares_decoys() { HostFirewall::open() } else { HostFirewall::default() };
        let cookies = if config.tcp.mode == Mode::Connect { SynCookies::open() } else { SynCookies::default() };
        let sent = cookies.counts().map(|counts| counts.sent);
        Self { firewall, cookies: CookieWatch { cookies, sent, changed_at: None }, ..Self::default() }
    }

    pub(super) fn cookies(&self) -> SynCookies {
        self.cookies.cookies.clone()
    }

    /// Checks for changed rules; returns a command for the sensor, and a new notice.
    pub(super) fn poll(&mut self, metrics: &SensorMetrics) -> (Option<SensorCommand>, Option<EventKind>) {
        if metrics.decoy_ports.get() == 0 {
            return (None, None);
        }
        let (before, rules) = (self.firewall.max_new_tracked(), self.firewall.rules().clone());
        self.firewall.refresh();
        let max_new_tracked = self.firewall.max_new_tracked();
        let (syns, answers) = (metrics.decoy_syns.get(), metrics.decoy_answers.get());
        let has_changed = *self.firewall.rules() != rules;
        if has_changed || self.has_changed {
            self.counted = (syns, answers);
        }
        self.has_changed = has_changed;
        // Answers from before a filter was added do not refute it.
        let (syns, answers) = (syns.saturating_sub(self.counted.0), answers.saturating_sub(self.counted.1));
        let command = (before != max_new_tracked).then_some(SensorCommand::TrackDecoys(max_new_tracked));
        let notice = notice(self.firewall.rules(), syns, answers).or_else(|| self.cookies.notice(Instant::now()));
        let is_new = update(&mut self.notice, notice);
        let event = self.notice.clone().filter(|_| is_new).map(|text| EventKind::Note(format!("warning: {text}")));
        (command, event)
    }
}

/// Notices when the kernel sends SYN cookies.
#[derive(Default)]
struct CookieWatch {
    cookies: SynCookies,
    /// Number sent until the last look.
    sent: Option<u64>,
    changed_at: Option<Instant>,
}

impl CookieWatch {
    /// Why a scan can tell decoys from services; `None` if it cannot.
    fn notice(&mut self, now: Instant) -> Option<String> {
        let Some(counts) = self.cookies.counts() else {
            let text = "tcp.mode: the kernel's counters of SYN cookies cannot be read, so that no connection to a decoy \
                        proves its source; mount /proc";
            return Some(text.to_owned());
        };
        if self.sent.replace(counts.sent).is_some_and(|sent| sent < counts.sent) {
            self.changed_at = Some(now);
        }
        let recently = self.changed_at.is_some_and(|at| now.saturating_duration_since(at) < COOKIES_LAST);
        let text = "tcp.mode: the kernel sends SYN cookies, because half-open connections fill the queue of a listener. If \
                    it belongs to the decoys, a scan can tell decoys from services until a minute after the flood, and \
                    connections to decoys count as forgeable evidence; filter the flood of SYNs before it reaches this host";
        recently.then(|| text.to_owned())
    }
}

/// How long half-open connections fill a queue after the last SYN: five retransmissions of the answer.
const COOKIES_LAST: Duration = Duration::from_secs(63);

/// Why decoys cannot answer, given the numbers of received and of answered SYNs.
fn notice(firewall: &Firewall, syns: u64, answers: u64) -> Option<String> {
    if answers > 0 && answers >= syns / 2 {
        return None;
    }
    let silent = firewall.silences_decoys().map(|text| format!("tcp.mode: {text}"));
    let dropped = || {
        format!(
            "tcp.mode: none of {} to decoys was answered, because a firewall drops them; accept `socket transparent \
             1` in its input chain",
            counted(syns, "SYN")
        )
    };
    silent.or_else(|| (answers == 0 && syns >= ENOUGH_SYNS).then(dropped))
}

/// Number of unanswered SYNs that indicates a filter. Fewer may have just arrived.
const ENOUGH_SYNS: u64 = 8;

/// Logs the ports of the decoys, with the classic lines of connect mode, and the ports left to services.
pub(super) fn announce(decoys: &Decoys, log: &mut LogWriter) {
    let mut note = |text| log.emit(EventKind::Note(text));
    decoys.busy().into_iter().for_each(&mut note);
    let DecoyPorts { tcp, udp, .. } = decoys.ports();
    for (protocol, ports) in [(Protocol::Tcp.name(), tcp), (Protocol::Udp.name(), udp)] {
        let lines = ports.iter().take(MAX_PORT_LINES);
        lines.for_each(|port| note(format!("Going into listen mode on {protocol} port: {port}")));
        let rest = usize::try_from(ports.len()).unwrap_or(usize::MAX).saturating_sub(MAX_PORT_LINES);
        if rest > 0 {
            note(format!("and on {rest} more {protocol} ports"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_decoys_indicate_no_filter() {
        let open = Firewall::default();
        assert_eq!(notice(&open, 0, 0), None);
        assert_eq!(notice(&open, 7, 0), None, "the SYNs may be very recent");
        assert!(notice(&open, 8, 0).is_some_and(|text| text.contains("none of 8 SYNs to decoys was answered")));
        assert_eq!(notice(&open, 1_000, 1), None, "the SYN/ACKs of forged sources may be undeliverable");
    }
}
