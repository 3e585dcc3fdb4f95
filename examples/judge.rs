//! Judges a capture with the library's engine, and prints the sources that scan.
//!
//!     cargo run --example judge -- FILE.pcap
//!
//! The engine does no I/O and reads no clock: it takes packets and returns verdicts. `portsentry replay` also infers
//! from the capture which ports are in use, and prints a summary.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use portsentry::capture::file::Reader;
use portsentry::config::Config;
use portsentry::engine::{Engine, HashKey, Host, Local, NoLookup, Settings, Verdict};
use portsentry::replay::Clock;
use portsentry::wire::{self, LinkType};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("name a capture")?;
    let mut reader = Reader::open(Path::new(&path))?;
    let mut engine = Engine::new(Settings::from_config(&Config::default()), HashKey(1, 2));
    let mut host = Host::new(Local::Any);
    // Ports in use are not evidence. A program that knows its host lists them here.
    host.tcp.insert([0; 4].into(), 80);
    host.tcp.insert([0; 16].into(), 80);
    let mut clock = Clock::default();
    let mut out = std::io::stdout().lock();
    while let Some(frame) = reader.next_frame()? {
        let now = clock.tick(frame.time);
        let Some(link) = LinkType::from_dlt(frame.link) else { continue };
        let Ok(packet) = wire::decode(link, frame.bytes) else { continue };
        if let Verdict::Block(ban) | Verdict::LogOnly(ban) = engine.observe(now, &packet, &host, &mut NoLookup) {
            writeln!(out, "packet {}: {}, because {}", frame.number, ban.probe.target, ban.reason())?;
        }
    }
    Ok(())
}
