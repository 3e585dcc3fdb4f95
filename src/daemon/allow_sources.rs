//! Combines everything that the operator allows: networks of the configuration, ignore files, names, allowances at
//! run time, and forced bans.

use std::time::{Instant, SystemTime};

use ipnet::IpNet;

use super::allow_names::AllowNames;
use super::allowances::Allowances;
use super::ignore_files::IgnoreFiles;
use crate::config::{Allow, ConfigErrors};
use crate::control::protocol::AllowedEntry;
use crate::engine::{AllowList, Protection};
use crate::events::event::EventKind;

pub(super) struct AllowSources {
    configured: Allow,
    files: IgnoreFiles,
    names: AllowNames,
    by_hand: Allowances,
    /// What is to be reported once the snapshot shows it.
    messages: Vec<EventKind>,
}

impl AllowSources {
    /// Reads the files, and begins to look up the names without waiting: a name server that is down must not delay the start.
    ///
    /// # Errors
    /// All that is wrong with the files.
    pub(super) fn open(allow: &Allow) -> Result<Self, ConfigErrors> {
        let files = IgnoreFiles::open(allow)?;
        let (names, by_hand) = (look_up(allow), Allowances::default());
        Ok(Self { configured: allow.clone(), files, names, by_hand, messages: Vec::new() })
    }

    /// Goes on with another configuration.
    ///
    /// # Errors
    /// As [`AllowSources::open`]; then the old one holds.
    pub(super) fn reconfigure(&mut self, allow: &Allow) -> Result<(), ConfigErrors> {
        self.files = IgnoreFiles::open(allow)?;
        if allow.names != self.configured.names {
            self.names = look_up(allow);
        }
        self.configured = allow.clone();
        Ok(())
    }

    /// What is allowed, each with why.
    pub(super) fn networks(&self) -> Vec<(IpNet, Protection)> {
        let listed = self.configured.networks.iter().copied();
        let listed = listed.chain(self.files.networks()).chain(self.by_hand.allowed());
        let named = self.names.addresses().map(|address| (IpNet::from(address), Protection::Named));
        listed.map(|network| (network, Protection::Listed)).chain(named).collect()
    }

    /// Takes out of `allow` what an operator has blocked although it is protected.
    pub(super) fn apply_forced(&self, allow: &mut AllowList) {
        self.by_hand.forced().for_each(|network| allow.except(network));
    }

    /// What operators have allowed and forced.
    pub(super) fn by_hand(&mut self) -> &mut Allowances {
        &mut self.by_hand
    }

    /// What is allowed, for people: by hand, by `allow.networks`, by `allow.files` and by `allow.names`.
    pub(super) fn entries(&self) -> Vec<AllowedEntry> {
        let by_hand = self.by_hand.listed((Instant::now(), SystemTime::now())).map(|one| AllowedEntry::from(&one));
        let of = |source: &'static str| move |network: IpNet| AllowedEntry::configured(network, source);
        let networks = self.configured.networks.iter().copied().map(of("allow.networks"));
        let names = self.names.addresses().map(IpNet::from).map(of("allow.names"));
        by_hand.chain(networks).chain(self.files.networks().map(of("allow.files"))).chain(names).collect()
    }

    /// Reads files that changed, has names looked up and drops what is over; true where something changed.
    pub(super) fn tick(&mut self, now: Instant, resolvers_changed: bool) -> bool {
        // All of them are asked: each remembers what it has seen.
        let names = self.names.tick(now, resolvers_changed);
        let (files, messages) = self.files.tick();
        self.messages.extend(messages);
        self.messages.extend(self.names.take_messages());
        let (over, expired) = self.by_hand.expire(now);
        let over = over.into_iter().map(|network| {
            EventKind::Note(format!("{network} is allowed no longer: the time of its allowance is over"))
        });
        self.messages.extend(over);
        expired || names || files
    }

    /// Waits until a name has been looked up; true where its addresses changed. Safe to cancel.
    pub(super) async fn name_answered(&mut self) -> bool {
        let changed = self.names.answered().await;
        self.messages.extend(self.names.take_messages());
        changed
    }

    pub(super) fn take_messages(&mut self) -> Vec<EventKind> {
        std::mem::take(&mut self.messages)
    }
}

fn look_up(allow: &Allow) -> AllowNames {
    let now = Instant::now();
    let mut names = AllowNames::new(&allow.names, now);
    names.tick(now, false);
    names
}
