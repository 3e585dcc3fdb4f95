//! Texts of the screen: short ones of long ones, and harmless ones of a stranger's. Pure.

use std::time::SystemTime;

use serde_json::Value;

/// True where `filter` stands in one of these texts, in large letters or small.
pub(super) fn passes(filter: &str, texts: &[&str]) -> bool {
    let filter = filter.to_lowercase();
    filter.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&filter))
}

/// "tcp/23,8080 udp/53" of "tcp/23", "tcp/8080" and "udp/53".
pub(super) fn compact(ports: &[String]) -> String {
    let mut text = String::new();
    let mut last = None;
    for (protocol, number) in ports.iter().filter_map(|port| port.split_once('/')) {
        if last == Some(protocol) {
            text.push(',');
        } else {
            text.push_str(if last.is_none() { "" } else { " " });
            text.push_str(protocol);
            text.push('/');
        }
        text.push_str(number);
        last = Some(protocol);
    }
    text
}

/// "tcp/23", from an object that has both.
pub(super) fn port(object: &Value) -> Option<String> {
    let protocol = object.get("proto").and_then(Value::as_str)?;
    Some(format!("{}/{}", plain(protocol), object.get("port").and_then(Value::as_u64)?))
}

/// A text without what could do anything to a terminal: a name or a command's output may be a stranger's.
pub(super) fn plain(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().take(400).map(|c| if hidden(c) { ' ' } else { c }).collect()
}

/// "06:32:13", in UTC.
pub(super) fn clock(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.get(11..19).unwrap_or_default().to_owned()
}
