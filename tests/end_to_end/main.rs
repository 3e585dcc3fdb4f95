//! The program as an operator meets it: started in a namespace, scanned from others by real scanners, and judged by
//! what `nft`, its log and its exit code say. Each test has a network of its own, so they run side by side.

#![cfg(test)]

mod allow;
mod bans;
mod check_and_start;
mod guard;
mod innocents;
mod lab_itself;
mod lifecycle;
mod memory;
mod notify;
mod refusals;
mod report;
mod reverse;
mod schema;
