//! Tests the command line from an operator's view: `portsentry list`, `watch` and `check`, and every other command as a
//! program. Ledgers and kernel state belong to the test.

#[cfg(test)]
mod check;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod list;
#[cfg(test)]
mod watch;
