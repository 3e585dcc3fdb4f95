//! Tests the files apart from the sources: documents, packaging, and the list of the program's components.

#![cfg(test)]

mod docs;
mod packaging;
mod supply_chain;

use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
