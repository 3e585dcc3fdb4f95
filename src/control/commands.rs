//! The operator's commands: a question to the daemon, and its answer as text for a person or as JSON for a program. Both
//! say the same, since both are made from the same answer.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::client::{Client, ClientError};
use super::protocol::Request;
use crate::cli::{Connection, Question};

type Fields = Map<String, Value>;

/// Asks `question` and writes the answer.
///
/// # Errors
/// Where the daemon is not there, or says no.
pub fn run(question: &Question, out: &mut impl Write) -> Result<(), ClientError> {
    let (request, connection, told): (_, &Connection, fn(&Fields) -> String) = match question {
        Question::Status(connection) => (Request::Status, connection, status),
        Question::Block(options) => {
            let (target, expire, reason) = (options.target.to_string(), options.expire.clone(), options.reason.clone());
            let request = Request::Block { target, expire, reason, force: options.force };
            (request, &options.connection, |told| match text(told, "expires") {
                "never" => format!("{} is blocked for ever\n", text(told, "subject")),
                end => format!("{} is blocked until {}\n", text(told, "subject"), moment(end)),
            })
        }
        Question::Unblock(options) => {
            let target = options.target.map(|target| target.to_string());
            (Request::Unblock { target, all: options.all }, &options.connection, |told| {
                format!("bans lifted: {}\n", number(told, "unblocked"))
            })
        }
        Question::Allow(options) => {
            let span = options.span.map(|span| humantime::format_duration(span).to_string());
            (Request::Allow { target: options.target.to_string(), span }, &options.connection, |told| {
                match told.get("until").and_then(Value::as_str) {
                    Some(until) => format!("{} is allowed until {}\n", text(told, "allowed"), moment(until)),
                    None => format!("{} is allowed until the daemon ends\n", text(told, "allowed")),
                }
            })
        }
        Question::Explain(options) => {
            (Request::Explain { address: options.address.to_string() }, &options.connection, explain)
        }
        Question::Confirm(connection) => (Request::Confirm, connection, |_| "confirmed: blocking goes on\n".to_owned()),
        Question::Reload(connection) => (Request::Reload, connection, reloaded),
        Question::Events(connection) => return events(connection, out),
    };
    let answer = match Client::connect(&connection.socket).and_then(|mut client| client.ask(&request)) {
        Ok(answer) => answer,
        // A program that asks how the daemon is wants to read that it is not there.
        Err(error @ ClientError::NotRunning(_)) if connection.json && request == Request::Status => {
            put(out, &format!("{}\n", json!({"running": false, "reason": error.to_string()})));
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    put(out, &if connection.json { format!("{}\n", Value::Object(answer)) } else { told(&answer) });
    Ok(())
}

/// Writes every event until the daemon ends, or nobody reads any more.
fn events(connection: &Connection, out: &mut impl Write) -> Result<(), ClientError> {
    for event in Client::connect(&connection.socket)?.watch()? {
        let event = event?;
        if writeln!(out, "{event}").and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}

fn put(out: &mut impl Write, told: &str) {
    // Who closes the pipe (`| head`) has read enough.
    let _: io::Result<()> = out.write_all(told.as_bytes()).and_then(|()| out.flush());
}

fn text<'a>(fields: &'a Fields, key: &str) -> &'a str {
    fields.get(key).and_then(Value::as_str).unwrap_or("?")
}

/// A time to the second, as a person reads it: what is left of a ban is known no better.
fn moment(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

fn number(fields: &Fields, key: &str) -> u64 {
    fields.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn part<'a>(fields: &'a Fields, key: &str) -> Option<&'a Fields> {
    fields.get(key).and_then(Value::as_object)
}

fn span(seconds: u64) -> String {
    // Two units are enough to read: "3days 4h".
    let text = humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn list(value: Option<&Value>) -> String {
    let items = value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

/// One line of `status` and `explain`: the word in a column of its own.
fn line(out: &mut String, word: &str, rest: &str) {
    let _ = writeln!(out, "{word:<11} {rest}");
}

fn status(told: &Fields) -> String {
    let mut out = String::new();
    let state = match told.get("trial_left_s").and_then(Value::as_u64) {
        Some(left) => format!("on trial: {} left for `portsentry confirm`", span(left)),
        None => text(told, "state").to_owned(),
    };
    line(&mut out, "portsentry", &format!("{}, process {}, {state}", text(told, "version"), number(told, "process")));
    line(&mut out, "since", &format!("{}, for {}", moment(text(told, "since")), span(number(told, "uptime_s"))));
    line(
        &mut out,
        "blocks",
        &match text(told, "state") {
            "only logging" => "nobody".to_owned(),
            _ => format!("for {}, by {}", text(told, "expire"), list(told.get("methods"))),
        },
    );
    let interfaces = list(told.get("interfaces"));
    line(&mut out, "interfaces", if interfaces.is_empty() { "all" } else { &interfaces });
    for (word, key) in [("TCP", "tcp"), ("UDP", "udp")] {
        let Some(watched) = part(told, key) else { continue };
        let mut rest = text(watched, "mode").to_owned();
        if rest != "off" {
            let block = match text(watched, "block") {
                "yes" => "blocked",
                "run" => "left to the command",
                _ => "only logged",
            };
            let _ = write!(rest, ", {} ports, scans are {block}", number(watched, "count"));
            match text(watched, "left_out") {
                "" => {}
                in_use => drop(write!(rest, "; left out, because in use: {in_use}")),
            }
        }
        line(&mut out, word, &rest);
    }
    if let Some(packets) = part(told, "packets") {
        let [seen, dropped, malformed, judged] =
            ["seen", "dropped", "malformed", "from_judged"].map(|key| number(packets, key));
        line(
            &mut out,
            "packets",
            &format!(
                "{seen} seen, {judged} of them from judged sources, {malformed} malformed; {dropped} dropped by the capture"
            ),
        );
    }
    let (probes, tracked) = (number(told, "probes"), number(told, "sources_tracked"));
    line(&mut out, "evidence", &format!("{probes} probes so far, {tracked} sources tracked"));
    if let Some(bans) = part(told, "bans") {
        let enforced = match bans.get("enforced").and_then(Value::as_u64) {
            Some(enforced) => format!("{enforced} in the kernel"),
            None => "not counted in the kernel".to_owned(),
        };
        let [intended, made, failed, repaired] =
            ["intended", "made", "failed", "repaired"].map(|key| number(bans, key));
        let mut rest = format!("{intended} now, {enforced}; {made} made, {failed} failed since the start");
        if repaired > 0 {
            let _ = write!(rest, ", {repaired} were missing and put back");
        }
        line(&mut out, "bans", &rest);
    }
    if let Some(trap) = part(told, "trap") {
        let [ports, udp, condemned, let_go] =
            ["ports", "udp_ports", "condemned", "let_go"].map(|key| number(trap, key));
        let at = match (ports, udp) {
            (ports, 0) => format!("{ports} TCP ports"),
            (0, udp) => format!("{udp} UDP ports"),
            (ports, udp) => format!("{ports} TCP and {udp} UDP ports"),
        };
        let did = match (ports, udp) {
            (0, 0) => "the kernel counts nothing by itself".to_owned(),
            _ => format!("the kernel counts at {at}; {condemned} caught by it, {let_go} let go"),
        };
        line(&mut out, "trap", &did);
    }
    line(&mut out, "allow-list", &format!("{} entries", number(told, "allowed")));
    line(&mut out, "ledger", text(told, "ledger"));
    if let Some(now) = part(told, "sandbox") {
        line(&mut out, "sandbox", &sandbox(now));
    }
    if let Some(commands) = part(told, "commands") {
        let process = number(commands, "process");
        let running = commands.get("running").and_then(Value::as_bool).unwrap_or_default();
        let rest = match part(commands, "sandbox").filter(|_| running) {
            Some(now) => format!("run by process {process}: {}", sandbox(now)),
            None => format!("none is run, because process {process} has ended: restart portsentry"),
        };
        line(&mut out, "commands", &rest);
    }
    if let Some(last) = part(told, "last_event") {
        let who = last.get("subject").or_else(|| last.get("source")).and_then(Value::as_str);
        let who = who.map_or(String::new(), |who| format!(" {who}"));
        line(&mut out, "last event", &format!("{} {}{who}", moment(text(last, "time")), text(last, "event")));
    }
    out
}

/// What a process has given up, and what it has not.
fn sandbox(now: &Fields) -> String {
    let user = match now.get("user").and_then(Value::as_str) {
        Some(user) => user.to_owned(),
        None => number(now, "uid").to_string(),
    };
    let capabilities = match now.get("capabilities").and_then(Value::as_array) {
        None => "all capabilities".to_owned(),
        Some(none) if none.is_empty() => "no capabilities".to_owned(),
        Some(_) => list(now.get("capabilities")),
    };
    let on = |key: &str| now.get(key).and_then(Value::as_bool).unwrap_or_default();
    let landlock = now
        .get("landlock_abi")
        .and_then(Value::as_u64)
        .map_or("off".to_owned(), |version| format!("version {version}"));
    format!(
        "user {user}, {capabilities}; no_new_privs {}, Landlock {landlock}, seccomp {}, core dumps {}",
        if on("no_new_privs") { "on" } else { "off" },
        text(now, "seccomp"),
        if on("core_dumps") { "possible" } else { "off" },
    )
}

/// What is known about an address, as text.
pub(super) fn explain(told: &Fields) -> String {
    let mut out = String::new();
    let (address, subject) = (text(told, "address"), text(told, "subject"));
    let whole = if address == subject { String::new() } else { format!(", judged as {subject}") };
    line(&mut out, "address", &format!("{address}{whole}"));
    line(&mut out, "protected", told.get("protected").and_then(Value::as_str).unwrap_or("no"));
    let left = |key| {
        part(told, key).map(|state| match state.get("until").and_then(Value::as_str) {
            Some(until) => {
                let left =
                    state.get("left_s").and_then(Value::as_u64).map_or_else(|| text(state, "left").to_owned(), span);
                format!("yes, until {} ({left} left)", moment(until))
            }
            None => "yes, for ever".to_owned(),
        })
    };
    let network = part(told, "blocked").and_then(|state| state.get("network")).and_then(Value::as_str);
    let with = network.map_or(String::new(), |network| format!(", with all of {network}"));
    line(&mut out, "blocked", &left("blocked").map_or("no".to_owned(), |left| format!("{left}{with}")));
    if let Some(logged) = left("logged") {
        line(&mut out, "only logged", &logged);
    }
    let suspected = told.get("suspected").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if suspected.is_empty() {
        line(&mut out, "suspected", "no");
    }
    for suspicion in suspected.iter().filter_map(Value::as_object) {
        let ports: Vec<String> = suspicion
            .get("ports")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
            .map(|port| format!("{}/{} {}", text(port, "proto"), number(port, "port"), text(port, "class")))
            .collect();
        let lane = match suspicion.get("blocks").and_then(Value::as_bool) {
            Some(true) => "the next one blocks",
            _ => "only logged",
        };
        let rest = format!(
            "{} distinct ports of {} that are forgiven ({lane}), {} probes, the last {} ago: {}",
            number(suspicion, "distinct_ports"),
            number(suspicion, "forgiven"),
            number(suspicion, "probes"),
            span(number(suspicion, "last_s_ago")),
            ports.join(", ")
        );
        line(&mut out, "suspected", &rest);
    }
    line(&mut out, "strikes", &number(told, "strikes").to_string());
    let history = told.get("history").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    line(&mut out, "bans", &format!("{} in the ledger", number(told, "bans")));
    for ban in history.iter().filter_map(Value::as_object) {
        let end = match part(ban, "ended") {
            Some(ended) => format!("{} {}", text(ended, "how"), moment(text(ended, "at"))),
            None => match ban.get("until").and_then(Value::as_str) {
                Some(until) => format!("until {}", moment(until)),
                None => "for ever".to_owned(),
            },
        };
        let class = ban.get("class").and_then(Value::as_str).unwrap_or("by hand");
        let mut rest = vec![end];
        // The network's bans, where it is blocked by one.
        rest.extend(ban.get("subject").and_then(Value::as_str).filter(|banned| *banned != subject).map(str::to_owned));
        rest.extend(Some(list(ban.get("ports"))).filter(|ports| !ports.is_empty()));
        rest.extend(ban.get("note").and_then(Value::as_str).map(|note| format!("{note:?}")));
        let _ = writeln!(out, "  {}  {class:<10} {}", moment(text(ban, "since")), rest.join("  "));
    }
    out
}

fn reloaded(told: &Fields) -> String {
    let restart = list(told.get("needs_restart"));
    let changed = list(told.get("changed"));
    match (changed.as_str(), restart.as_str()) {
        ("", "") => "read again: nothing has changed\n".to_owned(),
        (changed, "") => format!("read again; changed: {changed}\n"),
        (changed, restart) => format!("read again; changed: {changed}; only after a restart: {restart}\n"),
    }
}
