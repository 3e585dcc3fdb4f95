//! Tests blocking by routes against the kernel in a network of namespaces: the output of `ip route`, the effect on
//! packets, and the handling of routes of other programs.

#![cfg(test)]

mod lifecycle;
mod others;
mod packets;
mod support;
