//! Tests all scans of common tools over IPv4 and IPv6, with real packets between namespaces: the class in the log, and
//! after how many probes the source is blocked. docs/scan-matrix.md shows the same table.

#![cfg(test)]

mod cell;
mod document;
mod special;
mod table;
