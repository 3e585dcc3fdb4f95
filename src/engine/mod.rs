//! Packet to verdict.
pub mod ports;
pub mod subject;
