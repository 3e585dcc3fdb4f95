//! Writes log lines to standard error. In the daemon this happens on a separate thread, because the reader of a pipe
//! may stop reading and the event loop must not wait for it. Lines that do not fit into the queue are dropped, counted
//! and reported.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crate::types::counted;
use crate::worker::{Handle, Inbox, Worker};

/// Maximum number of queued lines.
const QUEUE: usize = 4_096;

/// Time limit for writing the queued lines when the program ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static LINES: OnceLock<Handle<Vec<u8>>> = OnceLock::new();

static STALLED: AtomicBool = AtomicBool::new(false);

/// Writer that takes one line in each call of [`Write::write`]. It queues the line for the thread, or writes it
/// directly if the thread does not run.
#[derive(Clone, Copy, Debug)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match LINES.get() {
            // A line that does not fit into the queue is counted.
            Some(lines) => drop(lines.send(line.to_vec())),
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Handle of the thread that writes the lines from [`Stderr`].
pub struct StderrThread(Worker<Vec<u8>, ()>);

impl StderrThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start() -> io::Result<Self> {
        let worker = write_to(io::stderr())?;
        // A process contains only one daemon, so this is the first call.
        let _ = LINES.set(worker.handle().clone());
        Ok(Self(worker))
    }

    /// Waits until all lines are written, for at most one second.
    pub fn finish(self) {
        let written = self.0.stop(FLUSH_TIMEOUT).is_some();
        STALLED.store(!written, Ordering::Relaxed);
    }
}

/// True if the daemon ended before the reader of standard error took all lines. A further write could block.
#[must_use]
pub fn is_stalled() -> bool {
    STALLED.load(Ordering::Relaxed)
}

fn write_to(mut out: impl Write + Send + 'static) -> io::Result<Worker<Vec<u8>, ()>> {
    Worker::start("stderr", QUEUE, |inbox: Arc<Inbox<Vec<u8>>>| {
        let mut reported = 0;
        move || loop {
            // Read first, so that lines sent before the stop request are in the queue.
            let ends = inbox.stop().is_some();
            // An error is ignored, because no other output is left if standard error is closed.
            while let Some(line) = inbox.pop() {
                let _ = out.write_all(&line);
            }
            let lost = inbox.refused() - reported;
            if lost > 0 {
                reported += lost;
                let lines = counted(lost, "line");
                let _ = writeln!(out, "adminalert: ERROR: the reader of standard error was too slow: {lines} lost");
            }
            if ends {
                return;
            }
            thread::park();
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn unread_lines_are_dropped_and_counted() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let worker = write_to(writer).unwrap();
        let begin = Instant::now();
        for number in 0..30_000 {
            let _ = worker.handle().send(format!("{number:099}\n").into_bytes());
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "no line waits for the reader");
        let lost = worker.handle().inbox().refused();
        assert!(lost > 0, "three megabytes fit into no socket and no queue");
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        let written: Vec<usize> =
            lines.by_ref().map_while(|line| line.parse().ok()).take(30_000 - usize::try_from(lost).unwrap()).collect();
        assert!(written.iter().enumerate().all(|(place, number)| *number >= place) && written.is_sorted());
        assert_eq!(
            lines.next().unwrap(),
            format!("adminalert: ERROR: the reader of standard error was too slow: {lost} lines lost")
        );
        worker.handle().send(b"later\n".to_vec()).unwrap();
        assert_eq!(lines.next().unwrap(), "later");
        assert_eq!(worker.stop(Duration::from_secs(10)), Some(()));
    }

    #[test]
    fn end_waits_briefly_for_reader() {
        let (_reader, writer) = UnixStream::pair().unwrap();
        let worker = write_to(writer).unwrap();
        while worker.handle().send(vec![b'x'; 4_096]).is_ok() {}
        assert_eq!(worker.stop(Duration::from_millis(50)), None);
    }
}
