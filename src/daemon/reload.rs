//! New settings for a running daemon, whole or not at all: what can be taken over is, the rest waits for a restart and is
//! named.

use super::backends::ruleset;
use super::event_loop::EventLoop;
use super::{sandbox_policy, systemd};
use crate::config::{Config, Mode};
use crate::control::protocol::{Answer, ErrorKind, Failure, Reloaded, Reply};
use crate::events::event::EventKind;
use crate::sensor::SensorCommand;

impl EventLoop {
    /// Reads the settings again, because `by` wants it.
    pub(super) async fn reload(&mut self, by: &str) -> Reply {
        systemd::reloading();
        let reply = self.take_over(by).await;
        if let Err(error) = &reply {
            self.say(EventKind::Error(format!("the settings stay as they were: {error}")));
        }
        systemd::ready("watching");
        reply
    }

    async fn take_over(&mut self, by: &str) -> Reply {
        let wanted = (self.reread)().map_err(wrong)?;
        sandbox_policy::trusted(&wanted, &self.settings).map_err(wrong)?;
        if let Some(error) = sandbox_policy::out_of_reach(&wanted, &self.sandbox) {
            return Err(wrong(error));
        }
        let changed = changes(&self.config, &wanted);
        let needs_restart: Vec<&str> = needs_restart(&self.config, &wanted);
        let config = with_old(&self.config, wanted);
        let orders = self.watch.reconfigure(&config).await.map_err(wrong)?;
        // The settings before the host: a port that is watched from now on must not be judged by the old list.
        self.deliver(SensorCommand::Settings(Box::new(super::settings(&config))));
        orders.into_iter().for_each(|order| self.deliver(order));
        if ruleset(&config) != ruleset(&self.config) {
            self.deliver(SensorCommand::Ruleset(ruleset(&config)));
        }
        self.log.reconfigure(&config.report);
        self.config = config;
        if self.logs_only {
            self.deliver(SensorCommand::LogOnly);
        }
        let said = match (changed.as_slice(), needs_restart.as_slice()) {
            ([], _) => format!("{by}: the settings were read again; nothing has changed"),
            (changed, []) => format!("{by}: new settings are in force: {}", changed.join(", ")),
            (changed, restart) => format!(
                "{by}: new settings are in force: {}; these take a restart: {}",
                changed.join(", "),
                restart.join(", ")
            ),
        };
        self.say(EventKind::Note(said));
        let [changed, needs_restart] =
            [changed, needs_restart].map(|keys| keys.into_iter().map(str::to_owned).collect());
        Ok(Answer::Reloaded(Reloaded { changed, needs_restart }))
    }
}

fn wrong(error: impl ToString) -> Failure {
    Failure::new(ErrorKind::Configuration, error)
}

/// What differs, by the names of sections and keys.
fn changes(old: &Config, new: &Config) -> Vec<&'static str> {
    let differ = [
        ("expire", old.expire != new.expire),
        ("interfaces", old.interfaces != new.interfaces),
        ("tcp", old.tcp != new.tcp),
        ("udp", old.udp != new.udp),
        ("detect", old.detect != new.detect),
        ("allow", old.allow != new.allow),
        ("block", old.block != new.block),
        ("escalate", old.escalate != new.escalate),
        ("trap", old.trap != new.trap),
        ("metrics", old.metrics != new.metrics),
        ("report", old.report != new.report),
    ];
    differ.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

/// What differs and cannot be changed while it runs: sizes of tables, sockets that are open, and who blocks.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let connect = |config: &Config| {
        let decoys = |protocol: &crate::config::Protocol| {
            (protocol.mode == Mode::Connect).then(|| (protocol.watched(), protocol.port_banner.clone()))
        };
        (decoys(&config.tcp), decoys(&config.udp))
    };
    let blocks = |config: &Config| [config.tcp.block, config.udp.block];
    let widest = |config: &Config| [config.block.widest_ipv4, config.block.widest_ipv6];
    let differ = [
        ("tcp, udp: connect mode", connect(old) != connect(new)),
        ("tcp.block, udp.block", blocks(old) != blocks(new)),
        ("detect.max_sources", old.detect.max_sources != new.detect.max_sources),
        ("block.method", old.block.method != new.block.method),
        ("block.widest_ipv4, block.widest_ipv6", widest(old) != widest(new)),
        ("block.nft.size", old.block.nft.size != new.block.nft.size),
        ("block.route", old.block.route != new.block.route),
        ("block.hosts_deny", old.block.hosts_deny != new.block.hosts_deny),
        ("block.run", old.block.run != new.block.run),
        ("metrics.listen", old.metrics.listen != new.metrics.listen),
        ("report.log", old.report.log != new.report.log),
    ];
    differ.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

/// The new settings, with the old ones where only a restart can change them.
fn with_old(old: &Config, mut new: Config) -> Config {
    for (old, new) in [(&old.tcp, &mut new.tcp), (&old.udp, &mut new.udp)] {
        new.block = old.block;
        if (old.mode == Mode::Connect) != (new.mode == Mode::Connect) {
            *new = old.clone();
        } else if old.mode == Mode::Connect {
            new.ports.clone_from(&old.ports);
            new.port_banner.clone_from(&old.port_banner);
        }
    }
    new.detect.max_sources = old.detect.max_sources;
    new.block.method.clone_from(&old.block.method);
    (new.block.widest_ipv4, new.block.widest_ipv6) = (old.block.widest_ipv4, old.block.widest_ipv6);
    new.block.nft.size = old.block.nft.size;
    new.block.route = old.block.route;
    new.block.hosts_deny.clone_from(&old.block.hosts_deny);
    new.block.run.clone_from(&old.block.run);
    new.metrics.listen = old.metrics.listen;
    new.report.log = old.report.log;
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("test", text).unwrap()
    }

    #[test]
    fn what_cannot_be_changed_stays_and_is_named() {
        let (old, new) = (config(""), config("expire = \"1h\"\n[block.nft]\nsize = 7\n[tcp]\nmode = \"connect\""));
        assert_eq!(changes(&old, &new), ["expire", "tcp", "block"]);
        assert_eq!(needs_restart(&old, &new), ["tcp, udp: connect mode", "block.nft.size"]);
        let mixed = with_old(&old, new);
        assert_eq!((mixed.block.nft.size, mixed.tcp.mode), (131_072, Mode::Advanced));
        assert_eq!(mixed.expire.to_string(), "1h");
    }

    #[test]
    fn what_needs_no_restart_is_taken_over_whole() {
        let old = config("");
        let new =
            config("[tcp]\nmode = \"stealth\"\n[detect]\nscan_trigger = 0\n[allow]\nnetworks = [\"192.0.2.0/24\"]");
        assert!(needs_restart(&old, &new).is_empty());
        assert_eq!(with_old(&old, new.clone()), new);
    }
}
