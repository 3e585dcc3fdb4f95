//! The program: reads the command line, runs what it asks for, prints an error once.

fn main() {}
