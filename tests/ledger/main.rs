//! The ledger against a real disk: files, permissions, damage, a full disk, a locked database and a killed process.

#[cfg(test)]
mod damage;
#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;
#[cfg(test)]
mod model;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod store;
#[cfg(test)]
mod support;
#[cfg(test)]
mod texts;
#[cfg(test)]
mod trouble;
#[cfg(test)]
mod writer;
