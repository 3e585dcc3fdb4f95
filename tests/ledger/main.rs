//! Tests the ledger on a real disk: files, permissions, damage, a full disk, a locked database and a killed process.

#![cfg(test)]

mod damage;
mod model;
mod refusals;
mod store;
mod support;
mod texts;
mod trouble;
mod writer;
