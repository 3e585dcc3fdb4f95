//! Translates the options that belong to no group: the banner, the trigger, name look-ups, and options without an
//! equivalent.

use super::diagnostics::quoted;
use super::document::Value;
use super::options::Options;
use super::output::Output;
use crate::config::MAX_BANNER_LEN;
use std::path::Path;

/// Maximum number of unknown options that are listed; further ones are only counted.
const MAX_UNKNOWN: usize = 100;

pub(super) fn banner(options: &Options, output: &mut Output) {
    let Some(entry) = options.get("PORT_BANNER") else { return };
    if entry.value.len() > MAX_BANNER_LEN {
        output.left_out("tcp", entry, "it is longer than 1024 bytes; write a shorter tcp.port_banner");
        return;
    }
    let remark = format!("{}\nSent only in mode \"connect\", and only over TCP.", entry.origin());
    output.document.set("tcp", "port_banner", &Value::text(&entry.value), &remark);
}

pub(super) fn scan_trigger(options: &Options, output: &mut Output) {
    let remark = "Number of ports that are forgiven. 0 blocks at the first probe, even at a mistake of an honest \
                  client; the built-in value is 2.";
    let Some(entry) = options.get("SCAN_TRIGGER") else {
        let remark = format!("SCAN_TRIGGER is not set: classic PortSentry then forgives no port.\n{remark}");
        return output.document.set("detect", "scan_trigger", &Value::Number(0), &remark);
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
    output.document.set("detect", "scan_trigger", &Value::Number(forgiven), &remark);
}

pub(super) fn resolve_host(options: &Options, output: &mut Output) {
    let Some(entry) = options.get("RESOLVE_HOST") else { return };
    // Classic treats every other value as no.
    if entry.value.trim() == "1" {
        output.set("report", "resolve_host", &Value::Switch(true), entry);
    } else {
        output
            .document
            .tail(&format!("{}: names are not looked up, which is also the built-in value.", entry.origin()));
    }
}

/// Writes comments for the options without a key here, and for those that no version of PortSentry has.
pub(super) fn leave_out(options: &Options, output: &mut Output) {
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
