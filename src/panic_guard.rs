//! Contains panics. A panic in a thread that writes, reports or answers is logged, and the thread continues with its
//! next item, so that detection and bans continue. A panic in the sensor ends the program, and systemd restarts it.

use std::any::Any;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use crate::types::printable::masked;

/// Delay before work restarts after a panic, so that a repeated panic does not fill the log.
pub(crate) const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Maximum length of a panic message in the log, in characters.
const MAX_MESSAGE_LEN: usize = 400;

// With `panic = "abort"` no panic could be caught.
const _: () = assert!(cfg!(panic = "unwind"));

/// Passes every panic to `log` in one line, with its thread and its source location.
pub(crate) fn install_panic_hook(log: fn(String)) {
    panic::set_hook(Box::new(move |panic| {
        let message = message(panic.payload());
        let place = panic.location().map(|place| format!("{}:{}", place.file(), place.line())).unwrap_or_default();
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        log(format!("internal error (panic) in thread {thread}, {place}: {message}; please report it"));
    }));
}

/// The panic message on one line. It may quote untrusted input.
fn message(payload: &(dyn Any + Send)) -> String {
    let said = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    masked(said.unwrap_or("no message"), '?').take(MAX_MESSAGE_LEN).collect()
}

/// Runs `work` to its end and restarts it after a panic. The item that was being processed is lost.
pub(crate) fn restart_on_panic<T>(mut work: impl FnMut() -> T) -> T {
    loop {
        // Unwind safety: on each start, `work` inspects its own state again.
        match catch_unwind(AssertUnwindSafe(&mut work)) {
            Ok(done) => return done,
            Err(_) => thread::sleep(RESTART_DELAY),
        }
    }
}

/// The result of `work`, or `None` if it panics.
pub(crate) async fn catch_panic<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(done)) => Poll::Ready(Some(done)),
        Err(_) => Poll::Ready(None),
    })
    .await
}

/// Panics once if the variable PORTSENTRY_TRIP contains this `place` in its comma-separated list. Tests use it to check
/// the behaviour after a panic. Only development builds contain it.
#[inline]
#[expect(clippy::panic, reason = "failpoints exist to panic")]
pub(crate) fn failpoint(place: &str) {
    static DONE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if cfg!(debug_assertions)
        && std::env::var("PORTSENTRY_TRIP").is_ok_and(|named| named.split(',').any(|name| name == place))
        && DONE.lock().unwrap_or_else(PoisonError::into_inner).insert(place.to_owned())
    {
        panic!("failpoint in the {place},\nrequested by a test");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panicking_work_is_repeated() {
        let mut left = vec![1, 2, 3];
        let mut done = Vec::new();
        let sum = restart_on_panic(|| {
            while let Some(next) = left.pop() {
                assert!(next != 2, "two");
                done.push(next);
            }
            done.iter().sum::<i32>()
        });
        assert_eq!(sum, 4);
    }

    #[test]
    fn panic_in_future_ends_only_that_future() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let after = |panics: bool| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!panics, "after a wait");
            7
        };
        runtime.block_on(async {
            assert_eq!(catch_panic(after(false)).await, Some(7));
            assert_eq!(catch_panic(after(true)).await, None);
        });
    }

    #[test]
    fn panic_is_one_short_line() {
        let text: Box<dyn Any + Send> = Box::new(format!("a\nb\x1b[2J{}", "é".repeat(1000)));
        let line = message(&*text);
        assert!(line.starts_with("a?b?[2J") && line.chars().count() == MAX_MESSAGE_LEN, "{line}");
        assert_eq!(message(&7), "no message");
        assert_eq!(message(&"plain"), "plain");
    }
}
