//! Which key sets what. The one list of keys: whatever is not asked for here is an unknown key.

use super::error::{ConfigError, ConfigErrors, Lines};
use super::lists::{self, Lists};
use super::reader::{Section, Walk};
use super::{Block, Config, Protocol, value};
use std::collections::BTreeSet;
use toml::de::{DeTable, DeValue};

pub(super) fn parse(name: &str, text: &str) -> Result<Config, ConfigErrors> {
    let (document, slips) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    let mut config = Config::builtin();
    let walk = Walk::over(name, &lines, document.get_ref(), |root| all(root, &mut config));
    let mut errors: Vec<ConfigError> = slips.iter().map(|slip| no_toml(name, text, &lines, slip)).collect();
    errors.sort_by_key(|error| error.position);
    errors.dedup_by_key(|error| error.position.map(|position| position.line));
    if !slips.iter().any(|slip| hides_the_rest(text, slip)) {
        let line = |error: &ConfigError| error.position.map(|position| position.line);
        let broken: BTreeSet<_> = errors.iter().map(line).collect();
        let mut meanings = walk.into_errors(config.contradictions());
        meanings.retain(|meaning| !broken.contains(&line(meaning)));
        errors.extend(meanings);
    }
    ConfigErrors::unless_empty(errors, config)
}

/// An unclosed list or text runs on to the end, and keys under a broken header belong nowhere: what the reader makes of
/// the rest of such a file is a guess, and complaining about a guess would send its owner to the wrong line.
fn hides_the_rest(text: &str, slip: &toml::de::Error) -> bool {
    let start = slip.span().map_or(text.len(), |span| span.start);
    let (before, after) = text.split_at_checked(start).unwrap_or((text, ""));
    let line = before.rsplit('\n').next().unwrap_or("");
    after.trim().is_empty() || line.trim_start().starts_with('[') || (line.is_empty() && after.starts_with('['))
}

fn no_toml(name: &str, text: &str, lines: &Lines<'_>, slip: &toml::de::Error) -> ConfigError {
    let span = slip.span().unwrap_or(text.len()..text.len());
    let found = match text.get(span.clone()).map(str::trim) {
        None | Some("") => String::new(),
        Some(found) => format!("{}: ", value::quoted(found)),
    };
    let message = format!("{found}{}; write key = \"text\", key = 5, key = true or [table]", slip.message());
    let position = Some(lines.position(span.start));
    ConfigError { file: name.to_owned(), position, key: None, message }
}

pub(super) fn keys() -> Vec<String> {
    let mut config = Config::builtin();
    Walk::over("", &Lines::of(""), &DeTable::new(), |root| all(root, &mut config)).into_keys()
}

fn all(root: &mut Section<'_, '_>, config: &mut Config) {
    root.read("expire", &mut config.expire, value::expiry);
    root.read_list("interfaces", &mut config.interfaces, "for example [\"eth0\"]", value::interface);
    root.section("tcp", |tcp| protocol(tcp, &mut config.tcp, &lists::TCP, value::port_banner));
    root.section("udp", |udp| protocol(udp, &mut config.udp, &lists::UDP, value::no_port_banner));
    root.section("detect", |detect| {
        let place = &mut config.detect;
        detect.read("scan_trigger", &mut place.scan_trigger, |found| value::number(found, 0, 15));
        detect.read("window", &mut place.window, value::window);
        detect.read("max_sources", &mut place.max_sources, |found| value::number(found, 1_024, 16_777_216));
        detect.read("sctp", &mut place.sctp, value::yes_or_no);
        detect.read("icmp", &mut place.icmp, value::yes_or_no);
    });
    root.section("allow", |allow| {
        let place = &mut config.allow;
        allow.read_list("networks", &mut place.networks, "for example [\"198.51.100.0/24\"]", value::network);
        allow.read_list("names", &mut place.names, "for example [\"monitor.example.org\"]", value::name);
        let example = "for example [\"/etc/portsentry/portsentry.ignore\"]";
        allow.read_list("files", &mut place.files, example, value::file);
    });
    root.section("block", |section| block(section, &mut config.block));
    root.section("escalate", |escalate| {
        let place = &mut config.escalate;
        escalate.read("factor", &mut place.factor, |found| value::number(found, 1, 100));
        escalate.read("max", &mut place.max, value::long_span);
        escalate.read("forget", &mut place.forget, value::long_span);
    });
    root.section("trap", |trap| {
        trap.read("tcp", &mut config.trap.tcp, value::yes_or_no);
        trap.read("udp", &mut config.trap.udp, value::yes_or_no);
    });
    root.section("metrics", |metrics| metrics.read("listen", &mut config.metrics.listen, value::listen));
    root.section("report", |report| {
        let place = &mut config.report;
        report.read("resolve_host", &mut place.resolve_host, value::yes_or_no);
        report.read("json_file", &mut place.json_file, value::json_file);
        report.read("log", &mut place.log, value::log_target);
    });
}

fn block(section: &mut Section<'_, '_>, place: &mut Block) {
    section.read_list("method", &mut place.method, "[\"nft\"]", value::method);
    let (key, most) = ("max_new_bans_per_minute", i64::from(u32::MAX));
    section.read(key, &mut place.max_new_bans_per_minute, |found| value::number(found, 1, most));
    section.read("widest_ipv4", &mut place.widest_ipv4, value::widest_ipv4);
    section.read("widest_ipv6", &mut place.widest_ipv6, value::widest_ipv6);
    section.section("nft", |nft| {
        let place = &mut place.nft;
        nft.read("action", &mut place.action, value::action);
        nft.read("log_drops", &mut place.log_drops, value::log_rate);
        nft.read("end_connections", &mut place.end_connections, value::yes_or_no);
        nft.read("size", &mut place.size, |found| value::number(found, 1, 16_777_216));
    });
    section.section("route", |route| {
        route.read("kind", &mut place.route, value::route_kind);
        route.read("via", &mut place.route, value::route_via);
    });
    section.section("hosts_deny", |deny| {
        deny.read("file", &mut place.hosts_deny.file, value::deny_file);
        deny.read("line", &mut place.hosts_deny.line, value::deny_line);
    });
    section.section("run", |run| {
        let place = &mut place.run;
        let example = "for example [\"/usr/local/sbin/on-scan\", \"$TARGET$\"]";
        run.read_list("command", &mut place.command, example, value::command_word);
        run.read_list("expire_command", &mut place.expire_command, example, value::command_word);
        run.read("first", &mut place.first, value::yes_or_no);
        run.read("timeout", &mut place.timeout, value::time_limit);
        run.read("at_once", &mut place.at_once, |found| value::number(found, 1, 64));
    });
}

fn protocol(
    section: &mut Section<'_, '_>,
    place: &mut Protocol,
    lists: &Lists,
    banner: fn(&DeValue<'_>) -> Result<String, String>,
) {
    section.read("mode", &mut place.mode, value::mode);
    section.read("ports", &mut place.ports, |found| match found.as_str().and_then(|name| lists.named(name)) {
        Some(ports) => Ok(ports),
        None => value::ports(found),
    });
    section.read("advanced_ports", &mut place.advanced_ports, value::advanced_ports);
    section.read("advanced_exclude", &mut place.advanced_exclude, value::ports);
    section.read("block", &mut place.block, value::block_policy);
    section.read("port_banner", &mut place.port_banner, banner);
}
