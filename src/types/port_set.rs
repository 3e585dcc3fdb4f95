//! Stores a set of ports as a bitmap, for monitored ports and listeners. Parses and prints "1,7,9,11-15". Lists the
//! related TCP ports, of which each group counts as one port.

use std::fmt;
use std::str::FromStr;

/// Any subset of the ports 0 to 65535, as a bitmap of 8 KiB. A look-up takes one load.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet(Box<[u64]>);

impl PortSet {
    /// The empty set.
    pub fn new() -> Self {
        Self(vec![0; 65_536 / 64].into())
    }

    #[inline]
    pub fn contains(&self, port: u16) -> bool {
        self.0.get(usize::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 == 1)
    }

    pub fn insert(&mut self, port: u16) {
        if let Some(word) = self.0.get_mut(usize::from(port >> 6)) {
            *word |= 1 << (port & 63);
        }
    }

    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    /// The ports of this set that are not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & !b).collect())
    }

    /// The ports of either set.
    pub fn with(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a | b).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0_u16..1024).zip(&self.0).flat_map(|(index, word)| {
            let bits = (0..64_u16).take_while(move |_| *word != 0);
            bits.filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        })
    }

    /// The ports as inclusive ranges in ascending order. Ranges do not touch.
    pub fn ranges(&self) -> Vec<(u16, u16)> {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for port in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
                _ => ranges.push((port, port)),
            }
        }
        ranges
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::new()
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut set = Self::new();
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

/// The error for a text that is not a list of ports: the wrong part, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortSetError {
    /// Neither a number from 1 to 65535 nor a range of such numbers.
    #[error("{0:?} is not a port; write numbers from 1 to 65535 and ranges, for example \"1,7,9,11-15\"")]
    NotAPort(String),
    #[error("{0:?} is a reversed range; write the smaller port first, for example \"11-15\"")]
    Backwards(String),
}

impl FromStr for PortSet {
    type Err = PortSetError;

    /// Parses "1,7,9,11-15". Blanks around numbers are accepted, an empty text is the empty set, and port 0 is refused.
    fn from_str(text: &str) -> Result<Self, PortSetError> {
        let mut set = Self::new();
        for item in text.split(',').map(str::trim) {
            if item.is_empty() && text.trim().is_empty() {
                break;
            }
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            // `parse` also accepts a plus sign, which is not part of a port.
            let number = |part: &str| part.trim().parse().ok().filter(|port: &u16| *port != 0 && !part.contains('+'));
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(PortSetError::NotAPort(item.to_owned()));
            };
            if last < first {
                return Err(PortSetError::Backwards(item.to_owned()));
            }
            (first..=last).for_each(|port| set.insert(port));
        }
        Ok(set)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
        f.write_str(&self.ranges().into_iter().map(range).collect::<Vec<_>>().join(","))
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({self})")
    }
}

/// Groups of TCP ports that one client tries together: SMTP, POP, IMAP, submission and ManageSieve (Thunderbird,
/// Outlook and K-9 guess all of them); LPD, IPP and raw printing; HTTP and HTTPS.
pub const PORT_GROUPS: [&[u16]; 3] = [&[25, 110, 143, 465, 587, 993, 995, 4190], &[515, 631, 9100], WEB_PORTS];

/// HTTP and HTTPS. A browser tries one of them at each visit, and the other one if the first is refused.
pub const WEB_PORTS: &[u16] = &[80, 443];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_print_in_shortest_form() {
        let set: PortSet = " 9, 1,7 ,11-15,14-16".parse().unwrap();
        assert_eq!(set.to_string(), "1,7,9,11-16");
        assert_eq!(set.len(), 9);
        assert!(set.contains(16) && !set.contains(17) && !set.contains(0));
    }

    #[test]
    fn full_port_range_is_one_range() {
        let set: PortSet = "1-65535".parse().unwrap();
        assert_eq!(set.ranges(), [(1, 65_535)]);
    }

    #[test]
    fn non_port_is_refused_by_name() {
        for wrong in ["0", "65536", "70000-70001", "-5", "5-", "ssh", "1,,2", "+7", "1;2", ","] {
            assert!(matches!(wrong.parse::<PortSet>(), Err(PortSetError::NotAPort(_))), "{wrong}");
        }
        assert_eq!("9-3".parse::<PortSet>(), Err(PortSetError::Backwards("9-3".into())));
        assert!("  ".parse::<PortSet>().unwrap().is_empty());
    }

    #[test]
    fn difference_and_union_are_by_port() {
        let (a, b): (PortSet, PortSet) = ("1-10".parse().unwrap(), "5-20".parse().unwrap());
        assert_eq!(a.without(&b).to_string(), "1-4");
        assert_eq!(a.with(&b).to_string(), "1-20");
    }
}
