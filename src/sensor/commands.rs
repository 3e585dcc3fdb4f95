//! Defines the commands to the sensor thread and executes them between two batches of packets.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crossbeam_queue::ArrayQueue;
use ipnet::IpNet;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::controller::{BanController, BanSample};
use super::guest_bans::GuestBan;
use super::observer::Observer;
use super::packet_path::PacketPath;
use super::table_repair::Damage;
use crate::capture::live::Live;
use crate::enforce::BanContext;
use crate::enforce::nft::{Nft, RulesetSpec};
use crate::engine::{ActiveBan, Explanation, Host, Service, Settings, explain};
use crate::events::event::{Event, EventKind};
use crate::types::{Backend, BanTarget, Expiry, Timestamp};

/// A message to the sensor thread.
pub enum SensorMessage {
    /// Replaces the capture, after the frames of the old one have been processed.
    Capture(Live),
    /// Limits the decoys to connections to these own addresses; `None` removes the limit.
    Addresses(Option<HashSet<IpAddr>>),
    Command(SensorCommand),
    /// Ends the thread.
    Stop,
}

impl From<SensorCommand> for SensorMessage {
    fn from(command: SensorCommand) -> Self {
        Self::Command(command)
    }
}

/// A command that concerns the engine or the backends.
pub enum SensorCommand {
    /// Replaces the snapshot of the host: allow-list, listeners, addresses, interfaces.
    Host(Arc<Host>),
    /// Adds bans to the engine that the kernel already holds.
    Adopt(Vec<ActiveBan>),
    /// Tracks bans of guests, which the sensor has made or adopted.
    FollowGuests(Vec<GuestBan>),
    /// Replaces elements that have host bits, and therefore match no packet, with bans of the surrounding networks.
    MaskElements(Vec<(BanTarget, Expiry)>),
    /// Adds bans to the engine and to this backend.
    Restore(Backend, Vec<ActiveBan>),
    /// Restores bans that this backend lost without a notification.
    Repair(Backend, Vec<BanTarget>),
    /// Ends the ban of a target whose object in this backend, such as a route, was deleted by another process.
    ObjectRemoved(Backend, BanTarget),
    /// Removes what an earlier run left in the inline backends and belongs to no ban.
    RemoveStale,
    /// Applies the ban of a target whose preceding command has ended.
    CommandEnded(BanTarget),
    /// Ends bans that another process removed from the kernel's sets.
    BansRemoved(Vec<BanTarget>),
    /// Creates the table or one of its sets again and restores the bans. The text names the process that deleted it.
    ReinstallTable(String),
    /// Undoes a change to the rules of the table. The text names the process that made the change.
    RepairRules(String),
    /// Sets the kernel's allow-list again after another process changed it.
    ProtectAddresses,
    /// Sets the ports of the kernel's trap again after another process changed them.
    ResetTrap,
    /// Executes the request of an operator and sends the answer.
    Request(SensorRequest),
    /// Replaces the engine settings; the tables of the engine stay.
    Settings(Box<Settings>),
    /// Replaces the rules of the table; its sets stay.
    Ruleset(Box<RulesetSpec>),
    /// Enables tracking of connections to decoys, with at most this many new ones at once; `None` disables it.
    TrackDecoys(Option<u32>),
    /// Suspends blocking: scans are only logged, and the bans in force stay.
    StartTrial,
    /// Ends the trial and resumes blocking with these settings.
    EndTrial(Box<Settings>),
    /// Stops blocking for the rest of the run: scans are only logged.
    LogOnly,
    /// Reviews elements that came with a loaded ruleset: bans keep their remaining time, all others are removed. The
    /// text names the process that loaded the ruleset.
    ReviewLoaded(Vec<BanTarget>, String),
    /// Replaces the sources with connections to services of this host, each with the time for which the connection
    /// counts.
    KnownPeers(Vec<(BanTarget, Duration)>),
    /// Ends settling: from now on sources can be banned.
    EndSettling,
    /// Increments [`super::SensorMetrics::beats`], which the watchdog reads.
    Heartbeat,
}

/// Sends an answer of the sensor. The receiver may have gone away.
pub type ReplySender<T> = oneshot::Sender<T>;

