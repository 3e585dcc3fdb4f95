//! Translates BLOCK_ and KILL_ options to `expire`, `tcp.block`, `udp.block` and `[block]`.
//!
//! Classic runs shell lines to block. The known ones become settings, and nothing is run during the translation. A line
//! that needs a shell is never written into the output, because the daemon does not run a shell.

use super::command::{Block, ParsedCommand, TARGET};
use super::diagnostics::{quoted, shown};
use super::document::TomlValue;
use super::options::Options;
use super::output::{OptionLine, Output};
use crate::config::{DenyLineError, check_deny_line, is_command_word};
use crate::types::{Rate, Response, RouteKind};

/// The translation of the KILL_ options, each part with the line it comes from.
#[derive(Default)]
struct Plan<'o> {
    /// Lines that block in a packet filter; true if the filter answers the packets.
    nft: Vec<(&'o OptionLine<'o>, bool)>,
    log: Option<(&'o OptionLine<'o>, Rate)>,
    route: Option<(&'o OptionLine<'o>, RouteKind)>,
    hosts_deny: Option<(&'o OptionLine<'o>, String)>,
    run: Option<Run<'o>>,
    expire: Option<(&'o OptionLine<'o>, String)>,
    may_end: Option<(&'o OptionLine<'o>, &'static str)>,
    /// True if KILL_RUN_CMD itself blocks.
    run_blocks: bool,
    /// A KILL_ROUTE that blocks, but is left out.
    lost_route: Option<&'o OptionLine<'o>>,
    /// A KILL_RUN_CMD that is left out in part or as a whole, and the reason. It may block.
    lost_run: Option<(&'o OptionLine<'o>, String)>,
}

/// The command to run.
struct Run<'o> {
    entry: &'o OptionLine<'o>,
    words: Vec<String>,
    /// The command that reverts it, if one is known.
    undo: Vec<String>,
}

const SCRIPT: &str = "move it to a script, and write for example command = [\"/usr/local/sbin/SCRIPT\", \
                      \"$TARGET$\", \"$PORT$\", \"$MODE$\"] under [block.run] and add \"run\" to block.method";

pub(super) fn translate(options: &Options, output: &mut Output) {
    let policies = ["BLOCK_TCP", "BLOCK_UDP"].map(|key| policy(options.get(key)?, output));
    let has_policy = |wanted| policies.iter().flatten().any(|(policy, _)| *policy == wanted);
    let mut plan = Plan::default();
    let run = options.get("KILL_RUN_CMD").map(|entry| (entry, ParsedCommand::parse(&entry.value)));
    if let Some(entry) = options.get("KILL_ROUTE") {
        if entry.value.contains(TARGET) {
            let may_run = run.is_none() && !has_policy(Response::RunCommand);
            plan.add(entry, ParsedCommand::parse(&entry.value), may_run, output);
        } else {
            output.left_out(
                "block",
                entry,
                "it does not contain $TARGET$, so classic PortSentry has always skipped it",
            );
        }
    }
    if let Some((entry, command)) = run {
        plan.run_blocks = !command.blocks.is_empty();
        plan.add(entry, command, true, output);
    }
    if has_policy(Response::RunCommand) {
        plan.require_run(output);
    }
    plan.add_hosts_deny(options, output);
    for (table, policy) in ["tcp", "udp"].into_iter().zip(policies) {
        plan.write_policy(table, policy, output);
    }
    plan.write_expire(output);
    plan.write_method(has_policy(Response::Block), output);
    plan.write_nft(output);
    plan.write_route(output);
    if let Some((entry, line)) = &plan.hosts_deny {
        output.set("block.hosts_deny", "line", &TomlValue::text(line), entry);
    }
    plan.write_run(options, output);
}

fn policy<'o>(entry: &'o OptionLine<'o>, output: &mut Output) -> Option<(Response, &'o OptionLine<'o>)> {
    let policy = match entry.value.trim() {
        "0" => Response::Log,
        "1" => Response::Block,
        "2" => Response::RunCommand,
        wrong => {
            let expected = "is not a valid value; write \"0\" to log, \"1\" to block, or \"2\" to run a command";
            output.refuse(entry, format!("{} {expected}", quoted(wrong)));
            return None;
        }
    };
    Some((policy, entry))
}

