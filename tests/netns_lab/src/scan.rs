//! Scans the victim, connects to it, and reads the resulting elements of the kernel's sets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::services::BANNER;
use crate::{Lab, PROMPT_TIMEOUT, TIMEOUT, soon, within};

/// An element of a set in the table `inet portsentry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    pub address: IpAddr,
    /// The timeout; `None` is permanent.
    pub timeout: Option<Duration>,
    /// The remaining time.
    pub expires: Option<Duration>,
}

/// The result of nmap for one target.
#[derive(Debug, Default)]
pub struct Scan {
    /// Ports in the state `open`.
    pub open: BTreeSet<u16>,
    /// The number of ports in each state: `open`, `closed`, `filtered`, …
    pub states: BTreeMap<String, usize>,
}

impl Scan {
    /// The number of ports in `state`.
    pub fn count(&self, state: &str) -> usize {
        self.states.get(state).copied().unwrap_or(0)
    }

    /// Parses nmap's greppable output for one target: `Ports: 21/open/tcp//ftp///, …` and, for the other ports,
    /// `Ignored State: closed (1016)`.
    fn parse(output: &str) -> Self {
        let mut scan = Self::default();
        for field in output.lines().flat_map(|line| line.split('\t')) {
            if let Some(ports) = field.strip_prefix("Ports: ") {
                for port in ports.split(", ") {
                    let mut parts = port.split('/');
                    let (Some(number), Some(state)) = (parts.next(), parts.next()) else { continue };
                    *scan.states.entry(state.to_owned()).or_default() += 1;
                    if state == "open" {
                        scan.open.insert(number.trim().parse().expect("nmap prints port numbers"));
                    }
                }
            } else if let Some(ignored) = field.strip_prefix("Ignored State: ") {
                let (state, count) = ignored.split_once(" (").expect("nmap prints a state and its count");
                let count: usize = count.trim_end().trim_end_matches(')').parse().expect("a number");
                *scan.states.entry(state.to_owned()).or_default() += count;
            }
        }
        scan
    }
}

impl Lab {
    /// Runs nmap on a host against one of the victim's addresses, without ping and name look-ups.
    pub fn nmap(&self, host: &str, target: IpAddr, arguments: &[&str]) -> Scan {
        let target = target.to_string();
        let family: &[&str] = if target.contains(':') { &["-6"] } else { &[] };
        Scan::parse(&self.run(host, "nmap", &[family, &["-n", "-Pn", "-oG", "-"], arguments, &[&target]].concat()))
    }

