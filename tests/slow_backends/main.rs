//! The slow back ends on real files, real processes and real sockets: lines of hosts.deny, commands, connections, and the
//! thread that does them. Files are in temporary directories, sockets in network namespaces of the tests' own.

#![cfg(test)]

mod commands;
mod connections;
mod file_helper;
mod hosts_deny;
mod hosts_deny_queue;

use std::cell::RefCell;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use netns_lab::{TIMEOUT, slowness};
use portsentry::enforce::BanContext;
use portsentry::enforce::command::{RunSettings, Spawner, pair, serve};
use portsentry::enforce::slow_backends::{BackendEvent, Settings, SlowBackends, Stopped, Task};
use portsentry::engine::Class;
use portsentry::types::{Backend, BanTarget, Expiry, Protocol};

/// A SYN scan from `source`, banned for `seconds` from now.
fn case(source: &str, seconds: u64) -> BanContext {
    let source = source.parse().unwrap();
    BanContext {
        target: BanTarget::of(source),
        source,
        protocol: Protocol::Tcp,
        port: 23,
        mode: "atcp",
        class: Some(Class::Syn),
        expiry: Expiry::After(Duration::from_secs(seconds)),
        since: SystemTime::now(),
        ban: None,
    }
}

fn target(address: &str) -> BanTarget {
    BanTarget::of(address.parse().unwrap())
}

/// How long anything that must happen may take on a busy machine.
fn patience() -> Duration {
    TIMEOUT * slowness()
}

/// Who runs commands, on a thread of this process.
fn spawner(settings: &RunSettings) -> Spawner {
    let (ours, theirs) = pair().unwrap();
    let settings = settings.clone();
    let serves = std::thread::spawn(move || serve(&theirs, &settings).unwrap());
    SERVING.with_borrow_mut(|all| all.push(serves));
    Spawner::over(ours, std::process::id(), || None)
}

thread_local! {
    /// Those who run commands for the test of this thread.
    static SERVING: RefCell<Vec<JoinHandle<()>>> = const { RefCell::new(Vec::new()) };
}

/// The thread, and what it has told.
struct Bench {
    hands: Option<SlowBackends>,
    news: Receiver<BackendEvent>,
}

impl Drop for Bench {
    /// Ends what still runs: a command that outlives this process would do so for ever.
    fn drop(&mut self) {
        let _ = self.hands.take().map(|hands| hands.stop(patience()));
        for serves in SERVING.take() {
            let ended = serves.join();
            assert!(ended.is_ok() || std::thread::panicking(), "who runs commands has panicked");
        }
    }
}

impl Bench {
    fn start(settings: Settings) -> Self {
        let (sender, news) = channel();
        let hands = SlowBackends::start(settings, move |news| sender.send(news).unwrap_or_default()).unwrap();
        Self { hands: Some(hands), news }
    }

    fn put(&self, task: Task) {
        assert!(self.hands.as_ref().unwrap().orders().put(task).is_ok(), "there is room");
    }

    fn block(&self, case: BanContext, methods: &[Backend]) {
        self.put(Task::Block { case, methods: methods.into() });
    }

    /// The next news, which must come.
    fn next(&self) -> BackendEvent {
        self.news.recv_timeout(patience()).expect("something is told")
    }

    /// That nothing is told for a while.
    fn silence(&self, span: Duration) {
        if let Ok(news) = self.news.recv_timeout(span) {
            panic!("told: {news:?}");
        }
    }

    /// Stops the thread; how it ended, and what it had not told yet.
    fn stop(mut self, within: Duration) -> (Stopped, Vec<BackendEvent>) {
        let stopped = self.hands.take().unwrap().stop(within);
        (stopped, self.news.try_iter().collect())
    }
}
