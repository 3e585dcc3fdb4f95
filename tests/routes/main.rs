//! Blocking by routes against the kernel itself, in a network of namespaces: what `ip route` shows, what packets do, and
//! what happens to routes that are somebody else's.

#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;

#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod others;
#[cfg(test)]
mod packets;
#[cfg(test)]
mod support;
