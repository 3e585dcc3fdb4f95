//! Runs the fleet process: sends this host's bans to the server, and the reports of other hosts to the daemon, which
//! judges them. Stores nothing that cannot be read again from the server or the daemon.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::connect::Endpoint;
use super::daemon::{Daemon, OwnBanUpdate};
use super::error::FleetError;
use super::key::Keyspace;
use super::own::OwnReports;
use super::protocol::{FleetRequest, LINK_INTERVAL_S, LinkState};
use super::random::chance;
use super::relay::Relay;
use super::scan::Schedule;
use super::server::{Incoming, MAX_NOTICES, ServerConnection, ServerError};
use crate::clock::boot_time;
use crate::types::{Backoff, BanTarget, Span, Timestamp};

/// Maximum delay between two attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Maximum number of connection attempts per second that all hosts together begin after the server has ended all
/// connections at once.
const CONNECTS_PER_SECOND: u32 = 500;

/// A connection that lasted this long counts as successful.
const STABLE_TIME: Duration = Duration::from_secs(30);

/// Interval at which own keys are checked and renewed.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Interval between pings on an idle connection.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Delay after the server has refused a report.
const REFUSED_DELAY: Duration = Duration::from_secs(30);

/// Delay before the next attempt to connect. `chance` is from 0 to 1.
fn retry_delay(backoff: Duration, hosts: u32, chance: f64) -> Duration {
    // The first attempts of a large fleet are spread as well.
    let spread = Duration::from_secs(1) * hosts / CONNECTS_PER_SECOND;
    (backoff + spread).mul_f64(0.5 + chance)
}

/// The state of the fleet process.
pub(super) struct Member {
    endpoint: Endpoint,
    keys: Keyspace,
    own: OwnReports,
    relay: Relay,
    daemon: Daemon,
    scan: Schedule,
    /// Number of hosts that received the last notice.
    receivers: u32,
    link: LinkState,
    next: Deadlines,
    /// The target at which the last check of own keys ended.
    checked: Option<BanTarget>,
}

/// Times at which recurring work is due.
#[derive(Default)]
struct Deadlines {
    heartbeat: Timestamp,
    ping: Timestamp,
    upkeep: Timestamp,
    /// Earliest time of the next write, after the server has refused one.
    write: Timestamp,
}

impl Member {
    pub(super) fn new(endpoint: Endpoint, keys: Keyspace, own: OwnReports, daemon: Daemon) -> Self {
        Self {
            endpoint,
            keys,
            relay: Relay::new(own.author.clone()),
            own,
            daemon,
            scan: Schedule::new(),
            receivers: 0,
            link: LinkState::Away("the connection is not established yet".to_owned()),
            next: Deadlines::default(),
            checked: None,
        }
    }

    /// Runs until the process ends.
    pub(super) async fn run(mut self, mut updates: mpsc::Receiver<OwnBanUpdate>) -> Result<(), FleetError> {
        let mut backoff = Backoff::new(Duration::from_secs(1), MAX_BACKOFF);
        let mut away_since: Option<Timestamp> = None;
        loop {
            let begun = boot_time();
            let error = match ServerConnection::join(&self.endpoint, self.keys.clone()).await {
                Ok(mut server) => {
                    let since = away_since.take().map(|since| Span(begun.since(since)));
                    let since = since.map_or_else(String::new, |since| format!(" again, after {since}"));
                    tracing::info!("adminalert: fleet: connected to {}{since}", self.endpoint.url);
                    self.set_link(LinkState::Connected).await;
                    self.session(&mut server, &mut updates).await
                }
                Err(error) => error,
            };
            let now = boot_time();
            if now.since(begun) > STABLE_TIME {
                backoff.reset();
            }
            if away_since.is_none() {
                tracing::error!(
                    "adminalert: fleet: not connected to {}: {error}; retrying. Meanwhile this host detects and \
                     blocks scans as before, and bans of the fleet expire",
                    self.endpoint.url
                );
                away_since = Some(now);
            }
            self.set_link(LinkState::Away(error.to_string())).await;
            let delay = retry_delay(backoff.extend(now), self.hosts(), chance()?);
            self.wait(delay, &mut updates).await;
        }
    }

    /// The number of hosts, as far as known.
    fn hosts(&self) -> u32 {
        self.relay.hosts().max(self.receivers)
    }

    /// Waits for `delay` while the server is unreachable, and follows the daemon's bans meanwhile.
    async fn wait(&mut self, delay: Duration, updates: &mut mpsc::Receiver<OwnBanUpdate>) {
        let end = boot_time().after(delay);
        loop {
            let now = boot_time();
            if now >= end {
                return;
            }
            if now >= self.next.heartbeat {
                self.heartbeat(now).await;
            }
            let next = end.min(self.next.heartbeat).since(now);
            tokio::select! {
                update = updates.recv() => self.follow_own(update),
                () = sleep(next) => {}
            }
            self.own.expire(boot_time());
        }
    }

    /// Works on a connection until it ends; returns the reason.
    async fn session(
        &mut self,
        server: &mut ServerConnection,
        updates: &mut mpsc::Receiver<OwnBanUpdate>,
    ) -> ServerError {
        let now = boot_time();
        self.own.renew_all(now);
        self.relay.connected();
        self.scan.connected((self.hosts(), chance().unwrap_or_default()), now);
        (self.next.upkeep, self.next.write, self.next.ping) = (now, now, now.after(PING_INTERVAL));
        loop {
            let now = boot_time();
            tokio::select! {
                biased;
                update = updates.recv() => self.follow_own(update),
                incoming = server.notices.recv() => match incoming {
                    Some(incoming) => self.notices(incoming, server, now),
                    None => return ServerError::Other("the server has closed the connection".to_owned()),
                },
                () = sleep(self.next_due(now).since(now)) => {}
            }
            if server.has_missed() || self.daemon.has_returned() {
                self.request_scan(boot_time());
            }
            match self.work(server).await {
                // The connection can still be used.
                Err(error @ (ServerError::Full(_) | ServerError::Denied(_))) => {
                    tracing::warn!("adminalert: fleet: {}: {error}", self.endpoint.url);
                    self.next.write = boot_time().after(REFUSED_DELAY);
                }
                Err(error) => return error,
                Ok(()) => {}
            }
        }
    }

