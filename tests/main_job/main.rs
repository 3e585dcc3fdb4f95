//! The program as an operator meets it: started in a namespace, scanned from others by real scanners, and judged by
//! what `nft`, its log and its exit code say. Each test has a network of its own, so they run side by side.

#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;

#[cfg(test)]
mod allow;
#[cfg(test)]
mod bans;
#[cfg(test)]
mod guard;
#[cfg(test)]
mod innocents;
#[cfg(test)]
mod lab_itself;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod report;
#[cfg(test)]
mod reverse;
