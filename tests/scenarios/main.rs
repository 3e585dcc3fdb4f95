//! Trials of what an operator relies on, on the running program with a configuration file and real packets: every way to
//! block, sweeps and crashes, a clock that is set, a disk that is full, a hundred thousand bans, the control socket. Each
//! trial has a network of its own, so they run side by side.

#![cfg(test)]

mod allowances;
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
mod many;
mod operator;
mod panics;
mod removed;
mod saved_ruleset;
mod socket;
mod support;
mod trial;
mod ways;
