//! Determines by probing which element operations the running kernel supports beyond the oldest supported kernel. The
//! version number is not used: distributions backport features, and containers run on kernels of other systems.
//!
//! docs/kernels.md lists the other differences between kernels and how they are handled.

/// Optional features of the kernel. The default has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelFeatures {
    destroys: bool,
}

impl KernelFeatures {
    /// A kernel with nf_tables and timed sets only. Its operations work on every later kernel.
    pub const fn oldest() -> Self {
        Self { destroys: false }
    }

    /// A kernel with all features.
    pub(super) const fn newest() -> Self {
        Self { destroys: true }
    }

    /// True if elements that may be missing can be removed (DESTROYSETELEM, Linux 6.3). Otherwise a missing element
    /// fails the whole transaction.
    pub const fn destroys(self) -> bool {
        self.destroys
    }
}