impl<'o> Plan<'o> {
    /// Adds the effects of `command`. If `may_run` is true, an unrecognised command may become the command to run.
    fn add(&mut self, entry: &'o OptionLine<'o>, command: ParsedCommand, may_run: bool, output: &mut Output) {
        let blocks = !command.blocks.is_empty();
        let is_recognised = blocks || command.undo.is_empty() && command.expire.is_some();
        for block in command.blocks {
            match block {
                Block::Drop => self.nft.push((entry, false)),
                Block::Reject => self.nft.push((entry, true)),
                Block::Route(route) => self.route = Some((entry, route)),
                Block::DeadGateway => {
                    let why = "its gateway is the placeholder from the example file and not an address, so the \
                               command has always failed";
                    output.left_out("block.route", entry, why);
                }
            }
        }
        if command.is_narrow {
            output.add_note(entry, "this command blocks only some packets of a source; a ban here blocks all of them");
        }
        self.log = command.log.map(|log| (entry, log)).or(self.log.take());
        self.expire = command.expire.map(|expire| (entry, expire)).or(self.expire.take());
        self.may_end = command.may_end.map(|what| (entry, what)).or(self.may_end.take());
        if command.rest.is_empty() {
            return;
        }
        let is_path = |words: &[String]| words.first().is_some_and(|program| program.starts_with('/'));
        let why = match command.words.filter(|words| words.first().is_some_and(|program| !program.is_empty())) {
            _ if is_recognised => format!("this part has no equivalent: {}", shown(&command.rest.join("; "))),
            None => "the command needs a shell, but commands are run without one".to_owned(),
            Some(words) if !is_path(&words) => {
                "the path of the program is not absolute, but commands are run without a search in PATH".to_owned()
            }
            Some(words) if !words.iter().all(|word| is_command_word(word)) => "the command is too long".to_owned(),
            Some(_) if !may_run => "only one command can be run, the one of KILL_RUN_CMD".to_owned(),
            Some(words) => {
                self.run = Some(Run { entry, words, undo: command.undo });
                return;
            }
        };
        output.left_out("block.run", entry, &format!("{why}; {SCRIPT}"));
        if entry.key == "KILL_RUN_CMD" {
            self.lost_run = Some((entry, why));
        } else if !blocks {
            self.lost_route = Some(entry);
        }
    }

    /// Refuses a KILL_RUN_CMD that cannot be run although the policy "run" depends on it: the result would only log.
    fn require_run(&self, output: &mut Output) {
        let Some((entry, why)) = self.lost_run.as_ref().filter(|_| self.run.is_none() && !self.run_blocks) else {
            return;
        };
        let message = format!(
            "{why}. With BLOCK_TCP or BLOCK_UDP = \"2\", no source would be blocked without it. Move it to a script, as in \
             KILL_RUN_CMD=\"/usr/local/sbin/SCRIPT $TARGET$ $PORT$ $MODE$\", or write \"0\" to only log"
        );
        output.refuse(entry, message);
    }

    fn add_hosts_deny(&mut self, options: &'o Options, output: &mut Output) {
        let Some(entry) = options.get("KILL_HOSTS_DENY") else { return };
        // Classic requires a backslash before a percent sign, because it passes the line to printf.
        let line = entry.value.trim().replace("\\%", "%");
        match check_deny_line(&line) {
            Ok(()) => self.hosts_deny = Some((entry, line)),
            Err(error @ DenyLineError::TooLong(_)) => {
                output.left_out("block.hosts_deny", entry, &format!("it {error}"))
            }
            Err(DenyLineError::NoRule) => {
                let why = "it is not a rule of hosts.deny that contains $TARGET$, so it would not deny the source; \
                           write for example \"ALL: $TARGET$\"";
                output.left_out("block.hosts_deny", entry, why);
            }
        }
    }

    fn write_policy(&self, table: &str, policy: Option<(Response, &OptionLine)>, output: &mut Output) {
        let Some((policy, entry)) = policy else {
            let remark = format!("BLOCK_{} is not set: classic PortSentry then only logs.", table.to_uppercase());
            return output.document.set(table, "block", &TomlValue::Switch(false), &remark);
        };
        let (value, remark) = match policy {
            Response::Log => (TomlValue::Switch(false), ""),
            Response::Block if table == "udp" => (
                TomlValue::Switch(true),
                "the source of a datagram is easily forged, so an attacker can have any address blocked; write false \
                 to only log",
            ),
            Response::Block => (TomlValue::Switch(true), ""),
            Response::RunCommand if self.run.is_some() => (TomlValue::text("run"), ""),
            Response::RunCommand if self.run_blocks => {
                (TomlValue::Switch(true), "the command of KILL_RUN_CMD blocks, so block = true has the same effect")
            }
            Response::RunCommand => {
                (TomlValue::Switch(false), "there is no command to run, so scans are only logged; see KILL_RUN_CMD")
            }
        };
        if !remark.is_empty() {
            output.add_note(entry, remark);
        }
        let remark = [entry.origin(), sentence(remark)].join("\n");
        output.document.set(table, "block", &value, remark.trim_end());
    }

