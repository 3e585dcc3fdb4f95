//! Tests the running program with a configuration file and real packets: all backends, flushes and crashes, a changed
//! clock, a full disk, a hundred thousand bans, the control socket. Each test has its own network, so they run in
//! parallel.

#![cfg(test)]

mod allowances;
mod backends;
mod clients;
mod clock;
mod confirm;
mod crashes;
mod disk;
mod escalation;
mod failing;
mod fleet;
mod flush;
mod kernel_log;
mod log_only;
mod many;
mod operator;
mod panics;
mod removed;
mod saved_ruleset;
mod socket;
mod support;
mod trial;
