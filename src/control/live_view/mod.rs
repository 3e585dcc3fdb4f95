//! Implements `portsentry watch`, a live view of the running daemon in a terminal: bans and their remaining time,
//! events, rates, and the most frequent ports and sources. Keys and messages change a [`view::View`], which [`draw`]
//! draws; both are pure. The terminal is always restored at the end.

mod draw;
mod poller;
#[cfg(test)]
mod tests;
mod top_counts;
mod view;

use crate::types::exit_code;
use clap::Args;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use ratatui::crossterm::event::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::{Client, ClientError};
use super::format::is_unicode;
use poller::Message;
use view::{Action, View};

#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    /// Control socket of the daemon
    #[arg(long, value_name = "FILE", default_value = super::DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// Maximum delay of a message on the screen.
const FRAME_INTERVAL: Duration = Duration::from_millis(100);

/// Maximum number of messages between two polls for keys, which stay responsive under a flood.
const MAX_MESSAGES: usize = 1_000;

/// Why the live view cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("watch needs a terminal; use `portsentry events` in scripts")]
    NoTerminal,
    #[error("watch needs a terminal with cursor control, but TERM is {0:?}; use `portsentry events`")]
    Dumb(String),
    #[error("the terminal failed: {0}")]
    Terminal(#[from] io::Error),
    #[error("the threads of the live view have ended; run `portsentry watch` again")]
    Threads,
}

/// Runs until the operator or a signal ends it.
///
/// # Errors
/// There is no terminal or no daemon, or the terminal fails.
pub fn run(options: &WatchOptions) -> Result<(), WatchError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(WatchError::NoTerminal);
    }
    match std::env::var("TERM") {
        Ok(term) if term == "dumb" => return Err(WatchError::Dumb(term)),
        _ => {}
    }
    // Reports an error before the screen is switched; later the view waits for a missing daemon.
    drop(Client::connect(&options.socket)?);
    let poller = poller::start(&options.socket)?;
    // crossterm does not report a closed terminal, and polls in an endless loop.
    std::thread::Builder::new().name("terminal".to_owned()).spawn(end_with_terminal)?;
    let look = draw::Look {
        colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        unicode: is_unicode(|name| std::env::var(name).ok()),
    };
    let mut view = View::new(SystemTime::now());
    // Also restores the terminal on a panic.
    let mut terminal = ratatui::try_init()?;
    let _screen = Screen;
    let mut shown = None;
    loop {
        let now = SystemTime::now();
        view.tick(now);
        let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if std::mem::take(&mut view.changed) || shown != Some(second) {
            shown = Some(second);
            terminal.draw(|frame| draw::draw(frame, &view, look))?;
        }
        if event::poll(FRAME_INTERVAL)? {
            match event::read()? {
                Event::Resize(..) => shown = None,
                Event::Key(key) if !key.is_release() => match view.press(key) {
                    Some(Action::Quit) => break,
                    Some(Action::Ask(request)) => poller.requests.send(request).map_err(|_| WatchError::Threads)?,
                    None => {}
                },
                _ => {}
            }
        }
        if apply_messages(&poller.messages, &mut view)? {
            break;
        }
        if poller.threads.iter().any(JoinHandle::is_finished) {
            return Err(WatchError::Threads);
        }
    }
    Ok(())
}

/// Ends the program when its terminal is closed.
fn end_with_terminal() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let terminal = io::stdin();
        let mut fds = [PollFd::new(&terminal, PollFlags::empty())];
        let looked = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let [terminal] = fds.map(|fd| fd.revents());
        if looked.is_ok() && terminal.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            // There is nothing to restore.
            std::process::exit(i32::from(exit_code::FAILED));
        }
    }
}

/// Applies pending messages; true if a signal ends the view.
fn apply_messages(messages: &Receiver<Message>, view: &mut View) -> Result<bool, WatchError> {
    for _ in 0..MAX_MESSAGES {
        match messages.try_recv() {
            Ok(Message::End) => return Ok(true),
            Ok(message) => view.apply(message),
            Err(TryRecvError::Empty) => return Ok(false),
            Err(TryRecvError::Disconnected) => return Err(WatchError::Threads),
        }
    }
    Ok(false)
}

/// The alternate screen, which is left when this is dropped, also on errors.
struct Screen;

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = ratatui::try_restore();
    }
}
