//! Formats events as lines of classic PortSentry, so that logcheck rules, fail2ban filters and scripts keep working. A
//! source that is never blocked gets no `attackalert:` line, because such filters would ban it.
//!
//! Nothing is appended to a classic line, because filters end in `$`. Additional information follows on a separate line
//! ([`addition`]).

use std::net::IpAddr;

use super::event::EventKind;
use super::json::WITHOUT_VERDICT;
use crate::engine::{Class, Exempt, Observation, Probe};
use crate::types::{Backend, BanTarget, Expiry, Response, Span, counted};

/// Selects one of classic PortSentry's two wordings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wording {
    /// A protocol in the modes `-tcp` and `-udp`.
    Connect,
    /// A protocol in the modes `-stcp`, `-sudp`, `-atcp` and `-audp`.
    #[default]
    Stealth,
}

/// The line of an event; `None` for an event without a line (a repeated port).
pub fn line(kind: &EventKind) -> Option<String> {
    line_with_name(kind, None, Wording::Stealth)
}

/// The line that follows the classic line of an event, if there is additional information.
pub fn addition(kind: &EventKind) -> Option<String> {
    match kind {
        EventKind::Scan(ban) => {
            let protocol = ban.probe.observation.protocol.name();
            Some(format!("attackalert: Ignoring {protocol} response per configuration file setting."))
        }
        EventKind::Blocked { ban, .. } => {
            let target = host(ban.probe.target);
            match (ban.capped, ban.strikes) {
                (true, _) => Some(format!(
                    "adminalert: the ban of Host {target} is short, because the ceilings of new bans are reached"
                )),
                (false, 0) => None,
                (false, strikes) => Some(format!("adminalert: earlier bans of Host {target}: {strikes}")),
            }
        }
        EventKind::Ran { target, outcome, .. } => {
            Some(format!("adminalert: the command for Host {} {outcome}", host(*target)))
        }
        EventKind::Repeated { target, response: Response::Block, packets, .. } if *packets > 1 => {
            Some(format!("adminalert: packets of Host {} since its last line: {packets}", host(*target)))
        }
        _ => None,
    }
}

/// The address whose name is included in the line of an event. A network has no name, and the line of a source that is
/// never blocked includes none, because it must not contain text that the source can choose.
pub fn names(kind: &EventKind) -> Option<IpAddr> {
    match kind {
        EventKind::Probe(probe) if probe.fresh => Some(probe.observation.source),
        EventKind::Scan(ban) => Some(ban.probe.observation.source),
        EventKind::Repeated { target, .. } if matches!(target.prefix_len(), 32 | 128) => Some(target.element()),
        _ => None,
    }
}

