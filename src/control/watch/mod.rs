//! A live view of the running daemon in a terminal: bans with what is left of them, events as they come, how fast and from
//! whom. What is on the screen is a [`view::View`], which keys and messages change and [`draw`] paints; both are pure.
//! The terminal is put back as it was however this ends.

mod ban;
mod draw;
mod feed;
mod keys;
mod tally;
#[cfg(test)]
mod tests;
mod view;
mod words;

use std::io::{self, IsTerminal};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, SystemTime};

use ratatui::crossterm::event;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::{Client, ClientError};
use crate::cli::WatchOptions;
use draw::Palette;
use feed::Message;
use keys::{Action, Key};
use view::View;

/// How long a message may wait for the screen.
const PACE: Duration = Duration::from_millis(100);

/// Messages between two looks at the keys: under a flood the keys still answer.
const AT_ONCE: usize = 1_000;

/// Why there is nothing to watch, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The daemon is not there, or not for this user.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is nobody to look.
    #[error("watch needs a terminal; `portsentry events` gives events to programs")]
    NoTerminal,
    /// The terminal knows no screen.
    #[error("watch needs a terminal that can move its cursor, and TERM is {0:?}; try `portsentry events`")]
    Dumb(String),
    /// The terminal failed.
    #[error("the terminal failed: {0}")]
    Terminal(#[from] io::Error),
    /// A part of the program ended by itself.
    #[error("the live view lost its threads; start it again")]
    Threads,
}

/// Shows what happens until the operator has seen enough, or a signal ends it.
///
/// # Errors
/// Where there is no terminal or no daemon, and where the terminal fails.
pub fn run(options: &WatchOptions) -> Result<(), WatchError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(WatchError::NoTerminal);
    }
    match std::env::var("TERM") {
        Ok(term) if term == "dumb" => return Err(WatchError::Dumb(term)),
        _ => {}
    }
    // Said before the screen is taken; later a daemon that goes is waited for.
    drop(Client::connect(&options.socket)?);
    let feed = feed::start(&options.socket)?;
    // Whoever waits for keys is not told that the terminal has gone, and asks again for ever.
    std::thread::Builder::new().name("terminal".to_owned()).spawn(end_with_terminal)?;
    let palette = Palette::of(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()));
    let mut view = View::new(SystemTime::now());
    // It also has a panic put the terminal back.
    let mut terminal = ratatui::try_init()?;
    let screen = Screen;
    let mut shown = None;
    loop {
        let now = SystemTime::now();
        view.tick(now);
        let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if view.take_changed() || shown != Some(second) {
            shown = Some(second);
            terminal.draw(|frame| draw::draw(frame, &view, palette))?;
        }
        if event::poll(PACE)? {
            match keys::read(&event::read()?) {
                Some(Key::Resized) => shown = None,
                Some(key) => match view.press(key) {
                    Some(Action::Quit) => break,
                    // The other end is a thread that ends with the program.
                    Some(Action::Ask(request)) => feed.requests.send(request).map_err(|_| WatchError::Threads)?,
                    None => {}
                },
                None => {}
            }
        }
        if absorb(&feed.messages, &mut view)? {
            break;
        }
        if feed.is_broken() {
            return Err(WatchError::Threads);
        }
    }
    drop(screen);
    Ok(())
}

/// Ends the program when its terminal has gone.
fn end_with_terminal() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let terminal = io::stdin();
        let mut fds = [PollFd::new(&terminal, PollFlags::empty())];
        let looked = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let [terminal] = fds.map(|fd| fd.revents());
        if looked.is_ok() && terminal.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            // There is nothing left to put back.
            std::process::exit(i32::from(crate::cli::EXIT_FAILED));
        }
    }
}

/// Takes what has come; true where a signal ends the view.
fn absorb(messages: &Receiver<Message>, view: &mut View) -> Result<bool, WatchError> {
    for _ in 0..AT_ONCE {
        match messages.try_recv() {
            Ok(Message::End) => return Ok(true),
            Ok(message) => view.absorb(message),
            Err(TryRecvError::Empty) => return Ok(false),
            Err(TryRecvError::Disconnected) => return Err(WatchError::Threads),
        }
    }
    Ok(false)
}

/// The terminal's own screen, given back when this goes, on errors too.
struct Screen;

impl Drop for Screen {
    fn drop(&mut self) {
        // Where it cannot be given back there is nobody to tell.
        let _ = ratatui::try_restore();
    }
}
