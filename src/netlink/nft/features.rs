//! What the running kernel can do with elements beyond the oldest supported one, found by asking it. Not by its version:
//! distributions carry features back, and containers run on kernels that they do not name.
//!
//! docs/kernels.md has what else differs between kernels, and how that is met.

/// What the kernel can do. The default is what every kernel can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelFeatures {
    destroys: bool,
}

impl KernelFeatures {
    /// Any kernel with nf_tables and timed sets. Its ways work on every later one.
    #[must_use]
    pub const fn oldest() -> Self {
        Self { destroys: false }
    }

    /// One that can do all of this.
    pub(super) const fn newest() -> Self {
        Self { destroys: true }
    }

    /// Whether elements can be taken out that may not be there (DESTROYSETELEM, Linux 6.3). A missing one fails the whole
    /// transaction otherwise.
    #[must_use]
    pub const fn destroys(self) -> bool {
        self.destroys
    }
}
