//! Generates shell completion scripts from the command line's grammar. For `unblock`, `disallow` and `forget-service`,
//! the scripts ask the program for the values.

use super::grammar::{Shell, grammar};
use crate::config::flags::CLASSIC_MODES;

/// Prints the values for a command, one per line: banned targets, networks that operators allow, remembered services.
/// There are none unless the shell's user is root or in the daemon's group. A daemon that does not answer must not
/// delay the prompt.
const VALUES: &str = r#"
_portsentry_values() {
    case $1 in
        unblock) timeout 2 portsentry list --json | sed 's/,"fleet":.*//' | tr '{' '\n' |
            sed -n 's/^"subject":"\([^"]*\)".*/\1/p' ;;
        disallow) timeout 2 portsentry allowed --json | tr '{' '\n' |
            sed -n '/"by":"allow\./d; s/^"network":"\([^"]*\)".*/\1/p' ;;
        forget-service) timeout 2 portsentry status --json | tr '{' '\n' |
            sed -n 's/^"proto":"\([a-z]*\)","port":\([0-9]*\),"address":.*/\2\/\1/p' | sort -nu ;;
    esac 2>/dev/null
}
"#;

/// Readline ends a word at a colon, and IPv6 addresses contain colons. The text up to the last colon is already typed
/// and must not be inserted again. Without a value, bash would complete file names. The completion of sudo applies the
/// options of `complete` again after the function has run, so the function sets them.
const BASH: &str = r#"
_portsentry_or_value() {
    _portsentry "$@"
    compopt -o bashdefault -o default 2>/dev/null
    local typed=${COMP_LINE:0:COMP_POINT} value
    typed=${typed##*[[:space:]]}
    case ${COMP_WORDS[1]} in unblock | disallow | forget-service) ;; *) return 0 ;; esac
    [[ $3 != --socket && $typed != -* ]] || return 0
    compopt +o bashdefault +o default 2>/dev/null
    COMPREPLY=()
    for value in $(compgen -W "$(_portsentry_values "${COMP_WORDS[1]}")" -- "$typed"); do
        [[ $COMP_WORDBREAKS != *:* ]] || value=${value#"${typed%"${typed##*:}"}"}
        COMPREPLY+=("$value")
    done
}

complete -F _portsentry_or_value portsentry
"#;

const ZSH: &str = r#"
_portsentry_banned() {
    compadd -- ${(f)"$(_portsentry_values unblock)"}
}

_portsentry_allowed() {
    compadd -- ${(f)"$(_portsentry_values disallow)"}
}

_portsentry_services() {
    compadd -- ${(f)"$(_portsentry_values forget-service)"}
}
"#;

/// The argument of each command in clap's script for zsh, and the function that completes it.
const ZSH_ARGUMENTS: [(&str, &str); 3] = [
    ("Address or prefix to unblock:", "_portsentry_banned"),
    ("Address or network as listed by `portsentry allowed`:", "_portsentry_allowed"),
    ("Port of the service; without /tcp or /udp, both protocols:", "_portsentry_services"),
];

const FISH: &str = r#"complete -c portsentry -n "__fish_portsentry_using_subcommand unblock" -f -a "(timeout 2 portsentry list --json 2>/dev/null | string replace -r ',\"fleet\":.*' '' | string match -rag '\"subject\":\"([^\"]*)\"')" -d 'Blocked'
complete -c portsentry -n "__fish_portsentry_using_subcommand disallow" -f -a "(timeout 2 portsentry allowed --json 2>/dev/null | string match -rag '\"network\":\"([^\"]*)\",\"by\":\"(?!allow\.)')" -d 'Allowed'
complete -c portsentry -n "__fish_portsentry_using_subcommand forget-service" -f -a "(timeout 2 portsentry status --json 2>/dev/null | string match -rag '\"port\":(\d+),\"address\"' | sort -nu)" -d 'Service'
"#;

impl Shell {
    /// The completion script, for the directory where the shell searches for such scripts.
    pub fn completions(self) -> String {
        use clap_complete::Shell as Known;
        let shell = match self {
            Self::Bash => Known::Bash,
            Self::Zsh => Known::Zsh,
            Self::Fish => Known::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut grammar(), "portsentry", &mut script);
        let mut script = String::from_utf8_lossy(&script).into_owned();
        // clap defines the classic modes with two dashes, but operators type one. fish has the option `-o` for such
        // flags.
        for mode in CLASSIC_MODES {
            let word = mode.trim_start_matches('-');
            script =
                script.replace(&format!("-{mode}"), mode).replace(&format!(" -l {word}\n"), &format!(" -o {word}\n"));
        }
        match self {
            Self::Bash => script + VALUES + BASH,
            // Must precede the commands at the end, which run immediately if zsh autoloads the file as a function.
            Self::Zsh => ZSH_ARGUMENTS.iter().fold(
                script.replacen("\n_portsentry() {", &format!("{VALUES}{ZSH}\n_portsentry() {{"), 1),
                |script, (argument, function)| {
                    script.replace(&format!("{argument}_default"), &format!("{argument}{function}"))
                },
            ),
            Self::Fish => script + FISH,
        }
    }
}
