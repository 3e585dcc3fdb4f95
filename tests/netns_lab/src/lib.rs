//! Builds networks of namespaces for black-box tests. A [`Lab`] has one `victim`, where the program under test runs,
//! and any number of other hosts. Each host has a veth pair to the victim and separate IPv4 and IPv6 subnets. A
//! [`Namespace`] is a single host without a network. No packet leaves the machine, and the machine's own network does
//! not change. Everything is removed on drop, even after a panic.
//!
//! Host number i (from 1) is 10.77.i.2 and fd77:0:0:i::2; the victim's addresses on its link are 10.77.i.1 and
//! fd77:0:0:i::1. The victim's interface has the name of the host at the other end, and the host's interface is
//! `uplink`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, in its helpers too"
)]

pub mod bench;
pub mod daemon;
mod disk;
pub mod fleet;
mod namespace;
mod operator;
pub mod raw;
pub mod scan;
pub mod services;

use std::fmt::{Display, Write as _};
use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portsentry::ledger::{Ledger, Reader};
use serde_json::Value;

pub use disk::SmallDisk;
use namespace::{ETC, ETC_FILES};
pub use namespace::{Namespace, command_with_etc, enter};
pub use operator::Answer;

/// Time limit for any expected event, long enough for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Time limit for an immediate action, on a machine with other load.
pub const PROMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// One victim and the hosts around it.
pub struct Lab {
    victim: Namespace,
    hosts: Vec<(String, Namespace)>,
    directory: tempfile::TempDir,
}

impl Lab {
    /// Creates a victim and one host per name, in this order.
    pub fn new(hosts: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // The mode of /tmp, because the program drops root and creates its socket here.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).expect("it is ours");
        let mut lab = Self { victim: Namespace::with_loopback(), hosts: Vec::new(), directory };
        lab.set_resolver(Ipv4Addr::new(10, 77, 255, 53).into());
        for file in ETC_FILES {
            std::fs::copy(Path::new(ETC).join(file), lab.path(file)).expect("the lab's directory can be written");
        }
        for host in hosts {
            lab.join(host);
        }
        lab
    }

    /// Adds a host with a link to the victim, before or while the program runs.
    pub fn join(&mut self, host: &str) {
        self.hosts.push((host.to_owned(), Namespace::with_loopback()));
        self.link(host);
    }

    /// Deletes the link between a host and the victim.
    pub fn cut(&self, host: &str) {
        self.victim_ip(&format!("link del {host}"));
    }

    /// Creates a host's link to the victim. After [`Lab::cut`], this creates a new one with the same names.
    pub fn link(&self, host: &str) {
        let number = self.number(host);
        let other = self.namespace(host);
        self.victim.ip(&format!("link add {host} type veth peer name uplink netns {}", other.name()));
        let side = |interface: &str, end: u8| {
            format!(
                "link set {interface} up\n\
                 addr add 10.77.{number}.{end}/24 dev {interface}\n\
                 addr add fd77:0:0:{number:x}::{end}/64 dev {interface} nodad\n"
            )
        };
        self.victim.ip_batch(&side(host, 1));
        other.ip_batch(&side("uplink", 2));
        let routes = format!("route add default via 10.77.{number}.1\nroute add default via fd77:0:0:{number:x}::1\n");
        other.ip_batch(&routes);
    }

    /// Adds IPv4 addresses to a host: `10.77.i.END` for each END in `ends`. They are in its subnet.
    pub fn add_addresses(&self, host: &str, ends: std::ops::Range<u8>) -> Vec<Ipv4Addr> {
        let addresses: Vec<_> = ends.map(|end| Ipv4Addr::new(10, 77, self.number(host), end)).collect();
        let batch = addresses.iter().fold(String::new(), |mut batch, address| {
            let _ = writeln!(batch, "addr add {address}/24 dev uplink");
            batch
        });
        self.namespace(host).ip_batch(&batch);
        addresses
    }

    /// Adds an IPv6 address to a host, in its /64.
    pub fn add_neighbour(&self, host: &str) -> Ipv6Addr {
        let address = Ipv6Addr::new(0xfd77, 0, 0, self.number(host).into(), 0, 0, 0, 0x66);
        self.namespace(host).ip(&format!("addr add {address}/64 dev uplink nodad"));
        address
    }

    /// Runs `ip` in the victim, for a route or an address that only one test needs.
    pub fn victim_ip(&self, line: &str) {
        self.victim.ip(line);
    }

