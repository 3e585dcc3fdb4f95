//! Draws random numbers from the kernel.

use super::error::FleetError;

pub(super) fn random() -> Result<u32, FleetError> {
    getrandom::u32().map_err(|error| FleetError::System("get random bytes", error.into()))
}

/// A random number from 0 to 1, which spreads the actions of many hosts over time.
pub(super) fn chance() -> Result<f64, FleetError> {
    Ok(f64::from(random()?) / f64::from(u32::MAX))
}
