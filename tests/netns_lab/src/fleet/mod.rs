//! Runs a fleet for tests and benchmarks: a real server, and `portsentry fleet` processes with stub daemons.

mod engine;
mod fake_daemon;
mod member;

pub use engine::{ADMIN, Engine, Users};
pub use fake_daemon::{FakeDaemon, Received};
pub use member::{Member, engine, key, processor_time_of};
