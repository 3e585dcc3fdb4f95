//! Shows the progress of a replay on standard error if that is a terminal.

use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Bytes between two looks at the bar: the bar costs more than a packet.
const STEP: u64 = 1 << 20;

/// Smaller captures are done before a bar could be read.
const WORTH_A_BAR: u64 = 32 << 20;

/// The bar of both passes.
pub(super) struct Progress {
    bar: ProgressBar,
    size: u64,
    next: u64,
}

impl Progress {
    /// A bar for reading the file `path` twice.
    pub(super) fn over(path: &Path) -> Self {
        let size = std::fs::metadata(path).map_or(0, |about| about.len());
        let target = if size < WORTH_A_BAR { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(size * 2), target);
        // A template that did not parse would leave the plain bar.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {eta}") {
            bar.set_style(style);
        }
        Self { bar, size, next: 0 }
    }

    /// The first pass has come to byte `offset`.
    #[inline]
    pub(super) fn first_pass(&mut self, offset: u64) {
        if offset >= self.next {
            self.show("reading", offset);
            self.next = offset + STEP;
        }
    }

    /// The second pass has come to byte `offset`.
    #[inline]
    pub(super) fn second_pass(&mut self, offset: u64) {
        if offset + self.size >= self.next {
            self.show("judging", offset + self.size);
            self.next = offset + self.size + STEP;
        }
    }

    /// Takes the bar away while `work` writes: both may go to the same terminal.
    pub(super) fn hide<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    #[cold]
    fn show(&self, doing: &'static str, position: u64) {
        self.bar.set_message(doing);
        self.bar.set_position(position);
    }
}
