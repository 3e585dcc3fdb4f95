//! Provides helpers for the benchmarks of the whole program: the number of runs, tables of results, packets at a known
//! rate, a scanner, the wait for its ban, and the resources that the program used.

use std::fs;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};
use pcap::{Active, Capture};
use portsentry::control::client::Client;
use portsentry::enforce::nft::Table;
use portsentry::types::BanTarget;

use crate::Lab;
use crate::daemon::Daemon;
use crate::raw;

/// The number of runs of a measurement: the environment's `RUNS`, or else `usual`.
pub fn runs(usual: usize) -> usize {
    std::env::var("RUNS").ok().and_then(|text| text.parse().ok()).filter(|runs| *runs > 0).unwrap_or(usual)
}

/// True if this row is selected: it contains all the words of the command line.
pub fn is_selected(name: &str) -> bool {
    std::env::args().skip(1).filter(|word| !word.starts_with("--")).all(|word| name.contains(&word))
}

/// Prints the head of a table; the names of its columns are separated by bars.
pub fn table(title: &str, columns: &str) {
    println!("\n{title}\n\n| {columns} |\n|{}", "---|".repeat(columns.split(" | ").count()));
}

/// The value below which this share of them lies; NaN if there are none.
pub fn quantile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into a few figures")]
    let index = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

pub fn median(figures: &[f64]) -> f64 {
    quantile(figures, 0.5)
}

/// Polls the kernel for a ban of `source` as long as `goes_on` is true; returns whether there is one.
pub fn wait_for_ban(lab: &Lab, source: IpAddr, pause: Duration, mut goes_on: impl FnMut() -> bool + Send) -> bool {
    let target = BanTarget::containing(source);
    lab.inside("victim", || {
        let mut table = Table::open().unwrap();
        // The table is missing if the program does not run.
        while !matches!(table.time_left(target), Ok(Some(_))) {
            if !goes_on() {
                return false;
            }
            std::thread::sleep(pause);
        }
        true
    })
}

/// nmap on a host of the lab, against the victim; killed when dropped.
pub struct Scanner(Child);

impl Scanner {
    pub fn start(lab: &Lab, host: &str, target: IpAddr, arguments: &[&str]) -> Self {
        let mut nmap = lab.command(host, "nmap");
        nmap.args(if target.is_ipv6() { &["-6"][..] } else { &[] }).args(["-n", "-Pn"]).args(arguments);
        Self(nmap.arg(target.to_string()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Address number `number` of many that exist only in the lab.
pub fn remote_source(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a80_0000 + number).into()
}

/// Frames sent in one call, to distribute the cost of the call.
const BURST: usize = 64;

/// Frames of equal length, ready to be sent.
pub struct Frames {
    link: Capture<Active>,
    bytes: Vec<u8>,
    length: usize,
}

impl Frames {
    /// TCP packets from `host` to the victim with these flags, each from a source to a port.
    pub fn new(lab: &Lab, host: &str, flags: u16, packets: impl Iterator<Item = (IpAddr, u16)>) -> Self {
        let target = lab.victim_v4(host).into();
        let link = lab.inside(host, || Capture::from_device("uplink").unwrap().snaplen(64).open().unwrap());
        let head =
            [&lab.hardware_address("victim", host)[..], &lab.hardware_address(host, "uplink"), &[0x08, 0x00]].concat();
        let (mut bytes, mut length) = (Vec::new(), 0);
        for (source, port) in packets {
            let begin = bytes.len();
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(&raw::tcp(source, target, port, flags));
            length = bytes.len() - begin;
        }
        Self { link, bytes, length }
    }

    pub fn count(&self) -> usize {
        self.bytes.len() / self.length
    }

    /// Sends the frames in groups of `at_once` with pauses, until all are sent or `enough` is set.
    pub fn trickle(&mut self, at_once: usize, pause: Duration, enough: &AtomicBool) {
        for frames in self.bytes.chunks(at_once * self.length) {
            for frame in frames.chunks(self.length) {
                self.link.sendpacket(frame).unwrap();
            }
            std::thread::sleep(pause);
            if enough.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Sends the frames at this rate, or at full speed; returns the time that it took.
    pub fn send(&mut self, per_second: Option<u32>) -> Duration {
        let mut headers = MultiHeaders::<()>::preallocate(BURST, None);
        let begin = Instant::now();
        let mut sent = 0_u32;
        for burst in self.bytes.chunks(BURST * self.length) {
            if let Some(per_second) = per_second {
                // Busy waiting: a sleep would take longer than the next hundred packets.
                while begin.elapsed() < Duration::from_secs(1) * sent / per_second {
                    std::hint::spin_loop();
                }
            }
            let mut slices: Vec<_> = burst.chunks(self.length).map(|frame| [IoSlice::new(frame)]).collect();
            while !slices.is_empty() {
                let addresses = vec![None; slices.len()];
                let link = self.link.as_raw_fd();
                let taken = sendmmsg(link, &mut headers, &slices, addresses, [], MsgFlags::empty()).unwrap().count();
                slices.drain(..taken);
                sent += u32::try_from(taken).unwrap();
            }
        }
        begin.elapsed()
    }
}

/// The resources that the program has used, and its counters.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Processor time of all its threads.
    pub processor: Duration,
    /// The maximum resident memory, in KiB.
    pub peak: u64,
    /// Packets that the sensor has judged.
    pub seen: u64,
    /// Packets that the capture has lost.
    pub dropped: u64,
    /// Bans that it has made.
    pub bans: u64,
}

/// Reads the numbers from the program and the kernel.
fn used(lab: &Lab, daemon: &Daemon) -> Used {
    let reply = Client::connect(&lab.path("socket")).and_then(|mut client| client.status()).unwrap();
    let place = format!("/proc/{}", daemon.id());
    let status = fs::read_to_string(format!("{place}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let stat = fs::read_to_string(format!("{place}/stat")).unwrap();
    // After the name, which may contain anything: utime and stime are the 12th and 13th field, in hundredths of a
    // second.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Used {
        processor: Duration::from_millis(10 * ticks),
        peak: peak.trim().trim_end_matches(" kB").parse().unwrap(),
        seen: reply.packets.seen,
        dropped: reply.packets.dropped,
        bans: reply.bans.made,
    }
}

/// Waits until the program has judged all packets: two equal readings in a row.
fn rest(lab: &Lab, daemon: &Daemon) -> Used {
    let mut last = used(lab, daemon);
    loop {
        // The program reads the drop counter once per second.
        std::thread::sleep(Duration::from_millis(1_100));
        let now = used(lab, daemon);
        if (now.seen, now.dropped, now.bans) == (last.seen, last.dropped, last.bans) {
            return now;
        }
        last = now;
    }
}

/// The cost of a flood.
pub struct Cost {
    /// Packets per second.
    pub rate: f64,
    /// Packets that the capture has lost.
    pub lost: u64,
    /// Microseconds of processor time for each judged packet.
    pub processor: f64,
    /// The maximum resident memory, in KiB.
    pub peak: u64,
}

/// Sends the frames at this rate, or at full speed, and waits until the program has judged them.
pub fn cost_of(lab: &Lab, daemon: &Daemon, frames: &mut Frames, per_second: Option<u32>) -> Cost {
    let before = rest(lab, daemon);
    let took = frames.send(per_second);
    let after = rest(lab, daemon);
    Cost {
        rate: frames.count() as f64 / took.as_secs_f64(),
        lost: after.dropped - before.dropped,
        processor: (after.processor - before.processor).as_secs_f64() * 1e6 / (after.seen - before.seen) as f64,
        peak: after.peak,
    }
}