    fn write_expire(&self, output: &mut Output) {
        if let Some((entry, expire)) = &self.expire {
            let is_its_own = self.run.as_ref().is_some_and(|run| run.entry.line == entry.line);
            let remark = if is_its_own {
                "Duration of a ban, taken from this command."
            } else {
                "Duration of a ban, taken from this command. The kernel ends the ban; at(1) is not needed."
            };
            let remark = format!("{}\n{remark}", entry.origin());
            return output.document.set("", "expire", &TomlValue::text(expire), &remark);
        }
        if let Some((entry, what)) = self.may_end {
            let remark = format!("{}\nIf {what} ends the ban, write its time here.", entry.origin());
            output.document.set("", "expire", &TomlValue::text("24h"), &remark);
            return output.add_note(
                entry,
                &format!("{what} may end bans of this command; write that time as expire instead of \"24h\""),
            );
        }
        let remark = "Classic PortSentry never ends a ban; \"never\" would do the same. A time is better, because \
                      addresses change hands and many users can share one.";
        output.document.set("", "expire", &TomlValue::text("24h"), remark);
        output.note_config(
            "classic PortSentry never ends a ban; bans now expire after 24 hours. Write expire = \"never\" for \
             permanent bans",
        );
    }

    fn write_method(&self, blocks: bool, output: &mut Output) {
        let (nft, route) = (!self.nft.is_empty(), self.route.is_some());
        let (hosts_deny, run) = (self.hosts_deny.is_some(), self.run.is_some());
        let lost_run = self.lost_run.as_ref().map(|(entry, _)| *entry).filter(|_| !hosts_deny && !run);
        let lost = self.lost_route.or(lost_run).filter(|_| blocks && !nft && !route);
        let all = [("nft", nft || lost.is_some()), ("route", route), ("hosts-deny", hosts_deny), ("run", run)];
        let names: Vec<String> = all.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| (*name).to_owned()).collect();
        if names.is_empty() {
            if blocks {
                output.document.remark("block", "No option blocks a source, so nftables is used.");
                output.note_config(
                    "blocking is on, but no KILL_ option blocks a source, so classic PortSentry only logs; nftables now \
                     blocks. Write false for tcp.block and udp.block to only log",
                );
            }
            return;
        }
        let replaced = |entry: &OptionLine| {
            format!("{}: replaced by one nftables set instead of a rule for each source.\n", entry.origin())
        };
        let mut remark: String = self.nft.iter().map(|(entry, _)| replaced(entry)).collect();
        if let Some(entry) = lost {
            remark = format!("{} is left out, see below; nftables blocks instead.", entry.origin());
            output.add_note(entry, "this command may block, but is left out; \"nft\" in block.method replaces it");
        } else if !nft {
            remark.push_str("Consider \"nft\" in addition or instead: it drops all packets of a blocked source.");
        }
        if !nft && route {
            remark.push_str(" A route stops only the answers.");
        }
        output.document.set("block", "method", &TomlValue::Texts(names), remark.trim_end());
    }

    fn write_nft(&self, output: &mut Output) {
        if let Some((entry, _)) = self.nft.first().filter(|_| self.nft.iter().all(|(_, rejects)| *rejects)) {
            output.set("block.nft", "action", &TomlValue::text("reject"), entry);
        }
        match &self.log {
            Some((entry, _)) if self.nft.is_empty() => {
                output.left_out(
                    "block.nft",
                    entry,
                    "it logs packets that a packet filter blocks, but the result uses no packet filter",
                );
            }
            Some((entry, rate)) => output.set("block.nft", "log_drops", &TomlValue::text(rate.to_string()), entry),
            None => {}
        }
    }

    fn write_route(&self, output: &mut Output) {
        let Some((entry, route)) = self.route else { return };
        let (key, value) = match route {
            RouteKind::Blackhole => ("kind", "blackhole".to_owned()),
            RouteKind::Unreachable => ("kind", "unreachable".to_owned()),
            RouteKind::Prohibit => ("kind", "prohibit".to_owned()),
            RouteKind::Via(gateway) => ("via", gateway.to_string()),
        };
        output.set("block.route", key, &TomlValue::text(value), entry);
    }

    fn write_run(self, options: &Options, output: &mut Output) {
        let first = options.get("KILL_RUN_CMD_FIRST").and_then(|entry| Some((entry, output.switch(entry)?)));
        if let Some(Run { entry, words, undo }) = self.run {
            let remark = format!(
                "{}\n$TARGET$ is an IPv4 address or an IPv6 /64. The command runs without a shell.",
                entry.origin()
            );
            output.document.set("block.run", "command", &TomlValue::Texts(words), &remark);
            if !undo.is_empty() {
                let remark = "Reverts the command when the ban has ended.";
                output.document.set("block.run", "expire_command", &TomlValue::Texts(undo), remark);
            } else if entry.key == "KILL_ROUTE" {
                output.add_note(
                    entry,
                    "this command may block permanently; write the command that reverts it to block.run.expire_command",
                );
            }
            if let Some((entry, is_first)) = first {
                output.set("block.run", "first", &TomlValue::Switch(is_first), entry);
            }
        } else if let Some((entry, _)) = first {
            output.document.tail(&format!("{}: no effect, because there is no command to run.", entry.origin()));
        }
    }
}

/// Formats a remark as a separate sentence.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), chars.as_str()))
}
