//! Trials of what an operator relies on, on the running program with a configuration file and real packets: every way to
//! block, sweeps and crashes, a clock that is set, a disk that is full, a hundred thousand bans, the control socket. Each
//! trial has a network of its own, so they run side by side.

#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;

#[cfg(test)]
mod clock;
#[cfg(test)]
mod confirm;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod escalation;
#[cfg(test)]
mod failing;
#[cfg(test)]
mod flush;
#[cfg(test)]
mod kernel_log;
#[cfg(test)]
mod many;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod panics;
#[cfg(test)]
mod removed;
#[cfg(test)]
mod socket;
#[cfg(test)]
mod support;
#[cfg(test)]
mod ways;
