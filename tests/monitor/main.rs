//! Tests that the table monitor reports changes that other programs make to the daemon's table. Each test runs in its
//! own network namespace and makes the changes with `nft`.

#![expect(clippy::unwrap_used, reason = "a test that cannot build its network has failed")]

mod bursts;
mod elements;
mod ruleset;
mod silence;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use netns_lab::Namespace;
use portsentry::netlink::nft::monitor::{Monitor, TableChange};
use portsentry::netlink::nft::{RulesetSpec, install};
use portsentry::netlink::socket::Socket;
use portsentry::types::{BanTarget, Expiry};
use tokio::time::timeout;

/// Runs `test` in a namespace that has the table. The monitor ignores changes from `Socket`, as it ignores the
/// daemon's.
fn watched(test: impl AsyncFnOnce(&mut Monitor, &mut Socket) + Send) {
    Namespace::new().inside_async(async || {
        let mut socket = Socket::open().unwrap();
        install(&mut socket, &RulesetSpec::default()).unwrap();
        let mut monitor = Monitor::open().unwrap();
        monitor.ignore(socket.port_id());
        test(&mut monitor, &mut socket).await;
    });
}

/// Runs `commands` in `nft` as one transaction.
fn nft(commands: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft: {commands:.200}");
}

const HOUR: Duration = Duration::from_secs(3600);

/// The next report of the monitor. The kernel reports the remaining time; up to 50 ms of an hour may have passed.
async fn next(monitor: &mut Monitor) -> Vec<TableChange> {
    let mut changes = timeout(netns_lab::TIMEOUT * netns_lab::slowness(), monitor.next()).await.unwrap().unwrap();
    let tolerance = Duration::from_millis(50) * netns_lab::slowness();
    for change in &mut changes {
        if let TableChange::ElementAdded(_, Expiry::After(left)) = change
            && (HOUR - tolerance..HOUR).contains(left)
        {
            *left = HOUR;
        }
    }
    changes
}

/// Runs `commands` and returns the next report of the monitor.
async fn changes_after(monitor: &mut Monitor, commands: &str) -> Vec<TableChange> {
    nft(commands);
    next(monitor).await
}

/// Fails if the monitor has a pending report: the next two must be about the element added and deleted here.
async fn assert_quiet(monitor: &mut Monitor) {
    let mark = "203.0.113.99";
    let add = changes_after(monitor, &format!("add element inet portsentry blocked {{ {mark} }}")).await;
    assert_eq!(add, [TableChange::ElementAdded(target(mark), Expiry::Never)]);
    let delete = changes_after(monitor, &format!("delete element inet portsentry blocked {{ {mark} }}")).await;
    assert_eq!(delete, [TableChange::ElementRemoved(target(mark))]);
}

fn target(text: &str) -> BanTarget {
    BanTarget::from_element(text.parse().unwrap())
}
