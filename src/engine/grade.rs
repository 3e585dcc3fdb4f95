//! Grades the evidence of a ban by how easily it can be forged. The reaction is never harsher than the grade allows:
//! docs/detection.md.

use serde::{Deserialize, Serialize};

use super::class::Class;

/// The grade of the evidence of a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Grade {
    /// Packets whose source address may be forged: any host can send them with any source address.
    Forgeable,
    /// Completed TCP handshakes with decoys: their source received packets from this host.
    Proven,
}

impl Grade {
    pub const ALL: [Self; 2] = [Self::Forgeable, Self::Proven];

    /// Returns the grade of the evidence against one source. It is proven only if the completed handshakes alone would
    /// be enough, because an attacker can add forged packets to the traffic of an innocent source.
    pub(super) fn from_classes(classes: impl Iterator<Item = Class>, scan_trigger: u8) -> Self {
        let handshakes = classes.filter(|class| *class == Class::Connect).count();
        if handshakes > usize::from(scan_trigger) { Self::Proven } else { Self::Forgeable }
    }

    /// The grade as in JSON, metrics and the ledger.
    pub fn key(self) -> &'static str {
        self.into()
    }

    pub fn from_key(key: &str) -> Option<Self> {
        key.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enough_handshakes_are_proof() {
        const CONNECT: Class = Class::Connect;
        for (classes, trigger, grade) in [
            (&[CONNECT, CONNECT, CONNECT][..], 2, Grade::Proven),
            (&[CONNECT, CONNECT, CONNECT, Class::Sctp], 2, Grade::Proven),
            (&[CONNECT, CONNECT, Class::Udp], 2, Grade::Forgeable),
            (&[CONNECT, CONNECT, Class::Null], 2, Grade::Forgeable),
            (&[Class::Syn, Class::Syn, Class::Syn], 2, Grade::Forgeable),
            (&[CONNECT], 0, Grade::Proven),
            (&[], 0, Grade::Forgeable),
        ] {
            assert_eq!(Grade::from_classes(classes.iter().copied(), trigger), grade, "{classes:?} above {trigger}");
        }
        assert!(Grade::ALL.into_iter().all(|grade| Grade::from_key(grade.key()) == Some(grade)));
    }
}