    /// Handles the queued notices.
    fn notices(&mut self, first: Incoming, server: &mut ServerConnection, now: Timestamp) {
        let queued = std::iter::from_fn(|| server.notices.try_recv().ok());
        // At most as many as the queue holds. Notices that arrive meanwhile are handled in the next round.
        for incoming in std::iter::once(first).chain(queued).take(MAX_NOTICES) {
            if self.relay.incoming(incoming, self.hosts(), now) {
                self.request_scan(now);
            }
        }
    }

    /// When [`Member::work`] is next due.
    fn next_due(&self, now: Timestamp) -> Timestamp {
        let write = (self.own.has_pending(now) || self.own.has_withdrawn()).then_some(self.next.write);
        let always = [self.next.heartbeat, self.next.ping, self.next.upkeep, self.scan.due];
        always.into_iter().chain(write).chain(self.relay.due()).min().unwrap_or(now)
    }

    fn follow_own(&mut self, update: Option<OwnBanUpdate>) {
        let now = boot_time();
        match update {
            Some(OwnBanUpdate::Connected) => {
                // The daemon may be a new process, which has no reports yet.
                self.next.heartbeat = now;
                self.own.connected(now);
            }
            Some(OwnBanUpdate::Changed(event)) => self.own.apply(&event, now),
            None => {}
        }
    }

    /// Does the work that is due.
    async fn work(&mut self, server: &mut ServerConnection) -> Result<(), ServerError> {
        let now = boot_time();
        if now >= self.next.write {
            self.write(server, now).await?;
        }
        if now >= self.next.heartbeat {
            self.heartbeat(now).await;
        }
        if self.relay.due().is_some_and(|due| due <= now) {
            self.relay.deliver(server, &mut self.daemon).await?;
        }
        if now >= self.scan.due {
            self.scan_page(server).await?;
        }
        if now >= self.next.upkeep {
            self.next.upkeep = now.after(UPKEEP_INTERVAL);
            self.upkeep(server, now).await?;
        }
        if now >= self.next.ping {
            self.next.ping = now.after(PING_INTERVAL);
            server.ping().await?;
        }
        Ok(())
    }

    /// Writes new reports and deletes withdrawn ones.
    async fn write(&mut self, server: &mut ServerConnection, now: Timestamp) -> Result<(), ServerError> {
        let withdrawn = self.own.take_withdrawn();
        server.withdraw(&withdrawn).await?;
        let batch = self.own.take_pending(now);
        if batch.is_empty() {
            return Ok(());
        }
        match server.publish(&batch).await {
            Ok(receivers) => {
                self.receivers = u32::try_from(receivers).unwrap_or(u32::MAX);
                self.own.written(&batch, now);
                Ok(())
            }
            Err(error) => {
                self.own.put_back(&batch);
                Err(error)
            }
        }
    }

    /// Renews own keys on the server, and writes lost ones again.
    async fn upkeep(&mut self, server: &mut ServerConnection, now: Timestamp) -> Result<(), ServerError> {
        self.own.expire(now);
        let some = self.own.some_written(self.checked);
        self.checked = some.last().map(|key| key.target);
        let has = server.has(&some).await?;
        let lost: Vec<_> = some.into_iter().zip(has).filter_map(|(key, has)| (!has).then_some(key)).collect();
        self.own.renew(&lost, now);
        loop {
            let batch = self.own.renewals(now);
            if batch.is_empty() {
                return Ok(());
            }
            server.renew(&batch).await?;
            self.own.written(&batch, now);
        }
    }

    async fn scan_page(&mut self, server: &mut ServerConnection) -> Result<(), ServerError> {
        let spread = (self.hosts(), chance().unwrap_or_default());
        let page = self.relay.scan_page(server, &mut self.daemon, &mut self.scan, spread).await;
        if page.is_err() && !self.scan.is_broken_off() {
            self.scan.end(spread, boot_time());
        }
        page
    }

    fn request_scan(&mut self, now: Timestamp) {
        self.relay.authors.forget_sequences();
        self.scan.request((self.hosts(), chance().unwrap_or_default()), now);
    }

    async fn set_link(&mut self, link: LinkState) {
        self.link = link;
        self.heartbeat(boot_time()).await;
    }

    /// Reports the state of the connection to the daemon.
    async fn heartbeat(&mut self, now: Timestamp) {
        self.next.heartbeat = now.after(Duration::from_secs(LINK_INTERVAL_S));
        let request = FleetRequest::Link { state: self.link.clone(), ignored: self.relay.authors.ignored(now) };
        self.daemon.ask(&request).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_of_large_fleet_are_spread() {
        let millis = |backoff, hosts, chance| retry_delay(Duration::from_secs(backoff), hosts, chance).as_millis();
        assert_eq!([millis(1, 2, 0.0), millis(1, 2, 1.0)], [502, 1_506]);
        assert_eq!([millis(1, 10_000, 0.0), millis(1, 10_000, 1.0)], [10_500, 31_500]);
        assert_eq!([millis(60, 10_000, 0.0), millis(60, 10_000, 1.0)], [40_000, 120_000]);
    }
}
