//! Replaces the daemon at its end of the fleet socket, for tests of the fleet process alone: stores the received
//! requests and announces bans.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use portsentry::engine::{Class, Grade};
use portsentry::fleet::protocol::{
    FleetReply, FleetReport, FleetRequest, IgnoredAuthor, LineMessage as _, LinkState, OwnBanEvent, ReportOutcome,
};

/// The requests of the fleet process so far.
#[derive(Default)]
pub struct Received {
    pub reports: Vec<FleetReport>,
    /// When each target was first reported.
    pub arrivals: HashMap<String, Instant>,
    pub lifts: Vec<String>,
    pub scans: usize,
    pub link: Option<LinkState>,
    pub ignored: Vec<IgnoredAuthor>,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Received>,
    bans: Mutex<Vec<OwnBanEvent>>,
    watchers: Mutex<Vec<UnixStream>>,
}

pub struct FakeDaemon {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl FakeDaemon {
    pub fn listen(path: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let listener = UnixListener::bind(path).unwrap();
        let accepted = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&accepted);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { shared, path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Announces a ban of this host on proven evidence.
    pub fn ban(&self, target: &str) {
        self.change(OwnBanEvent::Ban {
            target: target.parse().unwrap(),
            remaining_s: Some(86_400),
            grade: Grade::Proven,
            distinct_ports: 5,
            class: Class::Connect,
        });
    }

    pub fn unban(&self, target: &str) {
        self.change(OwnBanEvent::Lift { target: target.parse().unwrap() });
    }

    fn change(&self, event: OwnBanEvent) {
        let mut bans = self.shared.bans.lock().unwrap();
        for watcher in self.shared.watchers.lock().unwrap().iter_mut() {
            let _ = watcher.write_all(event.to_line().as_bytes());
        }
        bans.push(event);
    }

    /// Reads the received requests with `read`.
    pub fn received<T>(&self, read: impl FnOnce(&Received) -> T) -> T {
        read(&self.shared.received.lock().unwrap())
    }

    pub fn has_report(&self, author: &str, target: &str) -> bool {
        self.received(|received| received.reports.iter().any(|one| one.author == author && one.target == target))
    }

    /// When a target was first reported.
    pub fn arrival(&self, target: &str) -> Option<Instant> {
        self.received(|received| received.arrivals.get(target).copied())
    }

    pub fn is_connected(&self) -> bool {
        self.received(|received| received.link == Some(LinkState::Connected))
    }

    /// Why the server is unreachable, if it is.
    pub fn away(&self) -> Option<String> {
        self.received(|received| match &received.link {
            Some(LinkState::Away(why)) => Some(why.clone()),
            _ => None,
        })
    }

    pub fn forget(&self) {
        *self.shared.received.lock().unwrap() = Received::default();
    }
}

fn serve(stream: UnixStream, shared: &Shared) {
    let mut writer = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let reply = match FleetRequest::parse(line.as_bytes()).unwrap() {
            FleetRequest::Reports { reports, scan_ends } => {
                let mut received = shared.received.lock().unwrap();
                received.scans += usize::from(scan_ends);
                let outcomes = vec![ReportOutcome::Accepted; reports.len()];
                let now = Instant::now();
                for report in &reports {
                    received.arrivals.entry(report.target.clone()).or_insert(now);
                }
                received.reports.extend(reports);
                FleetReply::Reports { outcomes }
            }
            FleetRequest::Lift { target } => {
                shared.received.lock().unwrap().lifts.push(target.to_string());
                FleetReply::Lifted { lifted: true }
            }
            FleetRequest::Link { state, ignored } => {
                let mut received = shared.received.lock().unwrap();
                (received.link, received.ignored) = (Some(state), ignored);
                FleetReply::Noted
            }
            FleetRequest::Watch {} => {
                let bans = shared.bans.lock().unwrap();
                let _ = writer.write_all(FleetReply::Watching.to_line().as_bytes());
                for event in bans.iter() {
                    let _ = writer.write_all(event.to_line().as_bytes());
                }
                shared.watchers.lock().unwrap().push(writer.try_clone().unwrap());
                continue;
            }
        };
        if writer.write_all(reply.to_line().as_bytes()).is_err() {
            return;
        }
    }
}
