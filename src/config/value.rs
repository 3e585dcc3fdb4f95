//! One TOML value to one setting, or a sentence that says what to write instead. No place in the file is known here.

use super::{Action, BlockPolicy, LogRate, LogTarget, Mode, Route};
use crate::types::{Backend, Expiry, PortSet};
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

/// A source is rarely remembered for longer than a few days; a month bounds what a table of sources has to hold on to.
const LONGEST_WINDOW: Duration = Duration::from_secs(30 * 86_400);
/// Ten Julian years, as `humantime` reads "10 years".
const LONGEST_EXPIRY: Duration = Duration::from_secs(315_576_000);
/// What fits into one segment on every link, so that it is sent at once and as a whole.
const LONGEST_BANNER: usize = 1_024;
/// Far above what people write; several of them still fit where a command line or a line of hosts.deny must.
const LONGEST_LINE: usize = 1_024;
/// A command that takes longer is stuck, and keeps its place from others.
const LONGEST_RUN: Duration = Duration::from_secs(600);

/// Reads how long a ban lasts: "24h", "7d", "1h 30m" or "never"; from one second to ten years.
///
/// # Errors
/// A sentence that names the text and says what to write instead.
pub fn parse_expiry(text: &str) -> Result<Expiry, String> {
    if text.trim() == "never" {
        return Ok(Expiry::Never);
    }
    let wrong = || format!("{} is not a duration; write for example \"24h\", or \"never\"", quoted(text));
    let span = humantime::parse_duration(text).map_err(|_| wrong())?;
    if span > LONGEST_EXPIRY {
        return Err(format!("{} is longer than ten years; write \"never\"", quoted(text)));
    }
    at_least_a_second(text, span).map(Expiry::After)
}

/// Reads an address or network as it is meant: host bits are dropped, an address stands for itself, a mask may be
/// dotted, and an IPv4 address in IPv6's clothes (::ffff:192.0.2.1) is the IPv4 address.
///
/// # Errors
/// A sentence that names the text and says what to write instead.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let wrong = || {
        let text = quoted(text);
        format!("{text} is not an address or network; write for example \"192.0.2.7\" or \"198.51.100.0/24\"")
    };
    let (address, mask) = match text.split_once('/') {
        Some((address, mask)) => (address.trim(), Some(mask.trim())),
        None => (text.trim(), None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let network = match (mask, address) {
        (None, _) => Some(IpNet::from(address)),
        (Some(mask), IpAddr::V4(_)) if mask.contains('.') => {
            mask.parse().ok().and_then(|mask| IpNet::with_netmask(address, mask).ok())
        }
        (Some(digits), _) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().and_then(|length| IpNet::new(address, length).ok())
        }
        _ => None,
    };
    network.map(|network| unmapped(network.trunc())).ok_or_else(wrong)
}

fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let inner = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    match inner.and_then(|(address, length)| Ipv4Net::new(address, length).ok()) {
        Some(v4) => v4.into(),
        None => network,
    }
}

/// Reads the name of a network interface: 1 to 15 bytes, as the kernel's `dev_valid_name` takes it.
///
/// # Errors
/// A sentence that names the text and says what to write instead.
pub fn parse_interface(text: &str) -> Result<String, String> {
    // libpcap's pseudo-device: taken for an interface it would be one that never has an address to watch.
    if text == "any" {
        return Err("\"any\" is no interface; name none, and every one is watched".to_owned());
    }
    let fits = (1..=15).contains(&text.len()) && text != "." && text != "..";
    if fits && !text.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is not the name of an interface; write 1 to 15 bytes without blanks, \"/\" and \":\", for example \"eth0\"",
        quoted(text)
    ))
}

