//! What calls into the library and nothing else: the command line as it is read, what holds for the engine whatever
//! arrives, and the decoder against another one. One program for all, since each takes a while to link.

#![cfg(test)]

mod cli;
mod properties;
mod wire_oracle;
