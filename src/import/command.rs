//! A shell line of KILL_ROUTE or KILL_RUN_CMD to what it does: blocks over a route or in a packet filter, logs, lifts the
//! ban later, or something else. Looks at the words only; nothing is run. What is not known stays "something else".

use std::net::IpAddr;

use super::shell::Line;
use crate::config::{is_gateway, parse_expiry};

/// How a command blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A packet filter; true: with an answer.
    Filter(bool),
    /// A route.
    Route(Route),
    /// A route to an address that is none, such as the 333.444.555.666 of the classic examples: it never worked.
    Nowhere,
}

/// The kinds of routes that block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Blackhole,
    Unreachable,
    Prohibit,
    Via(IpAddr),
}

/// What a line does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meaning {
    /// The ways it blocks.
    pub(super) ways: Vec<Way>,
    /// The limit at which it has blocked packets logged, "3/minute".
    pub(super) log: Option<String>,
    /// When it lifts the ban again, "24h".
    pub(super) expire: Option<String>,
    /// It takes the ban back, at once or later.
    lifts: bool,
    /// It blocks some packets of the source only.
    pub(super) narrow: bool,
    /// Commands that are none of this.
    pub(super) rest: Vec<String>,
    /// The line as words, where it needs no shell.
    pub(super) words: Option<Vec<String>>,
}

impl Meaning {
    /// Reads `line`.
    pub(super) fn of(line: &str) -> Self {
        Self::read(line, true)
    }

    /// True where nothing of the line is left to be run.
    pub(super) fn is_whole(&self) -> bool {
        self.rest.is_empty() && (!self.ways.is_empty() || self.lifts || self.expire.is_some() || self.log.is_some())
    }

    fn read(text: &str, outer: bool) -> Self {
        let mut meaning = Self::default();
        let Some(line) = Line::of(text) else {
            meaning.rest.push(text.to_owned());
            return meaning;
        };
        meaning.words = line.words();
        for pipeline in line.pipelines() {
            let known = match pipeline.as_slice() {
                [command] => meaning.command(command),
                [echo, filter] if matches!(program(filter), "ipf" | "pfctl") => meaning.filter_rule(echo),
                [echo, at] if outer && program(at) == "at" => meaning.later(echo, at),
                _ => None,
            };
            if known.is_none() {
                let commands: Vec<String> = pipeline.iter().map(|words| words.join(" ")).collect();
                meaning.rest.push(commands.join(" | "));
            }
        }
        meaning
    }

    /// `echo 'iptables -D …' | at now+24hour`: the ban's end.
    fn later(&mut self, echo: &[String], at: &[String]) -> Option<()> {
        let (name, text) = echo.split_first()?;
        let inner = Self::read(&text.join(" "), false);
        let lifts =
            matches!(base(name), "echo" | "printf") && inner.lifts && inner.ways.is_empty() && inner.rest.is_empty();
        self.expire = Some(at_time(&at.get(1..)?.concat()).filter(|_| lifts)?);
        Some(())
    }

    /// `echo 'block in from …' | pfctl -f -`.
    fn filter_rule(&mut self, echo: &[String]) -> Option<()> {
        let text = echo.join(" ");
        (program(echo) == "echo" && text.contains("block") && text.contains(TARGET)).then_some(())?;
        self.way(Way::Filter(text.contains("return")));
        Some(())
    }

