//! Translates BLOCK_ and KILL_ options to `expire`, `tcp.block`, `udp.block` and `[block]`.
//!
//! Classic runs shell lines to block. The known ones become settings, and nothing is run during the translation. A line
//! that needs a shell is never written into the output, because the daemon does not run a shell.

use super::command::{Block, ParsedCommand};
use super::diagnostics::{quoted, shown};
use super::document::Value;
use super::entry::Entry;
use super::options::Options;
use super::output::Output;
use crate::config::{BlockPolicy, is_command_word, is_deny_line};
use crate::types::RouteKind;

/// The translation of the KILL_ options, each part with the line it comes from.
#[derive(Default)]
struct Plan<'o> {
    /// Lines that block in a packet filter; true if the filter answers the packets.
    nft: Vec<(&'o Entry<'o>, bool)>,
    log: Option<(&'o Entry<'o>, String)>,
    route: Option<(&'o Entry<'o>, RouteKind)>,
    hosts_deny: Option<(&'o Entry<'o>, String)>,
    run: Option<Run<'o>>,
    expire: Option<(&'o Entry<'o>, String)>,
    may_end: Option<(&'o Entry<'o>, &'static str)>,
    /// True if KILL_RUN_CMD itself blocks.
    run_blocks: bool,
    /// A KILL_ROUTE that blocks, but is left out.
    lost_blocker: Option<&'o Entry<'o>>,
}

/// The command to run.
struct Run<'o> {
    entry: &'o Entry<'o>,
    words: Vec<String>,
    /// The command that reverts it, if one is known.
    undo: Vec<String>,
}

const SCRIPT: &str = "put it into a script of its own, and write for example command = [\"/usr/local/sbin/SCRIPT\", \
                      \"$TARGET$\", \"$PORT$\", \"$MODE$\"] and \"run\" in block.method";

pub(super) fn translate(options: &Options, output: &mut Output) {
    let policies = ["BLOCK_TCP", "BLOCK_UDP"].map(|key| policy(options.get(key)?, output));
    let has_policy = |wanted| policies.iter().flatten().any(|(policy, _)| *policy == wanted);
    let mut plan = Plan::default();
    let run = options.get("KILL_RUN_CMD").map(|entry| (entry, ParsedCommand::parse(&entry.value)));
    if let Some(entry) = options.get("KILL_ROUTE") {
        let may_run = run.is_none() && !has_policy(BlockPolicy::Run);
        plan.add(entry, ParsedCommand::parse(&entry.value), may_run, output);
    }
    if let Some((entry, command)) = run {
        plan.run_blocks = !command.blocks.is_empty();
        plan.add(entry, command, true, output);
    }
    plan.add_hosts_deny(options, output);
    for (table, policy) in ["tcp", "udp"].into_iter().zip(policies) {
        plan.write_policy(table, policy, output);
    }
    plan.write_expire(output);
    plan.write_method(has_policy(BlockPolicy::Yes), output);
    plan.write_nft(output);
    plan.write_route(output);
    if let Some((entry, line)) = &plan.hosts_deny {
        output.set("block.hosts_deny", "line", &Value::text(line), entry);
    }
    plan.write_run(options, output);
}

fn policy<'o>(entry: &'o Entry<'o>, output: &mut Output) -> Option<(BlockPolicy, &'o Entry<'o>)> {
    let policy = match entry.value.trim() {
        "0" => BlockPolicy::No,
        "1" => BlockPolicy::Yes,
        "2" => BlockPolicy::Run,
        wrong => {
            let expected = "is none of its values; write \"0\" to log, \"1\" to block, \"2\" to run a command";
            output.refuse(entry, format!("{} {expected}", quoted(wrong)));
            return None;
        }
    };
    Some((policy, entry))
}

