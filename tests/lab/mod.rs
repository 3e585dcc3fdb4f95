//! A network of namespaces for black-box tests: one `victim`, where the program runs, and any number of other hosts,
//! each joined to it by its own veth pair with its own IPv4 and IPv6 subnet. Nothing here leaves the machine, nothing
//! touches the machine's own network, and all of it goes when the [`Lab`] is dropped, a panic included.
//!
//! Host number i (from 1) is 10.77.i.2 and fd77:0:0:i::2, and the victim is 10.77.i.1 and fd77:0:0:i::1 to it. The
//! victim's interface is named like the host behind it, the host's own is `uplink`.
#![allow(dead_code, reason = "each test program that includes the lab uses its own part of it")]

pub(crate) mod daemon;
pub(crate) mod raw;
pub(crate) mod scan;
pub(crate) mod services;

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What is done at once has been done by then, also on a machine that others use.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(5);

const PREFIX: &str = "pslab";
static SEQUENCE: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// One victim and the hosts around it.
pub(crate) struct Lab {
    id: String,
    hosts: Vec<String>,
    directory: tempfile::TempDir,
}

impl Lab {
    /// A victim and one host for each name, in this order.
    pub(crate) fn new(hosts: &[&str]) -> Self {
        SWEEP.call_once(sweep);
        let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let mut lab = Self {
            id: format!("{PREFIX}-{}-{number}", std::process::id()),
            hosts: Vec::new(),
            directory: tempfile::tempdir().expect("a temporary directory"),
        };
        lab.create_namespace("victim");
        lab.set_resolver(Ipv4Addr::new(10, 77, 255, 53).into());
        for host in hosts {
            lab.join(host);
        }
        lab
    }

    /// Adds a host with its own link to the victim; also while the program runs.
    pub(crate) fn join(&mut self, host: &str) {
        self.hosts.push(host.to_owned());
        self.create_namespace(host);
        self.link(host);
    }

    /// Deletes the link between a host and the victim.
    pub(crate) fn cut(&self, host: &str) {
        self.victim_ip(&format!("link del {host}"));
    }

    /// Makes a host's link to the victim: for the first time, or anew and under the same names after [`Lab::cut`].
    pub(crate) fn link(&self, host: &str) {
        let number = self.number(host);
        let (victim, other) = (self.namespace("victim"), self.namespace(host));
        ip(&victim, &format!("link add {host} type veth peer name uplink netns {other}\n"));
        let side = |interface: &str, end: u8| {
            format!(
                "link set {interface} up\n\
                 addr add 10.77.{number}.{end}/24 dev {interface}\n\
                 addr add fd77:0:0:{number:x}::{end}/64 dev {interface} nodad\n"
            )
        };
        ip(&victim, &side(host, 1));
        ip(&other, &side("uplink", 2));
        let routes = format!("route add default via 10.77.{number}.1\nroute add default via fd77:0:0:{number:x}::1\n");
        ip(&other, &routes);
    }

    /// More IPv4 addresses for a host: `10.77.i.END` for each of `ends`, in the subnet that it has.
    pub(crate) fn add_addresses(&self, host: &str, ends: std::ops::Range<u8>) -> Vec<Ipv4Addr> {
        let addresses: Vec<_> = ends.map(|end| Ipv4Addr::new(10, 77, self.number(host), end)).collect();
        let batch = addresses.iter().fold(String::new(), |mut batch, address| {
            let _ = writeln!(batch, "addr add {address}/24 dev uplink");
            batch
        });
        ip(&self.namespace(host), &batch);
        addresses
    }

    /// One more IPv6 address for a host, in the /64 that it has.
    pub(crate) fn add_neighbour(&self, host: &str) -> Ipv6Addr {
        let address = Ipv6Addr::new(0xfd77, 0, 0, self.number(host).into(), 0, 0, 0, 0x66);
        ip(&self.namespace(host), &format!("addr add {address}/64 dev uplink nodad\n"));
        address
    }

