//! Manages the connection to the fleet's server: sends typed commands and receives the notices of other hosts.
//!
//! Data from the server uses a limited amount of memory. The client crate collects a whole reply before it returns it;
//! so the stream closes the connection if more bytes arrive than the last request allows.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ErrorKind, Pipeline, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError,
    RedisResult, ServerErrorKind, Value, cmd, pipe,
};
use tokio::io::{AsyncRead, AsyncWrite, Join, ReadBuf, ReadHalf, WriteHalf, join, split};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::connect::{Endpoint, SERVER_TIMEOUT};
use super::key::{FleetAuthor, Keyspace, ValkeyKey};
use super::report::{BanReport, FleetNotice, MAX_VALUE_LEN, lift_json, parse_lift, remaining};
use crate::types::printable::quotable;

/// Maximum number of queued notices; further ones count as missed.
pub(super) const MAX_NOTICES: usize = 4096;

/// Maximum length in bytes of a quoted error message from the server.
const MAX_DETAIL_LEN: usize = 200;

/// Maximum number of bytes that may arrive for one request or one notice.
const MAX_REPLY_LEN: usize = 4 << 20;

/// Why a command to the server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{0}")]
    Connect(String),
    #[error("the server refused the user or the password: {0}; check fleet.user and the file fleet.credentials")]
    Login(String),
    #[error("the server did not answer within {} s", SERVER_TIMEOUT.as_secs())]
    Slow,
    #[error(
        "a reply of the server is too large; set proto-max-bulk-len 1mb on the server, and delete keys that are too long"
    )]
    TooLarge,
    #[error("the server is out of memory: {0}; raise maxmemory")]
    Full(String),
    #[error("the server's ACL refused a command: {0}; compare the ACL with the output of `portsentry fleet acl`")]
    Denied(String),
    #[error("{0}")]
    Other(String),
}

