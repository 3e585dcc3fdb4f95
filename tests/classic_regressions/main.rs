//! What went wrong in classic PortSentry, and what people switched such tools off for: each is a test here, named for what
//! holds instead. Black-box, on real packets between namespaces.

#![cfg(test)]

mod acceptance;
mod flood;
mod forged;
mod innocents;
mod kernel;
mod link_local;
mod links;
mod seen;
mod services;
