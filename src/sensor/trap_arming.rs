//! Tells the kernel which ports its trap and its decoys monitor: those that are closed now.

use std::time::Duration;

use super::observer::Scope;
use super::reporter::Reporter;
use crate::enforce::nft::{BlockError, Nft, RulesetSpec, TRAP_BURST, Table, Trap, TrapContents, trap_sets};
use crate::types::{PortSet, Protocol, Timestamp};

/// Window within which a loss counts; at most twice as long.
const LOSS_WINDOW: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct TrapArming {
    /// Ports and interfaces that the kernel monitors; `None` if unknown.
    armed: Option<Armed>,
    coverage: TrapCoverage,
}

/// Counted ports per protocol, related TCP ports that only hold their source, TCP ports of services, ports of decoys,
/// interfaces, and whether a ceiling keeps the trap from banning.
#[derive(Default, PartialEq, Eq)]
struct Armed {
    tcp: Option<PortSet>,
    udp: Option<PortSet>,
    related: Option<PortSet>,
    services: Option<PortSet>,
    decoys: Option<PortSet>,
    /// `None` without a trap.
    interfaces: Option<Vec<u32>>,
    /// `None` without a trap.
    ceiling_reached: Option<bool>,
}

impl TrapArming {
    /// Makes the next [`TrapArming::arm`] set the ports regardless of the last known state.
    pub(super) fn forget(&mut self) {
        self.armed = None;
    }

    /// True if the monitored ports are known.
    pub(super) fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// True if the trap is known to ban sources.
    pub(super) fn may_ban(&self) -> bool {
        self.armed.as_ref().is_some_and(|armed| armed.ceiling_reached == Some(false))
    }

    /// True if the ceilings have room for as many bans as the trap can impose at once.
    pub(super) fn has_room(scope: &mut Scope<'_>) -> bool {
        scope.observer.engine.has_room_for(scope.now, TRAP_BURST)
    }

    /// True if the trap is known to count probes of this port.
    pub(super) fn watches(&self, (protocol, port): (Protocol, u16)) -> bool {
        let ports = self.armed.as_ref().and_then(|armed| match protocol {
            Protocol::Udp => armed.udp.as_ref(),
            _ => armed.tcp.as_ref(),
        });
        ports.is_some_and(|ports| ports.contains(port))
    }

    /// Makes the kernel monitor the ports that are closed now; the trap monitors none while it is `suspended`. The
    /// kernel's allow-list must already be current. Returns true if the kernel's state has changed.
    pub(super) fn arm(
        &mut self,
        scope: &mut Scope<'_>,
        backend: &mut Nft,
        suspended: bool,
    ) -> Result<bool, BlockError> {
        let RulesetSpec { trap, decoys, .. } = *backend.spec();
        let ceiling_reached = !Self::has_room(scope);
        let Scope { now, ref observer, reporter } = *scope;
        let (host, ports) = (&observer.host, observer.engine.ports(now, &observer.host));
        let trapped = |has: fn(Trap) -> bool, wanted: &dyn Fn() -> PortSet| {
            trap.is_some_and(has).then(|| if suspended { PortSet::new() } else { wanted() })
        };
        let wanted = Armed {
            tcp: trapped(|trap| trap.tcp, &|| ports.closed(Protocol::Tcp)),
            udp: trapped(|trap| trap.udp, &|| ports.closed(Protocol::Udp)),
            related: trapped(|trap| trap.hold.is_some(), &|| ports.related()),
            services: trapped(|trap| trap.hold.is_some(), &|| ports.served()),
            decoys: decoys.map(|_| ports.decoys()),
            interfaces: trap.map(|_| host.interfaces.clone()),
            ceiling_reached: trap.map(|_| ceiling_reached),
        };
        if !suspended {
            self.report_coverage(now, &wanted, reporter);
        }
        if self.armed.as_ref() == Some(&wanted) {
            return Ok(false);
        }
        self.armed = None;
        let all_tcp = wanted.tcp.as_ref().map(|ports| ports.with(wanted.related.as_ref().unwrap_or(&PortSet::new())));
        let [tcp, udp, related, services, decoys] =
            [&all_tcp, &wanted.udp, &wanted.related, &wanted.services, &wanted.decoys]
                .map(|ports| ports.as_ref().map(PortSet::ranges));
        let tcp = decoys.or(tcp);
        let [tcp, udp, related, services] = [&tcp, &udp, &related, &services].map(Option::as_deref);
        let (interfaces, ceiling_reached) = (wanted.interfaces.as_deref(), wanted.ceiling_reached);
        let contents = TrapContents { tcp, udp, related, services, interfaces, ceiling_reached };
        trap_sets::arm(&mut backend.table, contents)?;
        self.armed = Some(wanted);
        self.update_metrics(reporter);
        Ok(true)
    }

    /// Removes all ports from the trap until it is armed again. Decoys keep their ports.
    pub(super) fn suspend(&mut self, table: &mut Table, rules: Trap) -> Result<(), BlockError> {
        self.armed = None;
        let none: Option<&[(u16, u16)]> = Some(&[]);
        let [tcp, udp] = [rules.tcp, rules.udp].map(|counts| none.filter(|_| counts));
        let held = none.filter(|_| rules.hold.is_some());
        let interfaces = Some(&[][..]);
        let contents = TrapContents { tcp, udp, related: held, services: held, interfaces, ceiling_reached: None };
        trap_sets::arm(table, contents)
    }

