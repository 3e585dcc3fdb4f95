//! Parses single values: one function for `deserialize_with` per kind of value, and the text parsers that the command
//! line and the control socket share. An error says what to write instead. If it does not begin with the offending text
//! in quotes, `document` prepends the value.

use super::choices::{AckPolicy, Facility, HalfOpenPolicy, LogTarget, Mode};
use super::port_lists;
use crate::types::shared64::{self, MAX_NAT64};
use crate::types::{Action, Backend, DAY, Expiry, PortSet, Rate, Response, RouteKind, is_host_address};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde::de::value::{Error as PlainError, StrDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use toml::Value;

/// A source is rarely remembered for longer than a few days. One month limits how long the source table keeps entries.
const MAX_WINDOW: Duration = DAY.saturating_mul(30);
/// Ten Julian years, as `humantime` reads "10 years".
const MAX_EXPIRY: Duration = Duration::from_secs(315_576_000);
/// A command that takes longer is stuck and delays others.
const MAX_RUN_TIME: Duration = Duration::from_secs(600);

/// Minimum time between two digests, so that a flood of packets does not cause a flood of messages.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
const MAX_INTERVAL: Duration = DAY;
/// Fits into one segment on every link, so that the banner is sent immediately and as a whole.
pub(crate) const MAX_BANNER_LEN: usize = 1_024;
/// Maximum length of a word of a command in bytes. Far above the length of real words; several of them still fit into a
/// command line.
const MAX_WORD_LEN: usize = 1_024;
/// Denies all services to the source.
pub const DEFAULT_DENY_LINE: &str = "ALL: $TARGET$";
/// Maximum length of `block.hosts_deny.line` in bytes, before its placeholders are expanded. TCP wrappers skip a line
/// that does not fit into their buffer of 2,048 bytes. The rest leaves room for 38 placeholders that grow by 40 bytes
/// each.
const MAX_DENY_LINE_LEN: usize = 512;

// The expected kind of value, and an example.
const EXPIRY: &str = "a duration; write for example \"24h\", or \"never\"";
const NETWORK: &str = "an address or network; write for example \"192.0.2.7\" or \"198.51.100.0/24\"";
const NAME: &str = "a host name; write for example \"monitor.example.org\"";
const FILE: &str = "an absolute path; write for example";

/// Parses the duration of a ban: "24h", "7d", "1h 30m" or "never"; from one second to ten years.
pub fn parse_expiry(text: &str) -> Result<Expiry, String> {
    if text.trim() == "never" {
        return Ok(Expiry::Never);
    }
    duration(text, EXPIRY, MAX_EXPIRY, "ten years; write \"never\"").map(Expiry::After)
}

/// Parses a duration from one second to `longest`. Error messages call the maximum `bound`.
fn duration(text: &str, expected: &str, longest: Duration, bound: &str) -> Result<Duration, String> {
    let wrong = match humantime::parse_duration(text) {
        Err(_) if is_negative(text) => format!("is not a positive {}", expected.strip_prefix("a ").unwrap_or(expected)),
        Err(_) => format!("is not {expected}"),
        Ok(span) if span > longest => format!("is longer than {bound}"),
        Ok(span) if span < Duration::from_secs(1) => "is shorter than one second; write \"1s\" or more".to_owned(),
        Ok(span) => return Ok(span),
    };
    Err(format!("{} {wrong}", quoted_excerpt(text)))
}

fn is_negative(text: &str) -> bool {
    let number = text.trim().strip_prefix('-');
    number.is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
}

/// Parses an address or network. Host bits are cleared, an address without a mask is a single host, and a mask may be
/// dotted. An IPv4-mapped IPv6 address (::ffff:192.0.2.1) becomes the IPv4 address.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let wrong = || match text.split_once('%') {
        Some((address, _)) if address.parse().is_ok_and(shared64::is_link_local) => {
            format!("{} names a link; write {address}, which is that address on every link", quoted_excerpt(text))
        }
        _ => format!("{} is not {NETWORK}", quoted_excerpt(text)),
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

/// Parses the name of a network interface: 1 to 15 bytes, under the rules of the kernel's `dev_valid_name`.
pub fn parse_interface(text: &str) -> Result<String, String> {
    // "any" is libpcap's pseudo-device. As an interface name it would match an interface that never has an address.
    if text == "any" {
        return Err("\"any\" is not an interface; without a name, every interface is monitored".to_owned());
    }
    let fits = (1..=15).contains(&text.len()) && text != "." && text != "..";
    if fits && !text.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is not an interface name; write 1 to 15 bytes without blanks, \"/\" and \":\", for example \"eth0\"",
        quoted_excerpt(text)
    ))
}

