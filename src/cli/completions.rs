//! Generates shell completion scripts from the command line's grammar. For `unblock`, the scripts run `portsentry list`
//! to complete the targets of bans.

use super::grammar;
use crate::config::flags::CLASSIC_MODES;
use clap::{Args, ValueEnum};

/// Options of `completions`.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completions {
    /// Shell to print the script for
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// A shell that completes command lines.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// bash, with bash-completion
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Prints the targets of the bans in force, one per line.
const TARGETS: &str = r#"
_portsentry_targets() {
    portsentry list --json 2>/dev/null | grep -o '"subject":"[^"]*"' | cut -d '"' -f 4
}
"#;

/// Readline ends a word at a colon, and IPv6 addresses contain colons. The text up to the last colon is already typed
/// and must not be inserted again.
const BASH: &str = r#"
_portsentry_or_target() {
    _portsentry "$@"
    local typed=${COMP_LINE:0:COMP_POINT} target
    typed=${typed##*[[:space:]]}
    [[ ${COMP_WORDS[1]} == unblock && $3 != --socket && $typed != -* ]] || return 0
    COMPREPLY=()
    for target in $(compgen -W "$(_portsentry_targets)" -- "$typed"); do
        [[ $COMP_WORDBREAKS != *:* ]] || target=${target#"${typed%"${typed##*:}"}"}
        COMPREPLY+=("$target")
    done
}

complete -F _portsentry_or_target -o bashdefault -o default portsentry
"#;

const ZSH: &str = r#"
_portsentry_or_target() {
    compadd -- ${(f)"$(_portsentry_targets)"}
}
"#;

const FISH: &str = r#"complete -c portsentry -n "__fish_portsentry_using_subcommand unblock" -f -a "(portsentry list --json 2>/dev/null | string match -rag '\"subject\":\"([^\"]*)\"')" -d 'Blocked'
"#;

impl Shell {
    /// The completion script, for the directory where the shell searches for such scripts.
    #[must_use]
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
            Self::Bash => script + TARGETS + BASH,
            // Must precede the commands at the end, which run immediately if zsh autoloads the file as a function.
            Self::Zsh => script
                .replacen("\n_portsentry() {", &format!("{TARGETS}{ZSH}\n_portsentry() {{"), 1)
                .replace("Address or prefix to unblock:_default", "Address or prefix to unblock:_portsentry_or_target"),
            Self::Fish => script + FISH,
        }
    }
}