/// Reads the name of a host, as RFC 1123 has it and with the underscores that people use: labels of letters, digits, "-"
/// and "_", none longer than 63 bytes, 253 in all. In small letters; a final dot stays, because it keeps the resolver's
/// search list out.
///
/// # Errors
/// A sentence that names the text and says what to write instead.
pub fn parse_name(text: &str) -> Result<String, String> {
    if parse_network(text).is_ok() {
        return Err(format!("{} is no name; list it under allow.networks", quoted(text)));
    }
    if !text.is_ascii() {
        let shown = quoted(text);
        return Err(format!("{shown} has other letters than a to z; write the name as DNS has it, \"xn--...\""));
    }
    let labels: Vec<&str> = text.strip_suffix('.').unwrap_or(text).split('.').collect();
    let fits = |label: &&str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let length: usize = labels.iter().map(|label| label.len() + 1).sum();
    // The resolver takes "127.1", "2130706433" and "0x7f.1" for addresses; no top-level domain is a number (RFC 3696).
    let number =
        |label: &&str| label.bytes().all(|byte| byte.is_ascii_digit()) || label.to_ascii_lowercase().starts_with("0x");
    if labels.iter().all(fits) && length <= 254 && !labels.last().is_some_and(number) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("{} is not the name of a host; write for example \"monitor.example.org\"", quoted(text)))
}

pub(super) fn expiry(value: &DeValue<'_>) -> Result<Expiry, String> {
    parse_expiry(text(value, "a duration", "for example \"24h\", or \"never\"")?)
}

pub(super) fn window(value: &DeValue<'_>) -> Result<Duration, String> {
    span(value, "for example \"90s\"", LONGEST_WINDOW, "30 days; write \"30d\" or less")
}

/// A duration from a second to `longest`, which messages call `bound`.
fn span(value: &DeValue<'_>, example: &str, longest: Duration, bound: &str) -> Result<Duration, String> {
    let written = text(value, "a duration", example)?;
    let span = humantime::parse_duration(written).map_err(|_| wrong(value, "a duration", example))?;
    if span > longest {
        return Err(format!("{} is longer than {bound}", quoted(written)));
    }
    at_least_a_second(written, span)
}

fn at_least_a_second(written: &str, span: Duration) -> Result<Duration, String> {
    if span < Duration::from_secs(1) {
        return Err(format!("{} is shorter than one second; write \"1s\" or more", quoted(written)));
    }
    Ok(span)
}

pub(super) fn network(value: &DeValue<'_>) -> Result<IpNet, String> {
    parse_network(text(value, "an address or network", "for example \"192.0.2.7\" or \"198.51.100.0/24\"")?)
}

pub(super) fn name(value: &DeValue<'_>) -> Result<String, String> {
    parse_name(text(value, "the name of a host", "for example \"monitor.example.org\"")?)
}

pub(super) fn interface(value: &DeValue<'_>) -> Result<String, String> {
    parse_interface(text(value, "the name of an interface", "for example \"eth0\"")?)
}

pub(super) fn file(value: &DeValue<'_>) -> Result<PathBuf, String> {
    whole_path(value, "for example \"/etc/portsentry/portsentry.ignore\"")
}

fn whole_path(value: &DeValue<'_>, example: &str) -> Result<PathBuf, String> {
    let what = "a file with its whole path";
    let path = PathBuf::from(text(value, what, example)?);
    // A relative one would depend on where the daemon was started.
    if path.is_absolute() { Ok(path) } else { Err(wrong(value, what, example)) }
}

/// A list of ports; an integer is what the classic ADVANCED_PORTS_TCP=1024 looks like, and meant 1 to 1024.
pub(super) fn advanced_ports(value: &DeValue<'_>) -> Result<PortSet, String> {
    if let DeValue::Integer(number) = value {
        return Err(format!("{number} is a number; write \"1-{number}\" for the ports 1 to {number}"));
    }
    ports(value)
}

pub(super) fn ports(value: &DeValue<'_>) -> Result<PortSet, String> {
    if let DeValue::Integer(number) = value {
        return Err(format!("{number} is a number; write the list as text: \"{number}\""));
    }
    text(value, "a list of ports", "for example \"1,7,9,11-15\"")?.parse().map_err(|error| format!("{error}"))
}

/// A whole number from `least` to `most`.
pub(super) fn number<T: TryFrom<i64>>(value: &DeValue<'_>, least: i64, most: i64) -> Result<T, String> {
    let found = match value {
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).ok(),
        _ => None,
    };
    let fits = found.filter(|number| (least..=most).contains(number)).and_then(|number| T::try_from(number).ok());
    fits.ok_or_else(|| format!("{} does not fit; write a number from {least} to {most}", shown(value)))
}

