//! Provides frames for the decoder: from all interfaces at once ([`live`]), reduced by a filter for the monitored
//! ports ([`filter`]), or from a capture file ([`mod@file`]). [`checksum_offload`] tells which wrong
//! checksums the kernel accepts. In connect mode [`decoy`] accepts connections.

pub mod checksum_offload;
pub mod decoy;
pub mod file;
pub mod filter;
pub mod live;
