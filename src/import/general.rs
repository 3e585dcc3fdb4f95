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
        output.left_out("tcp", entry, "it has more than 1024 bytes; write a shorter tcp.port_banner");
        return;
    }
    let remark = format!("{}\nOnly mode \"connect\" says it, and only over TCP.", entry.origin());
    output.document.set("tcp", "port_banner", &Value::text(&entry.value), &remark);
}

pub(super) fn scan_trigger(options: &Options, output: &mut Output) {
    let remark = "How many ports are forgiven. 0 blocks at the first probe, mistakes of honest clients included; the \
                  built-in value is 2.";
    let Some(entry) = options.get("SCAN_TRIGGER") else {
        let remark = format!("SCAN_TRIGGER is not set: classic forgives none.\n{remark}");
        return output.document.set("detect", "scan_trigger", &Value::Number(0), &remark);
    };
    let value = entry.value.trim();
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let Some(number) = value.parse::<u32>().ok().filter(|_| digits) else {
        return output.refuse(entry, format!("{} is no number; write one from 0 to 15", quoted(&entry.value)));
    };
    let forgiven = u8::try_from(number.min(15)).unwrap_or(15);
    if number > 15 {
        output.note(entry, "is more than is ever forgiven; 15 is written");
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
        output.document.tail(&format!("{}: so it is; names are not looked up.", entry.origin()));
    }
}

/// Writes comments for the options without a key here, and for those that no version of PortSentry has.
pub(super) fn leave_out(options: &Options, output: &mut Output) {
    for (key, file) in [("HISTORY_FILE", "portsentry.history"), ("BLOCKED_FILE", "portsentry.blocked")] {
        let Some(entry) = options.get(key) else { continue };
        let remark = format!("is kept as {file} in /var/lib/portsentry, or where --state-dir says");
        output.document.tail(&format!("{}: it {remark}.", entry.origin()));
        if Path::new(&entry.value).parent() != Some(Path::new("/var/lib/portsentry")) {
            output.note(entry, &format!("has no key: it {remark}"));
        }
    }
    for entry in options.unknown.iter().take(MAX_UNKNOWN) {
        output.document.tail(&format!("{}: no option of PortSentry; left out.", entry.origin()));
        output.note(entry, "is no option of PortSentry; left out");
    }
    if let Some(more) = options.unknown.len().checked_sub(MAX_UNKNOWN).filter(|more| *more > 0) {
        output.document.tail(&format!("{more} more that are no options of PortSentry."));
    }
}
