//! What others do to the daemon's table, as the kernel tells it: each test in a network namespace of its own, with `nft`
//! as the other.

#![expect(clippy::unwrap_used, reason = "a test that cannot build its network has failed")]

mod bursts;
mod elements;
mod ruleset;
mod silence;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use netns_lab::Namespace;
use portsentry::netlink::nft::monitor::{Change, Monitor};
use portsentry::netlink::nft::{RulesetSpec, install};
use portsentry::netlink::socket::Socket;
use portsentry::types::BanTarget;
use tokio::time::timeout;

/// Runs `test` in a namespace that has the table, with a monitor that takes `Socket` for the daemon's own.
fn watched(test: impl AsyncFnOnce(&mut Monitor, &mut Socket) + Send) {
    Namespace::new().inside_async(async || {
        let mut socket = Socket::open().unwrap();
        install(&mut socket, &RulesetSpec::default()).unwrap();
        let mut monitor = Monitor::open().unwrap();
        monitor.ignore(socket.port_id());
        test(&mut monitor, &mut socket).await;
    });
}

/// Has `nft` do `commands` in one transaction.
fn nft(commands: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft: {commands:.200}");
}

const HOUR: Duration = Duration::from_secs(3600);

/// What the monitor tells next. The kernel tells the time that is left, and a moment of an hour may have passed by then.
async fn next(monitor: &mut Monitor) -> Vec<Change> {
    let mut changes = timeout(netns_lab::TIMEOUT * netns_lab::slowness(), monitor.next()).await.unwrap().unwrap();
    let moment = Duration::from_millis(50) * netns_lab::slowness();
    for change in &mut changes {
        if let Change::ElementAdded(_, Some(left)) = change
            && (HOUR - moment..HOUR).contains(left)
        {
            *left = HOUR;
        }
    }
    changes
}

/// What the monitor tells of `commands`, and nothing else.
async fn told(monitor: &mut Monitor, commands: &str) -> Vec<Change> {
    nft(commands);
    next(monitor).await
}

/// Fails if the monitor has anything to tell: what it tells next is what is done next.
async fn assert_quiet(monitor: &mut Monitor) {
    let mark = "203.0.113.99";
    let add = told(monitor, &format!("add element inet portsentry blocked {{ {mark} }}")).await;
    assert_eq!(add, [Change::ElementAdded(target(mark), None)]);
    let delete = told(monitor, &format!("delete element inet portsentry blocked {{ {mark} }}")).await;
    assert_eq!(delete, [Change::ElementRemoved(target(mark))]);
}

fn target(text: &str) -> BanTarget {
    BanTarget::from_element(text.parse().unwrap())
}
