//! Runs one cell of the matrix: a scan over one family with one threshold, in its own network.

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use netns_lab::daemon::Daemon;
use netns_lab::raw::Wire;
use netns_lab::{Lab, TIMEOUT, within};

/// The log line after a scan that is only logged.
const LOGGED: &str = "response per configuration file setting.";

/// The outcome of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The kernel blocks the source at this distinct port.
    Blocked(usize),
    /// The scan is logged at this distinct port, and no source is blocked.
    Logged(usize),
}

/// The sender of the packets.
#[derive(Clone, Copy)]
pub(crate) enum Means {
    /// The tool that the row is named after.
    Tool,
    /// Packets built here, for each port, from source and target.
    Raw(fn(IpAddr, IpAddr, u16) -> Vec<Vec<u8>>),
}

/// The address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// A row of the matrix.
pub(crate) struct Row {
    /// The scan, as an operator would type it.
    pub(crate) scan: &'static str,
    pub(crate) means: Means,
    pub(crate) families: &'static [Family],
    /// Configuration that differs from the defaults.
    pub(crate) settings: &'static str,
    /// The class in the log, between `attackalert: ` and ` from host`.
    pub(crate) class: &'static str,
    /// With the default `scan_trigger`, 2.
    pub(crate) forgiving: Outcome,
    /// With `scan_trigger = 0`.
    pub(crate) strict: Outcome,
}

/// Closed, monitored ports; enough for every threshold, and few, so that tools finish quickly.
const PORTS: std::ops::RangeInclusive<u16> = 1..=60;

pub(crate) fn run_row(row: &Row) {
    for (trigger, expected) in [("2", row.forgiving), ("0", row.strict)] {
        let lab = Lab::new(&["four", "six"]);
        let more = if row.scan.contains("-sn") { add_addresses(&lab) } else { Vec::new() };
        let daemon = Daemon::start_configured(&lab, row.settings, &["--expire", "1h", "--scan-trigger", trigger]);
        for family in row.families {
            let (host, source, target) = match family {
                Family::V4 => ("four", IpAddr::from(lab.v4("four")), IpAddr::from(lab.victim_v4("four"))),
                Family::V6 => ("six", IpAddr::from(lab.v6("six")), IpAddr::from(lab.victim_v6("six"))),
            };
            let cell = Cell { lab: &lab, daemon: &daemon, row, host, source, target, more: &more };
            let seen = cell.run(expected);
            assert_eq!(seen, expected, "{} over {family:?} with scan_trigger = {trigger}", row.scan);
        }
        daemon.stop();
    }
}

/// Adds addresses to the victim, for a scan of many hosts that probes each of them once.
fn add_addresses(lab: &Lab) -> Vec<IpAddr> {
    let four = (33..38).map(|end| IpAddr::from([10, 77, 1, end]));
    let six = (33..38).map(|end| IpAddr::from([0xfd77, 0, 0, 2, 0, 0, 0, end]));
    let all: Vec<_> = four.chain(six).collect();
    for address in &all {
        let rest = if address.is_ipv4() { "/24 dev four" } else { "/64 dev six nodad" };
        lab.victim_ip(&format!("addr add {address}{rest}"));
    }
    all
}

struct Cell<'a> {
    lab: &'a Lab,
    daemon: &'a Daemon,
    row: &'a Row,
    host: &'a str,
    source: IpAddr,
    target: IpAddr,
    more: &'a [IpAddr],
}

impl Cell<'_> {
    /// Runs the scan; returns the outcome according to the log and the kernel.
    fn run(&self, expected: Outcome) -> Outcome {
        let more = self.more.iter().filter(|address| address.is_ipv4() == self.target.is_ipv4());
        let targets: Vec<_> = [&self.target].into_iter().chain(more).map(IpAddr::to_string).collect();
        let mut tool = match self.row.means {
            Means::Tool => Some(Running(self.tool(&targets).spawn().expect("ip runs"))),
            Means::Raw(packets) => {
                let mut wire: Wire = self.lab.wire(self.host);
                PORTS.flat_map(|port| packets(self.source, self.target, port)).for_each(|one| wire.send(&one));
                None
            }
        };
        let about = format!("{} from host: {1}/{1} to ", self.row.class, self.source);
        let (target, banned) = match self.source {
            IpAddr::V4(_) => (self.source.to_string(), self.source),
            IpAddr::V6(_) => {
                let network = self.lab.v6_network(self.host);
                (format!("{network}/64"), network.into())
            }
        };
        let end = match expected {
            Outcome::Blocked(_) => (target, "has been blocked"),
            Outcome::Logged(_) => (String::new(), LOGGED),
        };
        let ended = || self.daemon.lines_with(&end.0).iter().any(|line| line.contains(end.1)).then_some(());
        let seen = within(TIMEOUT, ended).is_some();
        assert!(seen, "{} was not detected; the log has: {:#?}", self.row.scan, self.daemon.lines_with(&end.0));
        if let Some(tool) = tool.take() {
            tool.end();
        }
        // The line of a scan that is only logged is the previous one.
        let lines = self.daemon.lines_with("attackalert: ");
        let before = lines.iter().take_while(|line| !line.contains(LOGGED)).count().saturating_sub(1);
        let of_source = |line: &&String| line.contains("from host: ") && line.contains(&self.source.to_string());
        let lines: Vec<_> = lines.iter().filter(of_source).collect();
        let scan = format!("attackalert: {about}");
        assert!(lines.iter().all(|line| line.contains(&scan)), "{}: another class: {lines:#?}", self.row.scan);
        let held = self.lab.banned().contains(&banned);
        if held { Outcome::Blocked(lines.len()) } else { Outcome::Logged(before + 1) }
    }

    fn tool(&self, targets: &[String]) -> Command {
        let mut words = self.row.scan.split_whitespace();
        let program = words.next().expect("a tool");
        let hardware = self.lab.hardware_address("victim", self.host).map(|byte| format!("{byte:02x}")).join(":");
        let source = self.source.to_string();
        let ports = format!("-p{}-{}", PORTS.start(), PORTS.end());
        let mut command = self.lab.command(self.host, program);
        match program {
            "nmap" => {
                command.args(if self.target.is_ipv6() { &["-6"][..] } else { &[] });
                if !self.row.scan.contains("-sn") {
                    command.args(["-Pn", &ports]);
                }
                command.args(["-n", "--max-retries", "0"]).args(words).args(targets);
            }
            "masscan" => {
                command.args([
                    &ports,
                    "--wait",
                    "0",
                    "-e",
                    "uplink",
                    "--source-ip",
                    &source,
                    "--router-mac",
                    &hardware,
                ]);
                command.args(words).args(["--range", &targets.join(",")]);
            }
            "hping3" => {
                command.args(["-q", "-n", "-i", "u2000", "-c", "60", "-p", "++1"]).args(words).args(targets);
            }
            // The tool probes one port of many hosts, so it runs for one port after another.
            "zmap" => {
                let script =
                    "for port in 1 2 3 4 5; do zmap -q -p $port -c 0 -B 1M -b /dev/null -i uplink \"$@\"; done";
                command = self.lab.command(self.host, "sh");
                command.args(["-c", script, "sh", "-G", &hardware, "-S", &source]).args(words).args(targets);
            }
            other => panic!("unknown tool {other}"),
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// A tool that is killed at the end: what it does after the ban is not measured.
struct Running(Child);

impl Running {
    fn end(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