/// Parses the name of an interface to monitor; a "!" in front excludes the interface.
pub fn parse_watched(text: &str) -> Result<String, String> {
    match text.strip_prefix('!') {
        Some(left_out) => parse_interface(left_out).map(|name| format!("!{name}")),
        None => parse_interface(text),
    }
}

/// Parses a host name under the rules of RFC 1123, and also accepts underscores, which are common. Labels consist of
/// letters, digits, "-" and "_" and have at most 63 bytes; the whole name has at most 253. Returns it in lower case. A
/// final dot is kept, because it disables the resolver's search list.
pub fn parse_name(text: &str) -> Result<String, String> {
    if parse_network(text).is_ok() {
        return Err(format!("{} is not a host name; move it to allow.networks", quoted_excerpt(text)));
    }
    if !text.is_ascii() {
        let shown = quoted_excerpt(text);
        return Err(format!("{shown} has letters other than a to z; write the name in its DNS form, \"xn--...\""));
    }
    let labels: Vec<&str> = text.strip_suffix('.').unwrap_or(text).split('.').collect();
    let fits = |label: &&str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let length: usize = labels.iter().map(|label| label.len() + 1).sum();
    // The resolver treats "127.1", "2130706433" and "0x7f.1" as addresses. No top-level domain is a number (RFC 3696).
    let number =
        |label: &&str| label.bytes().all(|byte| byte.is_ascii_digit()) || label.to_ascii_lowercase().starts_with("0x");
    if labels.iter().all(fits) && length <= 254 && !labels.last().is_some_and(number) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("{} is not {NAME}", quoted_excerpt(text)))
}

/// Why a line for hosts.deny is refused. The message continues a sentence whose subject is the line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DenyLineError {
    #[error("is not a line for TCP wrappers; write for example \"{DEFAULT_DENY_LINE}\"")]
    NoRule,
    #[error("is too long with {0} bytes; write {MAX_DENY_LINE_LEN} or fewer")]
    TooLong(usize),
}

/// Checks that `line` is a single rule for TCP wrappers (hosts_access(5)) with `$TARGET$`. Leading and trailing blanks
/// are ignored.
pub fn check_deny_line(line: &str) -> Result<(), DenyLineError> {
    let rule = line.trim();
    let denies_source = rule.contains("$TARGET$") && rule.contains(':');
    if !denies_source || rule.starts_with('#') || rule.ends_with('\\') || line.chars().any(char::is_control) {
        return Err(DenyLineError::NoRule);
    }
    match rule.len() {
        0..=MAX_DENY_LINE_LEN => Ok(()),
        length => Err(DenyLineError::TooLong(length)),
    }
}

/// True for a valid argument of a command.
pub fn is_command_word(word: &str) -> bool {
    !word.contains('\0') && word.len() <= MAX_WORD_LEN
}

/// `text` in quotes, escaped and truncated for terminals and logs.
pub(super) fn quoted_excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{:?}", format!("{}…", text.get(..end).unwrap_or(""))),
        None => format!("{text:?}"),
    }
}

/// The names in backticks at the end of serde's messages about unknown fields and variants.
pub(super) fn expected_names(message: &str) -> Vec<&str> {
    let names = message.rsplit_once(", expected ").map_or("", |(_, names)| names);
    names.split('`').skip(1).step_by(2).collect()
}