/// The line of an event, with the name of the address from [`names`]. `name` must be clean: letters, digits, ".", "-"
/// and "_", and not an address.
pub fn line_with_name(kind: &EventKind, name: Option<&str>, wording: Wording) -> Option<String> {
    Some(match kind {
        EventKind::Started => "adminalert: PortSentry is now active and listening.".to_owned(),
        EventKind::Probe(probe) if probe.fresh => scan(probe, name),
        EventKind::Probe(_) => return None,
        EventKind::Scan(ban) => scan(&ban.probe, name),
        EventKind::Blocked { ban, backend, .. } => {
            let set = match ban.probe.target {
                _ if *backend != Backend::Nft => "",
                BanTarget::Link { .. } => " blocked_link",
                target if target.element().is_ipv4() => " blocked",
                _ => " blocked6",
            };
            let (host, via) = (host(ban.probe.target), backend.classic_name());
            format!("attackalert: Host {host} has been blocked via {via}{set} for {}", ban.expiry)
        }
        EventKind::Shortened { target, expiry, .. } => {
            format!("adminalert: Host {} has been blocked for {expiry}: {WITHOUT_VERDICT}", host(*target))
        }
        EventKind::Entered { target, backend, entry, .. } => {
            let (host, via) = (host(*target), backend.classic_name());
            format!("attackalert: Host {host} has been blocked via {via} with string: \"{entry}\"")
        }
        EventKind::Ran { target, command, .. } => {
            format!("attackalert: External command run for host: {} using command: \"{command}\"", host(*target))
        }
        EventKind::Disconnected { target, connections } => {
            format!("adminalert: connections of Host {} that were ended: {connections}", host(*target))
        }
        EventKind::BlockFailed { target, reason, backend } => {
            format!("adminalert: ERROR: Host {} could not be blocked via {}: {reason}", host(*target), backend.name())
        }
        EventKind::Exempt { exempt: Exempt { observation, protection, .. }, probes } => format!(
            "adminalert: {} from {} to {} port {} does not count: the source is {protection}, which is never blocked{}",
            observation.class.title(),
            observation.source,
            observation.protocol.name(),
            observation.port,
            several(*probes, "probe")
        ),
        EventKind::Repeated { target, response: Response::Block, .. } => match wording {
            Wording::Connect => format!("attackalert: Host: {} is already blocked. Ignoring", target.element()),
            Wording::Stealth => {
                format!("attackalert: Host: {} is already blocked Ignoring", name_and_address(name, target.element()))
            }
        },
        EventKind::Repeated { target, response: Response::Log | Response::RunCommand, packets, .. } => {
            let source = name_and_address(name, target.element());
            format!("attackalert: Host: {source} still scans, which is only logged{}", several(*packets, "packet"))
        }
        EventKind::DistributedScan(scan) => format!(
            "attackalert: Distributed scan: about {} hosts together probed {} ports within {}; none of them alone \
             reached the threshold",
            scan.sources,
            scan.ports,
            humantime::format_duration(std::time::Duration::from_secs(scan.span.as_secs().max(1)))
        ),
        EventKind::Capped { bans, withheld } => format!(
            "adminalert: a ceiling of bans is reached (block.max_new_bans_per_minute, block.max_forgeable_bans, or 600 proven \
             bans a minute); sources not banned: {withheld}, banned for a short time: {bans}"
        ),
        EventKind::BanVanished { target } => {
            format!("adminalert: Host {} is no longer in the kernel's set; its next scan bans it again", host(*target))
        }
        EventKind::Dropped { packets } => {
            format!("adminalert: the capture could not keep up: {} lost", counted(*packets, "packet"))
        }
        EventKind::Unblocked { target, by } => {
            format!("adminalert: Host {} has been unblocked by {by}", host(*target))
        }
        EventKind::Expired { target } => {
            format!("adminalert: Host {} is no longer blocked: its ban has expired", host(*target))
        }
        EventKind::Restored { bans, backend } => {
            let backend = backend.name();
            format!("adminalert: bans restored from the ledger with their remaining time: {bans} (via {backend})")
        }
        EventKind::ByHand { target, expiry, by, note, .. } => {
            let note = note.as_ref().map_or(String::new(), |note| format!(": {note}"));
            let length = match expiry {
                Expiry::Never => "without end".to_owned(),
                Expiry::After(length) => format!("for {}", Span(*length)),
            };
            format!("adminalert: Host {} has been blocked by {by} {length}{note}", host(*target))
        }
        EventKind::TableReinstalled { bans } => format!(
            "adminalert: table inet portsentry was missing and has been created again; bans restored with their remaining time: \
             {bans}"
        ),
        EventKind::Repaired { bans, backend } => format!(
            "adminalert: bans that were missing in {} and have been restored{}: {bans}",
            backend.place(),
            if backend.is_slow() { " (portsentry unblock lifts one)" } else { "" }
        ),
        EventKind::Adopted { bans } => {
            format!("adminalert: bans that were in the kernel's sets at the start and stay: {bans}")
        }
        EventKind::Note(text) => format!("adminalert: {text}"),
        EventKind::Error(text) => format!("adminalert: ERROR: {text}"),
        EventKind::Stopped => "securityalert: PortSentry is shutting down".to_owned(),
    })
}

