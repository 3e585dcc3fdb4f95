//! Tests the fleet with real servers: write permissions, bans reported by other hosts, and misbehaving servers and
//! hosts. Each test starts its own server on its own sockets.

#![cfg(test)]

mod acl;
mod failures;
mod hostile;
mod hosts;
mod tls;
