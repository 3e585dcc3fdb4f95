//! Generates shell completion scripts from the command line's grammar. The targets of bans that `unblock` completes
//! are asked of `portsentry list` by the script.

use super::grammar;
use crate::config::flags::CLASSIC_MODES;
use clap::{Args, ValueEnum};

/// Options of `completions`.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completions {
    /// The shell
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

/// The targets of the bans in force, one a line.
const TARGETS: &str = r#"
_portsentry_targets() {
    portsentry list --json 2>/dev/null | grep -o '"subject":"[^"]*"' | cut -d '"' -f 4
}
"#;

/// Readline ends a word at a colon, which IPv6 addresses have: what stands before the last one is not inserted again.
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
    /// The script, to be put where the shell looks for it.
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
        // clap knows the classic modes with two dashes; people type one. fish calls such an option an old one.
        for mode in CLASSIC_MODES {
            let word = mode.trim_start_matches('-');
            script =
                script.replace(&format!("-{mode}"), mode).replace(&format!(" -l {word}\n"), &format!(" -o {word}\n"));
        }
        match self {
            Self::Bash => script + TARGETS + BASH,
            // Before what runs at once, where the file is loaded as a function.
            Self::Zsh => script
                .replacen("\n_portsentry() {", &format!("{TARGETS}{ZSH}\n_portsentry() {{"), 1)
                .replace("Address or prefix to unblock:_default", "Address or prefix to unblock:_portsentry_or_target"),
            Self::Fish => script + FISH,
        }
    }
}
