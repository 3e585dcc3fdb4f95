//! Parses the modes in Debian's `/etc/default/portsentry`, a shell script of assignments, without running it.

use super::diagnostics::shown;
use super::options::{Options, lines, name};
use super::output::{OptionLine, Output};
use super::source::{InputFile, MAX_LEN};
use super::words::ShellLine;

/// Parses `TCP_MODE` and `UDP_MODE` in `source`. The last assignment counts, as in a shell.
pub(super) fn parse<'s>(source: &'s InputFile, output: &mut Output) -> Options<'s> {
    let file = source.name.as_str();
    let mut modes = Options::new(source);
    if source.bytes.len() > MAX_LEN {
        output.errors.add(file, None, None, "the file is larger than 1 MiB; name /etc/default/portsentry");
        return modes;
    }
    for (line, text) in lines(source) {
        let text = String::from_utf8_lossy(text);
        let text = text.trim_start();
        let text = text.strip_prefix("export ").map_or(text, str::trim_start);
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| name(text) == Some(key)) else {
            output.notes.add(file, Some(line), None, format!("\"{}\" does not set a mode; left out", shown(text)));
            continue;
        };
        let example = match key {
            "TCP_MODE" => "atcp",
            "UDP_MODE" => "audp",
            _ => {
                output.notes.add(file, Some(line), Some(key), "not a mode; left out");
                continue;
            }
        };
        if let Some(value) = word(value) {
            modes.replace(OptionLine { file, line, key: key.to_owned(), value });
        } else {
            let message = format!("{} is not a plain word; write {key}=\"{example}\"", shown(value));
            output.errors.add(file, Some(line), Some(key), message);
        }
    }
    modes
}

/// The value that the shell would assign, if it can be determined without running anything.
fn word(value: &str) -> Option<String> {
    // A trailing comment belongs to the shell syntax and is ignored.
    let words = ShellLine::split(value.split(" #").next()?)?.words()?;
    match words.as_slice() {
        [] => Some(String::new()),
        [word] => Some(word.trim().trim_start_matches('-').to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sources;
    use super::super::diagnostics::Diagnostics;
    use super::*;

    fn read(text: &str) -> (Option<String>, Option<String>, Vec<String>, Vec<String>) {
        let config = InputFile { name: "d".to_owned(), bytes: text.as_bytes().to_vec() };
        let sources = Sources { config, ..Sources::default() };
        let mut output = Output::new(&sources);
        let modes = parse(&sources.config, &mut output);
        let texts = |list: Diagnostics| list.into_vec().iter().map(ToString::to_string).collect();
        let value = |key| modes.get(key).map(|mode| mode.value.clone());
        (value("TCP_MODE"), value("UDP_MODE"), texts(output.errors), texts(output.notes))
    }

    #[test]
    fn assignment_syntaxes_are_read() {
        for text in [
            "TCP_MODE=\"atcp\"\nUDP_MODE=\"sudp\"\n",
            "# modes\nTCP_MODE='atcp' # advanced\nUDP_MODE=sudp",
            "export TCP_MODE=-atcp\r\nUDP_MODE=udp\nUDP_MODE=s\"ud\"p\n",
        ] {
            let read = read(text);
            assert_eq!(read, (Some("atcp".into()), Some("sudp".into()), vec![], vec![]), "{text}");
        }
        assert_eq!(read("TCP_MODE=tcp\nTCP_MODE=\"\"\n").0, None);
    }

    #[test]
    fn shell_only_syntax_is_refused() {
        let (tcp, _, errors, notes) = read("TCP_MODE=$MODE\nOPTIONS=\"-x\"\nif true; then\n");
        assert_eq!((tcp, errors.len(), notes.len()), (None, 1, 2));
        assert_eq!(errors, ["d:1: TCP_MODE: $MODE is not a plain word; write TCP_MODE=\"atcp\""]);
    }
}
