//! Translates ignore files to `[allow]`. Their entries are copied, because the package of the classic program removes
//! its files when it is purged.

use super::diagnostics::shown;
use super::document::TomlValue;
use super::options::Options;
use super::output::{OptionLine, Output};
use super::source::{InputFile, MAX_LEN, ReadFile};
use crate::config::ignore_file;
use crate::types::plain;
use crate::types::printable::escaped;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

pub(super) fn translate(options: &Options, ignore: &[InputFile], read: &ReadFile, output: &mut Output) {
    let entry = options.get("IGNORE_FILE");
    if !ignore.is_empty() {
        if let Some(entry) = entry {
            output.document.remark(
                "allow",
                &format!("{}: replaced by the networks below, which are those of --ignore.", entry.origin()),
            );
        }
        return write_networks(ignore, None, output);
    }
    let Some(entry) = entry else { return };
    let path = entry.value.trim();
    if !Path::new(path).is_absolute() {
        let why = "the path is relative to the directory in which classic PortSentry was started; write the absolute path, \
                   or name the file with --ignore";
        return output.refuse(entry, why);
    }
    // Debian generates the ignore file from this one and the host's own addresses, which need no entry here.
    let made_of = format!("{path}.static");
    let (path, result) = match read(Path::new(&made_of)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path, read(Path::new(path))),
        result => (made_of.as_str(), result),
    };
    match result {
        Ok(bytes) => {
            let name = path.chars().map(escaped).collect();
            write_networks(&[InputFile { name, bytes }], Some(entry), output);
        }
        Err(error) => {
            let why = format!("cannot read {}: {error}; name a copy of the file with --ignore", shown(path));
            // Classic PortSentry ignores no source if the file does not exist.
            if error.kind() == io::ErrorKind::NotFound {
                output.left_out("allow", entry, &why);
            } else {
                output.refuse(entry, why);
            }
        }
    }
}

/// Writes the entries of `ignore`, which comes from the option `named_by` or from the operator.
fn write_networks(ignore: &[InputFile], named_by: Option<&OptionLine>, output: &mut Output) {
    let networks: BTreeSet<IpNet> =
        ignore.iter().flat_map(|source| networks(source, named_by.is_some(), output)).collect();
    let names: Vec<&str> = ignore.iter().map(|source| source.name.as_str()).collect();
    let origin = named_by.map_or_else(String::new, |entry| format!("{}\n", entry.origin()));
    let remark =
        format!("{origin}The entries of {}. This host's own addresses and loopback need no entry.", names.join(", "));
    output.document.set("allow", "networks", &TomlValue::Texts(networks.into_iter().map(plain).collect()), &remark);
}

/// Parses the networks of an ignore file. If `skips_wrong` is true, an invalid line is left out with a note and is no
/// error.
fn networks(source: &InputFile, skips_wrong: bool, output: &mut Output) -> Vec<IpNet> {
    if source.bytes.len() > MAX_LEN {
        output.errors.add(&source.name, None, None, "the file is larger than 1 MiB; name a portsentry.ignore");
        return Vec::new();
    }
    // Bytes that are not UTF-8 are valid only in a comment; elsewhere they do not parse as a network.
    let text = String::from_utf8_lossy(&source.bytes);
    let (mut networks, errors) = ignore_file::parse_lines(&source.name, &text);
    for error in errors {
        if skips_wrong {
            output.notes.add(&source.name, error.line, None, format!("{}; left out", error.message));
        } else {
            output.errors.add(&source.name, error.line, None, error.message);
        }
    }
    networks.retain(|network| {
        if network.prefix_len() == 0 {
            let message =
                "is left out: it matches every address, so no source would be blocked (classic PortSentry reads it \
                 as one address)";
            output.notes.add(&source.name, None, None, format!("{network} {message}"));
        }
        network.prefix_len() > 0
    });
    networks
}
