//! Shows the progress of a replay on standard error if that is a terminal.

use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Number of bytes between two updates of the bar. An update costs more than a packet.
const STEP: u64 = 1 << 20;

/// Minimum size of a capture for which a bar is shown, in bytes. Smaller ones finish before the bar could be read.
const WORTH_A_BAR: u64 = 32 << 20;

/// One progress bar for both passes.
pub(super) struct Progress {
    bar: ProgressBar,
    size: u64,
    next: u64,
}

impl Progress {
    /// Creates a bar for reading the file `path` twice.
    pub(super) fn new(path: &Path) -> Self {
        let size = std::fs::metadata(path).map_or(0, |about| about.len());
        let target = if size < WORTH_A_BAR { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(size * 2), target);
        // If the template is invalid, the default bar is shown.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {eta}") {
            bar.set_style(style);
        }
        Self { bar, size, next: 0 }
    }

    /// Updates the bar: the first pass has reached byte `offset`.
    #[inline]
    pub(super) fn first_pass(&mut self, offset: u64) {
        if offset >= self.next {
            self.show("reading", offset);
            self.next = offset + STEP;
        }
    }

    /// Updates the bar: the second pass has reached byte `offset`.
    #[inline]
    pub(super) fn second_pass(&mut self, offset: u64) {
        if offset + self.size >= self.next {
            self.show("judging", offset + self.size);
            self.next = offset + self.size + STEP;
        }
    }

    /// Hides the bar while `work` writes, because both may use the same terminal.
    pub(super) fn hide<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    #[cold]
    fn show(&self, doing: &'static str, position: u64) {
        self.bar.set_message(doing);
        self.bar.set_position(position);
    }
}
