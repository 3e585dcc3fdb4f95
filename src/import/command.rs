//! Recognises the common commands in KILL_ROUTE and KILL_RUN_CMD. A table of programs and words determines whether a
//! command blocks with a route or in a packet filter, logs, or removes the ban later. Nothing is run. A command that
//! matches no row of the table remains a command of the user.

use super::words::ShellLine;
use crate::config::parse_expiry;
use crate::types::{Rate, RouteKind, is_host_address};
use std::net::IpAddr;

/// How a command blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// A packet filter drops the packets.
    Drop,
    /// A packet filter rejects the packets with an answer.
    Reject,
    Route(RouteKind),
    /// A route over an invalid address, such as 333.444.555.666 in the classic examples. Such a route never worked.
    DeadGateway,
}

/// The effects of a line of commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ParsedCommand {
    pub(super) blocks: Vec<Block>,
    /// The rate limit for logging blocked packets.
    pub(super) log: Option<Rate>,
    /// The time after which the line removes the ban, such as "24h".
    pub(super) expire: Option<String>,
    /// The line removes the ban, immediately or later.
    unblocks: bool,
    /// The line blocks only some packets of the source.
    pub(super) is_narrow: bool,
    /// Commands that are not recognised.
    pub(super) rest: Vec<String>,
    /// The words of the line, if it needs no shell.
    pub(super) words: Option<Vec<String>>,
    /// The command that reverts these words, if they are known to block in another firewall.
    pub(super) undo: Vec<String>,
    /// Another event that may end the ban, at a time that the line does not contain.
    pub(super) may_end: Option<&'static str>,
}

/// The effect of a recognised command.
#[derive(Clone, Copy)]
enum Effect {
    Blocks(Block),
    /// A route over the gateway that the command contains.
    Gateway,
    Logs,
    Unblocks,
}

use Block::{Drop, Reject};
use Effect::{Blocks, Gateway, Logs, Unblocks};

const BLACKHOLE: Effect = Blocks(Block::Route(RouteKind::Blackhole));
const UNREACHABLE: Effect = Blocks(Block::Route(RouteKind::Unreachable));
const PROHIBIT: Effect = Blocks(Block::Route(RouteKind::Prohibit));

/// Programs, the words that a command must contain, and the effect. The first matching row counts. "|" separates
/// alternatives, and "=" separates an option from the word that must follow it.
const PATTERNS: [(&str, &str, Effect); 30] = [
    ("route", "del|delete", Unblocks),
    ("route", "add reject|-reject", UNREACHABLE),
    ("route", "add blackhole|-blackhole", BLACKHOLE),
    ("route", "add", Gateway),
    ("ip", "route|r|ro del|delete|d", Unblocks),
    ("ip", "route|r|ro add|a|replace|append blackhole", BLACKHOLE),
    ("ip", "route|r|ro add|a|replace|append unreachable|throw", UNREACHABLE),
    ("ip", "route|r|ro add|a|replace|append prohibit", PROHIBIT),
    ("ip", "route|r|ro add|a|replace|append via", Gateway),
    (IPTABLES, "-D|--delete", Unblocks),
    (IPTABLES, "-j|--jump=LOG|NFLOG", Logs),
    (IPTABLES, "-j|--jump=DROP|TARPIT", Blocks(Drop)),
    (IPTABLES, "-j|--jump=REJECT", Blocks(Reject)),
    ("ipchains", "-D", Unblocks),
    ("ipchains", "-j=DENY", Blocks(Drop)),
    ("ipchains", "-j=REJECT", Blocks(Reject)),
    ("ipfwadm", "-i|-a=deny", Blocks(Drop)),
    ("ipfwadm", "-i|-a=reject", Blocks(Reject)),
    ("ipfw", "add deny|drop", Blocks(Drop)),
    ("ipfw", "add reject|reset|unreach", Blocks(Reject)),
    ("ipfw", "delete", Unblocks),
    (NFT, "delete|destroy", Unblocks),
    (NFT, "add|create element", Blocks(Drop)),
    (NFT, "rule reject", Blocks(Reject)),
    (NFT, "rule drop", Blocks(Drop)),
    ("ipset", "add|-A", Blocks(Drop)),
    ("ipset", "del|-D", Unblocks),
    ("ufw", "delete", Unblocks),
    ("ufw", "deny", Blocks(Drop)),
    ("ufw", "reject", Blocks(Reject)),
];

