//! Tests the ledger on a real disk: files, permissions, damage, a full disk, a locked database, a killed process, and the
//! report.

#![cfg(test)]

mod damage;
mod model;
mod refusals;
mod report;
mod store;
mod support;
mod texts;
mod trouble;
mod writer;
