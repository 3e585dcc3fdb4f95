//! Commands to the sensor thread, and their execution between two batches of packets.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use ipnet::IpNet;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::controller::{BanController, Sample};
use super::table_repair::Damage;
use crate::capture::live::Live;
use crate::enforce::nft::RulesetSpec;
use crate::engine::{ActiveBan, Explanation, Host, Service, Settings};
use crate::events::event::EventKind;
use crate::types::{Backend, BanTarget, Expiry, Timestamp};

/// A command to the sensor thread.
pub enum SensorCommand {
    /// Replaces the snapshot of the host: allow-list, listeners, addresses, interfaces.
    Host(Arc<Host>),
    /// Replaces the capture, after the frames of the old one have been processed.
    Capture(Live),
    /// Limits the decoys to connections to these own addresses; `None`: to all.
    Addresses(Option<HashSet<IpAddr>>),
    /// Adds bans to the engine that the kernel already holds.
    Adopt(Vec<ActiveBan>),
    /// Replaces elements with host bits, which match no packet, by bans of the networks around them.
    MaskElements(Vec<(BanTarget, Expiry)>),
    /// Adds bans to the engine and, with these backends, to the kernel.
    Restore(Vec<ActiveBan>, &'static [Backend]),
    /// Puts bans back that this backend lost without a notification.
    Repair(Backend, Vec<BanTarget>),
    /// Ends the ban of a target whose route was deleted by another process.
    RouteRemoved(BanTarget),
    /// Removes the routes of an earlier run that belong to no ban.
    RemoveStaleRoutes,
    /// Applies the ban of a target whose command, which runs before it, has ended.
    CommandEnded(BanTarget),
    /// Ends bans that another process removed from the kernel's sets.
    BansRemoved(Vec<BanTarget>),
    /// Creates the table, or a set of it, again after the process that this text names deleted it, and puts the bans back.
    ReinstallTable(String),
    /// Undoes a change of the table's rules by the process that this text names.
    RepairRules(String),
    /// Sets the kernel's allow-list again after another process changed it.
    ProtectAddresses,
    /// Sets the ports of the kernel's trap again after another process changed them.
    ResetTrap,
    /// Executes the request of an operator and sends the answer.
    Request(SensorRequest),
    /// Replaces the settings of the engine; its tables stay.
    Settings(Box<Settings>),
    /// Replaces the rules of the table; its sets stay.
    Ruleset(Box<RulesetSpec>),
    /// Has connections to decoys tracked, at most so many new ones at once; `None`: not at all.
    TrackDecoys(Option<u32>),
    /// Suspends blocking: scans are only logged, and the bans in force stay.
    StartTrial,
    /// Blocks again, with these settings.
    EndTrial(Box<Settings>),
    /// Stops blocking: scans are only logged from now on.
    LogOnly,
    /// Has the kernel hold, of these elements that a ruleset brought along, those that are bans, for the time that is left of each. The text
    /// names the process that loaded it.
    ReviewLoaded(Vec<BanTarget>, String),
    /// Replaces the sources that are connected to services of this host, and for how long they are known to be.
    KnownPeers(Vec<(BanTarget, Duration)>),
    /// Ends settling: sources are condemned from now on.
    EndSettling,
    /// Increments [`super::SensorMetrics::beats`], which the watchdog reads.
    Heartbeat,
    /// Ends the thread.
    Stop,
}

/// Where the sensor sends an answer. The receiver may be gone by then.
pub type Answer<T> = oneshot::Sender<T>;

/// A request of an operator.
pub enum SensorRequest {
    /// Blocks a target.
    Block { target: BanTarget, expiry: Expiry, by: String, note: Option<String>, answer: Answer<Result<(), String>> },
    /// Ends bans, without targets all of them; answers which targets were blocked.
    Unblock { targets: Option<Vec<BanTarget>>, by: String, answer: Answer<Result<Vec<BanTarget>, String>> },
    /// Counts the bans that should be in force.
    Count { answer: Answer<usize> },
    /// Lists the bans of targets in a network, at most so many; with how many there are.
    BansIn { network: IpNet, most: usize, answer: Answer<(Vec<BanTarget>, usize)> },
    /// Samples the bans that should be in force, for a comparison with the kernel, and checks the targets that were missing at
    /// the last one.
    Sample { most: usize, again: Vec<BanTarget>, routes_again: Vec<BanTarget>, answer: Answer<Sample> },
    /// Explains what the engine knows about an address.
    Explain { address: IpAddr, answer: Answer<Explanation> },
    /// Lists the ports that destination NAT publishes, as far as connections have shown them.
    Published { answer: Answer<Vec<Service>> },
}

/// The command queue of the sensor, with an event descriptor that wakes it while it waits for packets.
#[derive(Clone)]
pub struct Inbox(Arc<(ArrayQueue<SensorCommand>, OwnedFd)>);

impl Inbox {
    /// An empty queue.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self(Arc::new((ArrayQueue::new(1024), eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))))
    }

