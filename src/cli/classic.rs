//! Refuses options of classic PortSentry that this program does not have, and names their replacements.

use std::ffi::OsString;

use clap::error::ErrorKind;

use crate::config::flags::CLASSIC_MODES;

/// Dashes that word processors and web pages substitute for "-".
const PASTED_DASHES: [char; 4] = ['\u{2010}', '\u{2011}', '\u{2013}', '\u{2014}'];

/// Options of the 2.0.x command line, and their replacements.
const OPTIONS: &[(&[&str], &str)] = &[
    (
        &["--stealth"],
        "write -stcp -sudp for the ports of a list, or -atcp -audp for a whole range; they also stand in portsentry.toml: \
         tcp.mode and udp.mode",
    ),
    (&["--connect"], "write -tcp -udp, or tcp.mode = \"connect\" and udp.mode = \"connect\" in portsentry.toml"),
    (&["-m", "--method"], "leave it out: packets are captured with libpcap in every mode but connect"),
    (
        &["-i"],
        "write --interface NAME for one interface, and nothing for ALL and ALL_NLO: every interface is watched, and loopback \
         never; --interface '!NAME' leaves one out",
    ),
    (
        &["-c", "--configfile"],
        "write --config FILE; `portsentry import FILE` makes a portsentry.toml of a classic portsentry.conf",
    ),
    (&["-l", "--logoutput"], "write report.log = \"stderr\" or \"syslog\" in portsentry.toml"),
    (
        &["-L", "--disable-local-check"],
        "leave it out: this host's own addresses are never blocked, and there is no setting for it",
    ),
    (
        &["-S", "--disable-service-check"],
        "leave it out: ports in use are never taken for closed, and there is no setting for it",
    ),
    (&["-D"], "write --daemon"),
    (&["-d", "--debug", "--verbose"], "leave it out: `portsentry events` and `portsentry status` show what happens"),
    (&["-v", "-V"], "write --version for the version; `portsentry status` and `portsentry events` show what happens"),
];

/// Returns an error if one of `words`, program name first, is a classic PortSentry option with another name in this
/// program.
pub(super) fn refusal(words: &[OsString]) -> Option<clap::Error> {
    let mut modes: Vec<&str> = Vec::new();
    let grammar = super::grammar();
    // The check ends at a subcommand, which has its own options.
    let ends = |word: &str| word == "--" || grammar.find_subcommand(word).is_some();
    for word in words.iter().skip(1).filter_map(|word| word.to_str()).take_while(|word| !ends(word)) {
        if word.starts_with(PASTED_DASHES) {
            let meant = format!("-{}", word.trim_start_matches(PASTED_DASHES).trim_start_matches('-'));
            let meant = if CLASSIC_MODES.contains(&meant.as_str()) { meant } else { format!("-{meant}") };
            return Some(error(
                ErrorKind::UnknownArgument,
                &format!("'{word}' begins with a dash of a web page or word processor; write {meant}"),
            ));
        }
        if CLASSIC_MODES.contains(&word) {
            let same = |other: &&str| other.ends_with("tcp") == word.ends_with("tcp");
            if let Some(other) = modes.iter().find(|mode| same(mode)) {
                let protocol = if word.ends_with("tcp") { "TCP" } else { "UDP" };
                return Some(error(
                    ErrorKind::ArgumentConflict,
                    &match *other == word {
                        true => format!("'{word}' is given twice; write it once"),
                        false => format!("'{other}' cannot be used with '{word}'; write one mode for {protocol}"),
                    },
                ));
            }
            modes.push(word);
            continue;
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

fn error(kind: ErrorKind, message: &str) -> clap::Error {
    super::grammar().error(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(line: &str) -> Option<String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        refusal(&words).map(|error| error.to_string())
    }

    #[test]
    fn words_of_old_versions_name_current_ones() {
        for (line, expected) in [
            ("portsentry --stealth", "-stcp -sudp"),
            ("portsentry --connect", "-tcp -udp"),
            ("portsentry -m pcap", "leave it out"),
            ("portsentry --method=raw", "leave it out"),
            ("portsentry -i ALL", "every interface is watched"),
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
            ("portsentry -tcp -stcp", "'-tcp' cannot be used with '-stcp'; write one mode for TCP"),
            ("portsentry -audp -audp", "'-audp' is given twice"),
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
            "portsentry -- -c",
        ] {
            assert_eq!(hint(line), None, "{line}");
        }
    }
}
