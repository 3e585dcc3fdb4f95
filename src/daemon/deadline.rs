//! Waits for a deadline that may be absent.

use std::future::pending;
use std::time::Instant;

/// Waits until `deadline`; never returns if there is none. Cancel safe.
pub(super) async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