    /// Runs nmap until its host is in the kernel's set; returns the element. It does not wait until nmap ends, because
    /// a blocked nmap waits minutes for further replies.
    pub fn nmap_until_banned(&self, host: &str, target: IpAddr, banned: IpAddr) -> Ban {
        let mut scanner = self.command(host, "nmap");
        scanner.args(if target.is_ipv6() { &["-6"][..] } else { &[] });
        scanner.args(["-sS", "-Pn", "-n", "-p1-1024", &target.to_string()]).stdout(Stdio::null());
        let mut scanner = scanner.spawn().expect("nmap runs");
        let ban = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.expect_ban(banned)));
        let _ = scanner.kill();
        let _ = scanner.wait();
        ban.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Sends exactly one SYN from `source` to each of `ports`. The socket is closed before a reply arrives.
    pub fn probe(&self, host: &str, source: IpAddr, target: IpAddr, ports: &[u16]) {
        self.inside(host, || {
            let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            ports.iter().for_each(|port| {
                send_surely(|| {
                    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                    let socket =
                        rustix::net::socket_with(family, SocketType::STREAM, flags, None).expect("a TCP socket");
                    rustix::net::bind(&socket, &SocketAddr::new(source, 0)).expect("the host has this address");
                    // The result does not matter: the SYN was sent even if the connection is in progress, refused or
                    // dropped.
                    let _ = rustix::net::connect(&socket, &SocketAddr::new(target, *port));
                });
            });
        });
    }

    /// Sends exactly one SYN from the host's IPv4 address to each of `ports` of the victim.
    pub fn probe_v4(&self, host: &str, ports: &[u16]) {
        let (source, target) = self.ends_v4(host);
        self.probe(host, source, target, ports);
    }

    /// Tries to complete a connection from `source` to each of `ports`.
    pub fn connect(&self, host: &str, source: IpAddr, target: IpAddr, ports: &[u16]) {
        self.inside(host, || {
            let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            for port in ports {
                let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None);
                let socket = socket.expect("a TCP socket");
                set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT)).expect("more than zero");
                rustix::net::bind(&socket, &SocketAddr::new(source, 0)).expect("the host has this address");
                let _ = rustix::net::connect(&socket, &SocketAddr::new(target, *port));
            }
        });
    }

    /// A connection from `source`, which is one of several addresses of a host.
    ///
    /// # Errors
    /// The connection is refused or not answered.
    pub fn open_from(&self, host: &str, source: IpAddr, target: SocketAddr) -> std::io::Result<TcpStream> {
        self.inside(host, || {
            let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
            rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
            rustix::net::connect(&socket, &target)?;
            Ok(TcpStream::from(socket))
        })
    }

    /// True if a host receives the banner of a service of the victim.
    pub fn is_served(&self, host: &str, target: IpAddr, port: u16, timeout: Duration) -> bool {
        self.inside(host, || fetch(SocketAddr::new(target, port), timeout))
    }

    /// The number of times that a host is served on `ports`, with `times` attempts each.
    pub fn served(&self, host: &str, target: IpAddr, ports: &[u16], times: usize) -> usize {
        self.inside(host, || {
            let attempts = ports.iter().flat_map(|port| std::iter::repeat_n(*port, times));
            attempts.filter(|port| fetch(SocketAddr::new(target, *port), TIMEOUT)).count()
        })
    }

    /// The elements of a set of `inet portsentry` in the victim; empty if the set does not exist.
    pub fn set(&self, name: &str) -> Vec<Ban> {
        parse_set(&self.set_text(name))
    }

    /// A set of `inet portsentry` as `nft` prints it; empty if the set does not exist.
    pub fn set_text(&self, name: &str) -> String {
        let output = self.command("victim", "nft").args(["list", "set", "inet", "portsentry", name]).output();
        String::from_utf8_lossy(&output.expect("nft runs").stdout).into_owned()
    }

    /// Waits until the kernel's trap monitors the closed port 901; returns its ports.
    pub fn trapped_ports(&self) -> BTreeSet<u16> {
        let armed = || Some(self.ports("trapped")).filter(|ports| ports.contains(&901));
        within(TIMEOUT, armed).expect("the kernel's trap is armed")
    }

    /// The ports in a set of `inet portsentry`.
    pub fn ports(&self, name: &str) -> BTreeSet<u16> {
        let text = self.set_text(name);
        let (_, elements) = text.split_once("elements = {").unwrap_or_default();
        let ranges = elements.split('}').next().unwrap_or_default().split(',').map(str::trim);
        ranges
            .filter(|range| !range.is_empty())
            .flat_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let port = |text: &str| text.parse::<u16>().unwrap_or_else(|_| panic!("{text:?} in {elements}"));
                port(first)..=port(last)
            })
            .collect()
    }

    /// The packets that the rules of a chain of `inet portsentry` have counted.
    pub fn packets(&self, chain: &str) -> u64 {
        let text = self.nft(&format!("list chain inet portsentry {chain}"));
        let counts =
            text.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        counts.sum()
    }

    /// The addresses in `blocked`, `blocked6` and `blocked_link`, sorted.
    pub fn banned(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<_> =
            ["blocked", "blocked6", "blocked_link"].iter().flat_map(|name| self.set(name)).collect();
        addresses.sort_by_key(|ban| ban.address);
        addresses.into_iter().map(|ban| ban.address).collect()
    }

    /// Waits until `blocked`, `blocked6` and `blocked_link` contain exactly `addresses`, which must be sorted.
    pub fn expect_banned(&self, addresses: &[IpAddr]) {
        assert!(soon(|| self.banned() == addresses), "{:?} are banned, expected {addresses:?}", self.banned());
    }

    /// Waits until an address is in its set; returns the element.
    pub fn expect_ban(&self, address: IpAddr) -> Ban {
        let name = match address {
            IpAddr::V4(_) => "blocked",
            IpAddr::V6(v6) if v6.is_unicast_link_local() => "blocked_link",
            IpAddr::V6(_) => "blocked6",
        };
        let ban = within(TIMEOUT, || self.set(name).into_iter().find(|ban| ban.address == address));
        ban.unwrap_or_else(|| panic!("{address} was not added to {name}, which holds {:?}", self.set(name)))
    }

    /// Makes a host send probes that cause a ban even above the ceilings of new bans, and waits for the ban. Packets
    /// are judged in order, so all earlier ones have been judged on return. Tests use this to prove that a source is
    /// not banned.
    pub fn provoke_ban(&self, host: &str) -> IpAddr {
        self.probe_v4(host, &SCANNED);
        self.expect_ban(self.v4(host).into()).address
    }

    /// Makes a host probe closed ports of `target` repeatedly until it is banned. Tests use this if the program must
    /// first receive a change from the kernel.
    pub fn probe_until_banned(&self, host: &str, target: IpAddr) {
        let source = self.v4(host).into();
        let banned = within(TIMEOUT, || {
            self.probe(host, source, target, &SCANNED);
            self.banned().contains(&source).then_some(())
        });
        assert!(banned.is_some(), "{host} was not banned for probing {target}");
    }
}