fn scan(probe: &Probe, name: Option<&str>) -> String {
    let Observation { source, protocol, port, class, fragmented, decoy, .. } = probe.observation;
    let hidden = if fragmented && class != Class::Fragment { " (fragmented)" } else { "" };
    // Classic PortSentry calls everything that its listeners accept a connect, including datagrams.
    let title = if decoy { Class::Connect.title() } else { class.title() };
    format!(
        "attackalert: {title}{hidden} from host: {} to {} port: {port}",
        name_and_address(name, source),
        protocol.name()
    )
}

/// "NAME/ADDRESS"; without a name the address is used for both.
fn name_and_address(name: Option<&str>, address: IpAddr) -> String {
    name.map_or_else(|| format!("{address}/{address}"), |name| format!("{name}/{address}"))
}

/// A target in the form of classic host fields: a bare address if it is a single one.
fn host(target: BanTarget) -> String {
    if matches!(target.prefix_len(), 32 | 128) { target.element().to_string() } else { target.to_string() }
}

/// " (214 packets)"; empty for a single one.
fn several(number: u32, noun: &str) -> String {
    if number > 1 { format!(" ({})", counted(number, noun)) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::Ban;

    /// Both lines of an event.
    fn lines(event: &EventKind, wording: Wording) -> (String, Option<String>) {
        (line_with_name(event, None, wording).unwrap(), addition(event))
    }

    #[test]
    fn ban_by_hand_states_its_length() {
        let target = Ban::example().probe.target;
        let week = Expiry::After(Duration::from_secs(7 * 86_400));
        for (expiry, length) in [(week, "for 7d"), (Expiry::Never, "without end")] {
            let by_hand = EventKind::ByHand { target, expiry, by: "root".to_owned(), note: None, backend: None };
            let expected = format!("adminalert: Host 192.0.2.7 has been blocked by root {length}");
            assert_eq!(lines(&by_hand, Wording::default()).0, expected);
        }
    }

    #[test]
    fn classic_lines_have_no_suffix() {
        let day = Expiry::After(Duration::from_secs(86_400));
        let ban = Ban { strikes: 2, expiry: day, ..Ban::example() };
        let target = ban.probe.target;
        let blocked = EventKind::Blocked { ban, backend: Backend::Nft, reaction: Duration::ZERO };
        let ran = EventKind::Ran {
            target,
            ban: None,
            command: "/bin/x".into(),
            outcome: "succeeded after 1ms".into(),
            well: true,
            undone: None,
        };
        let repeated = |packets| EventKind::Repeated { target, response: Response::Block, protocol: None, packets };
        let scan = "attackalert: TCP SYN/Normal scan from host: 192.0.2.7/192.0.2.7 to TCP port: 23";
        let ignoring = "attackalert: Ignoring TCP response per configuration file setting.";
        let via = "attackalert: Host 192.0.2.7 has been blocked via nftables set inet portsentry blocked for 1day";
        let command = "attackalert: External command run for host: 192.0.2.7 using command: \"/bin/x\"";
        let counted = "adminalert: packets of Host 192.0.2.7 since its last line: 214";
        for (event, wording, first, second) in [
            (EventKind::Scan(ban), Wording::Stealth, scan, Some(ignoring)),
            (blocked, Wording::Stealth, via, Some("adminalert: earlier bans of Host 192.0.2.7: 2")),
            (ran, Wording::Stealth, command, Some("adminalert: the command for Host 192.0.2.7 succeeded after 1ms")),
            (
                repeated(214),
                Wording::Stealth,
                "attackalert: Host: 192.0.2.7/192.0.2.7 is already blocked Ignoring",
                Some(counted),
            ),
            (repeated(1), Wording::Connect, "attackalert: Host: 192.0.2.7 is already blocked. Ignoring", None),
            (EventKind::Stopped, Wording::Stealth, "securityalert: PortSentry is shutting down", None),
        ] {
            assert_eq!(lines(&event, wording), (first.to_owned(), second.map(str::to_owned)));
        }
    }
}
