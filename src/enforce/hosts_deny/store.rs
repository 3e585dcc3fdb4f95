//! Implements [`EntryStore`] for hosts.deny.

use std::io;
use std::path::Path;

use super::HostsDeny;
use crate::enforce::{BanContext, EntryStore};
use crate::types::{Backend, BanTarget};

impl EntryStore for HostsDeny {
    fn backend(&self) -> Backend {
        Backend::HostsDeny
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn describe(&self) -> String {
        format!("the line \"{}\" in {}", self.template, self.path.display())
    }

    fn entry(&self, case: &BanContext) -> String {
        self.line(case)
    }

    fn check(&self) -> io::Result<()> {
        Self::check(self).map_err(io::Error::other)
    }

    fn held(&self) -> io::Result<Vec<BanTarget>> {
        Self::held(self).map_err(io::Error::other)
    }

    fn apply(&self, add: &[BanContext], remove: &[BanTarget]) -> io::Result<Vec<BanTarget>> {
        Self::apply(self, add, remove).map_err(io::Error::other)
    }
}
