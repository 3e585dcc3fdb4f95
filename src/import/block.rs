//! BLOCK_ and KILL_ options to `expire`, `tcp.block`, `udp.block` and `[block]`.
//!
//! Classic runs shell lines to block; here the known ones become settings, and nothing is run for them. A line that
//! needs a shell is never written into the output: the daemon has none.

use super::classic::Entry;
use super::command::{Meaning, Route, Way};
use super::document::Value;
use super::finding::{quoted, shown};
use super::translation::Translation;
use crate::config::{is_command_word, is_deny_line};

/// BLOCK_TCP, BLOCK_UDP.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Log,
    Block,
    Run,
}

/// What the KILL_ options come to.
#[derive(Default)]
struct Plan {
    /// Where the packet filter is from, and whether each rule answers.
    nft: Vec<(Entry, bool)>,
    log: Option<(Entry, String)>,
    route: Option<(Entry, Route)>,
    hosts_deny: Option<(Entry, String)>,
    run: Option<(Entry, Vec<String>)>,
    expire: Option<(Entry, String)>,
}

const SCRIPT: &str = "put it into a script of its own, and write for example command = [\"/usr/local/sbin/SCRIPT\", \
                      \"$TARGET$\", \"$PORT$\", \"$MODE$\"] and \"run\" in block.method";

impl Translation {
    pub(super) fn block(&mut self) {
        let policies = ["BLOCK_TCP", "BLOCK_UDP"].map(|key| self.policy(key));
        let mut plan = Plan::default();
        let run = self.get("KILL_RUN_CMD").map(|entry| (Meaning::of(&entry.value), entry));
        let run_blocks = run.as_ref().is_some_and(|(meaning, _)| !meaning.ways.is_empty());
        if let Some((meaning, entry)) = self.get("KILL_ROUTE").map(|entry| (Meaning::of(&entry.value), entry)) {
            let only_runs = policies.iter().any(|policy| matches!(policy, Some((Policy::Run, _))));
            self.command(&mut plan, meaning, entry, !only_runs && run.is_none());
        }
        if let Some((meaning, entry)) = run {
            self.command(&mut plan, meaning, entry, true);
        }
        self.hosts_deny(&mut plan);
        for (table, policy) in ["tcp", "udp"].into_iter().zip(&policies) {
            self.policy_key(table, policy.as_ref(), &plan, run_blocks);
        }
        self.expire(&plan);
        let blocks = policies.iter().any(|policy| matches!(policy, Some((Policy::Block, _))));
        self.method(&plan, blocks);
        self.ways(plan);
    }

    fn policy(&mut self, key: &str) -> Option<(Policy, Entry)> {
        let entry = self.get(key)?;
        let policy = match entry.value.trim() {
            "0" => Policy::Log,
            "1" => Policy::Block,
            "2" => Policy::Run,
            wrong => {
                let message = format!(
                    "{} is none of its values; write \"0\" to log, \"1\" to block, \"2\" to run a command",
                    quoted(wrong)
                );
                self.refuse(&entry, message);
                return None;
            }
        };
        Some((policy, entry))
    }

    fn policy_key(&mut self, table: &str, policy: Option<&(Policy, Entry)>, plan: &Plan, run_blocks: bool) {
        let Some((policy, entry)) = policy else {
            let remark = format!("BLOCK_{} is not set: classic only logs.", table.to_uppercase());
            return self.document.set(table, "block", &Value::Switch(false), &remark);
        };
        let (value, remark) = match policy {
            Policy::Log => (Value::Switch(false), ""),
            Policy::Block if table == "udp" => {
                let remark = "the source of a datagram is easily forged: a stranger can have anybody blocked. Write false to \
                              only log";
                self.note(entry, remark);
                (Value::Switch(true), remark)
            }
            Policy::Block => (Value::Switch(true), ""),
            Policy::Run if plan.run.is_some() => (Value::text("run"), ""),
            Policy::Run if run_blocks => {
                let remark = "the command of KILL_RUN_CMD blocks, so this does";
                self.note(entry, remark);
                (Value::Switch(true), remark)
            }
            Policy::Run => {
                let remark = "there is no command left to run, so this only logs; see KILL_RUN_CMD";
                self.note(entry, remark);
                (Value::Switch(false), remark)
            }
        };
        let remark = [entry.origin(), sentence(remark)].join("\n");
        self.document.set(table, "block", &value, remark.trim_end());
    }

