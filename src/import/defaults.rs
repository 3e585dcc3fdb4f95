//! The text of Debian's `/etc/default/portsentry` to the modes. It is a shell script of assignments; nothing of it is run.

use super::classic::{Entry, is_name, lines};
use super::finding::{Findings, shown};
use super::shell::{Line, Token};
use super::{LARGEST, Source};

/// The modes that it says; Debian starts the program once for each that is not empty.
#[derive(Debug, Default)]
pub(super) struct Modes {
    pub(super) tcp: Option<Entry>,
    pub(super) udp: Option<Entry>,
}

impl Modes {
    /// Reads `source`; the last assignment counts, as in a shell.
    pub(super) fn read(source: &Source, errors: &mut Findings, notes: &mut Findings) -> Self {
        let mut modes = Self::default();
        if source.bytes.len() > LARGEST {
            errors.add(None, None, "is larger than 1 MiB; name /etc/default/portsentry".to_owned());
            return modes;
        }
        for (line, text) in lines(source) {
            let text = String::from_utf8_lossy(text);
            let text = text.strip_prefix("export ").map_or(&*text, str::trim_start);
            let Some((key, value)) = text.split_once('=').filter(|(key, _)| is_name(key)) else {
                notes.add(Some(line), None, format!("\"{}\" sets no mode; left out", shown(text)));
                continue;
            };
            let (place, example) = match key {
                "TCP_MODE" => (&mut modes.tcp, "atcp"),
                "UDP_MODE" => (&mut modes.udp, "audp"),
                _ => {
                    notes.add(Some(line), Some(key), "is no mode; left out".to_owned());
                    continue;
                }
            };
            match word(value) {
                Some(value) => {
                    *place = Some(Entry { key: key.to_owned(), value, line }).filter(|mode| !mode.value.is_empty());
                }
                None => {
                    let message = format!("{} is no plain word; write {key}=\"{example}\"", shown(value));
                    errors.add(Some(line), Some(key), message);
                }
            }
        }
        modes
    }
}

/// The value that the shell would assign, where it need not run anything to know it.
fn word(value: &str) -> Option<String> {
    // A comment behind it is the shell's, and fine.
    let value = value.split(" #").next().unwrap_or("");
    let line = Line::of(value).filter(|line| !line.needs_shell)?;
    match line.tokens.as_slice() {
        [] => Some(String::new()),
        [Token::Word(word)] => Some(word.trim().trim_start_matches('-').to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<String>, Option<String>, Vec<String>, Vec<String>) {
        let source = Source { name: "d".to_owned(), bytes: text.as_bytes().to_vec() };
        let (mut errors, mut notes) = (Findings::about("d"), Findings::about("d"));
        let modes = Modes::read(&source, &mut errors, &mut notes);
        let texts = |findings: Findings| findings.into_vec().iter().map(ToString::to_string).collect();
        (modes.tcp.map(|mode| mode.value), modes.udp.map(|mode| mode.value), texts(errors), texts(notes))
    }

    #[test]
    fn every_way_to_write_an_assignment_is_read() {
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
    fn what_only_a_shell_knows_is_refused_and_the_rest_left_out() {
        let (tcp, _, errors, notes) = read("TCP_MODE=$MODE\nOPTIONS=\"-x\"\nif true; then\n");
        assert_eq!((tcp, errors.len(), notes.len()), (None, 1, 2));
        assert_eq!(errors, ["d:1: TCP_MODE: $MODE is no plain word; write TCP_MODE=\"atcp\""]);
    }
}
