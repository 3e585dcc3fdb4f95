//! What the kernel does beyond the sets of single sources: whole networks, against the program as a process in a lab of
//! network namespaces.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod networks;
