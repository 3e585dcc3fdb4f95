//! Refuses words that this program does not have, and names their replacements: options of classic PortSentry, commands
//! of service scripts and of similar programs.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::grammar::grammar;
use crate::config::flags::CLASSIC_MODES;

/// Dashes that word processors and web pages substitute for "-".
const PASTED_DASHES: [char; 7] = ['\u{2010}', '\u{2011}', '\u{2012}', '\u{2013}', '\u{2014}', '\u{2015}', '\u{2212}'];

/// Commands of service scripts and of similar programs, and their replacements.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["start"], "systemctl start portsentry"),
    (&["stop"], "systemctl stop portsentry"),
    (&["restart", "force-reload"], "systemctl restart portsentry"),
    (&["ban", "deny", "drop"], "portsentry block"),
    (&["unban", "undeny"], "portsentry unblock"),
    (&["whitelist", "ignore"], "portsentry allow"),
    (&["version"], "portsentry --version"),
];

/// Options of the 2.0.x command line, and their replacements.
const OPTIONS: &[(&[&str], &str)] = &[
    (
        &["--stealth"],
        "write -stcp -sudp to monitor listed ports, or -atcp -audp for a range; or set tcp.mode and udp.mode in \
         portsentry.toml",
    ),
    (&["--connect"], "write -tcp -udp, or tcp.mode = \"connect\" and udp.mode = \"connect\" in portsentry.toml"),
    (&["-m", "--method"], "remove it: every mode except connect captures packets with libpcap"),
    (
        &["-i"],
        "write --interface NAME for one interface, or --interface '!NAME' to exclude one. Without the option, as \
         with ALL and ALL_NLO, every interface except loopback is monitored",
    ),
    (
        &["-c", "--configfile"],
        "write --config FILE; `portsentry import FILE` translates a classic portsentry.conf to portsentry.toml",
    ),
    (&["-l", "--logoutput"], "write report.log = \"stderr\" or \"syslog\" in portsentry.toml"),
    (&["-L", "--disable-local-check"], "remove it: this host's own addresses are never blocked"),
    (&["-S", "--disable-service-check"], "remove it: ports in use never count as closed"),
    (&["-D"], "write --daemon"),
    (
        &["-d", "--debug", "--verbose"],
        "remove it: `portsentry events` and `portsentry status` show what the daemon does",
    ),
    (&["-v"], "write --version for the version; `portsentry status` and `portsentry events` show what the daemon does"),
];

/// Returns an error if one of `words`, program name first, is a classic PortSentry option with another name in this
/// program.
pub(super) fn refusal(words: &[OsString]) -> Option<clap::Error> {
    let mut modes: Vec<&str> = Vec::new();
    let grammar = grammar();
    // The check ends at a subcommand, which has its own options.
    let ends = |word: &str| word == "--" || grammar.find_subcommand(word).is_some();
    let mut follows_option = false;
    for word in words.iter().skip(1).filter_map(|word| word.to_str()).take_while(|word| !ends(word)) {
        // A word after an option may be its value.
        let is_free = !std::mem::replace(&mut follows_option, word.starts_with("--") && !word.contains('='));
        if word.starts_with(PASTED_DASHES) {
            let meant = format!("-{}", word.trim_start_matches(PASTED_DASHES).trim_start_matches('-'));
            let meant = if CLASSIC_MODES.contains(&meant.as_str()) { meant } else { format!("-{meant}") };
            return Some(error(
                ErrorKind::UnknownArgument,
                &format!("'{word}' begins with a typographic dash instead of a hyphen; write {meant}"),
            ));
        }
        if CLASSIC_MODES.contains(&word) {
            let same = |other: &&str| other.ends_with("tcp") == word.ends_with("tcp");
            if let Some(other) = modes.iter().find(|mode| same(mode)) {
                let protocol = if word.ends_with("tcp") { "TCP" } else { "UDP" };
                return Some(error(
                    ErrorKind::ArgumentConflict,
                    &match *other == word {
                        true => format!("'{word}' is repeated; write it once"),
                        false => format!("'{other}' cannot be combined with '{word}'; write one mode for {protocol}"),
                    },
                ));
            }
            modes.push(word);
            continue;
        }
        if is_free && let Some(error) = wrong_command(word) {
            return Some(error);
        }
        let (option, glued) = match word.split_once('=') {
            Some((option, _)) => (option, option),
            None => (word, word.get(..2).unwrap_or(word)),
        };
        // "-ieth0" is "-i eth0"; a word with two dashes is one option.
        let glued = if option.starts_with("--") { option } else { glued };
        if let Some((_, remedy)) = OPTIONS.iter().find(|(names, _)| names.contains(&option) || names.contains(&glued)) {
            let message = format!("'{option}' is an option of PortSentry 2.0; {remedy}");
            return Some(error(ErrorKind::UnknownArgument, &message));
        }
    }
    None
}