/// A request of an operator.
pub enum SensorRequest {
    Block {
        target: BanTarget,
        expiry: Expiry,
        by: String,
        note: Option<String>,
        answer: ReplySender<Result<(), String>>,
    },
    /// Ends the bans of `targets`, or all bans; answers with the targets that were blocked.
    Unblock { targets: Option<Vec<BanTarget>>, by: String, answer: ReplySender<Result<Vec<BanTarget>, String>> },
    /// Counts the bans that should be in force.
    Count { answer: ReplySender<usize> },
    /// Lists at most `most` banned targets inside a network, with their total number.
    BansIn { network: IpNet, most: usize, answer: ReplySender<(Vec<BanTarget>, usize)> },
    /// Samples the bans that should be in force, for a comparison with the kernel, and checks the targets that were
    /// missing at the last one.
    Sample { most: usize, again: Vec<(Backend, Vec<BanTarget>)>, answer: ReplySender<Vec<BanSample>> },
    /// Explains what the engine knows about an address; a link-local one may be asked about on one link.
    Explain { address: IpAddr, link: Option<u32>, answer: ReplySender<Explanation> },
    /// Lists the ports that destination NAT publishes, as far as connections have shown them.
    Published { answer: ReplySender<Vec<Service>> },
}

/// The message queue of the sensor, with an event descriptor that wakes the sensor while it waits for packets.
#[derive(Clone)]
pub struct SensorInbox(Arc<(ArrayQueue<SensorMessage>, OwnedFd)>);

impl SensorInbox {
    /// Creates an empty queue.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self(Arc::new((ArrayQueue::new(1024), eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))))
    }

    /// Queues `message` and wakes the sensor; returns the message if the queue is full.
    pub fn send(&self, message: SensorMessage) -> Result<(), SensorMessage> {
        let (queue, wake) = &*self.0;
        let queued = queue.push(message);
        // The counter overflows only after 2^64 messages.
        let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
        queued
    }

    /// Resets the event descriptor; false if it was not set.
    pub(super) fn acknowledge(&self) -> bool {
        rustix::io::read(&self.0.1, &mut [0; 8]).is_ok()
    }

    pub(super) fn pop(&self) -> Option<SensorMessage> {
        self.0.0.pop()
    }
}

impl AsFd for SensorInbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.1.as_fd()
    }
}

pub(super) fn execute(command: SensorCommand, now: Timestamp, packets: &mut PacketPath) {
    let controller = &mut packets.controller;
    // On a silent host, bans may have expired since the last packet.
    controller.observer.engine.clock(now);
    let (enforcement, mut scope) = controller.enforcement_at(now);
    let scope = &mut scope;
    match command {
        SensorCommand::Host(host) => controller.change_host(now, host),
        SensorCommand::Adopt(bans) => controller.adopt(now, &bans),
        SensorCommand::FollowGuests(bans) => controller.follow_guests(now, bans),
        SensorCommand::MaskElements(elements) => controller.mask_elements(now, &elements),
        SensorCommand::Restore(backend, bans) => controller.restore(now, backend, &bans),
        SensorCommand::Repair(backend, targets) => enforcement.repair(scope, backend, &targets),
        SensorCommand::ObjectRemoved(backend, target) => controller.object_removed(now, backend, target),
        SensorCommand::RemoveStale => enforcement.blocker.remove_stale(now, scope.reporter),
        SensorCommand::CommandEnded(target) => packets.command_ended(now, target),
        SensorCommand::BansRemoved(targets) => enforcement.end_bans(scope, &targets),
        SensorCommand::ReinstallTable(by) => enforcement.repair_table(scope, Damage::Deleted(Some(&by))),
        SensorCommand::RepairRules(by) => enforcement.repair_table(scope, Damage::Rules(&by)),
        SensorCommand::ProtectAddresses => enforcement.update_allow_list(scope, Nft::replace_allow_list),
        SensorCommand::ResetTrap => enforcement.reset_trap(scope),
        SensorCommand::Request(request) => answer(request, now, controller),
        SensorCommand::Settings(settings) => enforcement.reconfigure(scope, *settings),
        SensorCommand::Ruleset(spec) => enforcement.replace_ruleset(scope, *spec),
        SensorCommand::TrackDecoys(most) => enforcement.track_decoys(scope, most),
        SensorCommand::StartTrial => enforcement.start_trial(scope),
        SensorCommand::EndTrial(settings) => enforcement.end_trial(scope, *settings),
        SensorCommand::ReviewLoaded(elements, by) => controller.review_loaded(now, &elements, &by),
        SensorCommand::KnownPeers(peers) => controller.observer.engine.set_peers(now, &peers),
        SensorCommand::EndSettling => enforcement.end_settling(scope),
        SensorCommand::LogOnly => enforcement.log_only(scope),
        SensorCommand::Heartbeat => controller.reporter.metrics.beats.add(1),
    }
}

