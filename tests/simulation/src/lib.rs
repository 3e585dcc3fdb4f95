//! Simulates hosts on a virtual clock: honest and dishonest sources send packets to a model of a host. A model of the
//! kernel's rules decides first, the detection engine second, and the outcome is counted. Seeded and deterministic: the
//! same options give the same outcome, packet by packet.
//!
//! `make simulate` runs it; docs/simulation.md describes the model and the numbers. [`detector`] is the only file that
//! uses the engine.
#![allow(
    missing_docs,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a simulation fails by panicking, as the tests that it is a part of do"
)]

mod actors;
pub mod chance;
pub mod daemon;
pub mod detector;
mod dishonest;
mod honest;
pub mod host;
pub mod kernel;
pub mod outcome;
pub mod picture;
mod queue;
pub mod replay;
mod sets;
pub mod table;
pub mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use daemon::DaemonRules;
use detector::EngineRules;
use kernel::KernelRules;
use outcome::Outcome;
use world::World;

/// The parameters of a simulation.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// The number of hosts; the profiles take turns.
    pub hosts: u64,
    /// The simulated duration of each host.
    pub span: Duration,
    /// The factor for the frequency of all events except regular traffic; 1 means the natural rates. A short run packs
    /// months of restarts, mistakes and scans into a few days.
    pub pace: u32,
    /// The events to simulate, by the names of arrivals and operations, such as "regular client" or "reboot"; all
    /// events if empty. A small scenario needs a fraction of the time.
    pub only: &'static [&'static str],
    pub engine: EngineRules,
    pub kernel: KernelRules,
    pub daemon: DaemonRules,
}

impl Options {
    #[must_use]
    pub fn new(seed: u64, hosts: u64, span: Duration) -> Self {
        let (engine, kernel, daemon) = (EngineRules::default(), KernelRules::default(), DaemonRules::default());
        Self { seed, hosts, span, pace: 1, only: &[], engine, kernel, daemon }
    }
}

/// Creates the actors of every behaviour.
pub(crate) fn populate(world: &mut World) {
    honest::populate(world);
    dishonest::populate(world);
}

/// Simulates all hosts on the machine's cores. `day` is called after each simulated day. The outcome does not depend on
/// the number of cores.
#[must_use]
pub fn run(options: &Options, day: impl Fn() + Sync) -> Outcome {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, done) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= options.hosts {
                return;
            }
            let outcome = run_host(options, number, &day);
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((number, outcome));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    let mut sum = Outcome::default();
    done.into_iter().for_each(|(_, outcome)| sum.add(outcome));
    sum
}

/// Simulates only the host `number`.
#[must_use]
pub fn run_host(options: &Options, number: u64, day: &dyn Fn()) -> Outcome {
    let mut world = World::new(options, number);
    populate(&mut world);
    world.run(options.span, day).0
}
