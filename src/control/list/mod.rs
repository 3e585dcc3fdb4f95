//! Implements `portsentry list`, which prints the bans in force, from the kernel's sets and the ledger, as a table or
//! as JSON. As root it needs no running daemon. Changes nothing, and runs in a separate process, because the ledger's
//! reader must not run in the daemon.

mod bans;
mod daemon;
mod names;
mod table;

use crate::config::parse_span;
use clap::{Args, ValueEnum};
use std::cmp::Reverse;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

pub use bans::{BanList, ListError};

pub(super) use table::shortened;

use super::ban_info::BanInfo;
use super::client::{Client, ClientError};
use super::fleet_info::FleetBan;
use super::format::is_unicode;
use super::print;
use super::scoped_network::ScopedNetwork;
use crate::clock::WallTime;
use crate::engine::Class;
use crate::events::json::PortRecord;
use crate::ledger::{Logged, Reader, Rows, logged, unreadable_note};
use crate::types::{BanTarget, to_line};

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ListOptions {
    /// List only bans of this address, or in this network
    #[arg(value_name = "ADDRESS|PREFIX", value_parser = ScopedNetwork::parse_typed)]
    pub target: Option<ScopedNetwork>,
    /// Order of the bans
    #[arg(long, value_name = "ORDER", value_enum, default_value = "expires")]
    pub sort: SortOrder,
    /// List only bans that began within this time: 1h, 7d
    #[arg(long, value_name = "SPAN", value_parser = parse_span, allow_hyphen_values = true)]
    pub since: Option<Duration>,
    /// List the sources that would have been banned while scans were only logged
    #[arg(long, conflicts_with_all = ["sort", "names"])]
    pub would_block: bool,
    /// Look up the host names of the addresses
    #[arg(long)]
    pub names: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Directory of the ledger [default: that of the running daemon, or /var/lib/portsentry]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Control socket of the daemon, which names its ledger, or lists the bans if this user is not root
    #[arg(long, value_name = "FILE", default_value = super::DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// Note for a host without a running daemon.
pub const NOT_RUNNING: &str = "portsentry is not running: these are the bans in the kernel, which stay until they \
                               expire, and in the ledger. `systemctl start portsentry` starts it; `nft delete element \
                               inet portsentry blocked { ADDRESS }` lifts a ban (blocked6 for IPv6); if the kernel \
                               then has no ban left, the next start restores those in the ledger";

impl ListOptions {
    /// The directory of the ledger; adds a note if no daemon runs.
    fn directory(&self, notes: &mut Vec<String>) -> PathBuf {
        let status = Client::connect(&self.socket).and_then(|mut one| one.status());
        if let Err(ClientError::NotRunning(_)) = status {
            notes.push(NOT_RUNNING.to_owned());
        }
        // There is no status from a daemon of another version, or without access for this user.
        let of_daemon = status.ok().map(|status| PathBuf::from(status.ledger));
        self.state_dir.clone().or(of_daemon).unwrap_or_else(|| PathBuf::from(crate::ledger::DEFAULT_STATE_DIR))
    }

    /// The subject of the sentence for an empty list.
    fn no_source(&self) -> &'static str {
        if self.target.is_none() && self.since.is_none() { "no source" } else { "no source that matches" }
    }
}

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortOrder {
    /// The next to end first.
    Expires,
    /// The newest first.
    Since,
    /// The most frequently banned source first.
    Hits,
}

/// Maximum width of a table: COLUMNS, or the width of the terminal; unlimited for a file or a pipe.
fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.trim().parse().ok());
    let of_terminal = || rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    columns.or_else(of_terminal).filter(|columns| *columns > 0).unwrap_or(usize::MAX)
}

/// Reads the bans in force at `now`, or those that overlap `asked`, from the kernel and the ledger in `directory`. If
/// this user may read neither, asks the daemon at `socket`, if that is given.
///
/// # Errors
/// No source can be read.
pub fn read(
    directory: &Path,
    socket: Option<&Path>,
    asked: Option<ScopedNetwork>,
    now: SystemTime,
) -> Result<BanList, ListError> {
    match (bans::read(directory, asked, now), socket) {
        (Err(ListError::Forbidden), Some(socket)) => daemon::read(socket, asked),
        (result, _) => result,
    }
}

