//! What an operator sees at a terminal: `portsentry list`, `watch` and `check`, and every command as a program, on ledgers and kernels of the
//! test's own.

#[cfg(test)]
mod check;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod list;
#[cfg(test)]
mod watch;
