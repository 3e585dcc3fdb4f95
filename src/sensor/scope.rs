//! What each step of the sensor works with.

use super::observer::Observer;
use super::reporter::Reporter;
use crate::types::Timestamp;

/// The context of a step: its time, the engine with the host, and the reporter.
pub(super) struct Scope<'a> {
    pub(super) now: Timestamp,
    pub(super) observer: &'a mut Observer,
    pub(super) reporter: &'a Reporter,
}