/// Applies `parse` to a string. A value of another type is reported as not `expected`.
pub(super) fn text<T>(
    value: &Value,
    expected: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, String> {
    value.as_str().map_or_else(|| Err(format!("is not {expected}")), parse)
}

/// As [`text`]; a string for which `parse` returns `None` is also reported as not `expected`.
pub(super) fn like<T>(value: &Value, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, String> {
    text(value, expected, |text| parse(text).ok_or_else(|| format!("is not {expected}")))
}

/// As [`like`]; an empty string stands for none.
pub(super) fn optional<T>(
    value: &Value,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, String> {
    like(value, expected, |text| if text.is_empty() { Some(None) } else { parse(text).map(Some) })
}

/// Parses the name of one of the variants of `T`.
fn choice<T: DeserializeOwned>(value: &Value, what: &str) -> Result<T, String> {
    T::deserialize(StrDeserializer::<PlainError>::new(value.as_str().unwrap_or_default())).map_err(|error| {
        let message = error.to_string();
        let names: Vec<String> = expected_names(&message).iter().map(|name| format!("\"{name}\"")).collect();
        let (last, others) = names.split_last().map_or(("", &[][..]), |(last, others)| (last.as_str(), others));
        format!("is not {what}; write {} or {last}", others.join(", "))
    })
}

/// Parses the items of a list with `item`. `example` appears in the error message.
fn list<T>(value: &Value, example: &str, item: impl FnMut(&Value) -> Result<T, String>) -> Result<Vec<T>, String> {
    let items = value.as_array().ok_or_else(|| format!("is not a list; write {example}"))?;
    items.iter().map(item).collect()
}

/// Parses a list of ports, or the name of a list in `lists`.
fn port_set(value: &Value, lists: Option<&port_lists::Lists>) -> Result<PortSet, String> {
    if let Some(number) = value.as_integer() {
        return Err(format!("is a number; write the list in quotes: \"{number}\""));
    }
    if value.is_array() {
        return Err("is not valid here; write the ports as one text, for example \"1,7,9,11-15\"".to_owned());
    }
    text(value, "a list of ports; write for example \"1,7,9,11-15\"", |text| {
        let named = lists.and_then(|lists| lists.get(text));
        named.map_or_else(|| text.parse().map_err(|error| format!("{error}")), Ok)
    })
}

/// Parses a whole number from `least` to `most`.
pub(super) fn within<T: TryFrom<i64>>(value: &Value, least: i64, most: i64) -> Result<T, String> {
    let found = value.as_integer().filter(|number| (least..=most).contains(number));
    let found = found.and_then(|number| T::try_from(number).ok());
    let wrong = match value {
        Value::Float(_) => "is not a whole number",
        // A number that is too large for any integer type also arrives as a string.
        Value::String(text)
            if text.parse::<i64>().is_ok() || !text.starts_with(|first: char| first.is_ascii_digit()) =>
        {
            "is in quotes"
        }
        _ => "is out of range",
    };
    found.ok_or_else(|| format!("{wrong}; write a number from {least} to {most}"))
}

/// Parses a duration from one second to `longest`. Error messages call the maximum `bound`.
fn parse_duration(value: &Value, expected: &str, longest: Duration, bound: &str) -> Result<Duration, String> {
    text(value, expected, |text| duration(text, expected, longest, bound))
}

/// Accepts only absolute paths. A relative path would depend on the working directory of the daemon.
pub(super) fn whole_path(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|path| path.is_absolute())
}

pub(super) fn number<'de, const MIN: i64, const MAX: i64, D: Deserializer<'de>, T: TryFrom<i64>>(
    source: D,
) -> Result<T, D::Error> {
    within(&any(source), MIN, MAX).map_err(D::Error::custom)
}

/// Reads any value. A number that `Value` cannot hold becomes a list with one table, which is invalid for every key.
pub(super) fn any<'de, D: Deserializer<'de>>(source: D) -> Value {
    Value::deserialize(source).unwrap_or_else(|_| vec![toml::Table::new()].into())
}

/// Defines functions for `deserialize_with`.
macro_rules! values {
    ($($name:ident($value:ident) -> $type:ty $read:block)*) => {$(
        pub(super) fn $name<'de, D: Deserializer<'de>>(source: D) -> Result<$type, D::Error> {
            let read = |$value: &Value| -> Result<$type, String> { $read };
            read(&any(source)).map_err(D::Error::custom)
        }
    )*};
}

pub(super) use values;

values! {
    expiry(value) -> Expiry { text(value, EXPIRY, parse_expiry) }
    window(value) -> Duration {
        parse_duration(value, "a duration; write for example \"90s\"", MAX_WINDOW, "30 days; write \"30d\" or less")
    }
    hold(value) -> Duration {
        like(value, "a duration; write \"0s\" for none, or \"100ms\" to \"900ms\" in tenths of a second", |text| {
            let tenths = |span: &Duration| span.as_millis() <= 900 && span.as_nanos().is_multiple_of(100_000_000);
            humantime::parse_duration(text).ok().filter(tenths)
        })
    }
    time_limit(value) -> Duration {
        parse_duration(value, "a duration; write for example \"30s\"", MAX_RUN_TIME, "ten minutes; write \"10m\" or less")
    }
    interval(value) -> Duration {
        let expected = "a duration; write for example \"15m\"";
        match parse_duration(value, expected, MAX_INTERVAL, "one day; write \"1d\" or less")? {
            interval if interval < MIN_INTERVAL => {
                let text = quoted_excerpt(value.as_str().unwrap_or_default());
                Err(format!("{text} is shorter than ten seconds; write \"10s\" or more"))
            },
            interval => Ok(interval),
        }
    }
    long_span(value) -> Duration {
        parse_duration(value, "a duration; write for example \"30d\"", MAX_EXPIRY, "ten years; write less")
    }
    interfaces(value) -> Vec<String> {
        let expected = "an interface name; write for example \"eth0\"";
        list(value, "for example [\"eth0\"]", |item| text(item, expected, parse_watched))
    }
    networks(value) -> Vec<IpNet> {
        list(value, "for example [\"198.51.100.0/24\"]", |item| text(item, NETWORK, parse_network))
    }
    nat64(value) -> Vec<Ipv6Net> {
        let expected = "the prefix of a NAT64 translator; write an IPv6 /96 (or /64), for example \"2001:db8:64::/96\"";
        let prefixes = list(value, "for example [\"2001:db8:64::/96\"]", |item| {
            text(item, expected, |text| match parse_network(text) {
                Ok(IpNet::V6(net)) if (64..=96).contains(&net.prefix_len()) && !net.contains(&Ipv6Addr::UNSPECIFIED) => Ok(net),
                _ => Err(format!("{} is not {expected}", quoted_excerpt(text))),
            })
        })?;
        match prefixes.len() {
            0..=MAX_NAT64 => Ok(prefixes),
            count => Err(format!("has {count} prefixes, which is too many; write {MAX_NAT64} or fewer")),
        }
    }
    names(value) -> Vec<String> {
        list(value, "for example [\"monitor.example.org\"]", |item| text(item, NAME, parse_name))
    }
    files(value) -> Vec<PathBuf> {
        let example = "\"/etc/portsentry/portsentry.ignore\"";
        list(value, &format!("for example [{example}]"), |item| like(item, &format!("{FILE} {example}"), whole_path))
    }
    deny_file(value) -> PathBuf {
        let path = like(value, &format!("{FILE} \"/etc/hosts.deny\""), whole_path)?;
        let is_file = path.file_name().is_some();
        is_file.then_some(path).ok_or_else(|| "is not the path of a file; write for example \"/etc/hosts.deny\"".to_owned())
    }
    json_file(value) -> Option<PathBuf> {
        optional(value, &format!("{FILE} \"/var/log/portsentry/events.json\", or \"\" for none"), whole_path)
    }
    listen(value) -> Option<SocketAddr> {
        let example = "\"127.0.0.1:9777\" or \"[::1]:9777\", or \"\" for none";
        optional(value, &format!("an address with a port; write for example {example}"), |text| text.parse().ok())
    }
    ports(value) -> PortSet { port_set(value, None) }
    tcp_ports(value) -> PortSet { port_set(value, Some(&port_lists::TCP)) }
    udp_ports(value) -> PortSet { port_set(value, Some(&port_lists::UDP)) }
    advanced_ports(value) -> PortSet {
        match value.as_integer() {
            // In the classic configuration, `ADVANCED_PORTS_TCP=1024` meant 1 to 1024.
            Some(most) => Err(format!("is a number; write \"1-{most}\" for the ports 1 to {most}")),
            None => port_set(value, None),
        }
    }
    widest_ipv4(value) -> u8 {
        match within(value, 24, 32)? {
            // A /31 has only two addresses, too few for several scanners.
            31 => Err("is out of range; write 24 to 30, or 32".to_owned()),
            length => Ok(length),
        }
    }
    widest_ipv6(value) -> u8 {
        match within(value, 48, 64)? {
            length @ (48 | 56 | 64) => Ok(length),
            _ => Err("is not supported; write 48, 56 or 64".to_owned()),
        }
    }
    switch(value) -> bool {
        value.as_bool().ok_or_else(|| "is not a boolean; write true or false".to_owned())
    }
    block_policy(value) -> Response {
        match value {
            Value::Boolean(true) => Ok(Response::Block),
            Value::Boolean(false) => Ok(Response::Log),
            Value::String(text) if text == "run" => Ok(Response::RunCommand),
            _ => Err("is not valid here; write true, false or \"run\"".to_owned()),
        }
    }
    ack_policy(value) -> AckPolicy { choice(value, "a policy for ACK segments") }
    half_open(value) -> HalfOpenPolicy { choice(value, "a policy for half-open connections") }
    no_half_open(value) -> HalfOpenPolicy {
        text(value, "a text; write \"ignore\"", |policy| match policy {
            "ignore" => Ok(HalfOpenPolicy::Ignore),
            _ => Err("applies only to TCP; write \"ignore\"".to_owned()),
        })
    }
    mode(value) -> Mode { choice(value, "a mode") }
    backends(value) -> Vec<Backend> { list(value, "[\"nft\"]", |item| choice(item, "a backend")) }
    action(value) -> Action { choice(value, "an action") }
    route_kind(value) -> RouteKind { choice(value, "a kind of route") }
    log_target(value) -> LogTarget { choice(value, "a log destination") }
    facility(value) -> Facility { choice(value, "a syslog facility") }
    route_via(value) -> Option<IpAddr> {
        let expected = "a gateway address; write an unused address, for example \"192.0.2.254\"";
        like(value, expected, |text| text.parse().ok().filter(is_host_address).map(Some))
    }
    deny_line(value) -> String {
        let expected = format!("a line for TCP wrappers; write for example \"{DEFAULT_DENY_LINE}\"");
        text(value, &expected, |line| match check_deny_line(line) {
            Ok(()) => Ok(line.to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }
    command(value) -> Vec<String> {
        let expected = "a word of the command in quotes; write for example \"/usr/local/sbin/on-scan\" or \"$TARGET$\"";
        list(value, "for example [\"/usr/local/sbin/on-scan\", \"$TARGET$\"]", |item| {
            text(item, expected, |word| match is_command_word(word) {
                true => Ok(word.to_owned()),
                false => Err(format!("is too long or contains a NUL; write at most {MAX_WORD_LEN} bytes")),
            })
        })
    }
    log_rate(value) -> Option<Rate> {
        let expected = "a rate; write for example \"3/minute\" (second, minute, hour, day), or \"\" for none";
        like(value, expected, |text| match text.split('/').map(str::trim).collect::<Vec<_>>().join("/").as_str() {
            "" => Some(None),
            rate => rate.parse().ok().map(Some),
        })
    }
    port_banner(value) -> String {
        text(value, "a text; write for example \"Go away.\\r\\n\", or \"\" for none", |banner| match banner.len() {
            0..=MAX_BANNER_LEN => Ok(banner.to_owned()),
            length => Err(format!("is too long with {length} bytes; write {MAX_BANNER_LEN} or fewer")),
        })
    }
    no_port_banner(value) -> String {
        text(value, "a text; write \"\"", |banner| match banner {
            "" => Ok(String::new()),
            // A forged source address would make this host send the banner to an address of the attacker's choice.
            _ => Err("is refused, because answers to datagrams would go to forged sources; write \"\"".to_owned()),
        })
    }
}

/// Parses a duration of at least one second, in the notation of humantime.
///
/// # Errors
/// A message that says what to write instead.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    duration(text, "a duration; write for example \"90m\", \"24h\" or \"7d\"", MAX_EXPIRY, "ten years; write less")
}
