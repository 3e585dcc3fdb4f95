//! The facts of a ban that hosts.deny lines and commands are filled in with.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::LAST_SECOND;
use crate::engine::{Ban, Class};
use crate::types::{BanTarget, Expiry, Protocol};

/// What a back end needs to know of a ban. Small and without an allocation, so that the sensor may hand it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BanContext {
    pub target: BanTarget,
    /// The address that sent the deciding probe; the target's own address if there was no probe.
    pub source: IpAddr,
    /// Protocol of the deciding probe.
    pub protocol: Protocol,
    /// Port of the deciding probe; 0 if there was no probe.
    pub port: u16,
    /// How the port was watched, as the classic flags have it: `atcp`, `stcp`, `tcp`, `audp`, …
    pub mode: &'static str,
    /// Class of the deciding probe; `None` for a ban by hand.
    pub class: Option<Class>,
    /// How long it lasts.
    pub expiry: Expiry,
    pub since: SystemTime,
    /// The engine's verdict; `None` for a ban by an operator. Not read here, but passed on to the report of the result.
    pub ban: Option<Ban>,
}

impl BanContext {
    /// A ban without evidence, by an operator.
    #[must_use]
    pub fn by_hand(target: BanTarget, expiry: Expiry, since: SystemTime) -> Self {
        let source = target.element();
        Self { target, source, protocol: Protocol::Tcp, port: 0, mode: "hand", class: None, expiry, since, ban: None }
    }

    /// Why, in a few words.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.class.map_or("blocked by hand", Class::title)
    }

    /// When it ends, as people and scripts read it: RFC 3339 in UTC to the second, or `never`.
    #[must_use]
    pub fn until(&self) -> String {
        let end = match self.expiry {
            Expiry::Never => None,
            Expiry::After(span) => self.since.checked_add(span),
        };
        let Some(end) = end else { return "never".to_owned() };
        // A year has four digits.
        let seconds = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().min(LAST_SECOND);
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
    }

    /// A SYN scan of port 23 from `source`, banned for an hour from the first second of 2026: what a template is tried with.
    pub(super) fn example(source: IpAddr) -> Self {
        Self {
            target: BanTarget::of(source),
            source,
            protocol: Protocol::Tcp,
            port: 23,
            mode: "atcp",
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