/// A message on one of the fleet's channels: its author, and the notice or why it is refused.
pub(super) type Incoming = (FleetAuthor, Result<FleetNotice, &'static str>);

/// The contents of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyContents {
    Report(BanReport, Duration),
    Lift(Duration),
    Gone,
    /// The contents are refused, with the reason.
    Bad(&'static str),
}

/// A connection to the server, which also receives the notices of the fleet.
pub(super) struct ServerConnection {
    connection: MultiplexedConnection,
    pub(super) keys: Keyspace,
    limit: ByteLimit,
    /// The notices that have arrived; closed if the server has closed the connection.
    pub(super) notices: mpsc::Receiver<Incoming>,
    missed: Arc<AtomicBool>,
    driver: JoinHandle<()>,
}

impl ServerConnection {
    /// Connects and logs in, without a subscription.
    pub(super) async fn connect(endpoint: &Endpoint, keys: Keyspace) -> Result<Self, ServerError> {
        // A certificate error may quote text that the server chose.
        let failed = |error: io::Error| ServerError::Connect(quotable(&error.to_string(), MAX_DETAIL_LEN));
        let stream = endpoint.connect().await.map_err(failed)?;
        let limit = ByteLimit::default();
        let stream = bounded(stream, limit.clone());
        let (sender, notices) = mpsc::channel(MAX_NOTICES);
        let missed = Arc::new(AtomicBool::new(false));
        let push = push_handler(keys.clone(), limit.clone(), sender, Arc::clone(&missed));
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(SERVER_TIMEOUT)).set_push_sender(push);
        // The client crate announces its name with a command that the ACL does not permit.
        let login = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_username(&endpoint.user)
            .set_password(&endpoint.password)
            .set_skip_set_lib_name();
        let opened = timeout(SERVER_TIMEOUT, MultiplexedConnection::new_with_config(&login, stream, config)).await;
        let (connection, driver) = opened.map_err(|_| ServerError::Slow)?.map_err(|error| explain(&error, &limit))?;
        let driver = tokio::spawn(driver);
        Ok(Self { connection, keys, limit, notices, missed, driver })
    }

    /// Connects, and subscribes to the notices of the whole fleet.
    pub(super) async fn join(endpoint: &Endpoint, keys: Keyspace) -> Result<Self, ServerError> {
        let mut server = Self::connect(endpoint, keys).await?;
        server.limit.renew();
        let subscribed = server.connection.psubscribe(server.keys.channels()).await;
        subscribed.map_err(|error| explain(&error, &server.limit))?;
        Ok(server)
    }

    /// True if notices were lost since the last call.
    pub(super) fn has_missed(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }

    /// Writes the reports, each with its remaining time, and publishes a notice of each. Returns the highest number of
    /// hosts that received one of the notices.
    pub(super) async fn publish(&mut self, reports: &[(ValkeyKey, BanReport, Duration)]) -> Result<u64, ServerError> {
        let mut commands = pipe();
        for (key, report, left) in reports {
            self.put_set(&mut commands, key, &report.to_json(), *left);
            self.put_notice(&mut commands, key, report.sequence);
        }
        let receivers = self.send(commands).await?.into_iter().filter_map(|reply| match reply {
            Value::Int(hosts) => u64::try_from(hosts).ok(),
            _ => None,
        });
        Ok(receivers.max().unwrap_or_default())
    }

    /// Writes the reports again without publishing notices.
    pub(super) async fn renew(&mut self, reports: &[(ValkeyKey, BanReport, Duration)]) -> Result<(), ServerError> {
        let mut commands = pipe();
        for (key, report, left) in reports {
            self.put_set(&mut commands, key, &report.to_json(), *left);
        }
        self.send(commands).await.map(drop)
    }

    /// Lifts the fleet's bans of a target for `left`. Requires the operator's user.
    pub(super) async fn lift(&mut self, key: &ValkeyKey, sequence: u64, left: Duration) -> Result<(), ServerError> {
        let mut commands = pipe();
        self.put_set(&mut commands, key, &lift_json(), left);
        self.put_notice(&mut commands, key, sequence);
        self.send(commands).await.map(drop)
    }

    /// Deletes keys of this host.
    pub(super) async fn withdraw(&mut self, keys: &[ValkeyKey]) -> Result<(), ServerError> {
        let mut commands = pipe();
        for key in keys {
            commands.cmd("DEL").arg(self.keys.key(key));
        }
        self.send(commands).await.map(drop)
    }

    /// Reads the contents of these keys. Of a longer value only the first bytes are fetched.
    pub(super) async fn read(&mut self, keys: &[ValkeyKey]) -> Result<Vec<KeyContents>, ServerError> {
        let mut commands = pipe();
        for key in keys {
            let name = self.keys.key(key);
            commands.cmd("GETRANGE").arg(&name).arg(0).arg(MAX_VALUE_LEN);
            commands.cmd("PTTL").arg(&name);
        }
        let replies = self.try_send(commands).await?;
        let entry = |(key, replies): (&ValkeyKey, &[RedisResult<Value>])| match replies {
            [Ok(Value::BulkString(value)), Ok(Value::Int(pttl))] => Ok(read_entry(key, value, *pttl)),
            [Err(error), _] | [_, Err(error)] if error.code() != Some("WRONGTYPE") => Err(explain(error, &self.limit)),
            _ => Ok(KeyContents::Bad("it is not a string")),
        };
        keys.iter().zip(replies.chunks_exact(2)).map(entry).collect()
    }

    /// Returns for each of these keys, in order, whether the server has it.
    pub(super) async fn has(&mut self, keys: &[ValkeyKey]) -> Result<Vec<bool>, ServerError> {
        let mut commands = pipe();
        for key in keys {
            commands.cmd("PTTL").arg(self.keys.key(key));
        }
        let replies = self.send(commands).await?;
        Ok(replies.into_iter().map(|reply| reply != Value::Int(-2)).collect())
    }

    /// Reads one page of the names that match `pattern`, and the cursor of the next page, which is 0 after the last
    /// one.
    pub(super) async fn scan(
        &mut self,
        cursor: u64,
        pattern: &str,
        count: usize,
    ) -> Result<(u64, Vec<Vec<u8>>), ServerError> {
        self.limit.renew();
        let mut command = cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(count);
        let page = command.query_async::<(u64, Vec<Vec<u8>>)>(&mut self.connection).await;
        page.map_err(|error| explain(&error, &self.limit))
    }

    /// Checks that the server answers.
    pub(super) async fn ping(&mut self) -> Result<(), ServerError> {
        self.limit.renew();
        let pong = cmd("PING").query_async::<Value>(&mut self.connection).await;
        pong.map(drop).map_err(|error| explain(&error, &self.limit))
    }

    /// Adds the command that writes a value, which expires after `left`.
    fn put_set(&self, commands: &mut Pipeline, key: &ValkeyKey, value: &str, left: Duration) {
        let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        commands.cmd("SET").arg(self.keys.key(key)).arg(value).arg("PX").arg(millis);
    }

    /// Adds the command that announces a change of `key`.
    fn put_notice(&self, commands: &mut Pipeline, key: &ValkeyKey, sequence: u64) {
        let notice = FleetNotice { sequence, target: key.target };
        commands.cmd("PUBLISH").arg(self.keys.channel(&key.author)).arg(notice.to_json());
    }

    /// Sends the commands, and fails if the server refuses one of them.
    async fn send(&mut self, commands: Pipeline) -> Result<Vec<Value>, ServerError> {
        let replies: RedisResult<Vec<Value>> = self.try_send(commands).await?.into_iter().collect();
        replies.map_err(|error| explain(&error, &self.limit))
    }

    /// Sends the commands; returns the server's reply to each.
    async fn try_send(&mut self, mut commands: Pipeline) -> Result<Vec<RedisResult<Value>>, ServerError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        self.limit.renew();
        let replies = commands.ignore_errors().query_async(&mut self.connection).await;
        replies.map_err(|error| explain(&error, &self.limit))
    }
}