pub(super) fn yes_or_no(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| wrong(value, "a switch", "true or false"))
}

pub(super) fn mode(value: &DeValue<'_>) -> Result<Mode, String> {
    use Mode::{Advanced, Connect, Off, Stealth};
    let modes = [("off", Off), ("connect", Connect), ("stealth", Stealth), ("advanced", Advanced)];
    choice(value, "a mode", &modes)
}

pub(super) fn block_policy(value: &DeValue<'_>) -> Result<BlockPolicy, String> {
    match value {
        DeValue::Boolean(true) => Ok(BlockPolicy::Yes),
        DeValue::Boolean(false) => Ok(BlockPolicy::No),
        DeValue::String(text) if text == "run" => Ok(BlockPolicy::Run),
        _ => Err(wrong(value, "a switch", "true, false or \"run\"")),
    }
}

pub(super) fn method(value: &DeValue<'_>) -> Result<Backend, String> {
    use Backend::{Command, HostsDeny, Nft, Route};
    let methods = [("nft", Nft), ("route", Route), ("hosts-deny", HostsDeny), ("run", Command)];
    choice(value, "a way to block", &methods)
}

pub(super) fn action(value: &DeValue<'_>) -> Result<Action, String> {
    choice(value, "an action", &[("drop", Action::Drop), ("reject", Action::Reject)])
}

/// "3/minute"; the empty text for none.
pub(super) fn log_rate(value: &DeValue<'_>) -> Result<Option<LogRate>, String> {
    let (what, instead) = ("a rate", "for example \"3/minute\" (second, minute, hour, day), or \"\" for none");
    let written = text(value, what, instead)?.trim();
    if written.is_empty() {
        return Ok(None);
    }
    let parts = written.split_once('/');
    let count = parts.and_then(|(count, _)| count.trim().parse().ok()).filter(|count| (1..=10_000).contains(count));
    let per = parts.and_then(|(_, unit)| {
        let units = [("second", 1), ("minute", 60), ("hour", 3_600), ("day", 86_400)];
        units.into_iter().find_map(|(name, seconds)| (name == unit.trim()).then(|| Duration::from_secs(seconds)))
    });
    let rate = count.zip(per).map(|(count, per)| Some(LogRate { count, per }));
    rate.ok_or_else(|| wrong(value, what, instead))
}

pub(super) fn widest_ipv4(value: &DeValue<'_>) -> Result<u8, String> {
    match number(value, 24, 32)? {
        // Two addresses are never four scanners.
        31 => Err("31 does not fit; write 24 to 30, or 32".to_owned()),
        length => Ok(length),
    }
}

pub(super) fn widest_ipv6(value: &DeValue<'_>) -> Result<u8, String> {
    let length = number(value, 48, 64)?;
    match length {
        48 | 56 | 64 => Ok(length),
        _ => Err(format!("{length} does not fit; write 48, 56 or 64")),
    }
}

pub(super) fn route_kind(value: &DeValue<'_>) -> Result<Route, String> {
    let kinds = [("blackhole", Route::Blackhole), ("unreachable", Route::Unreachable), ("prohibit", Route::Prohibit)];
    choice(value, "a kind of route", &kinds)
}

pub(super) fn route_via(value: &DeValue<'_>) -> Result<Route, String> {
    let (what, example) = ("the address of a gateway", "for example \"192.0.2.254\", one that does not exist");
    let found = text(value, what, example)?.parse().ok();
    found.filter(is_gateway).map(Route::Via).ok_or_else(|| wrong(value, what, example))
}

