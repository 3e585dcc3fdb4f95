//! Reads classic `portsentry.ignore` files: one address or address/mask per line; `#` starts a comment anywhere in a
//! line. A line that cannot be parsed is an error: an entry that silently matched nothing would let a trusted host be
//! blocked.

use super::error::{ConfigErrors, Diagnostic};
use super::parse::parse_network;
use super::{Allow, read_text};
use ipnet::IpNet;
use std::path::Path;

impl Allow {
    /// All networks: the listed ones, then those of the files. Reads the files on each call.
    ///
    /// # Errors
    /// As [`Allow::read_files`].
    pub fn read(&self) -> Result<Vec<IpNet>, ConfigErrors> {
        let files = self.read_files()?.into_iter().flatten();
        Ok(self.networks.iter().copied().chain(files).collect())
    }

    /// The networks of each file, in the order of the files.
    ///
    /// # Errors
    /// Every file that cannot be read, and every line that is not a network.
    pub fn read_files(&self) -> Result<Vec<Vec<IpNet>>, ConfigErrors> {
        let (mut read, mut errors) = (Vec::new(), Vec::new());
        for file in &self.files {
            match read_ignore_file(file) {
                Ok(networks) => read.push(networks),
                Err(wrong) => errors.extend(wrong.0),
            }
        }
        ConfigErrors::unless_empty(errors, read)
    }
}

/// Reads the networks of a classic ignore file.
///
/// # Errors
/// An error if the file cannot be read, and one for every line that is not a network.
pub fn read_ignore_file(path: &Path) -> Result<Vec<IpNet>, ConfigErrors> {
    let name = path.display().to_string();
    // Opening a FIFO would block until a writer opens it, and this function also runs while the daemon is active.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Err(ConfigErrors::about(&name, None, "not a regular file; name a text file".to_owned()));
    }
    parse(&name, &read_text(path, "create it, or remove it from allow.files")?)
}

/// Parses `text`, the contents of the file `name`. A mask is a prefix length or dotted. CRLF, a last line without a
/// line end, and capital letters in IPv6 addresses are accepted.
///
/// # Errors
/// One error for every line that is not blank, a comment or a network.
pub fn parse(name: &str, text: &str) -> Result<Vec<IpNet>, ConfigErrors> {
    let (networks, errors) = parse_lines(name, text);
    ConfigErrors::unless_empty(errors, networks)
}

/// As [`parse`], but also returns the networks of a text with errors.
pub fn parse_lines(name: &str, text: &str) -> (Vec<IpNet>, Vec<Diagnostic>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut networks = Vec::new();
    let mut errors = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or("");
        if entry.trim().is_empty() {
            continue;
        }
        match parse_network(entry.trim()) {
            Ok(network) => networks.push(network),
            Err(message) => {
                let blanks = entry.chars().take_while(|c| c.is_whitespace()).count();
                let (line, column) = (Some(index + 1), Some(blanks + 1));
                errors.push(Diagnostic { file: name.to_owned(), line, column, key: None, message });
            }
        }
    }
    (networks, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        parse("portsentry.ignore", text).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn common_notations_are_accepted() {
        for (text, network) in [
            ("192.0.2.7\n", "192.0.2.7/32"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7\r\n", "192.0.2.7/32"),
            ("\u{feff}192.0.2.7\n", "192.0.2.7/32"),
            ("  192.0.2.7\t # the monitor\n", "192.0.2.7/32"),
            ("192.0.2.7# the monitor\n", "192.0.2.7/32"),
            ("10.0.0.5/24\n", "10.0.0.0/24"),
            ("10.0.0.5/255.255.255.0\n", "10.0.0.0/24"),
            ("10.0.0.5 / 24\n", "10.0.0.0/24"),
            ("0.0.0.0/0\n", "0.0.0.0/0"),
            ("0.0.0.0/0.0.0.0\n", "0.0.0.0/0"),
            ("2001:DB8::5\n", "2001:db8::5/128"),
            ("2001:DB8:0:0::5/64\n", "2001:db8::/64"),
            ("::/0\n", "::/0"),
            ("::ffff:192.0.2.7\n", "192.0.2.7/32"),
            ("::ffff:192.0.2.7/120\n", "192.0.2.0/24"),
        ] {
            assert_eq!(read(text), [network], "{text:?}");
        }
    }

    #[test]
    fn blank_lines_and_comments_are_ignored() {
        assert!(read("").is_empty());
        assert!(read("# Exclude these hosts\n\n   \r\n#\n\t# 192.0.2.1").is_empty());
    }

    #[test]
    fn invalid_lines_are_refused_with_position() {
        let text = "127.0.0.1/32\nlocalhost\n # fine\n  10.0.0.0/33 # too long\n::1/129\r\n10.0.0.0/255.0.255.0\n10.0.0.1 10.0.0.2\n";
        let errors = parse("portsentry.ignore", text).unwrap_err().to_string();
        let instead = "is not an address or network; write for example \"192.0.2.7\" or \"198.51.100.0/24\"";
        let expected = [
            ("2:1", "localhost"),
            ("4:3", "10.0.0.0/33"),
            ("5:1", "::1/129"),
            ("6:1", "10.0.0.0/255.0.255.0"),
            ("7:1", "10.0.0.1 10.0.0.2"),
        ]
        .map(|(place, entry)| format!("portsentry.ignore:{place}: \"{entry}\" {instead}"));
        assert_eq!(errors.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn incomplete_netmask_is_refused() {
        for wrong in [
            "10.0.0.0/",
            "/24",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/0x8",
            "10.0.0",
            "10.0.0.0/24/8",
            "fe80::1%eth0",
            "::1/ffff::",
        ] {
            assert!(parse("f", wrong).is_err(), "{wrong}");
        }
    }
}