    /// Takes the next number of ports as the new reference, because the configuration has changed.
    pub(super) fn forget_coverage(&mut self, reporter: &Reporter) {
        self.coverage = TrapCoverage::default();
        reporter.metrics.trap_lost.set(0);
    }

    /// Reports that a large part of the ports has left the trap, or is back.
    fn report_coverage(&mut self, now: Timestamp, wanted: &Armed, reporter: &Reporter) {
        let ports = [&wanted.tcp, &wanted.udp, &wanted.decoys].into_iter().flatten().map(PortSet::len).sum();
        let target = if wanted.decoys.is_some() { "the rules for decoys have" } else { "the kernel's trap has" };
        match self.coverage.record(now, ports) {
            Some(CoverageChange::Lost { before }) => reporter.error(format!(
                "{target} lost more than a quarter of the monitored ports: {ports} of {before} are left, the others \
                 count as in use; find the processes that use them with `ss -lntu`, and check the NAT rules"
            )),
            Some(CoverageChange::Regained { before }) => {
                reporter.emit_note(format!("{target} {ports} of {before} ports again"));
            }
            None => {}
        }
        reporter.metrics.trap_lost.set(self.coverage.missing(ports).into());
    }

    pub(super) fn update_metrics(&self, reporter: &Reporter) {
        let none = Armed::default();
        let Armed { tcp, udp, decoys, .. } = self.armed.as_ref().unwrap_or(&none);
        let [tcp, udp, decoys] = [tcp, udp, decoys].map(|ports| ports.as_ref().map_or(0, |ports| ports.len().into()));
        reporter.metrics.decoy_ports.set(decoys);
        reporter.metrics.trapped.set(tcp);
        reporter.metrics.trapped_udp.set(udp);
    }

    /// A trap that counts probes of these TCP ports.
    #[cfg(test)]
    pub(super) fn with_tcp_ports(ports: &str) -> Self {
        Self { armed: Some(Armed { tcp: Some(ports.parse().unwrap()), ..Armed::default() }), ..Self::default() }
    }
}

/// Tracks the number of ports that the trap monitors. If it loses a large part of them, scans of those ports go unseen,
/// and the operator is notified. A service that starts takes one port; only a mistake or an attack takes a quarter.
#[derive(Debug, Default)]
struct TrapCoverage {
    /// Start of the current window, and the highest port counts in it and in the previous one.
    window: Option<(Timestamp, u32, u32)>,
    /// Port count before the loss, while the loss lasts.
    reference: Option<u32>,
}

/// A reportable change of the number of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CoverageChange {
    /// More than a quarter of the ports has left the trap.
    Lost { before: u32 },
    /// At least three quarters of the ports are monitored again.
    Regained { before: u32 },
}

impl TrapCoverage {
    /// Records the current number of ports.
    fn record(&mut self, now: Timestamp, ports: u32) -> Option<CoverageChange> {
        let (began, most, earlier) = match self.window {
            Some((began, most, _)) if now.since(began) >= LOSS_WINDOW => (now, ports, most),
            Some((began, most, earlier)) => (began, most.max(ports), earlier),
            None => (now, ports, ports),
        };
        self.window = Some((began, most, earlier));
        // While a loss lasts, the port count before it stays the reference: a loss ends only when ports return.
        let before = self.reference.unwrap_or(most.max(earlier));
        let is_lost = u64::from(ports) * 4 < u64::from(before) * 3;
        match (is_lost, self.reference) {
            (true, None) => {
                self.reference = Some(before);
                Some(CoverageChange::Lost { before })
            }
            (false, Some(_)) => {
                *self = Self { window: Some((now, ports, ports)), reference: None };
                Some(CoverageChange::Regained { before })
            }
            _ => None,
        }
    }

    /// Number of missing ports while a loss lasts, given the current number of ports.
    fn missing(&self, ports: u32) -> u32 {
        self.reference.map_or(0, |before| before.saturating_sub(ports))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;

    #[test]
    fn quarter_lost_in_steps_is_reported_once() {
        let mut coverage = TrapCoverage::default();
        let mut record = |n: u32| Some((1_000 - n, coverage.record(at(n.into()), 1_000 - n)?));
        let changes: Vec<_> = (0..=300).filter_map(&mut record).collect();
        assert_eq!(changes, [(749, CoverageChange::Lost { before: 1_000 })]);
        assert_eq!(coverage.missing(700), 300);
        assert_eq!(coverage.record(at(5_000), 700), None, "the loss lasts, and time does not undo it");
        assert_eq!(coverage.record(at(5_001), 750), Some(CoverageChange::Regained { before: 1_000 }));
        assert_eq!(coverage.missing(750), 0);
    }

    #[test]
    fn started_services_are_not_a_loss() {
        let mut coverage = TrapCoverage::default();
        // Ten ports per window, over many windows.
        let slow = (0..50).filter_map(|n| coverage.record(at(u64::from(n) * 700), 1_000 - 10 * n)).count();
        assert_eq!(slow, 0);
        let mut small = TrapCoverage::default();
        assert_eq!(small.record(at(0), 4), None);
        assert_eq!(small.record(at(1), 3), None, "a quarter does not raise the alarm");
        assert!(small.record(at(2), 2).is_some());
    }
}
