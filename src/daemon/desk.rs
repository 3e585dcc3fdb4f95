//! Requests of operators to answers: what can be said at once is, what the sensor knows it is asked for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::shell::Shell;
use super::spawner::Commands;
use crate::config::{BlockPolicy, Method, Mode, Protocol, parse_expiry, parse_network};
use crate::control::protocol::{Refusal, Reply, Request};
use crate::control::server::{Asked, Peer};
use crate::enforce::nft::Nft;
use crate::engine::ports::PortSet;
use crate::engine::subject::{Expiry, Subject};
use crate::engine::{Explanation, Host, Protection, Suspicion};
use crate::ledger::{Ending, Entry, Recorder};
use crate::metrics::{self, Snapshot};
use crate::report::event::{Event, Way, What};
use crate::report::json::rfc3339;
use crate::sandbox::Sandbox;
use crate::sensor::{Figures, Order, Wish};

/// Bans up to which the kernel's own are counted for `status`: some 20 ms. The time grows with the square.
const COUNTED: usize = 20_000;

/// Past bans of an address that `explain` tells.
const TOLD: usize = 20;

/// What the daemon can say about itself.
pub(super) struct Desk {
    started: SystemTime,
    since: Instant,
    figures: Arc<Figures>,
    last: Option<Event>,
    /// Events that came faster than they could be logged.
    pub(super) lost: u64,
}

impl Desk {
    pub(super) fn new(figures: Arc<Figures>) -> Self {
        Self { started: SystemTime::now(), since: Instant::now(), figures, last: None, lost: 0 }
    }

    pub(super) fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }

    /// Remembers the last thing that happened.
    pub(super) fn note(&mut self, event: &Event) {
        self.last = Some(event.clone());
    }
}

type Fields = Map<String, Value>;

fn fields(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields,
        _ => Fields::new(),
    }
}

fn usage(error: impl ToString) -> Reply {
    Reply::not(Refusal::Usage, error)
}

/// Waits for the sensor, which ends with the daemon.
async fn of_sensor<T>(answer: oneshot::Receiver<T>) -> Result<T, Reply> {
    answer.await.map_err(|_| Reply::not(Refusal::Failed, "the daemon is ending"))
}

impl Shell {
    /// Answers, at once or as soon as the sensor has.
    pub(super) async fn answer(&mut self, Asked { request, peer, answer }: Asked) {
        let by = name(peer);
        let result = match request {
            Request::Status => return self.status(answer),
            Request::Block { target, expire, reason, force } => {
                return self.block(answer, by, (&target, expire.as_deref(), reason.as_deref(), force)).await;
            }
            Request::Unblock { target, all } => return self.unblock(answer, by, target.as_deref(), all).await,
            Request::Explain { address } => return self.explain(answer, &address),
            Request::Allow { target, span } => self.allow(&by, &target, span.as_deref()).await,
            Request::Confirm => self.confirm(&by),
            Request::Reload => self.reload(&by).await,
            Request::Watch => usage("events are shown elsewhere"),
        };
        // Who asked may have gone.
        let _ = answer.send(result);
    }

    async fn block(
        &mut self,
        answer: oneshot::Sender<Reply>,
        by: String,
        (target, expire, reason, force): (&str, Option<&str>, Option<&str>, bool),
    ) {
        let (subject, expiry) = match self.admit(target, expire, force).await {
            Ok(admitted) => admitted,
            Err(reply) => return drop(answer.send(reply)),
        };
        let note = reason.map(one_line);
        let (sent, done) = oneshot::channel();
        self.deliver(Order::Wish(Wish::Block { subject, expiry, by, note, answer: sent }));
        tokio::spawn(async move {
            let reply = match of_sensor(done).await {
                Ok(Ok(())) => Reply::Done(fields(json!({
                    "subject": subject.to_string(),
                    "expires": expires(expiry),
                }))),
                Ok(Err(error)) => Reply::not(Refusal::Failed, error),
                Err(reply) => reply,
            };
            let _ = answer.send(reply);
        });
    }

    /// Whether `target` may be blocked by hand, as whom and for how long. One that is protected is not any more, where
    /// it is to be blocked all the same.
    async fn admit(&mut self, target: &str, expire: Option<&str>, force: bool) -> Result<(Subject, Expiry), Reply> {
        let target = parse_network(target).map_err(usage)?;
        let expiry = expire.map_or(Ok(self.config.expire), |text| parse_expiry(text).map_err(usage))?;
        let subject = Subject::of_prefix(target).map_err(usage)?;
        if !self.enforces() {
            let error =
                "nobody is blocked: the daemon only logs (--log-only, block = false, or a trial that nobody confirmed)";
            return Err(Reply::not(Refusal::Refused, error));
        }
        let Some((network, protection)) = protected(&self.watch.host(), target) else { return Ok((subject, expiry)) };
        let own = matches!(protection, Protection::OwnAddress | Protection::Loopback);
        if own || !force {
            let remedy = if own { "" } else { "; --force blocks it all the same" };
            let error = format!("{} is not blocked: {} is {protection}{remedy}", plain(target), plain(network));
            return Err(Reply::not(Refusal::Refused, error));
        }
        let span = if let Expiry::After(span) = expiry { Some(span) } else { None };
        let hole = IpNet::new(subject.element(), subject.prefix_len()).map_err(usage)?;
        let orders = self.watch.force(hole, span).await.map_err(|error| Reply::not(Refusal::Failed, error))?;
        orders.into_iter().for_each(|order| self.deliver(order));
        Ok((subject, expiry))
    }

