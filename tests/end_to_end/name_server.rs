//! Provides a name server on a host of the lab. References: RFC 1035, section 4.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use netns_lab::Lab;
use netns_lab::services::Background;

/// A name server on a host, until dropped.
pub(crate) struct NameServer {
    query_count: Arc<AtomicUsize>,
    _thread: Background,
}

/// The parts of a query.
pub(crate) struct Query<'a> {
    pub(crate) id: &'a [u8],
    /// The name with its empty label, the type and the class.
    pub(crate) question: &'a [u8],
    /// The name with its empty label.
    pub(crate) name: &'a [u8],
    /// The type of the records asked for.
    pub(crate) kind: u16,
}

impl NameServer {
    /// Serves on `host`, which becomes the victim's resolver. `answer` returns an answer and the delay before it is
    /// sent, or nothing.
    pub(crate) fn start(
        lab: &Lab,
        host: &str,
        answer: impl Fn(&Query<'_>) -> Option<(Duration, Vec<u8>)> + Send + 'static,
    ) -> Self {
        let address = lab.v4(host);
        let socket = lab.inside(host, || UdpSocket::bind((address, 53)).expect("port 53 is free"));
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("more than zero");
        lab.set_resolver(address.into());
        let query_count = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&query_count);
        Self { query_count, _thread: Background::start(move |stop| serve(&socket, answer, &counted, stop)) }
    }

    /// The number of queries so far.
    pub(crate) fn query_count(&self) -> usize {
        self.query_count.load(Ordering::Relaxed)
    }
}

fn serve(
    socket: &UdpSocket,
    answer: impl Fn(&Query<'_>) -> Option<(Duration, Vec<u8>)>,
    query_count: &AtomicUsize,
    stop: &AtomicBool,
) {
    let mut late = Vec::new();
    let mut message = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        late.retain(|(when, answer, client): &(Instant, Vec<u8>, _)| {
            let wait = Instant::now() < *when;
            if !wait {
                let _ = socket.send_to(answer, client);
            }
            wait
        });
        let Ok((length, client)) = socket.recv_from(&mut message) else { continue };
        query_count.fetch_add(1, Ordering::Relaxed);
        let Some((after, answer)) = parse(&message[..length]).and_then(|query| answer(&query)) else { continue };
        late.push((Instant::now() + after, answer, client));
    }
}

fn parse(message: &[u8]) -> Option<Query<'_>> {
    let (header, rest) = message.split_at(12);
    let end = rest.iter().position(|byte| *byte == 0)? + 1;
    let question = &rest[..end + 4];
    let kind = u16::from_be_bytes([question[end], question[end + 1]]);
    Some(Query { id: &header[..2], question, name: &question[..end], kind })
}