impl Drop for ServerConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn read_entry(key: &ValkeyKey, value: &[u8], pttl: i64) -> KeyContents {
    if pttl == -2 {
        return KeyContents::Gone;
    }
    let read = remaining(pttl).and_then(|left| match key.author {
        FleetAuthor::Host(_) => BanReport::parse(value).map(|report| KeyContents::Report(report, left)),
        FleetAuthor::Operator => parse_lift(value).map(|()| KeyContents::Lift(left)),
    });
    read.unwrap_or_else(KeyContents::Bad)
}

/// Handles messages that the server pushes. Runs in the task that reads the connection, so it only parses and queues
/// them.
fn push_handler(
    keys: Keyspace,
    limit: ByteLimit,
    sender: mpsc::Sender<Incoming>,
    missed: Arc<AtomicBool>,
) -> impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static {
    move |push| {
        limit.renew();
        let (PushKind::PMessage, [_, Value::BulkString(channel), Value::BulkString(text)]) =
            (push.kind, push.data.as_slice())
        else {
            return Ok(());
        };
        let Some(author) = keys.parse_channel(channel) else { return Ok(()) };
        if sender.try_send((author, FleetNotice::parse(text))).is_err() {
            missed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn explain(error: &RedisError, limit: &ByteLimit) -> ServerError {
    if limit.is_exceeded() {
        return ServerError::TooLarge;
    }
    if error.is_timeout() {
        return ServerError::Slow;
    }
    let text = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    let detail = quotable(&text, MAX_DETAIL_LEN);
    match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => ServerError::Login(detail),
        (_, Some("OOM")) => ServerError::Full(detail),
        (ErrorKind::Server(ServerErrorKind::NoPerm), _) => ServerError::Denied(detail),
        (ErrorKind::Io, _) => ServerError::Other("the server has closed the connection".to_owned()),
        _ => ServerError::Other(detail),
    }
}

/// Number of bytes that may still arrive. Each request and each notice resets it.
#[derive(Clone, Default)]
struct ByteLimit(Arc<LimitState>);

#[derive(Default)]
struct LimitState {
    left: AtomicUsize,
    is_exceeded: AtomicBool,
}

impl ByteLimit {
    /// Resets the number of bytes, after a notice was handled or before a request is sent.
    fn renew(&self) {
        self.0.left.store(MAX_REPLY_LEN, Ordering::Relaxed);
    }

    fn is_exceeded(&self) -> bool {
        self.0.is_exceeded.load(Ordering::Relaxed)
    }
}

/// The reading side of a stream. It fails when its limit is used up.
struct Bounded<S> {
    stream: ReadHalf<S>,
    limit: ByteLimit,
}

/// Limits the bytes that can be read from `stream`.
fn bounded<S: AsyncRead + AsyncWrite>(stream: S, limit: ByteLimit) -> Join<Bounded<S>, WriteHalf<S>> {
    limit.renew();
    let (stream, writer) = split(stream);
    join(Bounded { stream, limit }, writer)
}

impl<S: AsyncRead> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.limit.0.left.load(Ordering::Relaxed);
        if left == 0 {
            self.limit.0.is_exceeded.store(true, Ordering::Relaxed);
            let error = format!("the reply is longer than {MAX_REPLY_LEN} bytes");
            return Poll::Ready(Err(io::Error::other(error)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        // One read may exceed the limit by at most the size of the buffer.
        let read = buffer.filled().len().saturating_sub(before);
        self.limit.0.left.store(left.saturating_sub(read), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}