    async fn unblock(&mut self, answer: oneshot::Sender<Reply>, by: String, target: Option<&str>, all: bool) {
        let subjects = match (target, all) {
            (None, true) => Ok(None),
            (Some(target), false) => {
                parse_network(target).and_then(Subject::of_prefix).map(|subject| Some(vec![subject]))
            }
            _ => Err("name an address or prefix, or all".to_owned()),
        };
        let subjects = match subjects {
            Ok(subjects) => subjects,
            Err(error) => return drop(answer.send(usage(error))),
        };
        let asked = subjects.as_ref().and_then(|subjects| subjects.first().copied());
        let hole = asked.and_then(|subject| IpNet::new(subject.element(), subject.prefix_len()).ok());
        let done = self.lift(subjects, by);
        let around = asked.map(|subject| {
            let (sent, known) = oneshot::channel();
            self.deliver(Order::Wish(Wish::Explain { address: subject.element(), answer: sent }));
            known
        });
        // Behind it: who is protected again has no ban that the sensor would have to lift.
        match self.watch.unforce(hole).await {
            Ok(orders) => orders.into_iter().for_each(|order| self.deliver(order)),
            Err(error) => self.say(What::Error(error)),
        }
        tokio::spawn(async move {
            let reply = match (of_sensor(done).await, asked) {
                (Ok(Ok(0)), Some(subject)) => {
                    let known = match around {
                        Some(known) => of_sensor(known).await.ok(),
                        None => None,
                    };
                    // `subject` may itself be a network inside another.
                    let wider = known.and_then(|known| known.network).filter(|network| *network != subject);
                    Reply::not(Refusal::Refused, not_blocked(subject, wider))
                }
                (Ok(Ok(lifted)), _) => Reply::Done(fields(json!({ "unblocked": lifted }))),
                (Ok(Err(error)), _) => Reply::not(Refusal::Failed, error),
                (Err(reply), _) => reply,
            };
            let _ = answer.send(reply);
        });
    }

    /// Lifts bans, all of them for `None`, and has the ledger know; how many there were.
    pub(super) fn lift(
        &mut self,
        subjects: Option<Vec<Subject>>,
        by: String,
    ) -> oneshot::Receiver<Result<usize, String>> {
        let (sent, lifted) = oneshot::channel();
        self.deliver(Order::Wish(Wish::Unblock { subjects, by: by.clone(), answer: sent }));
        let (finished, done) = oneshot::channel();
        let (recorder, events) = (self.record.recorder(), self.events.clone());
        tokio::spawn(async move {
            let Ok(result) = lifted.await else { return };
            let result = result.map(|subjects| {
                let count = subjects.len();
                if count > 1 {
                    // One by one they would fill the log; a single one has told itself.
                    events.send(Event::now(What::Note(format!("{count} bans have been lifted by {by}"))));
                    let at = SystemTime::now();
                    let changes = subjects.into_iter().map(move |subject| super::record::lifted(subject, &by, at));
                    if let Some(recorder) = recorder {
                        tokio::task::spawn_blocking(move || changes.for_each(|change| recorder.put_patiently(change)));
                    }
                }
                count
            });
            let _ = finished.send(result);
        });
        done
    }

    async fn allow(&mut self, by: &str, target: &str, span: Option<&str>) -> Reply {
        let span = match span.map(parse_expiry).transpose() {
            Ok(Some(Expiry::After(span))) => Some(span),
            Ok(_) => None,
            Err(error) => return usage(error),
        };
        let network = match parse_network(target) {
            Ok(network) => network,
            Err(error) => return usage(error),
        };
        // One address is shown as one.
        let shown = match network.prefix_len() == network.max_prefix_len() {
            true => network.addr().to_string(),
            false => network.to_string(),
        };
        match self.watch.allow(network, span).await {
            Ok(orders) => {
                orders.into_iter().for_each(|order| self.deliver(order));
                let how_long =
                    span.map_or("until it ends".to_owned(), |span| format!("for {}", humantime::format_duration(span)));
                self.say(What::Note(format!("{shown} is not blocked {how_long}, by {by}")));
                Reply::Done(fields(json!({
                    "allowed": shown,
                    "until": span.map(|span| rfc3339(SystemTime::now() + span)),
                })))
            }
            Err(error) => Reply::not(Refusal::Failed, error),
        }
    }

