//! Owns the configuration in force, and reads it again. Keys that cannot change while the daemon runs keep their values
//! until a restart and are reported.

use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigErrors, Mode, ProtocolConfig, pitfalls};
use crate::control::protocol::Reloaded;
use crate::engine::Host;
use crate::import::classic_only_logs;
use crate::sandbox::Sandbox;

/// Reads the configuration again, including command-line flags.
pub type Reread = Box<dyn Fn() -> Result<Config, ConfigErrors> + Send>;

pub(super) struct ConfigSource {
    /// The configuration in force.
    pub(super) current: Config,
    /// Path of the configuration file, which may not exist.
    pub(super) path: PathBuf,
    pub(super) reread: Reread,
}

impl ConfigSource {
    /// Reads the configuration again; returns the one that can replace the current one. `can_notify` is true if the
    /// command helper can send digests.
    ///
    /// # Errors
    /// Why the current configuration must be kept.
    pub(super) fn read(&self, sandbox: &Sandbox, can_notify: bool) -> Result<(Config, Reloaded), String> {
        let mut config = (self.reread)().map_err(|errors| errors.to_string())?;
        config.check_ownership(&self.path).map_err(|error| error.to_string())?;
        out_of_reach(&self.current, &config, sandbox).map_or(Ok(()), Err)?;
        let changed = changes(&self.current, &config);
        let mut needs_restart = keep_until_restart(&self.current, &mut config);
        if config.notifies() && !can_notify {
            config.notify.command.clear();
            needs_restart.push("notify.command");
        }
        let [changed, needs_restart] =
            [changed, needs_restart].map(|keys| keys.into_iter().map(str::to_owned).collect());
        Ok((config, Reloaded { changed, needs_restart }))
    }
}

pub(super) fn summary(reloaded: &Reloaded) -> String {
    let what = match reloaded.changed.is_empty() {
        true => "the configuration was reloaded",
        false => "the new configuration is in force",
    };
    format!("{what}; {}", reloaded.details().unwrap_or_else(|| "nothing has changed".to_owned()))
}

/// Warnings about configuration keys that have no effect on this host.
pub(super) fn warnings(config: &Config, path: &Path, host: &Host) -> Vec<String> {
    let (tcp, udp) = (host.tcp.everywhere(), host.udp.everywhere());
    let classic = path.parent().and_then(|directory| classic_only_logs(config, directory));
    let found = pitfalls(config, &tcp, &udp, &host.ephemeral).into_iter().chain(classic);
    found.map(|warning| warning.to_string()).collect()
}

/// Returns an error text if `config` names a file that the sandbox has made inaccessible since the start.
fn out_of_reach(old: &Config, config: &Config, sandbox: &Sandbox) -> Option<String> {
    let read = config.allow.files.iter().map(|path| ("allow.files", path, false));
    // An unchanged file may be opened by a helper.
    let written = config.report.json_file.iter().filter(|path| old.report.json_file.as_ref() != Some(path));
    let written = written.map(|path| ("report.json_file", path, true));
    let closed = |(key, path, write): (_, &PathBuf, _)| Some((key, sandbox.out_of_reach(path, write)?));
    read.chain(written).find_map(closed).map(|(key, why)| format!("{key}: {why}"))
}

/// The sections and keys that differ.
fn changes(old: &Config, new: &Config) -> Vec<&'static str> {
    macro_rules! differing {
        ($($field:ident),*) => { [$((stringify!($field), old.$field != new.$field)),*] };
    }
    let all = differing!(
        expire, interfaces, nat64, tcp, udp, detect, allow, block, escalate, trap, metrics, report, fleet, notify
    );
    all.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

