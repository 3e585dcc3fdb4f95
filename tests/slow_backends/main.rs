//! Tests the slow backends and their thread with real files, processes and sockets: lines of hosts.deny, commands, and
//! the ending of connections. Files are in temporary directories, sockets in the tests' own network namespaces.

#![cfg(test)]

mod commands;
mod connections;
mod file_helper;
mod hosts_deny;
mod hosts_deny_queue;

use std::cell::RefCell;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use netns_lab::{TIMEOUT, slowness};
use portsentry::config::{DEFAULT_DENY_LINE, Mode, Run};
use portsentry::enforce::command::{CommandHelperClient, serve};
use portsentry::enforce::helper_socket::pair;
use portsentry::enforce::hosts_deny::HostsDeny;
use portsentry::enforce::slow_backends::{
    BackendEvent, SlowBackend, SlowBackendHandles, SlowBackends, Stopped, Task, Unfinished,
};
use portsentry::enforce::{BanContext, CommandQueue, HostsDenyQueue};
use portsentry::engine::Class;
use portsentry::types::{Backend, BanTarget, Expiry, Protocol};

/// A SYN scan from `source`, banned for `seconds` from now.
fn context(source: &str, seconds: u64) -> BanContext {
    let source = source.parse().unwrap();
    BanContext {
        target: BanTarget::containing(source),
        source,
        protocol: Protocol::Tcp,
        port: 23,
        mode: Some(Mode::Advanced),
        class: Some(Class::Syn),
        expiry: Expiry::After(Duration::from_secs(seconds)),
        since: SystemTime::now(),
        ban: None,
    }
}

fn target(address: &str) -> BanTarget {
    BanTarget::containing(address.parse().unwrap())
}

/// The time limit for any expected event, for a busy machine.
fn time_limit() -> Duration {
    TIMEOUT * slowness()
}

/// The hosts.deny backend with the file at `path`.
fn hosts_deny(path: &Path) -> (Backend, Box<dyn SlowBackend>) {
    let file = HostsDeny::new(path, DEFAULT_DENY_LINE).unwrap();
    (Backend::HostsDeny, Box::new(HostsDenyQueue::new(file, None)))
}

/// The report that the line of this ban is written.
fn done(context: BanContext) -> BackendEvent {
    let entry = HostsDeny::new("/etc/hosts.deny", DEFAULT_DENY_LINE).unwrap().entry(&context);
    BackendEvent::Done { context, backend: Backend::HostsDeny, entry }
}

/// The command backend.
fn command(settings: Run) -> (Backend, Box<dyn SlowBackend>) {
    let helper_client = helper_client(&settings);
    (Backend::Command, Box::new(CommandQueue::new(settings, helper_client)))
}

/// The process that runs commands, here as a thread.
fn helper_client(settings: &Run) -> CommandHelperClient {
    let (ours, theirs) = pair().unwrap();
    let settings = settings.clone();
    let helper = std::thread::spawn(move || serve(&theirs, &settings).unwrap());
    HELPERS.with_borrow_mut(|all| all.push(helper));
    CommandHelperClient::new(ours, std::process::id(), || None)
}

thread_local! {
    /// The command helpers of the current test thread.
    static HELPERS: RefCell<Vec<JoinHandle<()>>> = const { RefCell::new(Vec::new()) };
}

/// The backend thread and the events that it reports.
struct Bench {
    backends: Option<SlowBackends>,
    events: Receiver<BackendEvent>,
}

impl Drop for Bench {
    /// Ends commands that still run, because they would outlive this process.
    fn drop(&mut self) {
        let _ = self.backends.take().map(|backends| backends.stop(time_limit()));
        for helper in HELPERS.take() {
            let ended = helper.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the command helper has panicked");
        }
    }
}

impl Bench {
    fn start(backends: SlowBackendHandles) -> Self {
        Self::start_with(backends, false)
    }

    fn start_with(backends: SlowBackendHandles, end_connections: bool) -> Self {
        let (sender, events) = channel();
        let report = move |event| sender.send(event).unwrap_or_default();
        let backends = SlowBackends::start(backends, end_connections, report).unwrap();
        Self { backends: Some(backends), events }
    }

    fn put(&self, task: Task) {
        assert!(self.backends.as_ref().unwrap().tasks().send(task).is_ok(), "the queue has room");
    }

    fn block(&self, context: BanContext, backends: &[Backend]) {
        self.put(Task::Block { context, backends: backends.into() });
    }

    /// The next event, which must come within the time limit.
    fn next(&self) -> BackendEvent {
        self.events.recv_timeout(time_limit()).expect("an event is reported")
    }

    /// Fails if an event is reported within `span`.
    fn expect_no_event(&self, span: Duration) {
        if let Ok(event) = self.events.recv_timeout(span) {
            panic!("unexpected event: {event:?}");
        }
    }

    /// Stops the thread; returns how it ended and the remaining events.
    fn stop(mut self, within: Duration) -> (Stopped<Unfinished>, Vec<BackendEvent>) {
        let stopped = self.backends.take().unwrap().stop(within);
        (stopped, self.events.try_iter().collect())
    }
}
