//! Finds bans whose evidence no longer suffices because some of its ports belong to services of this host: clients
//! that asked for a service before it was known.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::oneshot::{self, Receiver};

use crate::engine::{Class, Host};
use crate::ledger::{Author, Banned, Recorder};
use crate::types::BanTarget;

/// A question to the ledger, which is asked when a service begins to be remembered or is served again.
#[derive(Default)]
pub(super) struct UnfoundedBans(Option<Receiver<Vec<BanTarget>>>);

impl UnfoundedBans {
    /// Asks which bans would not have been made with the services of `host`, `forgiven` ports being forgiven.
    pub(super) fn ask(&mut self, recorder: &Recorder, host: Arc<Host>, forgiven: u8) {
        let (sent, answer) = oneshot::channel();
        let asked = recorder.ask(move |ledger| {
            // What cannot be read now is looked at when the next service comes up.
            let active = ledger.active(SystemTime::now()).map(|found| found.items).unwrap_or_default();
            let bans = active.into_iter().map(|entry| entry.ban);
            let unfounded = bans.filter(|ban| is_unfounded(ban, &host, forgiven)).map(|ban| ban.subject).collect();
            let _ = sent.send(unfounded);
        });
        if asked {
            self.0 = Some(answer);
        }
    }

    /// The bans to lift, once the ledger has answered.
    pub(super) fn take(&mut self) -> Vec<BanTarget> {
        let answered = self.0.as_mut().map(Receiver::try_recv);
        match answered {
            None | Some(Err(oneshot::error::TryRecvError::Empty)) => Vec::new(),
            Some(answer) => {
                self.0 = None;
                answer.unwrap_or_default()
            }
        }
    }
}

/// True where too little is left of the evidence. Flags that no stack sends, and handshakes with decoys, need no number of
/// ports, and the evidence of a prefix is that of several bans.
fn is_unfounded(ban: &Banned, host: &Host, forgiven: u8) -> bool {
    let counts = ban.class.is_some_and(|class| !class.is_conclusive() && class != Class::Connect);
    let single = !matches!(ban.subject, BanTarget::Prefix(_));
    let is_service = |(protocol, port): &(_, u16)| host.services.ports(*protocol).contains(*port);
    let left = ban.ports.iter().filter(|port| !is_service(port)).count();
    ban.author == Author::Detector && counts && single && left < ban.ports.len() && left <= usize::from(forgiven)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Ban, Local, Service};
    use crate::types::{Backend, Protocol};

    #[test]
    fn ban_needs_more_ports_than_services() {
        let mut host = Host::new(Local::Any);
        let service = |port| Service { protocol: Protocol::Tcp, port, address: [0; 4].into() };
        host.services = [80, 443].map(service).into_iter().collect();
        let ban = |class, ports: &[u16]| Banned {
            class: Some(class),
            ports: ports.iter().map(|port| (Protocol::Tcp, *port)).collect(),
            ..Banned::from_ban(&Ban::example(), SystemTime::UNIX_EPOCH, None, Backend::Nft)
        };
        assert!(is_unfounded(&ban(Class::Syn, &[80, 443, 23]), &host, 2));
        assert!(is_unfounded(&ban(Class::Syn, &[80, 23, 25]), &host, 2));
        assert!(!is_unfounded(&ban(Class::Syn, &[80, 23, 25, 26]), &host, 2), "three are left");
        assert!(!is_unfounded(&ban(Class::Syn, &[21, 23, 25]), &host, 2), "no service is among them");
        assert!(!is_unfounded(&ban(Class::Syn, &[23]), &host, 2), "banned with another threshold");
        assert!(!is_unfounded(&ban(Class::Xmas, &[80]), &host, 2));
        assert!(!is_unfounded(&ban(Class::Connect, &[80, 443, 23]), &host, 2));
        let operator = Banned { author: Author::Operator, ..ban(Class::Syn, &[80, 443, 23]) };
        assert!(!is_unfounded(&operator, &host, 2), "a ban by hand stays");
    }
}
