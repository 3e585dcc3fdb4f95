//! Every way to scan that a tool on the shelf offers, over IPv4 and IPv6, as real packets between namespaces: the class
//! that the log names and after how many probes the source is blocked. docs/scan-matrix.md shows the same table.

#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;

#[cfg(test)]
mod cell;
#[cfg(test)]
mod document;
#[cfg(test)]
mod special;
#[cfg(test)]
mod table;
