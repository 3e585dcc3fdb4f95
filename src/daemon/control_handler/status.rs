//! What the daemon is and does to the answer of `status`, and to the figures for whoever fetches them.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::super::command_helper::Commands;
use super::super::event_loop::EventLoop;
use super::{fields, of_sensor};
use crate::config::{BlockPolicy, Mode, Protocol};
use crate::control::protocol::Reply;
use crate::enforce::nft::Nft;
use crate::events::json::rfc3339;
use crate::metrics::{self, Snapshot};
use crate::sandbox::Sandbox;
use crate::sensor::{SensorCommand, SensorRequest};
use crate::types::{Backend, PortSet};

/// Bans up to which the kernel's own are counted for `status`: some 20 ms. The time grows with the square.
const COUNTED: usize = 20_000;

impl EventLoop {
    /// Gives out the figures, as soon as the sensor has counted its bans.
    pub(in crate::daemon) fn scrape(&mut self, place: oneshot::Sender<String>) {
        let since = self.desk.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let uses_nft = self.config.block.method.contains(&Backend::Nft) && self.enforces();
        let snapshot = Snapshot {
            started: since.as_secs_f64(),
            capacity: uses_nft.then(|| self.config.block.nft.size.into()),
            events_lost: self.desk.lost,
            allowed: self.watch.host().allow.prefixes().count() as u64,
            ..Snapshot::default()
        };
        let (sent, counted) = oneshot::channel();
        self.deliver(SensorCommand::Request(SensorRequest::Count { answer: sent }));
        let metrics = Arc::clone(self.desk.metrics());
        tokio::spawn(async move {
            if let Ok(intended) = counted.await {
                let snapshot = Snapshot { intended: intended as u64, ..snapshot };
                let _ = place.send(metrics::text(&metrics, snapshot));
            }
        });
    }

    pub(super) fn status(&mut self, answer: oneshot::Sender<Reply>) {
        let host = self.watch.host();
        let metrics = self.desk.metrics();
        let mut told = fields(json!({
            "running": true,
            "version": env!("CARGO_PKG_VERSION"),
            "process": std::process::id(),
            "since": rfc3339(self.desk.started),
            "uptime_s": self.desk.since.elapsed().as_secs(),
            "state": if !self.enforces() { "only logging" } else if self.trial.is_some() { "on trial" } else { "blocking" },
            "trial_left_s": self.trial.map(|until| until.saturating_duration_since(Instant::now()).as_secs()),
            "expire": self.config.expire.to_string(),
            "methods": self.config.block.method.iter().map(|method| method.name()).collect::<Vec<_>>(),
            "interfaces": self.config.interfaces,
            "tcp": watched(&self.config.tcp, &host.tcp.everywhere()),
            "udp": watched(&self.config.udp, &host.udp.everywhere()),
            "packets": {
                "seen": metrics.frames.get(),
                "dropped": metrics.dropped.get(),
                "malformed": metrics.undecoded.get(),
                "from_judged": metrics.repeated.get(),
                "connections": metrics.connections.get(),
            },
            "probes": metrics.probes.get(),
            "sources_tracked": metrics.suspects.get(),
            "bans": {
                "intended": null,
                "enforced": null,
                "made": metrics.bans(),
                "failed": Backend::ALL.iter().map(|way| metrics.failed_by(*way)).sum::<u64>(),
                "capped": metrics.capped.get(),
                "repaired": metrics.put_back(),
            },
            "trap": {
                "ports": metrics.trapped.get(),
                "udp_ports": metrics.trapped_udp.get(),
                "condemned": metrics.trap_caught.get(),
                "let_go": metrics.trap_let_go.get(),
            },
            "allowed": host.allow.prefixes().count(),
            "ledger": self.state_dir.display().to_string(),
            "sandbox": sandbox(&self.sandbox),
            "commands": self.commands.as_ref().map(Commands::told),
            "last_event": self.desk.last.as_ref().map(crate::events::json::of),
        }));
        let (sent, counted) = oneshot::channel();
        self.deliver(SensorCommand::Request(SensorRequest::Count { answer: sent }));
        let in_kernel = self.config.block.method.contains(&Backend::Nft) && self.enforces();
        tokio::spawn(async move {
            let intended = match of_sensor(counted).await {
                Ok(intended) => intended,
                Err(reply) => return drop(answer.send(reply)),
            };
            let enforced = match in_kernel && intended <= COUNTED {
                true => {
                    tokio::task::spawn_blocking(|| Some(Nft::open().ok()?.elements().ok()?.len())).await.ok().flatten()
                }
                false => None,
            };
            if let Some(Value::Object(bans)) = told.get_mut("bans") {
                bans.insert("intended".to_owned(), intended.into());
                bans.insert("enforced".to_owned(), enforced.into());
            }
            let _ = answer.send(Reply::Done(told));
        });
    }
}

/// What the program has given up.
pub(in crate::daemon) fn sandbox(now: &Sandbox) -> Value {
    json!({
        "user": now.user,
        "uid": now.uid,
        "capabilities": now.capabilities.names(),
        "no_new_privs": now.no_new_privs,
        "landlock_abi": now.landlock,
        "seccomp": now.seccomp.name(),
        "core_dumps": now.core_dumps,
    })
}

fn watched(protocol: &Protocol, in_use: &PortSet) -> Value {
    let mode = match protocol.mode {
        Mode::Off => "off",
        Mode::Connect => "connect",
        Mode::Stealth => "stealth",
        Mode::Advanced => "advanced",
    };
    let block = match protocol.block {
        BlockPolicy::Yes => "yes",
        BlockPolicy::No => "only logged",
        BlockPolicy::Run => "run",
    };
    let wanted = protocol.watched();
    let watched = wanted.without(in_use);
    json!({
        "mode": mode,
        "block": block,
        "ports": watched.to_string(),
        "count": watched.iter().count(),
        "left_out": wanted.without(&watched).to_string(),
    })
}
