//! Waits for futures, deadlines and answers that may be absent.

use std::future::pending;
use std::time::Instant;

use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;

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

/// Takes the answer to a query that has been answered, and forgets the query, also if it failed.
pub(super) fn take_answer<T>(query: &mut Option<Receiver<T>>) -> Option<T> {
    let answer = query.as_mut()?.try_recv();
    if !matches!(answer, Err(TryRecvError::Empty)) {
        *query = None;
    }
    answer.ok()
}