/// Restores the old values of keys in `new` that cannot change while the daemon runs: table sizes, open sockets,
/// backends. Returns the keys that differed.
fn keep_until_restart(old: &Config, new: &mut Config) -> Vec<&'static str> {
    let decoys = |protocol: &ProtocolConfig| {
        (protocol.mode == Mode::Connect).then(|| (protocol.monitored(), protocol.port_banner.clone()))
    };
    let mut kept = Vec::new();
    if [decoys(&old.tcp), decoys(&old.udp)] != [decoys(&new.tcp), decoys(&new.udp)] {
        kept.push("tcp, udp: connect mode");
    }
    macro_rules! keep {
        ($($name:literal: $($section:ident).+;)*) => { $(
            if old.$($section).+ != new.$($section).+ {
                new.$($section).+.clone_from(&old.$($section).+);
                kept.push($name);
            }
        )* };
    }
    keep! {
        "nat64": nat64;
        "tcp.block, udp.block": tcp.block;
        "tcp.block, udp.block": udp.block;
        "detect.max_sources": detect.max_sources;
        "block.method": block.method;
        "block.widest_ipv4, block.widest_ipv6": block.widest_ipv4;
        "block.widest_ipv4, block.widest_ipv6": block.widest_ipv6;
        "block.nft.size": block.nft.size;
        "block.route": block.route;
        "block.hosts_deny": block.hosts_deny;
        "block.run": block.run;
        "metrics.listen": metrics.listen;
        "report.log": report.log;
        "report.facility": report.facility;
        "fleet.url": fleet.url;
        "fleet.socket": fleet.socket;
        "fleet.accept.size": fleet.accept.size;
    }
    kept.dedup();
    for (old, new) in [(&old.tcp, &mut new.tcp), (&old.udp, &mut new.udp)] {
        if (old.mode == Mode::Connect) != (new.mode == Mode::Connect) {
            *new = old.clone();
        } else if old.mode == Mode::Connect {
            new.ports.clone_from(&old.ports);
            new.port_banner.clone_from(&old.port_banner);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("test", text).unwrap()
    }

    #[test]
    fn unchangeable_key_stays_and_is_named() {
        let (old, new) = (config(""), config("expire = \"1h\"\n[block.nft]\nsize = 7\n[tcp]\nmode = \"connect\""));
        assert_eq!(changes(&old, &new), ["expire", "tcp", "block"]);
        let mut mixed = new;
        assert_eq!(keep_until_restart(&old, &mut mixed), ["tcp, udp: connect mode", "block.nft.size"]);
        assert_eq!((mixed.block.nft.size, mixed.tcp.mode), (131_072, Mode::Advanced));
        assert_eq!(mixed.expire.to_string(), "1h");
    }

    #[test]
    fn manual_lists_keys_that_need_restart() {
        let other = "nat64 = [\"2001:db8:64::/96\"]\n[tcp]\nmode = \"connect\"\nblock = false\n[udp]\nblock = true\n[detect]\nmax_sources = 2048\n[block]\n\
            method = [\"route\", \"nft\"]\nwidest_ipv4 = 24\n[block.nft]\nsize = 7\n[block.route]\nkind = \"prohibit\"\n\
            [block.hosts_deny]\nfile = \"/tmp/x\"\n[block.run]\nfirst = true\n[metrics]\nlisten = \"127.0.0.1:1\"\n\
            [report]\nlog = \"stderr\"\nfacility = \"local0\"\n\
            [fleet]\nurl = \"unix:///a\"\nhost = \"a\"\nsocket = \"/b\"\n[fleet.accept]\nsize = 1\n";
        let manual = include_str!("../../docs/configuration.md");
        let list = manual.split("\n## ").find(|section| section.starts_with("Reload\n")).unwrap();
        let unchanged = keep_until_restart(&config(""), &mut config(other));
        assert_eq!(unchanged.len(), 16, "each key is changed: {unchanged:?}");
        for key in unchanged.iter().filter(|keys| !keys.contains(':')).flat_map(|keys| keys.split(", ")) {
            assert!(list.contains(&format!("`{key}`")), "{key} is missing in docs/configuration.md");
        }
    }

    #[test]
    fn reloadable_keys_are_applied() {
        let old = config("");
        let new =
            config("[tcp]\nmode = \"stealth\"\n[detect]\nscan_trigger = 0\n[allow]\nnetworks = [\"192.0.2.0/24\"]");
        let mut mixed = new.clone();
        assert!(keep_until_restart(&old, &mut mixed).is_empty());
        assert_eq!(mixed, new);
    }
}
