//! Frames for the decoder: from every interface at once ([`live`]), narrowed by a filter made from the monitored ports
//! ([`filter`]), or from a capture file ([`file`]). In connect mode what listeners of our own accept ([`decoy`]).

pub mod decoy;
pub mod file;
pub mod filter;
pub mod live;
