//! Tests the HTML report and the ledger reader: with real databases, with and without a daemon that writes to them, and
//! through the command line.

#[cfg(test)]
mod markup;
#[cfg(test)]
mod program;
#[cfg(test)]
mod reader;
#[cfg(test)]
mod stats;
#[cfg(test)]
mod support;
