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
    /// Length of the capture in bytes.
    pub(super) size: u64,
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

    /// Updates the bar after `position` bytes of both passes.
    #[inline]
    pub(super) fn update(&mut self, doing: &'static str, position: u64) {
        if position >= self.next {
            self.bar.set_message(doing);
            self.bar.set_position(position);
            self.next = position + STEP;
        }
    }

    /// Hides the bar while `work` writes, because both may use the same terminal.
    pub(super) fn hide<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