/// Executes `request`, which the sender has validated. A missing receiver is not an error.
fn answer(request: SensorRequest, now: Timestamp, controller: &mut BanController) {
    match request {
        SensorRequest::Block { target, expiry, by, note, answer } => {
            let since = SystemTime::now();
            let result = controller.block(now, BanContext::by_hand(target, expiry, since));
            if result.is_ok() {
                let kind = EventKind::ByHand { target, expiry, by, note, backend: None };
                controller.reporter.emit_event(Event { time: since, kind });
            }
            let _ = answer.send(result);
        }
        SensorRequest::Unblock { targets, by, answer } => {
            let result = match targets {
                Some(targets) => controller.unblock(now, &targets),
                None => controller.unblock_all(now),
            };
            if let Ok([target]) = result.as_deref() {
                controller.reporter.emit_unblocked(*target, by);
            }
            let _ = answer.send(result);
        }
        SensorRequest::Count { answer } => drop(answer.send(controller.observer.engine.count_bans(now))),
        SensorRequest::BansIn { network, most, answer } => {
            drop(answer.send(controller.observer.bans_in(network, most)));
        }
        SensorRequest::Sample { most, again, answer } => drop(answer.send(controller.sample(now, most, &again))),
        SensorRequest::Explain { address, link, answer } => {
            let Observer { engine, host, .. } = &controller.observer;
            let _ = answer.send(explain(engine, now, address, link, host));
        }
        SensorRequest::Published { answer } => drop(answer.send(controller.observer.engine.published(now).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Grade, Host, Link, LinkId};
    use crate::events::channel;
    use crate::sensor::blocker::Blocker;
    use crate::sensor::fixtures::{host, observer};
    use crate::sensor::reporter::Reporter;
    use crate::types::at;

    fn packets() -> PacketPath {
        let (events, _received) = channel::bounded(16);
        let reporter = Reporter::new(events, Arc::default());
        PacketPath::new(BanController::new(observer(host()), Blocker::default(), reporter))
    }

    fn count(packets: &mut PacketPath, now: Timestamp) -> usize {
        let (answer, counted) = oneshot::channel();
        execute(SensorCommand::Request(SensorRequest::Count { answer }), now, packets);
        counted.blocking_recv().unwrap()
    }

    #[test]
    fn expired_ban_is_not_counted_without_packets() {
        let mut packets = packets();
        let ban = ActiveBan::new("192.0.2.7".parse().unwrap(), Expiry::After(Duration::from_secs(2)));
        packets.controller.adopt(at(1), &[ban]);
        assert_eq!([2, 4].map(|seconds| count(&mut packets, at(seconds))), [1, 0]);
    }

    /// The port of a guest was looked for while an operator replaced the ban.
    #[test]
    fn late_guest_port_ends_no_operator_ban() {
        let target = "192.0.2.7".parse().unwrap();
        let by_operator = ActiveBan::new(target, Expiry::Never);
        let on_evidence = ActiveBan { grade: Some(Grade::Proven), ..by_operator };
        for (ban, left) in [(by_operator, 1), (on_evidence, 0)] {
            let mut packets = packets();
            packets.controller.adopt(at(1), &[ban]);
            let gone = GuestBan { target, port: LinkId::new(7, "veth7") };
            execute(SensorCommand::FollowGuests(vec![gone]), at(2), &mut packets);
            assert_eq!(count(&mut packets, at(3)), left, "{ban:?}");
        }
    }

    /// At a start, the kernel's elements are read while the sensor already bans.
    #[test]
    fn element_of_guest_ban_keeps_its_port() {
        let (target, port) = ("192.0.2.7".parse().unwrap(), LinkId::new(7, "veth7"));
        let element = ActiveBan::new(target, Expiry::After(Duration::from_secs(86_400)));
        let by_hand = ActiveBan { length: Some(Duration::from_secs(172_800)), ..element };
        for (adopted, left) in [(ActiveBan { length: None, ..element }, 0), (by_hand, 1)] {
            let mut packets = packets();
            packets
                .controller
                .change_host(at(1), Host { links: vec![Link { id: port, guests: Vec::new() }], ..host() }.into());
            packets.controller.adopt(at(1), &[ActiveBan { grade: Some(Grade::Forgeable), ..element }]);
            packets.controller.follow_guests(at(1), vec![GuestBan { target, port }]);
            packets.controller.adopt(at(2), &[adopted]);
            packets.controller.change_host(at(3), host().into());
            assert_eq!(count(&mut packets, at(3)), left, "{adopted:?}");
        }
    }

    #[test]
    fn large_table_is_counted_once_per_tick() {
        let mut packets = packets();
        let at = |millis| Timestamp::at(Duration::from_millis(millis));
        let ban = |number: u32| ActiveBan::new(BanTarget::V4(number.into()), Expiry::Never);
        let mut counted = Vec::new();
        for (bans, millis) in [(0..10, 50), (10..20, 50), (20..10_000, 100), (10_000..10_001, 100), (0..0, 150)] {
            packets.controller.adopt(at(millis), &bans.map(ban).collect::<Vec<_>>());
            counted.push(count(&mut packets, at(millis)));
        }
        assert_eq!(counted, [10, 20, 10_000, 10_000, 10_001], "only a small table is counted for every request");
    }
}
