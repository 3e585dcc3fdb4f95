//! Holds lines back until the name of their source is known, for a limited time and in order.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::daemon::optional::deadline_reached;
use crate::daemon::reverse_dns::ReverseDns;
use crate::events::classic_log::{self, Wording};
use crate::events::event::{Event, EventKind};
use crate::events::log;

/// Maximum time for which a line waits for a name. Most name servers answer within a tenth of it.
const NAME_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of waiting lines. Beyond it the oldest one is written without a name.
const MAX_PENDING: usize = 1_024;

/// The lines that wait for the name of their source.
pub(super) struct Naming {
    hosts: ReverseDns,
    waiting: VecDeque<Waiting>,
    write: fn(&Event, Option<&str>, Wording),
}

struct Waiting {
    event: Event,
    wording: Wording,
    address: Option<IpAddr>,
    until: Instant,
}

impl Naming {
    pub(super) fn new(hosts: ReverseDns) -> Self {
        Self { hosts, waiting: VecDeque::new(), write: log::write }
    }

    pub(super) fn send(&mut self, event: &Event, now: Instant, wording: Wording) {
        if matches!(&event.kind, EventKind::Probe(probe) if !probe.fresh) {
            // This event has no line, and must not displace one that waits.
            return;
        }
        let (address, until) = (classic_log::names(&event.kind), now + NAME_TIMEOUT);
        if let Some(address) = address {
            self.hosts.ask(address, now, until);
        }
        self.waiting.push_back(Waiting { event: event.clone(), wording, address, until });
        if matches!(event.kind, EventKind::Stopped) {
            self.write_all();
            return;
        }
        if self.waiting.len() > MAX_PENDING {
            self.write_first();
        }
        self.write_ready(now);
    }

    /// Waits until a name arrives or a line has waited long enough.
    pub(super) async fn process_next(&mut self) {
        let until = self.waiting.front().map(|line| line.until);
        tokio::select! {
            () = self.hosts.answered() => {}
            () = deadline_reached(until) => {}
        }
        self.write_ready(Instant::now());
    }

    /// Writes the lines at the front of the queue that no longer need to wait.
    fn write_ready(&mut self, now: Instant) {
        let hosts = &self.hosts;
        let ready =
            |line: &Waiting| line.until <= now || line.address.is_none_or(|address| hosts.answer(address).is_some());
        let ready = self.waiting.iter().take_while(|line| ready(line)).count();
        (0..ready).for_each(|_| self.write_first());
    }

    fn write_first(&mut self) {
        let Some(Waiting { event, wording, address, .. }) = self.waiting.pop_front() else { return };
        (self.write)(&event, address.and_then(|address| self.hosts.answer(address)).flatten(), wording);
    }

    pub(super) fn write_all(&mut self) {
        while !self.waiting.is_empty() {
            self.write_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::types::{BanTarget, Response};

    thread_local! {
        static WRITTEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    fn naming(lookup: fn(IpAddr) -> Option<String>) -> Naming {
        let write = |event: &Event, name: Option<&str>, wording: Wording| {
            let line = classic_log::line_with_name(&event.kind, name, wording).unwrap();
            let part = |line: &str| line.split_whitespace().find(|word| word.contains('/')).map(str::to_owned);
            WRITTEN.with_borrow_mut(|written| written.push(part(&line).unwrap_or(line)));
        };
        Naming { write, ..Naming::new(ReverseDns::new(lookup)) }
    }

    fn written() -> Vec<String> {
        WRITTEN.with_borrow_mut(std::mem::take)
    }

    fn repeated(target: &str) -> Event {
        let target: BanTarget = target.parse().unwrap();
        Event::now(EventKind::Repeated { target, response: Response::Block, protocol: None, packets: 1 })
    }

    fn note_event(text: &str) -> Event {
        Event::now(EventKind::Note(text.to_owned()))
    }

    #[tokio::test]
    async fn lines_keep_order_and_wait_briefly() {
        static FREE: AtomicUsize = AtomicUsize::new(0);
        let lookup = |address: IpAddr| match address.to_string().as_str() {
            "10.0.0.1" => {
                while FREE.load(Ordering::SeqCst) == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Some("late.example".to_owned())
            }
            "10.0.0.2" => Some("quick.example".to_owned()),
            _ => None,
        };
        let mut naming = naming(lookup);
        let begin = Instant::now();
        naming.send(&note_event("first"), begin, Wording::Stealth);
        assert_eq!(written(), ["adminalert: first"], "the line needs no lookup");
        for event in [repeated("10.0.0.1"), note_event("second"), repeated("10.0.0.2"), repeated("10.0.0.3")] {
            naming.send(&event, Instant::now(), Wording::Stealth);
        }
        while begin.elapsed() < NAME_TIMEOUT / 2 {
            let _ = tokio::time::timeout(Duration::from_millis(20), naming.process_next()).await;
        }
        assert_eq!(written(), [""; 0], "quick lines wait for their turn");
        naming.process_next().await;
        let took = begin.elapsed();
        assert_eq!(
            written(),
            ["10.0.0.1/10.0.0.1", "adminalert: second", "quick.example/10.0.0.2", "10.0.0.3/10.0.0.3"]
        );
        assert!((NAME_TIMEOUT..NAME_TIMEOUT * 2).contains(&took), "{took:?}");
        FREE.store(1, Ordering::SeqCst);
        naming.process_next().await;
        naming.send(&repeated("10.0.0.1"), Instant::now(), Wording::Stealth);
        assert_eq!(written(), ["late.example/10.0.0.1"], "a late answer is used from then on");
    }

    #[tokio::test]
    async fn waiting_lines_are_bounded_without_loss() {
        let mut naming = naming(|_| {
            std::thread::sleep(Duration::from_millis(500));
            None
        });
        let now = Instant::now();
        for number in 0..5_000_u32 {
            naming.send(&repeated(&std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string()), now, Wording::Stealth);
            assert!(naming.waiting.len() <= MAX_PENDING);
        }
        assert_eq!(written().len(), 5_000 - MAX_PENDING);
        naming.send(&Event::now(EventKind::Stopped), now, Wording::Stealth);
        let rest = written();
        assert_eq!(rest.len(), MAX_PENDING + 1, "shutdown does not wait for names");
        assert!(rest.last().unwrap().starts_with("securityalert:"));
    }

    #[tokio::test]
    async fn banned_network_is_not_resolved() {
        let mut naming = naming(|_| Some("chosen.example".to_owned()));
        naming.send(&repeated("2001:db8::/64"), Instant::now(), Wording::Stealth);
        assert_eq!(written(), ["2001:db8::/2001:db8::"]);
    }
}
