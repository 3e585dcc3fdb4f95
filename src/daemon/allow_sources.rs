//! Combines all sources of allowed addresses: networks of the configuration, ignore files, names, temporary allowances,
//! and exceptions for forced bans.

use std::mem::replace;
use std::time::Instant;

use ipnet::IpNet;

use super::allow_names::AllowNames;
use super::allowances::{Allowances, now};
use super::ignore_files::IgnoreFiles;
use crate::config::{Allow, ConfigErrors};
use crate::control::protocol::AllowedEntry;
use crate::engine::{Host, Protection};
use crate::events::event::EventKind;
use crate::host::lookup::resolve;

pub(super) struct AllowSources {
    configured: Allow,
    files: IgnoreFiles,
    names: AllowNames,
    /// Allowances and forced bans of operators.
    pub(super) overrides: Allowances,
    /// Events to report once the snapshot contains the change.
    pub(super) messages: Vec<EventKind>,
}

/// What [`AllowSources::reconfigure`] has replaced.
pub(super) struct Replaced {
    configured: Allow,
    files: IgnoreFiles,
    /// `None` if the names are the same.
    names: Option<AllowNames>,
}

impl AllowSources {
    /// Reads the files, and starts the look-ups of the names without waiting, so that an unreachable name server does
    /// not delay the start.
    ///
    /// # Errors
    /// All errors in the files.
    pub(super) fn open(allow: &Allow) -> Result<Self, ConfigErrors> {
        let files = IgnoreFiles::open(allow)?;
        let (names, overrides) = (look_up(allow), Allowances::default());
        Ok(Self { configured: allow.clone(), files, names, overrides, messages: Vec::new() })
    }

    /// Applies another configuration; returns what it replaces.
    ///
    /// # Errors
    /// As for [`AllowSources::open`]; the old configuration then stays in force.
    pub(super) fn reconfigure(&mut self, allow: &Allow) -> Result<Replaced, ConfigErrors> {
        let files = replace(&mut self.files, IgnoreFiles::open(allow)?);
        let has_other_names = allow.names != self.configured.names;
        let names = has_other_names.then(|| replace(&mut self.names, look_up(allow)));
        Ok(Replaced { configured: replace(&mut self.configured, allow.clone()), files, names })
    }

    /// Undoes [`AllowSources::reconfigure`].
    pub(super) fn restore(&mut self, Replaced { configured, files, names }: Replaced) {
        self.configured = configured;
        self.files = files;
        if let Some(names) = names {
            self.names = names;
        }
    }

    /// The allowed networks, each with its reason.
    pub(super) fn networks(&self) -> Vec<(IpNet, Protection)> {
        let listed = self.configured.networks.iter().copied();
        let listed = listed.chain(self.files.networks()).chain(self.overrides.allowed());
        let named = self.names.addresses().map(|address| (IpNet::from(address), Protection::Named));
        listed.map(|network| (network, Protection::Listed)).chain(named).collect()
    }

    /// The allowed networks for display: by operators, by `allow.networks`, by `allow.files` and by `allow.names`.
    pub(super) fn entries(&self) -> Vec<AllowedEntry> {
        let overrides = self.overrides.listed(now()).map(AllowedEntry::from);
        let of =
            |key: &'static str| move |network| AllowedEntry { network, by: key.to_owned(), since: None, until: None };
        let networks = self.configured.networks.iter().copied().map(of("allow.networks"));
        let names = self.names.addresses().map(IpNet::from).map(of("allow.names"));
        overrides.chain(networks).chain(self.files.networks().map(of("allow.files"))).chain(names).collect()
    }

    /// Reads changed files, starts name look-ups and drops expired allowances; true if anything changed.
    pub(super) fn tick(&mut self, now: Instant, resolvers_changed: bool) -> bool {
        // All of them are polled, because each keeps its own state.
        let (files, messages) = self.files.tick();
        self.messages.extend(messages);
        let names = self.names.tick(now, resolvers_changed, &mut self.messages);
        let (over, expired) = self.overrides.expire(now);
        let over = over.into_iter().map(|network| EventKind::Note(format!("the allowance of {network} has expired")));
        self.messages.extend(over);
        expired || names || files
    }

    /// Waits until a name has been looked up; true if its addresses changed. Cancel safe.
    pub(super) async fn name_answered(&mut self) -> bool {
        self.names.answered(&mut self.messages).await
    }
}

/// Returns a protected prefix that overlaps `target`; of several, the one with the strictest protection, which
/// `--force` can override least.
pub(super) fn protected(host: &Host, target: IpNet) -> Option<(IpNet, Protection)> {
    let touches = |network: &IpNet| target.contains(network) || network.contains(&target);
    let touched = host.allow.networks().filter(touches);
    touched.filter_map(|network| Some((network, host.allow.covers(network)?))).min_by_key(|(_, why)| *why)
}

fn look_up(allow: &Allow) -> AllowNames {
    let now = Instant::now();
    let mut names = AllowNames::new(&allow.names, now, resolve);
    names.tick(now, false, &mut Vec::new());
    names
}
