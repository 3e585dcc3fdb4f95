//! The slow back ends on real files, real processes and real sockets: lines of hosts.deny, commands, connections, and the
//! thread that does them. Files are in temporary directories, sockets in network namespaces of the tests' own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

#[cfg(test)]
#[path = "hands/commands.rs"]
mod commands;
#[cfg(test)]
#[path = "hands/connections.rs"]
mod connections;
#[cfg(test)]
#[path = "hands/hosts_deny.rs"]
mod hosts_deny;
#[cfg(test)]
#[path = "lab/mod.rs"]
mod lab;
#[cfg(test)]
#[path = "hands/lines.rs"]
mod lines;

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use portsentry::enforce::Case;
use portsentry::enforce::hands::{Hands, News, Settings, Stopped, Task, Way};
use portsentry::enforce::run::{RunSettings, Spawner, pair, serve};
use portsentry::engine::subject::{Expiry, Subject};
use portsentry::engine::{Class, Protocol};

/// A SYN scan from `source`, banned for `seconds` from now.
fn case(source: &str, seconds: u64) -> Case {
    let source = source.parse().unwrap();
    Case {
        subject: Subject::of(source),
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

fn subject(address: &str) -> Subject {
    Subject::of(address.parse().unwrap())
}

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who runs commands, on a thread of this process.
fn spawner(settings: &RunSettings) -> Spawner {
    let (ours, theirs) = pair().unwrap();
    let settings = settings.clone();
    std::thread::spawn(move || serve(&theirs, &settings).unwrap());
    Spawner::over(ours, std::process::id(), || None)
}

/// The thread, and what it has told.
struct Bench {
    hands: Hands,
    news: Receiver<News>,
}

impl Bench {
    fn start(settings: Settings) -> Self {
        let (sender, news) = channel();
        let hands = Hands::start(settings, move |news| sender.send(news).unwrap_or_default()).unwrap();
        Self { hands, news }
    }

    fn put(&self, task: Task) {
        assert!(self.hands.orders().put(task).is_ok(), "there is room");
    }

    fn block(&self, case: Case, methods: &[Way]) {
        self.put(Task::Block { case, methods: methods.into() });
    }

    /// The next news, which must come.
    fn next(&self) -> News {
        self.news.recv_timeout(PATIENCE).expect("something is told")
    }

    /// That nothing is told for a while.
    fn silence(&self, span: Duration) {
        if let Ok(news) = self.news.recv_timeout(span) {
            panic!("told: {news:?}");
        }
    }

    /// Stops the thread; how it ended, and what it had not told yet.
    fn stop(self, within: Duration) -> (Stopped, Vec<News>) {
        let stopped = self.hands.stop(within);
        (stopped, self.news.try_iter().collect())
    }
}
