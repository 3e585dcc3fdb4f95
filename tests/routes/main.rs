//! Blocking by routes against the kernel itself, in a network of namespaces: what `ip route` shows, what packets do, and
//! what happens to routes that are somebody else's.

#![cfg(test)]

mod lifecycle;
mod others;
mod packets;
mod support;