impl<'o> Plan<'o> {
    /// Adds the effects of `command`. If `may_run` is true, an unrecognised command may become the command to run.
    fn add(&mut self, entry: &'o Entry<'o>, command: ParsedCommand, may_run: bool, output: &mut Output) {
        let is_recognised = !command.blocks.is_empty() || command.undo.is_empty() && command.expire.is_some();
        for block in command.blocks {
            match block {
                Block::Drop => self.nft.push((entry, false)),
                Block::Reject => self.nft.push((entry, true)),
                Block::Route(route) => self.route = Some((entry, route)),
                Block::DeadGateway => {
                    let why = "its gateway is no address, only classic's example of a dead host: the command has always failed";
                    output.left_out("block.route", entry, why);
                }
            }
        }
        if command.is_narrow {
            output.note(entry, "blocks some packets of a source only; here a ban covers all of them");
        }
        self.log = command.log.map(|log| (entry, log)).or(self.log.take());
        self.expire = command.expire.map(|expire| (entry, expire)).or(self.expire.take());
        self.may_end = command.may_end.map(|what| (entry, what)).or(self.may_end.take());
        if command.rest.is_empty() {
            return;
        }
        let is_path = |words: &[String]| words.first().is_some_and(|program| program.starts_with('/'));
        let why = match command.words.filter(|words| words.first().is_some_and(|program| !program.is_empty())) {
            _ if is_recognised => format!("of this line, {}; {SCRIPT}", shown(&command.rest.join("; "))),
            None => format!("it needs a shell, and none is run here; {SCRIPT}"),
            Some(words) if !is_path(&words) => {
                format!("a program needs its whole path here: write it into block.run.command, or {SCRIPT}")
            }
            Some(words) if !words.iter().all(|word| is_command_word(word)) => format!("it is too long; {SCRIPT}"),
            Some(_) if !may_run => format!("there is one command only; to run it beside KILL_RUN_CMD, {SCRIPT}"),
            Some(words) => {
                self.run = Some(Run { entry, words, undo: command.undo });
                return;
            }
        };
        output.left_out("block.run", entry, &why);
        if entry.key == "KILL_ROUTE" && !is_recognised {
            self.lost_blocker = Some(entry);
        }
    }

    fn add_hosts_deny(&mut self, options: &'o Options, output: &mut Output) {
        let Some(entry) = options.get("KILL_HOSTS_DENY") else { return };
        // Classic requires a backslash before a percent sign, because it passes the line to printf.
        let line = entry.value.trim().replace("\\%", "%");
        if is_deny_line(&line) {
            self.hosts_deny = Some((entry, line));
        } else {
            let why = "it is no line of hosts.deny that names $TARGET$, and would deny no source, or the same one for every ban; write for \
                       example \"ALL: $TARGET$\"";
            output.left_out("block.hosts_deny", entry, why);
        }
    }

    fn write_policy(&self, table: &str, policy: Option<(BlockPolicy, &Entry)>, output: &mut Output) {
        let Some((policy, entry)) = policy else {
            let remark = format!("BLOCK_{} is not set: classic only logs.", table.to_uppercase());
            return output.document.set(table, "block", &Value::Switch(false), &remark);
        };
        let (value, remark) = match policy {
            BlockPolicy::No => (Value::Switch(false), ""),
            BlockPolicy::Yes if table == "udp" => (
                Value::Switch(true),
                "the source of a datagram is easily forged: a stranger can have any address blocked. Write false to only log",
            ),
            BlockPolicy::Yes => (Value::Switch(true), ""),
            BlockPolicy::Run if self.run.is_some() => (Value::text("run"), ""),
            BlockPolicy::Run if self.run_blocks => {
                (Value::Switch(true), "the command of KILL_RUN_CMD blocks, so this does")
            }
            BlockPolicy::Run => {
                (Value::Switch(false), "there is no command left to run, so this only logs; see KILL_RUN_CMD")
            }
        };
        if !remark.is_empty() {
            output.note(entry, remark);
        }
        let remark = [entry.origin(), sentence(remark)].join("\n");
        output.document.set(table, "block", &value, remark.trim_end());
    }