const IPTABLES: &str = "iptables|ip6tables|iptables-nft|iptables-legacy|ip6tables-nft|ip6tables-legacy";

/// The examples of 2.0.x call the program "nftables".
const NFT: &str = "nft|nftables";

/// Words that make a blocking rule log.
const LOGGING: [(&str, &str); 4] = [("ipchains", "-l"), ("ipfwadm", "-o"), ("ipfw", "log"), (NFT, "log")];

/// Words that restrict a blocking rule to some of the packets.
const NARROWING: [(&str, &str); 2] =
    [(IPTABLES, "-p|--protocol|--proto|--dport|--dports|-i|--in-interface"), (NFT, "dport|iif|iifname")];

/// Commands that block in their own firewall, and the arguments that unblock the target.
const BLOCKERS: [(&str, &str, &str); 6] = [
    ("csf", "-td|--tempdeny", "-tr"),
    ("csf", "-d|--deny", "-dr"),
    ("apf", "-d|--deny", "-u"),
    ("shorewall|shorewall6|shorewall-lite|shorewall6-lite", "drop|logdrop|reject|logreject", "allow"),
    ("cscli", "decisions add", "decisions delete --ip"),
    ("cscli", "decision add", "decision delete --ip"),
];

pub(super) const TARGET: &str = "$TARGET$";

/// The limit for a packet filter that logged without one, so that a flood does not fill the disk.
const DEFAULT_LOG_RATE: Rate = Rate::per_minute(3);

/// Limits the number of settings that one line of commands can produce.
const MAX_BLOCKS: usize = 8;

impl ParsedCommand {
    pub(super) fn parse(line: &str) -> Self {
        Self::parse_line(line, true)
    }

    /// Parses a line. `at_allowed` is false for the commands passed to at(1), which cannot contain further ones.
    fn parse_line(text: &str, at_allowed: bool) -> Self {
        let mut parsed = Self::default();
        let Some(line) = ShellLine::split(text) else {
            parsed.rest.push(text.to_owned());
            return parsed;
        };
        parsed.words = line.words();
        if let Some(words) = &parsed.words {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            parsed.undo = undo(&words).unwrap_or_default();
            if !parsed.undo.is_empty() {
                parsed.expire = own_expiry(&words);
                parsed.may_end = contains(&words, "banip").then_some("the bantime of its jail");
            }
        }
        for pipeline in line.pipelines {
            let recognised = match pipeline.as_slice() {
                [command] => parsed.add_command(command),
                [echo, filter] if matches!(program(filter), "ipf" | "pfctl") => parsed.add_filter_rule(echo),
                [echo, at] if at_allowed && program(at) == "at" => parsed.add_later(echo, at),
                _ => None,
            };
            if recognised.is_none() {
                let commands: Vec<String> = pipeline.iter().map(|words| words.join(" ")).collect();
                parsed.rest.push(commands.join(" | "));
            }
        }
        parsed
    }

    /// Recognises `echo 'iptables -D …' | at now+24hour`, which ends the ban.
    fn add_later(&mut self, echo: &[String], at: &[String]) -> Option<()> {
        let text = echo.get(1..).filter(|_| matches!(program(echo), "echo" | "printf"))?.join(" ");
        let inner = Self::parse_line(&text, false);
        let only_unblocks = inner.unblocks && inner.blocks.is_empty() && inner.rest.is_empty();
        self.expire = Some(at_time(&at.get(1..)?.concat()).filter(|_| only_unblocks)?);
        Some(())
    }

    /// Recognises `echo 'block in from …' | pfctl -f -`.
    fn add_filter_rule(&mut self, echo: &[String]) -> Option<()> {
        let text = echo.join(" ");
        (program(echo) == "echo" && text.contains("block") && text.contains(TARGET)).then_some(())?;
        self.add_block(if text.contains("return") { Reject } else { Drop });
        Some(())
    }

