//! Waits for futures and deadlines that may be absent.

use std::future::pending;
use std::time::Instant;

/// Waits for `future`; never completes if there is none. Cancel safe if `future` is.
pub(super) async fn or_never<T>(future: Option<impl Future<Output = T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// Waits until `deadline`; never returns if there is none. Cancel safe.
pub(super) async fn deadline_reached(deadline: Option<Instant>) {
    or_never(deadline.map(|deadline| tokio::time::sleep_until(deadline.into()))).await;
}
