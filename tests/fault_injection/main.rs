//! Attacks on the program itself, and faults that are injected for real: what docs/threat-model.md says of them, on the
//! running program. After each nothing may be lost, the state has to be told truthfully, and all goes on without a restart.
//! Each has a network of its own, so they run side by side.

#![cfg(test)]

mod attacks;
mod flood;
mod host;
mod kernel;
mod resources;
mod support;
