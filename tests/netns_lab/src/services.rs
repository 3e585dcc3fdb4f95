//! Opens services in the victim: TCP listeners that send a banner and close the connection, like the old daytime
//! service.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, sockopt};

use crate::{Lab, enter};

/// Eight services that scanners probe first.
pub const EIGHT: [u16; 8] = [21, 22, 25, 80, 110, 143, 443, 993];

pub const BANNER: &str = "at your service\r\n";

/// A thread that is told to stop and joined on drop.
pub struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts `work`, which returns soon after its argument becomes true.
    pub fn start(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&stop);
        Self { stop, thread: Some(std::thread::spawn(move || work(&shared))) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Listeners on all addresses of the victim, IPv4 and IPv6. They are closed on drop.
pub struct Services {
    _thread: Background,
}

impl Services {
    /// Opens `ports` in the victim; they are open on return.
    pub fn open(lab: &Lab, ports: &[u16]) -> Self {
        let namespace = lab.namespace("victim").name().to_owned();
        let listeners: Vec<_> = lab.inside("victim", || ports.iter().flat_map(|port| pair(*port)).collect());
        let thread = Background::start(move |stop| {
            enter(&namespace);
            serve(&listeners, stop);
            // A process that another test has just started holds copies until its `execve`. This closes them too.
            for listener in &listeners {
                shutdown(listener, Shutdown::Read).expect("it listens");
            }
        });
        Self { _thread: thread }
    }
}

fn pair(port: u16) -> [TcpListener; 2] {
    [listen(Ipv4Addr::UNSPECIFIED.into(), port), listen(Ipv6Addr::UNSPECIFIED.into(), port)]
}

/// Opens a listener with a long queue, because the standard library's 128 would lose some of a thousand simultaneous
/// connections. The IPv6 listener accepts only IPv6, so that both can be open.
fn listen(address: IpAddr, port: u16) -> TcpListener {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).expect("a TCP socket");
    sockopt::set_socket_reuseaddr(&socket, true).expect("SO_REUSEADDR");
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true).expect("IPV6_V6ONLY");
    }
    rustix::net::bind(&socket, &SocketAddr::new(address, port)).expect("the port is free");
    rustix::net::listen(&socket, 1024).expect("it listens");
    socket.into()
}

fn serve(listeners: &[TcpListener], stop: &AtomicBool) {
    let tick = Timespec::try_from(Duration::from_millis(50)).expect("50 ms is a valid timeout");
    while !stop.load(Ordering::Relaxed) {
        let mut waiting: Vec<_> =
            listeners.iter().map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)).collect();
        if poll(&mut waiting, Some(&tick)).is_err() {
            continue;
        }
        let ready = waiting.iter().zip(listeners).filter(|(poll, _)| !poll.revents().is_empty());
        for (_, listener) in ready {
            while let Ok((mut client, _)) = listener.accept() {
                // A client that has already closed its connection is not an error.
                let _ = client.write_all(BANNER.as_bytes());
            }
        }
    }
}