    fn add_command(&mut self, words: &[String]) -> Option<()> {
        let words = if program(words) == "sudo" { words.get(1..)? } else { words };
        let name = program(words);
        if name == "sed" {
            // The command removes the source from the blocked file, or from hosts.deny.
            let ours = words.iter().any(|word| word.contains("portsentry") || word.contains("hosts.deny"));
            return (ours && words.iter().any(|word| word.contains("/d"))).then(|| self.unblocks = true);
        }
        // The arguments of nft may be one quoted word.
        let text = words.join(" ").replace(['{', '}', ',', ';'], " ");
        let words = if is_one_of(NFT, name) {
            text.split_whitespace().collect()
        } else {
            words.iter().map(String::as_str).collect::<Vec<_>>()
        };
        words.iter().any(|word| word.contains("$TARGET")).then_some(())?;
        let has = |rows: &[(&str, &str)]| {
            rows.iter().any(|(programs, any)| is_one_of(programs, name) && contains(&words, any))
        };
        let fits = |(programs, all, _): &&(&str, &str, Effect)| {
            is_one_of(programs, name) && all.split(' ').all(|any| contains(&words, any))
        };
        match PATTERNS.iter().find(fits)?.2 {
            Unblocks => self.unblocks = true,
            Logs => self.log = Some(after(&words, "--limit").and_then(Rate::abbreviated).unwrap_or(DEFAULT_LOG_RATE)),
            Gateway => self.add_block(gateway(&words)?),
            Blocks(block) => {
                self.add_block(block);
                self.is_narrow |= has(&NARROWING);
                if has(&LOGGING) {
                    self.log = Some(DEFAULT_LOG_RATE);
                }
                if let Some(timeout) = after(&words, "timeout").and_then(timeout) {
                    self.expire = Some(timeout);
                } else if name == "ipset" || contains(&words, "element") {
                    self.may_end = Some("the timeout of its set");
                }
            }
        }
        Some(())
    }

    fn add_block(&mut self, block: Block) {
        if self.blocks.len() < MAX_BLOCKS && !self.blocks.contains(&block) {
            self.blocks.push(block);
        }
    }
}

/// The program of a command, without its path.
fn program<W: AsRef<str>>(words: &[W]) -> &str {
    words.first().and_then(|path| path.as_ref().rsplit('/').next()).unwrap_or("")
}

/// The command that reverts `words`, if they are a known command of another firewall.
fn undo(words: &[&str]) -> Option<Vec<String>> {
    let (path, name) = (*words.first()?, program(words));
    words.iter().any(|word| word.contains(TARGET)).then_some(())?;
    if name == "fail2ban-client" && contains(words, "banip") {
        return Some(words.iter().map(|word| if *word == "banip" { "unbanip" } else { word }.to_owned()).collect());
    }
    if name == "firewall-cmd" && words.iter().any(|word| word.starts_with("--add-")) {
        let timeout = after(words, "--timeout");
        let kept = words.iter().filter(|word| !word.starts_with("--timeout") && Some(**word) != timeout);
        return Some(kept.map(|word| word.replacen("--add-", "--remove-", 1)).collect());
    }
    let fits = |(programs, all, _): &&(&str, &str, &str)| {
        is_one_of(programs, name) && all.split(' ').all(|any| contains(words, any))
    };
    let arguments = BLOCKERS.iter().find(fits)?.2;
    Some([path].into_iter().chain(arguments.split(' ')).chain([TARGET]).map(str::to_owned).collect())
}

/// The time after which such a firewall ends the ban by itself.
fn own_expiry(words: &[&str]) -> Option<String> {
    let option = |names| {
        let joined = words.iter().filter_map(|word| word.split_once('='));
        joined.filter(|(name, _)| is_one_of(names, name)).map(|(_, value)| value).next().or_else(|| after(words, names))
    };
    let text = match program(words) {
        "csf" => words.iter().skip_while(|word| !is_one_of("-td|--tempdeny", word)).nth(2).copied(),
        "cscli" => option("-d|--duration").or(Some("4h")),
        "firewall-cmd" => option("--timeout"),
        _ => None,
    };
    text.and_then(timeout)
}

fn is_one_of(alternatives: &str, word: &str) -> bool {
    alternatives.split('|').any(|alternative| alternative == word)
}

fn contains(words: &[&str], pattern: &str) -> bool {
    match pattern.split_once('=') {
        Some((option, values)) => after(words, option).is_some_and(|word| is_one_of(values, word)),
        None => words.iter().any(|word| is_one_of(pattern, word)),
    }
}

/// The word after one of `names`.
fn after<'w>(words: &[&'w str], names: &str) -> Option<&'w str> {
    words.iter().skip_while(|word| !is_one_of(names, word)).nth(1).copied()
}

