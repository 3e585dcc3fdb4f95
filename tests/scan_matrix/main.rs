//! Every way to scan that a tool on the shelf offers, over IPv4 and IPv6, as real packets between namespaces: the class
//! that the log names and after how many probes the source is blocked. docs/scan-matrix.md shows the same table.

#![cfg(test)]

mod cell;
mod document;
mod special;
mod table;