    /// Takes over what `meaning` says of the line `entry`; `may_run`: what is not known may become the command.
    fn command(&mut self, plan: &mut Plan, meaning: Meaning, entry: Entry, may_run: bool) {
        let understood = !meaning.ways.is_empty() || meaning.expire.is_some() || meaning.is_whole();
        for way in &meaning.ways {
            match way {
                Way::Filter(answers) => plan.nft.push((entry.clone(), *answers)),
                Way::Route(route) => plan.route = Some((entry.clone(), *route)),
                Way::Nowhere => {
                    let why = "its gateway is no address, only classic's example of a dead host: the command has always failed";
                    self.left_out("block.route", &entry, why);
                }
            }
        }
        if meaning.narrow {
            self.note(&entry, "blocks some packets of a source only; here a ban covers all of them");
        }
        if let Some(log) = meaning.log {
            plan.log = Some((entry.clone(), log));
        }
        if let Some(expire) = meaning.expire {
            plan.expire = Some((entry.clone(), expire));
        }
        if meaning.rest.is_empty() {
            return;
        }
        if understood {
            let rest = shown(&meaning.rest.join("; "));
            return self.left_out("block.run", &entry, &format!("of this line, {rest}; {SCRIPT}"));
        }
        match meaning.words.filter(|words| words.first().is_some_and(|program| !program.is_empty())) {
            Some(words) if !words.first().is_some_and(|program| program.starts_with('/')) => {
                let why = format!("a program needs its whole path here: write it into block.run.command, or {SCRIPT}");
                self.left_out("block.run", &entry, &why);
            }
            Some(words) if !words.iter().all(|word| is_command_word(word)) => {
                self.left_out("block.run", &entry, &format!("it is too long; {SCRIPT}"));
            }
            Some(words) if may_run => plan.run = Some((entry, words)),
            Some(_) => {
                let why = format!("there is one command only; to run it beside KILL_RUN_CMD, {SCRIPT}");
                self.left_out("block.run", &entry, &why);
            }
            None => self.left_out("block.run", &entry, &format!("it needs a shell, and none is run here; {SCRIPT}")),
        }
    }

    fn hosts_deny(&mut self, plan: &mut Plan) {
        let Some(entry) = self.get("KILL_HOSTS_DENY") else { return };
        // Classic wants a backslash before a percent sign, which its printf would take.
        let line = entry.value.trim().replace("\\%", "%");
        if is_deny_line(&line) {
            plan.hosts_deny = Some((entry, line));
        } else {
            let why = "it is no line of hosts.deny that names $TARGET$, and would deny nobody or the same for every ban; write for \
                       example \"ALL: $TARGET$\"";
            self.left_out("block.hosts_deny", &entry, why);
        }
    }

    fn expire(&mut self, plan: &Plan) {
        if let Some((entry, expire)) = &plan.expire {
            let remark = format!("{}\nThe ban's end; the kernel brings it, and at(1) is not needed.", entry.origin());
            return self.document.set("", "expire", &Value::text(expire), &remark);
        }
        let remark = "Classic ends no ban by itself; \"never\" does that here. A time is better: addresses change hands, and \
                      behind one there may be thousands of people.";
        self.document.set("", "expire", &Value::text("24h"), remark);
        let message =
            "ends no ban, as classic cannot; expire = \"24h\" is written. Write \"never\" to keep bans for ever";
        self.notes.add(None, None, message.to_owned());
    }

    fn method(&mut self, plan: &Plan, blocks: bool) {
        let (nft, route) = (!plan.nft.is_empty(), plan.route.is_some());
        let all =
            [("nft", nft), ("route", route), ("hosts-deny", plan.hosts_deny.is_some()), ("run", plan.run.is_some())];
        let names: Vec<String> = all.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| (*name).to_owned()).collect();
        if names.is_empty() {
            if blocks {
                let message = "blocks and says no way to do it, which classic only logs; nftables does it here. Write false for \
                               tcp.block and udp.block to only log";
                self.document.remark("block", "No option is left that says how to block: nftables it is.");
                self.notes.add(None, None, message.to_owned());
            }
            return;
        }
        let mut remark = String::new();
        for (entry, _) in &plan.nft {
            remark = format!("{remark}{}: here one nftables set instead of a rule for every source.\n", entry.origin());
        }
        if !nft {
            remark.push_str(
                "Add \"nft\", or have nothing else: it drops what a blocked source sends, before anything answers.",
            );
            if route {
                remark.push_str(" A route loses the answers only.");
            }
        }
        self.document.set("block", "method", &Value::Texts(names), remark.trim_end());
    }

    fn ways(&mut self, plan: Plan) {
        if let Some((entry, _)) =
            plan.nft.iter().find(|(_, answers)| *answers).filter(|_| plan.nft.iter().all(|(_, answers)| *answers))
        {
            self.set("block.nft", "action", &Value::text("reject"), entry);
        }
        match plan.log {
            Some((entry, rate)) if !plan.nft.is_empty() => {
                self.set("block.nft", "log_drops", &Value::text(rate), &entry)
            }
            Some((entry, _)) => {
                self.left_out("block.nft", &entry, "it logs what nothing here blocks in a packet filter")
            }
            None => {}
        }
        if let Some((entry, route)) = plan.route {
            let (key, value) = match route {
                Route::Blackhole => ("kind", "blackhole".to_owned()),
                Route::Unreachable => ("kind", "unreachable".to_owned()),
                Route::Prohibit => ("kind", "prohibit".to_owned()),
                Route::Via(gateway) => ("via", gateway.to_string()),
            };
            self.set("block.route", key, &Value::text(value), &entry);
        }
        if let Some((entry, line)) = plan.hosts_deny {
            self.set("block.hosts_deny", "line", &Value::text(line), &entry);
        }
        let first = self.switch("KILL_RUN_CMD_FIRST");
        match (plan.run, first) {
            (Some((entry, words)), first) => {
                let remark = format!("{}\n$TARGET$ is an address, of IPv6 a /64. No shell is run.", entry.origin());
                self.document.set("block.run", "command", &Value::Texts(words), &remark);
                if let Some((first, entry)) = first {
                    self.set("block.run", "first", &Value::Switch(first), &entry);
                }
            }
            (None, Some((_, entry))) => {
                self.document.tail(&format!("{}: there is no command to run.", entry.origin()));
            }
            (None, None) => {}
        }
    }
}

/// A remark as a sentence of its own.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), chars.as_str()),
        None => String::new(),
    }
}
