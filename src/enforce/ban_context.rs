//! Holds the facts of a ban from which hosts.deny lines and commands are built.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::clock::BanEnd;
use crate::config::Mode;
use crate::engine::{Ban, Class};
use crate::types::{BanTarget, Expiry, Protocol};

/// The facts of a ban that backends need. Small and without heap data, so that the sensor can pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BanContext {
    pub target: BanTarget,
    /// Source of the last probe; the target's own address if there was no probe.
    pub source: IpAddr,
    /// Protocol of the last probe.
    pub protocol: Protocol,
    /// Port of the last probe; 0 if there was no probe.
    pub port: u16,
    /// Mode of the port; `None` for an operator's ban.
    pub mode: Option<Mode>,
    /// Class of the last probe; `None` for an operator's ban.
    pub class: Option<Class>,
    /// How long it lasts.
    pub expiry: Expiry,
    pub since: SystemTime,
    /// The engine's verdict; `None` for an operator's ban. Not used by backends, but passed on to the report of the
    /// result. Helper processes do not receive it.
    #[serde(skip)]
    pub ban: Option<Ban>,
}

impl BanContext {
    /// An operator's ban, without evidence.
    pub fn by_hand(target: BanTarget, expiry: Expiry, since: SystemTime) -> Self {
        let source = target.element();
        Self { target, source, protocol: Protocol::Tcp, port: 0, mode: None, class: None, expiry, since, ban: None }
    }

    /// The value of `$MODE$`: the mode, named like the classic flags.
    pub(super) fn mode(&self) -> &'static str {
        match (self.mode, self.protocol.uses_udp_settings()) {
            (None, _) => "hand",
            (Some(Mode::Stealth), false) => "stcp",
            (Some(Mode::Stealth), true) => "sudp",
            (Some(Mode::Advanced), false) => "atcp",
            (Some(Mode::Advanced), true) => "audp",
            (Some(Mode::Off | Mode::Connect), false) => "tcp",
            (Some(Mode::Off | Mode::Connect), true) => "udp",
        }
    }

    /// The reason in a few words.
    pub fn reason(&self) -> &'static str {
        self.class.map_or("blocked by hand", Class::title)
    }

    /// The end in RFC 3339 format, UTC, with a resolution of seconds; or `never`.
    pub fn until(&self) -> String {
        let end = BanEnd::new(self.expiry, self.since);
        end.0.map_or_else(|| end.to_string(), |time| time.without_fraction().to_string())
    }

    /// A SYN scan of port 23 from `source`, banned for an hour from the first second of 2026, for testing templates.
    pub(super) fn example(source: IpAddr) -> Self {
        Self {
            target: BanTarget::containing(source),
            source,
            protocol: Protocol::Tcp,
            port: 23,
            mode: Some(Mode::Advanced),
            class: Some(Class::Syn),
            expiry: Expiry::After(Duration::from_secs(3_600)),
            since: UNIX_EPOCH + Duration::from_secs(1_767_225_600),
            ban: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(source: &str) -> BanContext {
        BanContext::example(source.parse().unwrap())
    }

    #[test]
    fn ban_end_is_dated_or_never() {
        let mut context = context("192.0.2.7");
        assert_eq!(context.until(), "2026-01-01T01:00:00Z");
        context.expiry = Expiry::Never;
        assert_eq!(context.until(), "never");
        context.expiry = Expiry::After(Duration::from_secs(u64::MAX));
        assert_eq!(context.until(), "never");
        context.expiry = Expiry::After(Duration::from_secs(900_000_000_000));
        assert_eq!(context.until(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn operator_ban_keeps_its_reason() {
        assert_eq!(context("192.0.2.7").reason(), "TCP SYN/Normal scan");
        assert_eq!(BanContext { class: None, ..context("192.0.2.7") }.reason(), "blocked by hand");
    }
}
