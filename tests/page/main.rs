//! The page of the ledger and its reader: against real databases, with and without a daemon that writes, and as an operator
//! calls it.

#[cfg(test)]
mod figures;
#[cfg(test)]
mod markup;
#[cfg(test)]
mod program;
#[cfg(test)]
mod reader;
#[cfg(test)]
mod support;