    fn command(&mut self, words: &[String]) -> Option<()> {
        let words = if program(words) == "sudo" { words.get(1..)? } else { words };
        let has = |names: &[&str]| words.iter().any(|word| names.contains(&word.as_str()));
        let after = |names: &[&str]| {
            let mut pairs = words.windows(2);
            pairs.find_map(|pair| match pair {
                [name, value] if names.contains(&name.as_str()) => Some(value.as_str()),
                _ => None,
            })
        };
        let name = program(words);
        if name == "sed" {
            // Takes the source out of the blocked file, or out of hosts.deny.
            let ours = words.iter().any(|word| word.contains("portsentry") || word.contains("hosts.deny"));
            return (ours && words.iter().any(|word| word.contains("/d"))).then(|| self.lifts = true);
        }
        words.iter().any(|word| word.contains("$TARGET")).then_some(())?;
        match name {
            "route" if has(&["del", "delete"]) => self.lifts = true,
            "route" if has(&["add"]) => self.way(old_route(words)?),
            "ip" if has(&["route", "r", "ro"]) => match () {
                () if has(&["del", "delete", "d"]) => self.lifts = true,
                () if has(&["add", "a", "replace", "append"]) => self.way(new_route(words)?),
                () => return None,
            },
            "iptables" | "ip6tables" | "iptables-nft" | "iptables-legacy" | "ip6tables-nft" | "ip6tables-legacy" => {
                if has(&["-D", "--delete"]) {
                    self.lifts = true;
                    return Some(());
                }
                match after(&["-j", "--jump"])? {
                    "DROP" | "TARPIT" => self.way(Way::Filter(false)),
                    "REJECT" => self.way(Way::Filter(true)),
                    "LOG" | "NFLOG" => {
                        self.log = Some(after(&["--limit"]).and_then(rate).unwrap_or_else(|| RATE.to_owned()))
                    }
                    _ => return None,
                }
                self.narrow |= has(&["-p", "--protocol", "--proto", "--dport", "--dports", "-i", "--in-interface"]);
            }
            "ipchains" => match (has(&["-D"]), after(&["-j"])) {
                (true, _) => self.lifts = true,
                (false, Some("DENY")) => self.filter(false, has(&["-l"])),
                (false, Some("REJECT")) => self.filter(true, has(&["-l"])),
                _ => return None,
            },
            "ipfwadm" => match after(&["-i", "-a"])? {
                "deny" => self.filter(false, has(&["-o"])),
                "reject" => self.filter(true, has(&["-o"])),
                _ => return None,
            },
            "ipfw" if has(&["add"]) => match () {
                () if has(&["deny", "drop"]) => self.filter(false, has(&["log"])),
                () if has(&["reject", "reset", "unreach"]) => self.filter(true, has(&["log"])),
                () => return None,
            },
            "ipfw" if has(&["delete"]) => self.lifts = true,
            // "nftables" is what the examples of 2.0.x call it.
            "nft" | "nftables" => self.nft(&words.join(" "))?,
            "ipset" => match () {
                () if has(&["add", "-A"]) => {
                    self.way(Way::Filter(false));
                    self.expire =
                        after(&["timeout"]).and_then(|seconds| span(&format!("{seconds}s"))).or(self.expire.take());
                }
                () if has(&["del", "-D"]) => self.lifts = true,
                () => return None,
            },
            "ufw" => match () {
                () if has(&["delete"]) => self.lifts = true,
                () if has(&["deny"]) => self.way(Way::Filter(false)),
                () if has(&["reject"]) => self.way(Way::Filter(true)),
                () => return None,
            },
            _ => return None,
        }
        Some(())
    }

    /// Notes a way once. A megabyte of commands must not become as many settings.
    fn way(&mut self, way: Way) {
        const MOST: usize = 8;
        if self.ways.len() < MOST && !self.ways.contains(&way) {
            self.ways.push(way);
        }
    }

    fn filter(&mut self, answers: bool, logs: bool) {
        self.way(Way::Filter(answers));
        if logs {
            self.log = Some(RATE.to_owned());
        }
    }