    /// Queues `command` and wakes the sensor; gives the command back if the queue is full.
    pub fn put(&self, command: SensorCommand) -> Result<(), SensorCommand> {
        let (queue, wake) = &*self.0;
        let queued = queue.push(command);
        // The counter can only overflow after 2^64 commands.
        let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
        queued
    }

    /// Resets the event descriptor; false if it was not set.
    pub(super) fn acknowledge(&self) -> bool {
        rustix::io::read(&self.0.1, &mut [0; 8]).is_ok()
    }

    pub(super) fn pop(&self) -> Option<SensorCommand> {
        self.0.0.pop()
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.1.as_fd()
    }
}

/// Executes a command that concerns engine and backends. Those about the capture, the decoys and the thread are the caller's.
pub(super) fn execute(command: SensorCommand, now: Timestamp, controller: &mut BanController) {
    let (enforcement, mut scope) = controller.enforcement(now);
    let scope = &mut scope;
    match command {
        SensorCommand::Host(host) => controller.change_host(now, host),
        SensorCommand::Adopt(bans) => controller.adopt(now, &bans),
        SensorCommand::MaskElements(elements) => controller.mask_elements(now, &elements),
        SensorCommand::Restore(bans, backends) => controller.restore(now, &bans, backends),
        SensorCommand::Repair(backend, targets) => enforcement.repair(scope, backend, &targets),
        SensorCommand::RouteRemoved(target) => controller.route_removed(now, target),
        SensorCommand::RemoveStaleRoutes => enforcement.blocker().remove_stale_routes(now, scope.reporter),
        SensorCommand::CommandEnded(target) => controller.command_ended(now, target),
        SensorCommand::BansRemoved(targets) => controller.bans_removed(&targets),
        SensorCommand::ReinstallTable(by) => enforcement.repair_table(scope, Damage::Deleted(Some(&by))),
        SensorCommand::RepairRules(by) => enforcement.repair_table(scope, Damage::Rules(&by)),
        SensorCommand::ProtectAddresses => enforcement.restore_allow_list(scope),
        SensorCommand::ResetTrap => enforcement.reset_trap(scope),
        SensorCommand::Request(request) => answer(request, now, controller),
        SensorCommand::Settings(settings) => controller.reconfigure(now, *settings),
        SensorCommand::Ruleset(spec) => enforcement.replace_ruleset(scope, *spec),
        SensorCommand::TrackDecoys(most) => enforcement.track_decoys(scope, most),
        SensorCommand::StartTrial => enforcement.start_trial(scope),
        SensorCommand::EndTrial(settings) => controller.end_trial(now, *settings),
        SensorCommand::ReviewLoaded(elements, by) => controller.review_loaded(now, &elements, &by),
        SensorCommand::KnownPeers(peers) => controller.observer().engine_mut().know_peers(now, &peers),
        SensorCommand::EndSettling => controller.end_settling(now),
        SensorCommand::LogOnly => enforcement.log_only(scope),
        SensorCommand::Heartbeat => controller.metrics().beats.add(1),
        SensorCommand::Capture(_) | SensorCommand::Addresses(_) | SensorCommand::Stop => {}
    }
}

/// Executes `request`, which its sender has checked. An answer without a receiver is no error.
fn answer(request: SensorRequest, now: Timestamp, controller: &mut BanController) {
    match request {
        SensorRequest::Block { target, expiry, by, note, answer } => {
            let result = controller.block(now, target, expiry);
            if result.is_ok() {
                controller.reporter().emit(EventKind::ByHand { target, expiry, by, note, way: None });
            }
            let _ = answer.send(result);
        }
        SensorRequest::Unblock { targets, by, answer } => {
            let result = match targets {
                Some(targets) => controller.unblock(&targets),
                None => controller.unblock_all(),
            };
            if let Ok([target]) = result.as_deref() {
                controller.reporter().emit_unblocked(*target, by);
            }
            let _ = answer.send(result);
        }
        SensorRequest::Count { answer } => drop(answer.send(controller.observer().engine().bans().count())),
        SensorRequest::BansIn { network, most, answer } => {
            drop(answer.send(controller.observer().bans_in(network, most)));
        }
        SensorRequest::Sample { most, again, routes_again, answer } => {
            drop(answer.send(controller.sample(now, most, again, routes_again)));
        }
        SensorRequest::Explain { address, answer } => drop(answer.send(controller.observer().explain(now, address))),
        SensorRequest::Published { answer } => {
            drop(answer.send(controller.observer().engine().published(now).collect()))
        }
    }
}
