//! Sets the real-time scheduling policy of the sensor thread. Without it a ban often waits a few milliseconds for the
//! scheduler, and a scanner learns about more ports in that time.

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// The lowest real-time priority: above all ordinary threads, below all other real-time threads.
const LOWEST: u8 = 1;

/// Puts the calling thread under SCHED_RR. False if that is not permitted (CAP_SYS_NICE, RLIMIT_RTPRIO): everything
/// works without it, but with more delay under load. The kernel reserves a share of each core for ordinary threads
/// (kernel.sched_rt_runtime_us), so that a flood of packets cannot starve the host.
pub(super) fn raise() -> bool {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    ThreadPriority::try_from(LOWEST)
        .is_ok_and(|priority| set_thread_priority_and_policy(thread_native_id(), priority, policy).is_ok())
}