    /// `nft add rule … saddr $TARGET$ drop`, `nft add element … { $TARGET$ timeout 1d }`: quoted or not.
    fn nft(&mut self, text: &str) -> Option<()> {
        let text = text.replace(['{', '}', ',', ';'], " ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let has = |name: &str| words.contains(&name);
        match () {
            () if has("delete") || has("destroy") => self.lifts = true,
            () if has("element") && (has("add") || has("create")) => {
                let timeout = words.iter().skip_while(|word| **word != "timeout").nth(1);
                self.expire = timeout.and_then(|timeout| span(timeout)).or(self.expire.take());
                self.way(Way::Filter(false));
            }
            () if has("rule") && (has("drop") || has("reject")) => {
                self.filter(has("reject"), has("log"));
                self.narrow |= has("dport") || has("iif") || has("iifname");
            }
            () => return None,
        }
        Some(())
    }
}

/// What stands for the source.
const TARGET: &str = "$TARGET$";

/// Where a packet filter logged without a limit: a flood must not fill the disk.
const RATE: &str = "3/minute";

fn program(words: &[String]) -> &str {
    words.first().map_or("", |word| base(word))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `route add -host $TARGET$ reject`, `… gw 192.0.2.254`, `… 127.0.0.1 -blackhole`.
fn old_route(words: &[String]) -> Option<Way> {
    let has = |names: &[&str]| words.iter().any(|word| names.contains(&word.as_str()));
    if has(&["reject", "-reject"]) {
        return Some(Way::Route(Route::Unreachable));
    }
    if has(&["blackhole", "-blackhole"]) {
        return Some(Way::Route(Route::Blackhole));
    }
    // The gateway is named, or what follows the target, its mask aside.
    let behind = words.iter().skip_while(|word| !word.contains(TARGET)).skip(1);
    let mut behind = behind.filter(|word| !word.starts_with('-') && *word != "netmask" && !word.starts_with("255."));
    let named = words.iter().skip_while(|word| *word != "gw" && *word != "gateway").nth(1);
    named.or_else(|| behind.next()).and_then(|word| gateway(word))
}

/// `ip route add blackhole $TARGET$`, `ip route add $TARGET$ via 192.0.2.254`.
fn new_route(words: &[String]) -> Option<Way> {
    let kind = words.iter().find_map(|word| match word.as_str() {
        "blackhole" => Some(Route::Blackhole),
        "unreachable" | "throw" => Some(Route::Unreachable),
        "prohibit" => Some(Route::Prohibit),
        _ => None,
    });
    let via = || words.iter().skip_while(|word| *word != "via").nth(1).and_then(|word| gateway(word));
    kind.map(Way::Route).or_else(via)
}

fn gateway(word: &str) -> Option<Way> {
    match word.parse::<IpAddr>() {
        // To this host itself is nowhere: the answers are lost, as in a blackhole.
        Ok(address) if address.is_loopback() => Some(Way::Route(Route::Blackhole)),
        Ok(address) if is_gateway(&address) => Some(Way::Route(Route::Via(address))),
        Err(_) if word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => Some(Way::Nowhere),
        Ok(_) | Err(_) => None,
    }
}

/// "3/min" to "3/minute".
fn rate(text: &str) -> Option<String> {
    let (number, unit) = text.split_once('/')?;
    let number: u32 = number.parse().ok().filter(|number| *number > 0)?;
    let units = ["second", "minute", "hour", "day"];
    let unit = units.into_iter().find(|whole| !unit.is_empty() && whole.starts_with(unit))?;
    Some(format!("{number}/{unit}"))
}

/// The words behind `at`, without blanks: "now+24hour" to "24h".
fn at_time(words: &str) -> Option<String> {
    // Options of at (-m, -M) come first.
    let (_, time) = words.split_once("now")?;
    let time = time.trim_start().strip_prefix('+')?.trim_start();
    let digits = time.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = time.split_at_checked(digits)?;
    let number: u32 = number.parse().ok()?;
    let unit = unit.trim_start();
    let (number, unit) = match unit.strip_suffix('s').unwrap_or(unit) {
        "min" | "minute" => (number, "m"),
        "hour" => (number, "h"),
        "day" => (number, "d"),
        "week" => (number.checked_mul(7)?, "d"),
        "month" => (number.checked_mul(30)?, "d"),
        "year" => (number.checked_mul(365)?, "d"),
        _ => return None,
    };
    span(&format!("{number}{unit}"))
}

/// `text`, if it is a ban's length.
fn span(text: &str) -> Option<String> {
    parse_expiry(text).ok().filter(|_| text != "never").map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_way_to_block_is_recognised() {
        let via = |text: &str| Way::Route(Route::Via(text.parse().unwrap()));
        for (line, way) in [
            ("/sbin/route add -host $TARGET$ reject", Way::Route(Route::Unreachable)),
            ("/sbin/route add -host $TARGET$ gw 333.444.555.666", Way::Nowhere),
            ("/sbin/route add $TARGET$ 333.444.555.666", Way::Nowhere),
            ("/usr/sbin/route add $TARGET$ 333.444.555.666 1", Way::Nowhere),
            ("/sbin/route add -host $TARGET$ gw 192.0.2.254", via("192.0.2.254")),
            ("/usr/etc/route add $TARGET$ 127.0.0.1 1", Way::Route(Route::Blackhole)),
            ("route add -net $TARGET$ -netmask 255.255.255.255 127.0.0.1 -blackhole", Way::Route(Route::Blackhole)),
            ("/usr/sbin/route add net $TARGET$ netmask 255.255.255.0 127.0.0.1", Way::Route(Route::Blackhole)),
            ("ip route add blackhole $TARGET$/32", Way::Route(Route::Blackhole)),
            ("/sbin/ip -4 route replace prohibit $TARGET$", Way::Route(Route::Prohibit)),
            ("ip r add $TARGET$ via 192.0.2.254", via("192.0.2.254")),
            ("/sbin/iptables -I INPUT -s $TARGET$ -j DROP", Way::Filter(false)),
            ("sudo iptables -w -t raw -I PREROUTING --source $TARGET$/32 --jump DROP", Way::Filter(false)),
            ("/sbin/iptables -I INPUT -s $TARGET$ -j REJECT --reject-with tcp-reset", Way::Filter(true)),
            ("/sbin/ipchains -I input -s $TARGET$ -j DENY", Way::Filter(false)),
            ("/sbin/ipfwadm -I -i deny -S $TARGET$", Way::Filter(false)),
            ("/sbin/ipfw add 1 deny all from $TARGET$:255.255.255.255 to any", Way::Filter(false)),
            ("/bin/echo 'block in log on eth0 from $TARGET$/32 to any' | /sbin/ipf -f -", Way::Filter(false)),
            ("nftables add rule ip filter input ip saddr $TARGET$ drop", Way::Filter(false)),
            ("nft add rule inet filter input ip saddr $TARGET$ reject", Way::Filter(true)),
            ("nft add element inet filter bad '{ $TARGET$ }'", Way::Filter(false)),
            ("ipset add bad $TARGET$ -exist", Way::Filter(false)),
            ("ufw insert 1 deny from $TARGET$ to any", Way::Filter(false)),
        ] {
            let meaning = Meaning::of(line);
            assert_eq!(meaning.ways, [way], "{line}");
            assert!(meaning.is_whole() && meaning.expire.is_none() && meaning.log.is_none(), "{line}: {meaning:?}");
        }
    }

    #[test]
    fn a_rate_limited_log_beside_the_rule_is_recognised() {
        let drop = "/sbin/iptables -I INPUT -s $TARGET$ -j DROP";
        let log = "/sbin/iptables -I INPUT -s $TARGET$ -m limit --limit LIMIT --limit-burst 5 -j LOG --log-level debug \
                   --log-prefix 'Portsentry: dropping: '";
        for (limit, rate) in [("3/minute", "3/minute"), ("10/s", "10/second"), ("1/h", "1/hour"), ("0/m", "3/minute")] {
            let meaning = Meaning::of(&format!("{drop} && {}", log.replace("LIMIT", limit)));
            assert_eq!(
                (meaning.ways.as_slice(), meaning.log.as_deref()),
                ([Way::Filter(false)].as_slice(), Some(rate))
            );
            assert!(meaning.is_whole());
        }
        assert_eq!(Meaning::of("ipchains -I input -s $TARGET$ -j DENY -l").log.as_deref(), Some("3/minute"));
    }

    #[test]
    fn the_ban_s_end_that_at_brings_is_recognised() {
        let lift = "echo 'sed -e \"/$TARGET/d\" -i /var/lib/portsentry/portsentry.blocked.atcp && /sbin/iptables -D INPUT -s \
                    $TARGET$ -j DROP'";
        for (time, expire) in [
            ("now+24hour", "24h"),
            ("now + 24 hours", "24h"),
            ("-M now +90 minutes", "90m"),
            ("now+ 2weeks", "14d"),
            ("now + 1 month", "30d"),
        ] {
            let meaning = Meaning::of(&format!("{lift} | /usr/bin/at {time} >/dev/null 2>&1"));
            assert_eq!(meaning.expire.as_deref(), Some(expire), "{time}");
            assert!(meaning.is_whole() && meaning.ways.is_empty());
        }
        let both = Meaning::of(&format!("iptables -I INPUT -s $TARGET$ -j DROP && {lift} | at now+24hour"));
        assert_eq!((both.ways.as_slice(), both.expire.as_deref()), ([Way::Filter(false)].as_slice(), Some("24h")));
        assert_eq!(Meaning::of("ipset add bad $TARGET$ timeout 3600").expire.as_deref(), Some("3600s"));
        assert_eq!(Meaning::of("nft add element ip f b { $TARGET$ timeout 1d2h }").expire.as_deref(), Some("1d2h"));
    }

    #[test]
    fn what_is_not_known_stays_something_else() {
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
            let meaning = Meaning::of(line);
            assert!(!meaning.is_whole() && meaning.expire.is_none() && meaning.rest.len() == 1, "{line}: {meaning:?}");
        }
        let mixed = Meaning::of("iptables -I INPUT -s $TARGET$ -j DROP && mail -s $TARGET$ root < /dev/null");
        assert_eq!((mixed.ways.len(), mixed.rest.as_slice()), (1, ["mail -s $TARGET$ root".to_owned()].as_slice()));
        assert!(Meaning::of("iptables -I INPUT -s $TARGET$ -p tcp --dport 22 -j DROP").narrow);
    }
}