/// Returns an error for a mode in another spelling, and for a command that has another name here.
fn wrong_command(word: &str) -> Option<clap::Error> {
    let mode = format!("-{}", word.trim_start_matches('-').to_ascii_lowercase());
    let write = match CLASSIC_MODES.iter().find(|known| **known == mode) {
        // Two dashes are accepted.
        Some(mode) if !word.starts_with("--") => format!("write {mode}"),
        _ => format!("write {}", COMMANDS.iter().find(|(names, _)| names.contains(&word))?.1),
    };
    Some(error(ErrorKind::InvalidSubcommand, &format!("'{word}' is not an option or command; {write}")))
}

/// Replaces clap's message about an option that stands at the wrong command.
pub(super) fn with_remedy(error: clap::Error, words: &[OsString]) -> clap::Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let (command, before) = (context(ContextKind::InvalidSubcommand), context(ContextKind::PriorArg));
    let checks = words.get(1).is_some_and(|word| word == "check") || command == "check";
    let message = match error.kind() {
        ErrorKind::UnknownArgument if checks && context(ContextKind::InvalidArg) == "--config" => CHECK_FILE.to_owned(),
        ErrorKind::ArgumentConflict if checks && before.starts_with("--config") => CHECK_FILE.to_owned(),
        ErrorKind::ArgumentConflict if !command.is_empty() => format!(
            "'{before}' cannot stand before '{command}'; write the options of the command after it, see portsentry {command} \
             --help"
        ),
        _ => return error,
    };
    self::error(error.kind(), &message)
}

const CHECK_FILE: &str = "'check' takes the file without --config; write portsentry check FILE";

fn error(kind: ErrorKind, message: &str) -> clap::Error {
    grammar().error(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(line: &str) -> Option<String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        refusal(&words).map(|error| error.to_string())
    }

    #[test]
    fn old_words_suggest_current_words() {
        for (line, expected) in [
            ("portsentry --stealth", "-stcp -sudp"),
            ("portsentry --connect", "-tcp -udp"),
            ("portsentry -m pcap", "remove it"),
            ("portsentry --method=raw", "remove it"),
            ("portsentry -i ALL", "every interface except loopback is monitored"),
            ("portsentry -ieth0", "--interface NAME"),
            ("portsentry -c /etc/portsentry/portsentry.conf", "--config FILE"),
            ("portsentry --expire 1h --configfile=/x", "--config FILE"),
            ("portsentry -l syslog", "report.log"),
            ("portsentry -L", "never blocked"),
            ("portsentry -S", "ports in use"),
            ("portsentry -d", "portsentry events"),
            ("portsentry -D", "--daemon"),
            ("portsentry -v", "--version"),
            ("portsentry \u{2013}atcp", "write -atcp"),
            ("portsentry \u{2013}-expire 1h", "write --expire"),
            ("portsentry -tcp -stcp", "'-tcp' cannot be combined with '-stcp'; write one mode for TCP"),
            ("portsentry -audp -audp", "'-audp' is repeated"),
            ("portsentry \u{2212}tcp", "write -tcp"),
            ("portsentry atcp", "'atcp' is not an option or command; write -atcp"),
            ("portsentry -ATCP -audp", "write -atcp"),
            ("portsentry restart", "write systemctl restart portsentry"),
            ("portsentry ban 192.0.2.7", "write portsentry block"),
        ] {
            let hint = hint(line).unwrap_or_else(|| panic!("{line} is not refused"));
            assert!(hint.contains(expected), "{line}: {hint}");
        }
    }

    #[test]
    fn current_words_give_no_hint() {
        for line in [
            "portsentry -atcp -audp --expire 1h --config /x",
            "portsentry list -v",
            "portsentry -stcp -udp -h",
            "portsentry --atcp",
            "portsentry --interface tcp --state-dir start",
            "portsentry -V",
            "portsentry -- -c",
        ] {
            assert_eq!(hint(line), None, "{line}");
        }
    }
}
