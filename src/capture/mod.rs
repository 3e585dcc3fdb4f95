//! Frames for the decoder: from every interface at once ([`live`]), narrowed by a filter made from the monitored ports
//! ([`filter`]). In connect mode what listeners of our own accept ([`decoy`]).

pub mod decoy;
pub mod filter;
pub mod live;
