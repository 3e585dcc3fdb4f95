//! Formats the parts that answers on the control socket share: lines, durations and lists of ports.

use std::time::Duration;

use crate::types::{Protocol, Span};

/// One line of text with a label column.
macro_rules! line {
    ($f:expr, $label:expr, $($text:tt)+) => {
        writeln!($f, "{:<11} {}", $label, format_args!($($text)+))
    };
}
pub(crate) use line;

/// A duration in its two largest units: "3d 4h".
pub(super) fn format_seconds(seconds: u64) -> String {
    Span(Duration::from_secs(seconds)).to_string()
}

/// True if the locale uses UTF-8. The first variable that is set counts, as in setlocale(3).
pub(super) fn is_unicode(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(|name| variable(name)).find(|value| !value.is_empty());
    set.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// "tcp/23,8080 udp/53", sorted.
pub(super) fn compact_ports(ports: impl Iterator<Item = (Protocol, u16)>) -> String {
    let mut sorted: Vec<_> = ports.map(|(protocol, port)| (protocol.key(), port)).collect();
    sorted.sort_unstable();
    let group = |ports: &[(&str, u16)]| {
        let numbers: Vec<String> = ports.iter().map(|(_, port)| port.to_string()).collect();
        Some(format!("{}/{}", ports.first()?.0, numbers.join(",")))
    };
    sorted.chunk_by(|(one, _), (other, _)| one == other).filter_map(group).collect::<Vec<_>>().join(" ")
}
