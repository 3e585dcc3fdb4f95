//! Generates shell completion scripts from the command line's grammar.

use super::grammar;
use crate::config::flags::CLASSIC_MODES;
use clap::{Args, ValueEnum};

/// Options of `completions`.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(super) shell: Shell,
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
        script
    }
}