/// Finds the gateway in `… gw 192.0.2.254`, `… via 192.0.2.254` or `… $TARGET$ 127.0.0.1`: it is named, or follows the
/// target and its mask.
fn gateway(words: &[&str]) -> Option<Block> {
    let mut behind = words.iter().skip_while(|word| !word.contains(TARGET)).skip(1).copied();
    let unnamed = || behind.find(|word| !word.starts_with('-') && *word != "netmask" && !word.starts_with("255."));
    let word = after(words, "gw|gateway|via").or_else(unnamed)?;
    match word.parse::<IpAddr>() {
        // A route over this host itself loses the answers, as a blackhole does.
        Ok(address) if address.is_loopback() => Some(Block::Route(RouteKind::Blackhole)),
        Ok(address) if is_host_address(&address) => Some(Block::Route(RouteKind::Via(address))),
        Err(_) if word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => Some(Block::DeadGateway),
        Ok(_) | Err(_) => None,
    }
}

/// Parses the time after which a firewall ends a block: seconds, or a span.
fn timeout(text: &str) -> Option<String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    valid_expiry(&if is_number { format!("{text}s") } else { text.to_owned() })
}

/// Converts the words after `at`, without blanks, to a span: "now+24hour" to "24h".
fn at_time(words: &str) -> Option<String> {
    // Options of at (-m, -M) come first.
    let (_, time) = words.split_once("now")?;
    let time = time.trim_start().strip_prefix('+')?.trim_start();
    let (number, unit) = time.split_at(time.bytes().take_while(u8::is_ascii_digit).count());
    let number: u32 = number.parse().ok()?;
    let unit = unit.trim_start();
    let (factor, unit) = match unit.strip_suffix('s').unwrap_or(unit) {
        "min" | "minute" => (1, "m"),
        "hour" => (1, "h"),
        "day" => (1, "d"),
        "week" => (7, "d"),
        "month" => (30, "d"),
        "year" => (365, "d"),
        _ => return None,
    };
    valid_expiry(&format!("{}{unit}", number.checked_mul(factor)?))
}

