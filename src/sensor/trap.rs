//! The kernel trap, kept in step: which ports it watches, and whom it caught.
//!
//! The kernel reflects; the sensor judges. Both see the same packets, so whoever the kernel blocks by itself is condemned
//! here as well within milliseconds, with a reason, a record and the right length. Where that does not come (the port turned
//! out to be in use, the source is protected by now, packets were lost), the kernel's ban is lifted again: nobody stays
//! blocked of whom nobody can say why.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::ban_maintenance::exemption_source;
use super::controller::BanController;
use crate::enforce::nft::{BlockError, Trap as Rules, Watched};
use crate::events::event::EventKind;
use crate::types::{BanTarget, PortSet, Protocol, Timestamp};

/// How often the ports are compared and whom the kernel caught is looked at. Ports of listeners that come are no matter of
/// time, because the kernel asks for the socket itself.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How long somebody is blocked at most of whom the sensor knows nothing: its own verdict comes within milliseconds, under a
/// flood within the time that its queue holds.
const UNCONFIRMED_FOR: Duration = Duration::from_secs(2);

/// Sources whose bans are looked at in one round; the next ones have their turn a second later. Each takes some 30 µs.
const MAX_PER_ROUND: usize = 512;

/// What is known of the trap.
#[derive(Default)]
pub(super) struct Trap {
    /// What the kernel has; `None` where that is not known.
    armed: Option<Armed>,
    /// When to look again; `None` where there is no trap.
    check_at: Option<Timestamp>,
    /// Caught, but not condemned here, and since when.
    unconfirmed: HashMap<BanTarget, Timestamp>,
    /// The last thing that went wrong, so that it is said once.
    complaint: Option<String>,
}

/// What the kernel watches: TCP and UDP ports, where those count, and interfaces.
#[derive(PartialEq, Eq)]
struct Armed {
    tcp: Option<PortSet>,
    udp: Option<PortSet>,
    interfaces: Vec<u32>,
}

impl Trap {
    /// The table is another: at the next look the kernel is told again what to watch.
    pub(super) fn forget_ports(&mut self) {
        self.armed = None;
    }

    /// Whom the kernel caught is looked at now, if there is a trap.
    pub(super) fn check_soon(&mut self, now: Timestamp) {
        self.check_at = self.check_at.map(|_| now);
    }

    /// When [`BanController::check_trap`] has something to do.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.check_at
    }
}

impl BanController {
    /// True where the table has a trap.
    fn has_trap(&self) -> bool {
        self.rules().is_some()
    }

    fn rules(&self) -> Option<Rules> {
        self.blocker.nft.as_ref().and_then(|(_, spec)| spec.trap)
    }

    /// Has the kernel watch the ports that are closed now, if it does not yet. Whoever must not be blocked is in its
    /// allow-list by then: that is set whenever the host changes, before this.
    pub(super) fn arm(&mut self, now: Timestamp) {
        let Some(rules) = self.rules() else {
            self.trap = Trap::default();
            self.show_ports();
            return;
        };
        self.trap.check_at = Some(now.after(POLL_INTERVAL));
        let closed = |counts: bool, protocol| counts.then(|| self.engine.closed_ports(now, &self.host, protocol));
        let wanted = Armed {
            tcp: closed(rules.tcp, Protocol::Tcp),
            udp: closed(rules.udp, Protocol::Udp),
            interfaces: self.host.interfaces.clone(),
        };
        if self.trap.armed.as_ref() == Some(&wanted) {
            return;
        }
        let Some((nft, _)) = &mut self.blocker.nft else { return };
        let [tcp, udp] = [&wanted.tcp, &wanted.udp].map(|ports| ports.as_ref().map(PortSet::ranges));
        match nft.arm(Watched { tcp: tcp.as_deref(), udp: udp.as_deref(), interfaces: &wanted.interfaces }) {
            Ok(()) => {
                (self.trap.armed, self.trap.complaint) = (Some(wanted), None);
                self.show_ports();
            }
            // Whoever lays it again arms it.
            Err(BlockError::Gone) => self.trap.armed = None,
            Err(error) => {
                self.trap.armed = None;
                self.complain(format!("the kernel's trap could not be set: {error}; scans are seen all the same"));
            }
        }
    }

    /// Has the figures say what the kernel watches.
    fn show_ports(&self) {
        let armed = self.trap.armed.as_ref();
        let count = |ports: Option<&PortSet>| ports.map_or(0, |ports| ports.len().into());
        self.metrics.trapped.set(count(armed.and_then(|armed| armed.tcp.as_ref())));
        self.metrics.trapped_udp.set(count(armed.and_then(|armed| armed.udp.as_ref())));
    }

    /// Begins, also with other rules: what the kernel has counted until then the sensor may know nothing of, or judge by other
    /// settings.
    pub(super) fn begin_trap(&mut self, now: Timestamp) {
        if let Some(rules) = self.rules()
            && let Some((nft, _)) = &mut self.blocker.nft
        {
            // Where that fails, arming fails as well and says so.
            let _ = nft.forget_everybody(rules);
        }
        self.reset_trap(now);
    }

    /// As [`BanController::arm`], whatever the kernel is believed to have.
    pub(super) fn reset_trap(&mut self, now: Timestamp) {
        self.trap.armed = None;
        self.arm(now);
    }

    /// The trap watches nothing from now on, and has no rules any more.
    pub(super) fn disarm(&mut self) {
        self.empty_trap();
        if !self.has_trap() {
            return;
        }
        let Some((nft, spec)) = &mut self.blocker.nft else { return };
        spec.trap = None;
        if let Err(error) = nft.repair(spec) {
            self.complain(format!(
                "the rules of the kernel's trap could not be taken away: {error}; it watches nothing"
            ));
        }
        self.trap = Trap::default();
        self.show_ports();
    }

