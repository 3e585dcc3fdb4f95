//! Tests that call only the library: the command line, properties of the engine for arbitrary input, and a comparison
//! of the decoder with another one. They form one program, because linking takes long.

#![cfg(test)]

mod cli;
mod properties;
mod wire_oracle;