    fn explain(&mut self, answer: oneshot::Sender<Reply>, address: &str) {
        let Ok(address) = address.parse::<IpAddr>() else {
            return drop(answer.send(usage(format!("{address:?} is not an address; write for example \"192.0.2.7\""))));
        };
        let (sent, known) = oneshot::channel();
        self.deliver(Order::Wish(Wish::Explain { address, answer: sent }));
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

    /// Gives out the figures, as soon as the sensor has counted its bans.
    pub(super) fn scrape(&mut self, place: oneshot::Sender<String>) {
        let since = self.desk.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let uses_nft = self.config.block.method.contains(&Method::Nft) && self.enforces();
        let snapshot = Snapshot {
            started: since.as_secs_f64(),
            capacity: uses_nft.then(|| self.config.block.nft.size.into()),
            events_lost: self.desk.lost,
            allowed: self.watch.host().allow.prefixes().count() as u64,
            ..Snapshot::default()
        };
        let (sent, counted) = oneshot::channel();
        self.deliver(Order::Wish(Wish::Count { answer: sent }));
        let figures = Arc::clone(self.desk.figures());
        tokio::spawn(async move {
            if let Ok(intended) = counted.await {
                let snapshot = Snapshot { intended: intended as u64, ..snapshot };
                let _ = place.send(metrics::text(&figures, snapshot));
            }
        });
    }

    fn status(&mut self, answer: oneshot::Sender<Reply>) {
        let host = self.watch.host();
        let figures = self.desk.figures();
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
                "seen": figures.frames.get(),
                "dropped": figures.dropped.get(),
                "malformed": figures.undecoded.get(),
                "from_judged": figures.repeated.get(),
                "connections": figures.connections.get(),
            },
            "probes": figures.probes.get(),
            "sources_tracked": figures.suspects.get(),
            "bans": {
                "intended": null,
                "enforced": null,
                "made": figures.bans(),
                "failed": Way::ALL.iter().map(|way| figures.failed_by(*way)).sum::<u64>(),
                "capped": figures.capped.get(),
                "repaired": figures.put_back(),
            },
            "trap": {
                "ports": figures.trapped.get(),
                "udp_ports": figures.trapped_udp.get(),
                "condemned": figures.trap_caught.get(),
                "let_go": figures.trap_let_go.get(),
            },
            "allowed": host.allow.prefixes().count(),
            "ledger": self.state_dir.display().to_string(),
            "sandbox": sandbox(&self.sandbox),
            "commands": self.commands.as_ref().map(Commands::told),
            "last_event": self.desk.last.as_ref().map(crate::report::json::of),
        }));
        let (sent, counted) = oneshot::channel();
        self.deliver(Order::Wish(Wish::Count { answer: sent }));
        let in_kernel = self.config.block.method.contains(&Method::Nft) && self.enforces();
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

/// Who asks, for the log and the ledger.
fn name(peer: Peer) -> String {
    let user = if peer.user == 0 { "root".to_owned() } else { format!("user {}", peer.user) };
    match peer.process {
        Some(process) => format!("{user} (portsentry, process {process})"),
        None => format!("{user} (portsentry)"),
    }
}

/// A protected prefix that `target` touches: the one that `--force` could least do anything about.
fn protected(host: &Host, target: IpNet) -> Option<(IpNet, Protection)> {
    let touches = |network: &IpNet| target.contains(network) || network.contains(&target);
    let why = |network: IpNet| {
        // An allowed network around it, or one that begins with an own address, says nothing of that address.
        let alone = network.prefix_len() == network.max_prefix_len();
        let own = alone && host.local.is_exact() && host.local.contains(network.addr());
        if own { Some(Protection::OwnAddress) } else { host.allow.covers(network) }
    };
    let touched = host.allow.prefixes().filter(touches);
    touched.filter_map(|network| Some((network, why(network)?))).min_by_key(|(_, why)| *why)
}

/// Why there is nothing to lift for `subject`, and what there is instead.
fn not_blocked(subject: Subject, wider: Option<Subject>) -> String {
    match wider {
        Some(wider) => format!(
            "{subject} is blocked with all of {wider}: unblock that network, or let {subject} alone through with \
             `portsentry allow {subject}`"
        ),
        None => format!("{subject} is not blocked"),
    }
}

/// A network as a person writes it: one address without its length.
fn plain(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
}

/// What the program has given up.
pub(super) fn sandbox(now: &Sandbox) -> Value {
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

fn one_line(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn expires(expiry: Expiry) -> Value {
    match expiry {
        Expiry::Never => "never".into(),
        Expiry::After(span) => rfc3339(SystemTime::now() + span).into(),
    }
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
pub(super) fn entry(entry: &Entry) -> Value {
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
async fn history(recorder: &Recorder, subject: Subject) -> Option<Vec<Entry>> {
    let (sent, read) = oneshot::channel();
    recorder.ask(move |ledger| drop(sent.send(ledger.of(subject)))).then_some(())?;
    Some(read.await.ok()?.ok()?.items)
}
