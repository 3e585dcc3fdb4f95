//! Tests attacks on the program itself and real faults, as described in docs/threat-model.md, on the running program.
//! Afterwards no ban may be lost, the reported state must be true, and everything works without a restart. Each test
//! has its own network, so they run in parallel.

#![cfg(test)]

mod attacks;
mod flood;
mod host;
mod kernel;
mod resources;
mod support;
