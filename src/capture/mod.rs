//! Frames for the decoder: from every interface at once ([`live`]), narrowed by a filter made from the monitored ports
//! ([`filter`]).

pub mod filter;
pub mod live;