    /// Makes a host the victim's route to all other IPv4 addresses, for sources that exist only in a test. Without a
    /// gateway, each of them would be a neighbour. All namespaces of a machine share one neighbour table of 1,024
    /// entries; once it is full, other tests lose packets. The gateway has a separate address, because the program does
    /// not ban gateways.
    pub fn default_route(&self, host: &str) {
        let gateway = Ipv4Addr::new(10, 77, self.number(host), 254);
        let address = self.run(host, "cat", &["/sys/class/net/uplink/address"]);
        let address = address.trim();
        self.victim.ip_batch(&format!(
            "neigh add {gateway} lladdr {address} dev {host} nud permanent\n\
             route add default via {gateway} dev {host}\n"
        ));
    }

    /// A host's IPv4 address.
    pub fn v4(&self, host: &str) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number(host), 2)
    }

    /// A host's IPv6 address.
    pub fn v6(&self, host: &str) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, self.number(host).into(), 0, 0, 0, 2)
    }

    /// The first address of a host's IPv6 /64, which is the key of its ban.
    pub fn v6_network(&self, host: &str) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, self.number(host).into(), 0, 0, 0, 0)
    }

    /// The victim's IPv4 address on the link to `host`.
    pub fn victim_v4(&self, host: &str) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number(host), 1)
    }

    /// The victim's IPv6 address on the link to `host`.
    pub fn victim_v6(&self, host: &str) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, self.number(host).into(), 0, 0, 0, 1)
    }

    /// The IPv4 addresses of a host and of the victim on their link.
    pub fn ends_v4(&self, host: &str) -> (IpAddr, IpAddr) {
        (self.v4(host).into(), self.victim_v4(host).into())
    }

    /// The addresses of a host and of the victim on their link, for IPv4 and for IPv6.
    pub fn ends(&self, host: &str) -> [(IpAddr, IpAddr); 2] {
        [self.ends_v4(host), (self.v6(host).into(), self.victim_v6(host).into())]
    }

    /// A host's namespace, or that of `victim`.
    pub fn namespace(&self, host: &str) -> &Namespace {
        if host == "victim" { &self.victim } else { &self.hosts[self.position(host)].1 }
    }

    /// A command that runs inside a host. It is killed when the thread that started it ends.
    pub fn command(&self, host: &str, program: &str) -> Command {
        let mut command = self.namespace(host).enter_by_ip(&["setpriv", "--pdeathsig", "KILL", program]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command inside a host. Returns its standard output; panics with its standard error if it fails.
    pub fn run(&self, host: &str, program: &str, arguments: &[&str]) -> String {
        let output = self.command(host, program).args(arguments).output().expect("ip runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?} in {host} failed: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs commands of `nft` in the victim, separated by semicolons; returns the output.
    pub fn nft(&self, commands: &str) -> String {
        self.run("victim", "nft", &[commands])
    }

    /// Loads a file of rules in the victim.
    pub fn load_rules(&self, file: impl AsRef<Path>) {
        self.run("victim", "nft", &["-f", file.as_ref().to_str().expect("temporary paths are text")]);
    }

    /// Sets a kernel parameter of the victim: `net.ipv4.ip_forward=1`.
    pub fn sysctl(&self, assignment: &str) {
        self.run("victim", "sysctl", &["-qw", assignment]);
    }

    /// Publishes ports of another host, as a container runtime does: the victim forwards packets that `matching` selects
    /// (`tcp dport 8080`) to `target` (`10.77.2.2:80`).
    pub fn publish(&self, matching: &str, target: impl Display) {
        self.sysctl("net.ipv4.ip_forward=1");
        self.nft(&format!(
            "add table ip nat; add chain ip nat prerouting {{ type nat hook prerouting priority dstnat; }}; \
             add rule ip nat prerouting {matching} dnat to {target}"
        ));
    }

    /// Runs `work` on a thread of this process inside a host.
    pub fn inside<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        self.namespace(host).inside(work)
    }

    /// Writes a file into the lab's directory; returns its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("the lab's directory can be written");
        path
    }

    /// Writes a program with mode 0755 into the lab's directory.
    pub fn program(&self, name: &str, text: &str) -> PathBuf {
        let (text, path) = (self.write(&format!("{name}.text"), text), self.path(name));
        install_program(&text, &path);
        path
    }

    /// A path in the lab's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Reads a copy of the current ledger, also while the daemon runs.
    pub fn read_ledger<T>(&self, read: impl FnOnce(&Reader) -> T) -> T {
        let copy = copy_of_state(&self.path("state"));
        let (ledger, _) = Ledger::open(copy.path()).expect("the ledger opens");
        read(ledger.reader())
    }

    /// Sets the resolver in `/etc/resolv.conf` of the programs that [`daemon`] starts.
    pub fn set_resolver(&self, resolver: IpAddr) {
        self.write("resolv.conf", &format!("nameserver {resolver}\n"));
    }

    /// Adds a user and a group `portsentry` for the programs that [`daemon`] starts.
    pub fn add_service_user(&self, user: u32, group: u32) {
        let add = |name: &str, line: String| {
            let text = std::fs::read_to_string(self.path(name)).expect("the lab has written it");
            self.write(name, &(text + &line));
        };
        add("passwd", format!("portsentry:x:{user}:{group}::/:/usr/sbin/nologin\n"));
        add("group", format!("portsentry:x:{group}:\n"));
    }

    fn position(&self, host: &str) -> usize {
        let position = self.hosts.iter().position(|(known, _)| known == host);
        position.unwrap_or_else(|| panic!("the lab has no host {host}"))
    }

    fn number(&self, host: &str) -> u8 {
        u8::try_from(self.position(host) + 1).expect("fewer than 255 hosts")
    }
}

/// Polls `condition` every few milliseconds until it returns a value, for at most `limit`.
pub fn within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit * slowness();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `holds` returns true; false at the time limit.
pub fn soon(mut holds: impl FnMut() -> bool) -> bool {
    within(TIMEOUT, || holds().then_some(())).is_some()
}

/// Waits until `holds`; panics with `condition` at the time limit.
pub fn eventually(condition: &str, holds: impl FnMut() -> bool) {
    assert!(soon(holds), "timed out: {condition}");
}

/// Copies a program, with mode 0755, in a separate process. If this process had the file open for writing, processes
/// that other tests start at that moment would inherit it. Until they call `execve`, running the file would fail with
/// ETXTBSY.
pub fn install_program(from: &Path, to: &Path) {
    let copied = Command::new("install").args(["-m", "755"]).args([from, to]).status().expect("install runs");
    assert!(copied.success(), "{} can be copied", from.display());
}

/// The state directory of a stopped daemon, made readable: its owner becomes this process's user, because the daemon
/// ran as a different user. The next start of the daemon changes the owner again.
pub fn own_state(state: &Path) -> PathBuf {
    if state.exists() {
        let given = Command::new("chown").args(["-R", "0:0"]).arg(state).status().expect("chown runs");
        assert!(given.success(), "{} can be owned", state.display());
    }
    state.to_owned()
}

/// A copy of the current state directory, which this process's user can read while the daemon runs.
fn copy_of_state(state: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("there is room for a directory");
    if state.exists() {
        // The copy fails for a text file that the daemon replaces at that moment. The files of the ledger keep their
        // names.
        Command::new("cp").arg("-r").arg(state.join(".")).arg(copy.path()).output().expect("cp runs");
    }
    copy
}

/// The objects in a file that has one per line; empty if the file does not exist. An incomplete last line is skipped.
pub fn json_lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Memory of a process in KiB, from `field` in `/proc/PID/status`: `VmRSS` is all resident memory, `RssAnon` leaves out the
/// pages of files.
pub fn memory(process: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("the field exists");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// True if a process can change to other users. It cannot if the tests run as root of a user namespace that maps only
/// one user.
pub fn has_other_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("proc is mounted");
    let found = map.lines().any(|line| line.split_whitespace().nth(2).is_some_and(|count| count.len() >= 5));
    if !found {
        println!("skipped: this user namespace has no other users");
    }
    found
}

/// The factor for all time limits and intervals: 1, or more in an emulated machine (tests/kernels.sh).
pub fn slowness() -> u32 {
    std::env::var("TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A utmp record (glibc's bits/utmp.h) of a user logged in from `host`, with this process as the session's.
pub fn session(host: &str) -> Vec<u8> {
    let mut record = vec![0; if cfg!(target_arch = "aarch64") { 400 } else { 384 }];
    record[..2].copy_from_slice(&7_i16.to_ne_bytes());
    record[4..8].copy_from_slice(&std::process::id().to_ne_bytes());
    record[76..76 + host.len()].copy_from_slice(host.as_bytes());
    record
}