    /// Runs `ip` in the victim, for what a single test needs there: a route, an address.
    pub(crate) fn victim_ip(&self, line: &str) {
        ip(&self.namespace("victim"), &format!("{line}\n"));
    }

    /// A host's IPv4 address.
    pub(crate) fn v4(&self, host: &str) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number(host), 2)
    }

    /// A host's IPv6 address.
    pub(crate) fn v6(&self, host: &str) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, self.number(host).into(), 0, 0, 0, 2)
    }

    /// The first address of a host's IPv6 /64, which is what a ban of it is keyed on.
    pub(crate) fn v6_network(&self, host: &str) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, self.number(host).into(), 0, 0, 0, 0)
    }

    /// The victim's IPv4 address on the link to `host`.
    pub(crate) fn victim_v4(&self, host: &str) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number(host), 1)
    }

    /// The victim's IPv6 address on the link to `host`.
    pub(crate) fn victim_v6(&self, host: &str) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, self.number(host).into(), 0, 0, 0, 1)
    }

    /// The name of a host's namespace, as `ip netns` knows it.
    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.id)
    }

    /// A command that will run inside a host, and die with the thread that starts it.
    pub(crate) fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host), "setpriv", "--pdeathsig", "KILL", program]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command inside a host; its standard output, and a panic with its standard error where it fails.
    pub(crate) fn run(&self, host: &str, program: &str, arguments: &[&str]) -> String {
        let output = self.command(host, program).args(arguments).output().expect("ip runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?} in {host} failed: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `work` on a thread of this process that has moved into a host.
    pub(crate) fn inside<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace(host);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(&namespace);
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes a file into the lab's own directory; its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("the lab's directory can be written");
        path
    }

    /// A path in the lab's own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What `/etc/resolv.conf` names for the programs that [`daemon`] starts.
    pub(crate) fn set_resolver(&self, resolver: IpAddr) {
        self.write("resolv.conf", &format!("nameserver {resolver}\n"));
    }

    fn create_namespace(&self, host: &str) {
        let name = self.namespace(host);
        let output = Command::new("ip").args(["netns", "add", &name]).output().expect("iproute2 is installed");
        assert!(
            output.status.success(),
            "this test did not run: no network namespace can be made here ({}). Run `make test`, as root or where \
             user namespaces are allowed",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        ip(&name, "link set lo up\n");
    }

    fn number(&self, host: &str) -> u8 {
        let position = self.hosts.iter().position(|known| known == host);
        let position = position.unwrap_or_else(|| panic!("the lab has no host {host}"));
        u8::try_from(position + 1).expect("fewer than 255 hosts")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in self.hosts.iter().map(String::as_str).chain(["victim"]) {
            // A failure to remove must not hide the panic that is perhaps under way; the next run sweeps it away.
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(host)]).stderr(Stdio::null()).status();
        }
    }
}

/// Moves the calling thread into a named namespace.
pub(crate) fn enter(namespace: &str) {
    let file = File::open(Path::new("/run/netns").join(namespace)).expect("the namespace exists");
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
}

/// Waits until `condition` gives something, looking every few milliseconds, for at most `limit`.
pub(crate) fn within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
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

/// How many times as long everything may take: 1, and more in a machine that is made by software (tests/kernels.sh).
pub(crate) fn slowness() -> u32 {
    std::env::var("TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Feeds lines to `ip -batch` in a namespace: one process, however many lines.
fn ip(namespace: &str, batch: &str) {
    let mut child = Command::new("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("iproute2 is installed");
    child.stdin.take().expect("piped").write_all(batch.as_bytes()).expect("ip reads its batch");
    let output = child.wait_with_output().expect("ip ends");
    assert!(output.status.success(), "ip refused {batch:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Removes what a killed test run left behind: namespaces named for a process that is no more.
fn sweep() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
        }
    }
}
