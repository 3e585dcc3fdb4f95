//! The fleet on real servers: who may write what, what hosts block because of others, and what happens when the server or a
//! host misbehaves. Each test starts a server of its own, on sockets of its own.

#![cfg(test)]

mod acl;
mod engine;
mod failures;
mod fake_daemon;
mod hostile;
mod hosts;
mod member;
mod tls;