/// Returns `text` if it is a valid length of a ban.
fn valid_expiry(text: &str) -> Option<String> {
    parse_expiry(text).ok().filter(|_| text != "never").map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_blocking_command_is_recognised() {
        let via = |text: &str| Block::Route(RouteKind::Via(text.parse().unwrap()));
        for (line, block) in [
            ("/sbin/route add -host $TARGET$ reject", Block::Route(RouteKind::Unreachable)),
            ("/sbin/route add -host $TARGET$ gw 333.444.555.666", Block::DeadGateway),
            ("/sbin/route add $TARGET$ 333.444.555.666", Block::DeadGateway),
            ("/usr/sbin/route add $TARGET$ 333.444.555.666 1", Block::DeadGateway),
            ("/sbin/route add -host $TARGET$ gw 192.0.2.254", via("192.0.2.254")),
            ("/usr/etc/route add $TARGET$ 127.0.0.1 1", Block::Route(RouteKind::Blackhole)),
            (
                "route add -net $TARGET$ -netmask 255.255.255.255 127.0.0.1 -blackhole",
                Block::Route(RouteKind::Blackhole),
            ),
            ("/usr/sbin/route add net $TARGET$ netmask 255.255.255.0 127.0.0.1", Block::Route(RouteKind::Blackhole)),
            ("ip route add blackhole $TARGET$/32", Block::Route(RouteKind::Blackhole)),
            ("/sbin/ip -4 route replace prohibit $TARGET$", Block::Route(RouteKind::Prohibit)),
            ("ip r add $TARGET$ via 192.0.2.254", via("192.0.2.254")),
            ("/sbin/iptables -I INPUT -s $TARGET$ -j DROP", Block::Drop),
            ("sudo iptables -w -t raw -I PREROUTING --source $TARGET$/32 --jump DROP", Block::Drop),
            ("/sbin/iptables -I INPUT -s $TARGET$ -j REJECT --reject-with tcp-reset", Block::Reject),
            ("/sbin/ipchains -I input -s $TARGET$ -j DENY", Block::Drop),
            ("/sbin/ipfwadm -I -i deny -S $TARGET$", Block::Drop),
            ("/sbin/ipfw add 1 deny all from $TARGET$:255.255.255.255 to any", Block::Drop),
            ("/bin/echo 'block in log on eth0 from $TARGET$/32 to any' | /sbin/ipf -f -", Block::Drop),
            ("nftables add rule ip filter input ip saddr $TARGET$ drop", Block::Drop),
            ("nft add rule inet filter input ip saddr $TARGET$ reject", Block::Reject),
            ("nft add element inet filter bad '{ $TARGET$ }'", Block::Drop),
            ("ipset add bad $TARGET$ -exist", Block::Drop),
            ("ufw insert 1 deny from $TARGET$ to any", Block::Drop),
        ] {
            let parsed = ParsedCommand::parse(line);
            assert_eq!(parsed.blocks, [block], "{line}");
            assert!(parsed.rest.is_empty() && parsed.expire.is_none() && parsed.log.is_none(), "{line}: {parsed:?}");
        }
    }

    #[test]
    fn rate_limited_log_rule_is_recognised() {
        let drop = "/sbin/iptables -I INPUT -s $TARGET$ -j DROP";
        let log = "/sbin/iptables -I INPUT -s $TARGET$ -m limit --limit LIMIT --limit-burst 5 -j LOG --log-level debug \
                   --log-prefix 'Portsentry: dropping: '";
        for (limit, rate) in [
            ("3/minute", "3/minute"),
            ("10/s", "10/second"),
            ("1/h", "1/hour"),
            ("0/m", "3/minute"),
            ("2000000/s", "3/minute"),
        ] {
            let parsed = ParsedCommand::parse(&format!("{drop} && {}", log.replace("LIMIT", limit)));
            assert_eq!((parsed.blocks.as_slice(), parsed.log), ([Block::Drop].as_slice(), rate.parse().ok()));
            assert!(parsed.rest.is_empty());
        }
        assert_eq!(ParsedCommand::parse("ipchains -I input -s $TARGET$ -j DENY -l").log, "3/minute".parse().ok());
    }

    #[test]
    fn unblocking_at_job_is_recognised() {
        let lift = "echo 'sed -e \"/$TARGET/d\" -i /var/lib/portsentry/portsentry.blocked.atcp && /sbin/iptables -D INPUT -s \
                    $TARGET$ -j DROP'";
        for (time, expire) in [
            ("now+24hour", "24h"),
            ("now + 24 hours", "24h"),
            ("-M now +90 minutes", "90m"),
            ("now+ 2weeks", "14d"),
            ("now + 1 month", "30d"),
        ] {
            let parsed = ParsedCommand::parse(&format!("{lift} | /usr/bin/at {time} >/dev/null 2>&1"));
            assert_eq!(parsed.expire.as_deref(), Some(expire), "{time}");
            assert!(parsed.rest.is_empty() && parsed.blocks.is_empty());
        }
        let both = ParsedCommand::parse(&format!("iptables -I INPUT -s $TARGET$ -j DROP && {lift} | at now+24hour"));
        assert_eq!((both.blocks.as_slice(), both.expire.as_deref()), ([Block::Drop].as_slice(), Some("24h")));
        assert_eq!(ParsedCommand::parse("ipset add bad $TARGET$ timeout 3600").expire.as_deref(), Some("3600s"));
        assert_eq!(
            ParsedCommand::parse("nft add element ip f b { $TARGET$ timeout 1d2h }").expire.as_deref(),
            Some("1d2h")
        );
    }

    #[test]
    fn unknown_command_is_not_recognised() {
        for line in [
            "/usr/local/bin/page $TARGET$ $PORT$",
            "iptables -I INPUT -s 192.0.2.7 -j DROP",
            "iptables -I INPUT -s $TARGET$ -j MYCHAIN",
            "echo 'mail root' | at now+24hour",
            "echo 'iptables -D INPUT -s $TARGET$ -j DROP' | at noon",
            "echo 'iptables -D INPUT -s $TARGET$ -j DROP' | at now+0hours",
            "echo 'iptables -D INPUT -s $TARGET$ -j DROP' | at now+99999999999hours",
            "echo \"echo 'iptables -D INPUT -s $TARGET$' | at now+1hour\" | at now+1hour",
            "route add default gw 192.0.2.1",
            "it's unclosed $TARGET$",
            "nft list ruleset $TARGET$",
        ] {
            let parsed = ParsedCommand::parse(line);
            assert!(
                parsed.blocks.is_empty() && parsed.expire.is_none() && parsed.rest.len() == 1,
                "{line}: {parsed:?}"
            );
        }
        let mixed = ParsedCommand::parse("iptables -I INPUT -s $TARGET$ -j DROP && mail -s $TARGET$ root < /dev/null");
        assert_eq!((mixed.blocks.len(), mixed.rest.as_slice()), (1, ["mail -s $TARGET$ root".to_owned()].as_slice()));
        assert!(ParsedCommand::parse("iptables -I INPUT -s $TARGET$ -p tcp --dport 22 -j DROP").is_narrow);
    }
}