/// Closed ports: so many that a few sources per minute are banned regardless of the ceilings of new bans.
const SCANNED: [u16; 20] =
    [901, 902, 903, 904, 905, 906, 907, 908, 909, 910, 911, 912, 913, 914, 915, 916, 917, 918, 919, 920];

/// Calls `send`, which sends a packet in the calling thread's namespace, again if the packet is lost. All namespaces
/// share the kernel's packet backlog: while a flood in another test fills it, packets of this one are lost.
pub fn send_surely(mut send: impl FnMut()) {
    within(PROMPT_TIMEOUT, || {
        let before = lost_packets();
        send();
        (lost_packets() == before).then_some(())
    });
}

/// The packets of the calling thread's namespace that the other ends of its links did not take.
fn lost_packets() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("proc is mounted");
    // Eight numbers about received packets, then bytes, packets, errors and drops of sent ones.
    let drops = text.lines().filter_map(|line| line.split_once(':')?.1.split_whitespace().nth(11)?.parse::<u64>().ok());
    drops.sum()
}

/// Connects and reads until the connection closes; true if it received the banner.
pub fn fetch(service: SocketAddr, timeout: Duration) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&service, timeout) else { return false };
    stream.set_read_timeout(Some(timeout)).expect("more than zero");
    let mut received = String::new();
    stream.read_to_string(&mut received).is_ok() && received == BANNER
}

/// Parses `elements = { 10.77.1.2 timeout 1d expires 23h59m59s980ms, … }`.
fn parse_set(text: &str) -> Vec<Ban> {
    let Some((_, elements)) = text.split_once("elements = {") else { return Vec::new() };
    let elements = elements.split('}').next().unwrap_or_default();
    elements.split(',').map(str::trim).filter(|element| !element.is_empty()).map(parse_element).collect()
}

fn parse_element(element: &str) -> Ban {
    let words: Vec<_> = element.split_whitespace().collect();
    // The key follows the interface, if the set has one.
    let key = if words.get(1) == Some(&".") { words.get(2) } else { words.first() };
    let address = key.and_then(|word| word.parse().ok());
    let span = |key: &str| {
        let value = words.iter().skip_while(|word| **word != key).nth(1)?;
        Some(humantime::parse_duration(value).unwrap_or_else(|error| panic!("{element}: {error}")))
    };
    let address = address.unwrap_or_else(|| panic!("{element} begins with no address"));
    Ban { address, timeout: span("timeout"), expires: span("expires") }
}