/// Writes the list for `options` and returns notes for standard error.
///
/// # Errors
/// Neither the kernel nor the ledger can be read, or the list cannot be written.
pub fn run(options: &ListOptions, out: &mut impl Write) -> Result<Vec<String>, ListError> {
    let now = SystemTime::now();
    if options.would_block {
        return run_would_block(options, now, out);
    }
    let mut notes = Vec::new();
    let directory = options.directory(&mut notes);
    // The ledger of another directory is not the daemon's.
    let socket = options.state_dir.is_none().then_some(options.socket.as_path());
    let BanList { mut bans, kernel, notes: more } = read(&directory, socket, options.target, now)?;
    notes.extend(more);
    if let Some(since) = options.since {
        let begin = now.checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH);
        let unknown = bans.iter().filter(|ban| !ban.in_ledger).count();
        bans.retain(|ban| ban.since.is_some_and(|WallTime(since)| since >= begin));
        if unknown > 0 {
            notes.push(format!("not listed, because only the kernel has them and their start is unknown: {unknown}"));
        }
    }
    sort(&mut bans, options.sort);
    let fleet = daemon::reports(&options.socket, options.target);
    if options.names {
        let names = names::look_up(bans.iter().filter_map(BanInfo::named_source).collect(), &mut notes);
        for ban in &mut bans {
            ban.name = Some(ban.named_source().and_then(|source| names.get(&source)).cloned());
        }
    }
    let text = if options.json {
        to_line(&Document { time: WallTime(now), kernel, notes: &notes, bans: &bans, fleet })
    } else {
        let table = match bans.is_empty() {
            true => format!("{} is blocked\n", options.no_source()),
            false => table::text(&bans, width(), now),
        };
        let reports: String = fleet.iter().flatten().map(|ban| format!("{}  {ban}\n", ban.target)).collect();
        let head = if reports.is_empty() { "" } else { "\nreported by other hosts of the fleet:\n" };
        in_locale(table + head + &reports)
    };
    print(out, &text).map(|()| notes).map_err(ListError::Write)
}

/// Writes the sources that would have been banned while their protocol was only logged, from the ledger.
fn run_would_block(options: &ListOptions, now: SystemTime, out: &mut impl Write) -> Result<Vec<String>, ListError> {
    // No note without a daemon: the list is complete anyway, because it is about the past.
    let directory = options.directory(&mut Vec::new());
    let Rows { mut items, unreadable } = Reader::read(&directory, logged::all)?;
    items.retain(|logged| {
        let wanted = options.target.is_none_or(|target| target.overlaps(logged.target));
        let begin = options.since.and_then(|since| now.checked_sub(since));
        wanted && begin.is_none_or(|begin| logged.last >= begin)
    });
    let notes = Vec::from_iter(unreadable_note(unreadable));
    let text = if options.json {
        let would_block = items.iter().map(would_block).collect();
        to_line(&WouldBlockDocument { time: WallTime(now), notes: &notes, would_block })
    } else {
        in_locale(match items.is_empty() {
            true => format!("{} would have been blocked\n", options.no_source()),
            false => table::would_block(&items, width(), now),
        })
    };
    print(out, &text).map(|()| notes).map_err(ListError::Write)
}

/// A table with an ASCII character at the end of truncated fields if the locale does not use UTF-8.
fn in_locale(table: String) -> String {
    if is_unicode(|name| std::env::var(name).ok()) { table } else { table.replace('…', "~") }
}

/// Sorts the bans in this order, then by address.
fn sort(bans: &mut [BanInfo], order: SortOrder) {
    let time = |time: Option<WallTime>| time.map(|WallTime(time)| time);
    match order {
        SortOrder::Expires => bans.sort_by_key(|ban| (ban.expires.0.is_none(), time(ban.expires.0), ban.target)),
        SortOrder::Since => bans.sort_by_key(|ban| (Reverse(time(ban.since)), ban.target)),
        SortOrder::Hits => bans.sort_by_key(|ban| (Reverse((ban.strikes, ban.probes)), ban.target)),
    }
}

/// The list as JSON.
#[derive(Serialize)]
struct Document<'a> {
    time: WallTime,
    kernel: bool,
    notes: &'a [String],
    bans: &'a [BanInfo],
    /// Reports of other hosts; null if unknown, or if this host is not in a fleet.
    fleet: Option<Vec<FleetBan>>,
}

/// The list of `--would-block` as JSON.
#[derive(Serialize)]
struct WouldBlockDocument<'a> {
    time: WallTime,
    notes: &'a [String],
    would_block: Vec<WouldBlock<'a>>,
}

#[derive(Serialize)]
struct WouldBlock<'a> {
    subject: BanTarget,
    source: IpAddr,
    class: Class,
    reason: &'a str,
    ports: Vec<PortRecord>,
    probes: u32,
    first: WallTime,
    last: WallTime,
    times: u32,
}

fn would_block(logged: &Logged) -> WouldBlock<'_> {
    WouldBlock {
        subject: logged.target,
        source: logged.source,
        class: logged.class,
        reason: &logged.reason,
        ports: logged.ports.iter().map(PortRecord::from).collect(),
        probes: logged.probes,
        first: WallTime(logged.first),
        last: WallTime(logged.last),
        times: logged.times,
    }
}