    fn write_expire(&self, output: &mut Output) {
        if let Some((entry, expire)) = &self.expire {
            let is_its_own = self.run.as_ref().is_some_and(|run| run.entry.line == entry.line);
            let remark = if is_its_own {
                "The ban's end, as this command has it."
            } else {
                "The ban's end; the kernel brings it, and at(1) is not needed."
            };
            let remark = format!("{}\n{remark}", entry.origin());
            return output.document.set("", "expire", &Value::text(expire), &remark);
        }
        if let Some((entry, what)) = self.may_end {
            let remark = format!("{}\nIf {what} ends the ban, write the same time here.", entry.origin());
            output.document.set("", "expire", &Value::text("24h"), &remark);
            return output
                .note(entry, &format!("may end bans by {what}: write the same time as expire; \"24h\" is written"));
        }
        let remark = "Classic ends no ban by itself; \"never\" does that here. A time is better: addresses change hands, and \
                      behind one there may be thousands of people.";
        output.document.set("", "expire", &Value::text("24h"), remark);
        output.note_config(
            "ends no ban, as classic cannot; expire = \"24h\" is written. Write \"never\" for permanent bans",
        );
    }

    fn write_method(&self, blocks: bool, output: &mut Output) {
        let (nft, route) = (!self.nft.is_empty(), self.route.is_some());
        let (hosts_deny, run) = (self.hosts_deny.is_some(), self.run.is_some());
        let lost = self.lost_blocker.filter(|_| blocks && !nft && !route && (hosts_deny || run));
        let all = [("nft", nft || lost.is_some()), ("route", route), ("hosts-deny", hosts_deny), ("run", run)];
        let names: Vec<String> = all.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| (*name).to_owned()).collect();
        if names.is_empty() {
            if blocks {
                output.document.remark("block", "No option is left that says how to block: nftables it is.");
                output.note_config(
                    "blocks and says no way to do it, which classic only logs; nftables does it here. Write false for \
                     tcp.block and udp.block to only log",
                );
            }
            return;
        }
        let mut remark = String::new();
        for (entry, _) in &self.nft {
            remark = format!("{remark}{}: here one nftables set instead of a rule for every source.\n", entry.origin());
        }
        if let Some(entry) = lost {
            remark = format!("{} is left out, see below: nftables blocks in its place.", entry.origin());
            output.note(entry, "blocks, and is left out: \"nft\" is in block.method in its place");
        } else if !nft {
            remark.push_str(
                "Add \"nft\", or have nothing else: it drops what a blocked source sends, before anything answers.",
            );
        }
        if !nft && route {
            remark.push_str(" A route loses the answers only.");
        }
        output.document.set("block", "method", &Value::Texts(names), remark.trim_end());
    }

    fn write_nft(&self, output: &mut Output) {
        if let Some((entry, _)) = self.nft.first().filter(|_| self.nft.iter().all(|(_, rejects)| *rejects)) {
            output.set("block.nft", "action", &Value::text("reject"), entry);
        }
        match &self.log {
            Some((entry, _)) if self.nft.is_empty() => {
                output.left_out("block.nft", entry, "it logs what nothing here blocks in a packet filter");
            }
            Some((entry, rate)) => output.set("block.nft", "log_drops", &Value::text(rate), entry),
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
        output.set("block.route", key, &Value::text(value), entry);
    }

    fn write_run(self, options: &Options, output: &mut Output) {
        let first = options.get("KILL_RUN_CMD_FIRST").and_then(|entry| Some((entry, output.switch(entry)?)));
        if let Some(Run { entry, words, undo }) = self.run {
            let remark = format!("{}\n$TARGET$ is an address, of IPv6 a /64. No shell is run.", entry.origin());
            output.document.set("block.run", "command", &Value::Texts(words), &remark);
            if !undo.is_empty() {
                let remark = "Takes back what the command has done, when the ban is over.";
                output.document.set("block.run", "expire_command", &Value::Texts(undo), remark);
            } else if entry.key == "KILL_ROUTE" {
                output.note(
                    entry,
                    "may block permanently: write the command that takes it back into block.run.expire_command",
                );
            }
            if let Some((entry, is_first)) = first {
                output.set("block.run", "first", &Value::Switch(is_first), entry);
            }
        } else if let Some((entry, _)) = first {
            output.document.tail(&format!("{}: there is no command to run.", entry.origin()));
        }
    }
}

/// Formats a remark as a separate sentence.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), chars.as_str()))
}
