//! One address to all that is known about it: by the sensor, and by the ledger.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::super::event_loop::EventLoop;
use super::{Fields, fields, of_sensor, usage};
use crate::control::protocol::Reply;
use crate::engine::{Explanation, Suspicion};
use crate::events::json::rfc3339;
use crate::ledger::{Ending, Entry, Recorder};
use crate::sensor::{SensorCommand, SensorRequest};
use crate::types::{BanTarget, Expiry};

/// Past bans of an address that `explain` tells.
const TOLD: usize = 20;

impl EventLoop {
    pub(super) fn explain(&mut self, answer: oneshot::Sender<Reply>, address: &str) {
        let Ok(address) = address.parse::<IpAddr>() else {
            return drop(answer.send(usage(format!("{address:?} is not an address; write for example \"192.0.2.7\""))));
        };
        let (sent, known) = oneshot::channel();
        self.deliver(SensorCommand::Request(SensorRequest::Explain { address, answer: sent }));
        let recorder = self.record.recorder();
        tokio::spawn(async move {
            let explanation = match of_sensor(known).await {
                Ok(explanation) => explanation,
                Err(reply) => return drop(answer.send(reply)),
            };
            let mut told = explained(address, &explanation);
            let past = match recorder {
                Some(recorder) => past(&recorder, &explanation).await,
                // A host that only logs has no ledger.
                None => None,
            };
            told.insert("bans".to_owned(), past.as_ref().map(Vec::len).into());
            let bans = past.map(|past| past.iter().rev().take(TOLD).map(entry).collect::<Vec<_>>());
            told.insert("history".to_owned(), bans.into());
            let _ = answer.send(Reply::Done(told));
        });
    }
}

/// Everything about an address, for a person and for a program.
fn explained(address: IpAddr, known: &Explanation) -> Fields {
    let suspicion = |suspicion: &Suspicion| {
        let ports: Vec<Value> = suspicion
            .ports
            .iter()
            .map(|(protocol, port, class)| json!({"proto": protocol.key(), "port": port, "class": class.key()}))
            .collect();
        json!({
            "blocks": suspicion.blocks,
            "distinct_ports": suspicion.distinct,
            "forgiven": suspicion.forgiven,
            "probes": suspicion.probes,
            "last_s_ago": suspicion.silent.as_secs(),
            "ports": ports,
        })
    };
    let left = |expiry: Expiry| match expiry {
        Expiry::Never => json!({"left": "for ever"}),
        Expiry::After(span) => {
            let whole = Duration::from_secs(span.as_secs());
            let left = humantime::format_duration(whole).to_string();
            json!({"left": left, "left_s": whole.as_secs(), "until": rfc3339(SystemTime::now() + span)})
        }
    };
    fields(json!({
        "address": address.to_string(),
        "subject": known.subject.to_string(),
        "protected": known.protection.map(|protection| protection.to_string()),
        "blocked": known.blocked.map(|expiry| {
            let mut state = left(expiry);
            if let (Some(fields), Some(network)) = (state.as_object_mut(), known.network) {
                fields.insert("network".to_owned(), network.to_string().into());
            }
            state
        }),
        "logged": known.logged.map(left),
        "strikes": known.strikes,
        "suspected": known.suspicions.iter().flatten().map(suspicion).collect::<Vec<_>>(),
    }))
}

/// One past or present ban.
fn entry(entry: &Entry) -> Value {
    let ban = &entry.ban;
    let ended = entry.ended.as_ref().map(|ended| {
        let how = match &ended.how {
            Ending::Expired => "expired".to_owned(),
            Ending::Replaced => "replaced by another".to_owned(),
            Ending::Lifted { by } => format!("lifted by {by}"),
        };
        json!({"at": rfc3339(ended.at), "how": how})
    });
    json!({
        "subject": ban.subject.to_string(),
        "since": rfc3339(ban.since),
        "until": ban.until.map(rfc3339),
        "class": ban.class.map(|class| class.key()),
        "ports": ban.ports.iter().map(|(protocol, port)| format!("{}/{port}", protocol.key())).collect::<Vec<_>>(),
        "probes": ban.probes,
        "method": ban.methods.to_string(),
        "by": crate::ledger::author_key(ban.author),
        "note": ban.note,
        "strikes": entry.strikes,
        "ended": ended,
    })
}

/// The bans of an address, and of the network by which it is blocked, the oldest first.
async fn past(recorder: &Recorder, known: &Explanation) -> Option<Vec<Entry>> {
    let mut past = history(recorder, known.subject).await?;
    if let Some(network) = known.network {
        past.extend(history(recorder, network).await?);
        past.sort_by_key(|entry| entry.ban.since);
    }
    Some(past)
}

/// All that the ledger has about `subject`; `None` where it cannot be read.
async fn history(recorder: &Recorder, subject: BanTarget) -> Option<Vec<Entry>> {
    let (sent, read) = oneshot::channel();
    recorder.ask(move |ledger| drop(sent.send(ledger.of(subject)))).then_some(())?;
    Some(read.await.ok()?.ok()?.items)
}
