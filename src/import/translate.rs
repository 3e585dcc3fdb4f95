//! Translates all options of a `portsentry.conf`, each to a key or a comment.

use super::diagnostics::{ImportError, quoted};
use super::document::TomlValue;
use super::options::Options;
use super::output::{Import, Output};
use super::source::{ReadFile, Sources};
use super::{allow, block, defaults, ports};
use crate::config::MAX_BANNER_LEN;
use std::path::Path;

/// Maximum number of unknown options that are listed; further ones are only counted.
const MAX_UNKNOWN: usize = 100;

/// Translates `sources`. `read` reads the ignore file that the configuration names.
///
/// # Errors
/// [`ImportError::Wrong`] with all errors at once: no option of PortSentry is found, or values are invalid.
pub fn translate(sources: &Sources, read: &ReadFile) -> Result<Import, ImportError> {
    let mut output = Output::new(sources);
    if let Some(options) = Options::parse(&sources.config, &mut output) {
        let modes = sources.defaults.as_ref().map(|source| defaults::parse(source, &mut output));
        ports::translate(&options, modes.as_ref(), &mut output);
        block::translate(&options, &mut output);
        banner(&options, &mut output);
        scan_trigger(&options, &mut output);
        allow::translate(&options, &sources.ignore, read, &mut output);
        resolve_host(&options, &mut output);
        leave_out(&options, &mut output);
    }
    output.finish()
}

fn banner(options: &Options, output: &mut Output) {
    let Some(entry) = options.get("PORT_BANNER") else { return };
    if entry.value.len() > MAX_BANNER_LEN {
        output.left_out("tcp", entry, "it is longer than 1024 bytes; write a shorter tcp.port_banner");
        return;
    }
    let remark = format!("{}\nSent only in mode \"connect\", and only over TCP.", entry.origin());
    output.document.set("tcp", "port_banner", &TomlValue::text(&entry.value), &remark);
}

fn scan_trigger(options: &Options, output: &mut Output) {
    let remark = "Number of ports that are forgiven. 0 blocks at the first probe, even at a mistake of an honest \
                  client; the built-in value is 2.";
    let Some(entry) = options.get("SCAN_TRIGGER") else {
        let remark = format!("SCAN_TRIGGER is not set: classic PortSentry then forgives no port.\n{remark}");
        return output.document.set("detect", "scan_trigger", &TomlValue::Number(0), &remark);
    };
    let value = entry.value.trim();
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let Some(number) = value.parse::<u32>().ok().filter(|_| digits) else {
        return output.refuse(entry, format!("{} is not a number; write a number from 0 to 16", quoted(&entry.value)));
    };
    // Classic blocks at the probe with this number, so 0 and 1 are the same.
    let before = number.saturating_sub(1);
    let forgiven = u8::try_from(before.min(15)).unwrap_or(15);
    if before > 15 {
        output.add_note(entry, "exceeds the maximum; 15 is written");
    }
    let remark = format!("{}\n{remark}", entry.origin());
    output.document.set("detect", "scan_trigger", &TomlValue::Number(forgiven), &remark);
}

fn resolve_host(options: &Options, output: &mut Output) {
    let Some(entry) = options.get("RESOLVE_HOST") else { return };
    // Classic treats every other value as no.
    if entry.value.trim() == "1" {
        output.set("report", "resolve_host", &TomlValue::Switch(true), entry);
    } else {
        output
            .document
            .tail(&format!("{}: names are not looked up, which is also the built-in value.", entry.origin()));
    }
}

/// Writes comments for the options without a key here, and for those that no version of PortSentry has.
fn leave_out(options: &Options, output: &mut Output) {
    for (key, file) in [("HISTORY_FILE", "portsentry.history"), ("BLOCKED_FILE", "portsentry.blocked")] {
        let Some(entry) = options.get(key) else { continue };
        let remark = format!("is written as {file} to /var/lib/portsentry, or to the directory of --state-dir");
        output.document.tail(&format!("{}: the file {remark}.", entry.origin()));
        if Path::new(&entry.value).parent() != Some(Path::new("/var/lib/portsentry")) {
            output.add_note(entry, &format!("no key is needed: the file {remark}"));
        }
    }
    for entry in options.unknown.iter().take(MAX_UNKNOWN) {
        output.document.tail(&format!("{}: not an option of PortSentry; left out.", entry.origin()));
        output.add_note(entry, "not an option of PortSentry; left out");
    }
    if let Some(more) = options.unknown.len().checked_sub(MAX_UNKNOWN).filter(|more| *more > 0) {
        output.document.tail(&format!("Further lines that are not options of PortSentry: {more}."));
    }
}
