//! Requests of operators to answers: what can be said at once is, what the sensor knows it is asked for.

mod explain;
mod status;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::event_loop::EventLoop;
use crate::config::{parse_expiry, parse_network};
use crate::control::protocol::{Refusal, Reply, Request};
use crate::control::server::{Asked, Peer};
use crate::engine::{Host, Protection};
use crate::events::event::{Event, EventKind};
use crate::events::json::rfc3339;
use crate::sensor::{SensorCommand, SensorMetrics, SensorRequest};
use crate::types::{BanTarget, Expiry};

pub(super) use status::sandbox;

/// What the daemon can say about itself.
pub(super) struct Desk {
    started: SystemTime,
    since: Instant,
    metrics: Arc<SensorMetrics>,
    last: Option<Event>,
    /// Events that came faster than they could be logged.
    pub(super) lost: u64,
}

impl Desk {
    pub(super) fn new(metrics: Arc<SensorMetrics>) -> Self {
        Self { started: SystemTime::now(), since: Instant::now(), metrics, last: None, lost: 0 }
    }

    pub(super) fn metrics(&self) -> &Arc<SensorMetrics> {
        &self.metrics
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

impl EventLoop {
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
        self.deliver(SensorCommand::Request(SensorRequest::Block { subject, expiry, by, note, answer: sent }));
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
    async fn admit(&mut self, target: &str, expire: Option<&str>, force: bool) -> Result<(BanTarget, Expiry), Reply> {
        let target = parse_network(target).map_err(usage)?;
        let expiry = expire.map_or(Ok(self.config.expire), |text| parse_expiry(text).map_err(usage))?;
        let subject = BanTarget::of_prefix(target).map_err(usage)?;
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
                parse_network(target).and_then(BanTarget::of_prefix).map(|subject| Some(vec![subject]))
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
            self.deliver(SensorCommand::Request(SensorRequest::Explain { address: subject.element(), answer: sent }));
            known
        });
        // Behind it: who is protected again has no ban that the sensor would have to lift.
        match self.watch.unforce(hole).await {
            Ok(orders) => orders.into_iter().for_each(|order| self.deliver(order)),
            Err(error) => self.say(EventKind::Error(error)),
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
        subjects: Option<Vec<BanTarget>>,
        by: String,
    ) -> oneshot::Receiver<Result<usize, String>> {
        let (sent, lifted) = oneshot::channel();
        self.deliver(SensorCommand::Request(SensorRequest::Unblock { subjects, by: by.clone(), answer: sent }));
        let (finished, done) = oneshot::channel();
        let (recorder, events) = (self.record.recorder(), self.events.clone());
        tokio::spawn(async move {
            let Ok(result) = lifted.await else { return };
            let result = result.map(|subjects| {
                let count = subjects.len();
                if count > 1 {
                    // One by one they would fill the log; a single one has told itself.
                    events.send(Event::now(EventKind::Note(format!("{count} bans have been lifted by {by}"))));
                    let at = SystemTime::now();
                    let changes =
                        subjects.into_iter().map(move |subject| super::ban_recorder::lifted(subject, &by, at));
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
                self.say(EventKind::Note(format!("{shown} is not blocked {how_long}, by {by}")));
                Reply::Done(fields(json!({
                    "allowed": shown,
                    "until": span.map(|span| rfc3339(SystemTime::now() + span)),
                })))
            }
            Err(error) => Reply::not(Refusal::Failed, error),
        }
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
fn not_blocked(subject: BanTarget, wider: Option<BanTarget>) -> String {
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

fn one_line(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn expires(expiry: Expiry) -> Value {
    match expiry {
        Expiry::Never => "never".into(),
        Expiry::After(span) => rfc3339(SystemTime::now() + span).into(),
    }
}