/// True for an address that a gateway can have.
#[must_use]
pub fn is_gateway(address: &IpAddr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

pub(super) fn deny_file(value: &DeValue<'_>) -> Result<PathBuf, String> {
    whole_path(value, "for example \"/etc/hosts.deny\"")
}

pub(super) fn deny_line(value: &DeValue<'_>) -> Result<String, String> {
    let (what, example) = ("a line for TCP wrappers", "for example \"ALL: $TARGET$\"");
    let line = text(value, what, example)?;
    if is_deny_line(line) { Ok(line.to_owned()) } else { Err(wrong(value, what, example)) }
}

/// True for one line of TCP wrappers (hosts_access(5)) that names the source.
#[must_use]
pub fn is_deny_line(line: &str) -> bool {
    let names = line.contains("$TARGET$") && line.contains(':') && line.len() <= LONGEST_LINE;
    names && !line.starts_with('#') && !line.ends_with('\\') && !line.chars().any(char::is_control)
}

/// The program, or one of its arguments.
pub(super) fn command_word(value: &DeValue<'_>) -> Result<String, String> {
    let word = text(value, "a word of a command", "for example \"/usr/local/sbin/on-scan\" or \"$TARGET$\"")?;
    if is_command_word(word) {
        return Ok(word.to_owned());
    }
    Err(wrong(value, "a word of a command", &format!("at most {LONGEST_LINE} bytes without NUL")))
}

/// True for what can be a word of a command.
#[must_use]
pub fn is_command_word(word: &str) -> bool {
    !word.contains('\0') && word.len() <= LONGEST_LINE
}

pub(super) fn time_limit(value: &DeValue<'_>) -> Result<Duration, String> {
    span(value, "for example \"30s\"", LONGEST_RUN, "ten minutes; write \"10m\" or less")
}

pub(super) fn long_span(value: &DeValue<'_>) -> Result<Duration, String> {
    span(value, "for example \"30d\"", LONGEST_EXPIRY, "ten years; write less")
}

/// An address with a port; the empty text for none.
pub(super) fn listen(value: &DeValue<'_>) -> Result<Option<SocketAddr>, String> {
    let (what, instead) =
        ("an address with a port", "for example \"127.0.0.1:9777\" or \"[::1]:9777\", or \"\" for none");
    match text(value, what, instead)? {
        "" => Ok(None),
        written => written.parse().map(Some).map_err(|_| wrong(value, what, instead)),
    }
}

/// A file; the empty text for none.
pub(super) fn json_file(value: &DeValue<'_>) -> Result<Option<PathBuf>, String> {
    if value.as_str() == Some("") {
        return Ok(None);
    }
    let example = "for example \"/var/log/portsentry/events.json\", or \"\" for none";
    whole_path(value, example).map(Some)
}

pub(super) fn log_target(value: &DeValue<'_>) -> Result<LogTarget, String> {
    use LogTarget::{Auto, Journal, Stderr, Syslog};
    let targets = [("auto", Auto), ("stderr", Stderr), ("journal", Journal), ("syslog", Syslog)];
    choice(value, "a place for the log", &targets)
}

pub(super) fn port_banner(value: &DeValue<'_>) -> Result<String, String> {
    let banner = text(value, "a text", "for example \"Go away.\\r\\n\", or \"\" for none")?;
    match banner.len() {
        0..=LONGEST_BANNER => Ok(banner.to_owned()),
        length => Err(format!("{} has {length} bytes; write {LONGEST_BANNER} or fewer", quoted(banner))),
    }
}

pub(super) fn no_port_banner(value: &DeValue<'_>) -> Result<String, String> {
    match text(value, "a text", "\"\"")? {
        "" => Ok(String::new()),
        // Strangers could have this host send it to whomever they name as the source.
        _ => Err(format!("{} would answer datagrams, whose source is easily forged; write \"\"", shown(value))),
    }
}

/// One of `known`, by name.
fn choice<T: Clone>(value: &DeValue<'_>, what: &str, known: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<String> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let names = match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    };
    let written = text(value, what, &names)?;
    let found = known.iter().find(|(name, _)| *name == written).map(|(_, found)| found.clone());
    found.ok_or_else(|| wrong(value, what, &names))
}

fn text<'v>(value: &'v DeValue<'_>, what: &str, instead: &str) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| wrong(value, what, instead))
}

/// "VALUE is not WHAT; write INSTEAD".
pub(super) fn wrong(value: &DeValue<'_>, what: &str, instead: &str) -> String {
    format!("{} is not {what}; write {instead}", shown(value))
}

fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(switch) => switch.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// `text` in quotes, escaped and cut short: it goes to a terminal and into logs.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}", format!("{}…", text.get(..end).unwrap_or(""))),
        None => format!("{text:?}"),
    }
}
