//! Tests the program from an operator's view: it is started in a namespace, scanned from others by real scanners, and
//! judged by the output of `nft`, its log and its exit code. Each test has its own network, so they run in parallel.

#![cfg(test)]

mod allow;
mod bans;
mod check_and_start;
mod draws;
mod group;
mod guard;
mod innocents;
mod lab_itself;
mod lifecycle;
mod memory;
mod name_server;
mod notify;
mod refusals;
mod report;
mod reverse;
mod schema;
