//! Defines the response to a scan.

use serde::{Deserialize, Serialize};

/// The response to the source of a scan. The evidence and bans of each are counted separately: UDP, which is only logged
/// by default, must not contribute to a ban. Serialised as `status` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Response {
    /// Only logged, once per window.
    #[serde(rename = "only logged")]
    Log,
    /// Runs the command of `block.run`, once per ban duration, and bans nothing.
    #[serde(rename = "run")]
    RunCommand,
    #[default]
    #[serde(rename = "yes")]
    Block,
}

impl Response {
    /// How scans are handled: "scans are …".
    pub fn effect(self) -> &'static str {
        match self {
            Self::Block => "blocked",
            Self::RunCommand => "handled by the command",
            Self::Log => "only logged",
        }
    }
}