    /// The trap watches nothing, until it is armed again.
    pub(super) fn empty_trap(&mut self) {
        let Some(rules) = self.rules() else { return };
        let Some((nft, _)) = &mut self.blocker.nft else { return };
        self.trap.armed = None;
        let none: &[(u16, u16)] = &[];
        match nft.arm(Watched { tcp: rules.tcp.then_some(none), udp: rules.udp.then_some(none), interfaces: &[] }) {
            Ok(()) | Err(BlockError::Gone) => {}
            Err(error) => self.complain(format!("the kernel's trap could not be emptied: {error}")),
        }
    }

    /// What is due about the trap.
    pub(super) fn check_trap(&mut self, now: Timestamp) {
        if self.trap.check_at.is_none_or(|at| at > now) {
            return;
        }
        self.arm(now);
        let caught = self.blocker.nft.as_mut().map_or(Ok(Vec::new()), |(nft, _)| nft.caught());
        match caught {
            Ok(caught) => self.review(now, &caught),
            Err(BlockError::Gone) => {}
            Err(error) => self.complain(format!("whom the kernel's trap has caught cannot be read: {error}")),
        }
        if let Some(rules) = self.rules()
            && let Some((nft, _)) = &mut self.blocker.nft
            && let Ok(Some(filling)) = nft.filling(rules)
        {
            self.metrics.trap_touched.set(filling.touched.into());
            self.metrics.trap_suspects.set(filling.suspects.into());
        }
    }

    /// Compares whom the kernel caught with whom the sensor has condemned.
    fn review(&mut self, now: Timestamp, caught: &[BanTarget]) {
        let (mut agreed, mut wrong, mut within, mut spared) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let unconfirmed = std::mem::take(&mut self.trap.unconfirmed);
        // A ban of the whole network may have come of it.
        let wide = !caught.is_empty() && self.blocker.nft.as_ref().is_some_and(|(_, spec)| spec.wide);
        let networks: Vec<BanTarget> = match wide {
            true => {
                self.engine.bans().map(|ban| ban.subject).filter(|one| matches!(one, BanTarget::Prefix(_))).collect()
            }
            false => Vec::new(),
        };
        // Condemned here as well; that it could not be carried out yet says nothing for them.
        let waiting: HashSet<BanTarget> =
            if caught.is_empty() { HashSet::new() } else { self.retries.subjects().collect() };
        for subject in caught.iter().copied().take(MAX_PER_ROUND) {
            if waiting.contains(&subject) {
                continue;
            }
            if self.engine.is_blocked(now, subject) {
                agreed.push(subject);
                continue;
            }
            if networks.iter().any(|network| network.covers(subject.element())) {
                within.push(subject);
                continue;
            }
            if let Some(protection) = self.protection(subject) {
                spared.push((subject, protection));
                continue;
            }
            let since = unconfirmed.get(&subject).copied().unwrap_or(now);
            if now.since(since) >= UNCONFIRMED_FOR {
                wrong.push(subject);
            } else {
                self.trap.unconfirmed.insert(subject, since);
            }
        }
        let Some((nft, _)) = &mut self.blocker.nft else { return };
        // Where a full set had no room for them, the kernel has blocked nobody, and there is nobody to let go.
        let unheld: HashSet<BanTarget> = nft.missing(&wrong).unwrap_or_default().into_iter().collect();
        let (unheld, wrong): (Vec<_>, Vec<_>) = wrong.into_iter().partition(|subject| unheld.contains(subject));
        // Counted from the start again, as here: else one more port would be enough when the ban is over.
        let protected: Vec<BanTarget> = spared.iter().map(|(subject, _)| *subject).collect();
        let mut done = Ok(());
        for subjects in [&wrong, &within, &protected] {
            done = done.and(nft.lift(subjects));
        }
        for subjects in [&agreed, &wrong, &unheld, &within, &protected] {
            done = done.and(nft.forget(subjects));
        }
        self.metrics.trap_caught.add((agreed.len() + within.len()) as u64);
        self.metrics.trap_let_go.add((wrong.len() + protected.len()) as u64);
        match done {
            Ok(()) => {}
            Err(BlockError::Gone) => return,
            Err(error) => self.complain(format!("bans of the kernel's trap could not be lifted: {error}")),
        }
        for (subject, protection) in spared {
            self.emit(EventKind::Unblocked { subject, by: exemption_source(protection) });
        }
        if let [first, rest @ ..] = wrong.as_slice() {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            self.emit(EventKind::Note(format!(
                "the kernel's trap had blocked {first}{more}, and nothing is held against them: let go after {} s",
                UNCONFIRMED_FOR.as_secs()
            )));
        }
    }

    /// The trap counts the touches of these from the start again: their bans have been lifted.
    pub(super) fn forget_touches(&mut self, subjects: &[BanTarget]) {
        let Some(rules) = self.rules() else { return };
        let Some((nft, _)) = &mut self.blocker.nft else { return };
        let forgotten = if subjects.len() > MAX_PER_ROUND { nft.forget_everybody(rules) } else { nft.forget(subjects) };
        match forgotten {
            Ok(()) | Err(BlockError::Gone) => {}
            Err(error) => self.complain(format!("the kernel's trap could not be made to forget: {error}")),
        }
    }

    fn complain(&mut self, text: String) {
        if self.trap.complaint.as_ref() != Some(&text) {
            self.emit(EventKind::Error(text.clone()));
            self.trap.complaint = Some(text);
        }
    }
}
