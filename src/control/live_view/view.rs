//! Holds the state of the screen, and changes it by keys and messages. Pure: the time is an input, requests are an
//! output.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::poller::{BanRow, Message};
use super::top_counts::TopCounts;
use crate::clock::{BanEnd, utc};
use crate::control::format::compact_ports;
use crate::control::protocol::{Answer, Request};
use crate::control::scoped_network::ScopedNetwork;
use crate::control::status::Status;
use crate::engine::Class;
use crate::events::json::{EventName, EventRecord};
use crate::ledger::BanAuthor;
use crate::types::printable::{is_hidden, masked};
use crate::types::{BanTarget, counted, plain};

/// Maximum number of events: some screens of them.
const MAX_EVENTS: usize = 500;

/// Maximum number of messages held while the view is paused; beyond it the oldest are dropped and counted.
const MAX_HELD: usize = 2_000;

/// Period over which rates are calculated.
const RATE_SPAN: Duration = Duration::from_secs(60);

/// Number of counter samples, one per second.
const MAX_SAMPLES: usize = 61;

/// Time for which an answer stays on the last line.
const ANSWER_SPAN: Duration = Duration::from_secs(8);

/// Maximum length of the filter in bytes.
const MAX_FILTER_LEN: usize = 64;

/// Maximum length of a displayed text, in characters.
const MAX_TEXT_LEN: usize = 400;

/// An event on the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EventRow {
    /// "06:32:13".
    pub(super) time: String,
    pub(super) name: EventName,
    pub(super) text: String,
}

/// The reaction of the program to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    Ask(Request),
}

/// The current meaning of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Bans,
    /// A question, and the request that is sent after "yes".
    Confirm(String, Request),
    /// The filter is being typed.
    Filter,
    Help,
    /// The state of an address: the title, the lines, and the first visible line.
    Explained(String, Vec<String>, usize),
}

/// The daemon's counters at one moment.
#[derive(Clone, Copy, Debug)]
struct CounterSample {
    at: SystemTime,
    packets: u64,
    probes: u64,
    bans: u64,
}

pub(super) struct View {
    pub(super) now: SystemTime,
    pub(super) mode: Mode,
    pub(super) filter: String,
    pub(super) status: Option<Box<Status>>,
    /// The error while the daemon cannot be reached.
    pub(super) lost: Option<String>,
    pub(super) events: VecDeque<EventRow>,
    pub(super) ports: TopCounts,
    pub(super) sources: TopCounts,
    pub(super) paused: bool,
    /// The result of the last request, whether it succeeded, and when it arrived.
    pub(super) answer: Option<(String, bool, SystemTime)>,
    /// A note about the bans.
    pub(super) note: Option<String>,
    /// Total number of bans, of which the view may hold fewer.
    pub(super) all: usize,
    /// False while only bans that began recently are known.
    pub(super) known: bool,
    bans: Vec<BanRow>,
    selected: Option<BanTarget>,
    buffered: VecDeque<Message>,
    /// Number of messages dropped while the view was paused.
    skipped: usize,
    samples: VecDeque<CounterSample>,
    /// True if the view has changed since it was drawn.
    pub(super) changed: bool,
}

impl View {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            now,
            mode: Mode::Bans,
            filter: String::new(),
            status: None,
            lost: None,
            events: VecDeque::new(),
            ports: TopCounts::default(),
            sources: TopCounts::default(),
            paused: false,
            answer: None,
            note: None,
            all: 0,
            known: false,
            bans: Vec::new(),
            selected: None,
            buffered: VecDeque::new(),
            skipped: 0,
            samples: VecDeque::new(),
            changed: true,
        }
    }

    /// Sets the time to `now`: drops an old answer and expired bans.
    pub(super) fn tick(&mut self, now: SystemTime) {
        self.now = now;
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= ANSWER_SPAN);
        if self.answer.as_ref().is_some_and(|(.., at)| is_old(*at)) {
            self.answer = None;
            self.changed = true;
        }
        if !self.paused {
            self.keep_bans(|ban| ban.until.is_none_or(|until| until > now));
        }
    }

    fn keep_bans(&mut self, keep: impl FnMut(&BanRow) -> bool) {
        let before = self.bans.len();
        self.bans.retain(keep);
        self.all = self.all.saturating_sub(before - self.bans.len());
    }

    /// The bans that match the filter.
    pub(super) fn bans(&self) -> impl Iterator<Item = &BanRow> {
        self.bans.iter().filter(|ban| matches(&self.filter, &[&ban.target.to_string(), &ban.class, &ban.ports]))
    }

    /// The index of the selected ban among them.
    pub(super) fn selected(&self) -> Option<usize> {
        let selected = self.selected?;
        self.bans().position(|ban| ban.target == selected)
    }

    /// Number of messages held while the view is paused.
    pub(super) fn waiting(&self) -> usize {
        self.buffered.len() + self.skipped
    }

    /// Packets per second, probes per second and bans per minute, over the last minute; `None` before there are two
    /// samples.
    pub(super) fn rates(&self) -> Option<[f64; 3]> {
        let last = self.samples.back()?;
        let age = |sample: &CounterSample| last.at.duration_since(sample.at).unwrap_or_default();
        let first = self.samples.iter().find(|sample| age(sample) <= RATE_SPAN)?;
        let seconds = Some(age(first)).filter(|time| !time.is_zero())?.as_secs_f64();
        let rate = |value: fn(&CounterSample) -> u64| {
            let count = u32::try_from(value(last).saturating_sub(value(first))).unwrap_or(u32::MAX);
            f64::from(count) / seconds
        };
        Some([rate(|one| one.packets), rate(|one| one.probes), rate(|one| one.bans) * 60.0])
    }

    /// Probes in each second of the last minute, oldest first.
    pub(super) fn probes(&self) -> Vec<u64> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs.map(|(before, after)| after.probes.saturating_sub(before.probes)).collect()
    }

    /// Applies a message, or holds it while the view is paused.
    pub(super) fn apply(&mut self, message: Message) {
        self.changed = true;
        match message {
            Message::Status(status) => self.sample(status),
            Message::Lost(why) => self.lost = Some(single_line(&why)),
            Message::Note(note) => self.note = Some(single_line(&note)),
            Message::Answer(request, answer) => self.take_answer(&request, answer),
            Message::Event(_) | Message::Bans(..) if self.paused => {
                self.skipped += usize::from(push_bounded(&mut self.buffered, message, MAX_HELD));
            }
            Message::Event(event) => self.take_event(&event),
            Message::Bans(bans, all) => (self.bans, self.all, self.known) = (bans, all, true),
            Message::End => {}
        }
    }

    fn sample(&mut self, status: Box<Status>) {
        let Status { packets, probes, bans, .. } = *status;
        let sample = CounterSample { at: self.now, packets: packets.seen, probes, bans: bans.made };
        // Decreasing counters belong to another daemon.
        if self.samples.back().is_some_and(|last| last.packets > sample.packets || last.at >= sample.at) {
            self.samples.clear();
        }
        push_bounded(&mut self.samples, sample, MAX_SAMPLES);
        self.status = Some(status);
        self.lost = None;
    }

    fn take_event(&mut self, event: &EventRecord) {
        let source = event.source.map(|source| source.to_string());
        let port = event.proto.zip(event.port).map(|(protocol, port)| format!("{}/{port}", protocol.key()));
        if matches!(event.event, EventName::Probe | EventName::Scan | EventName::Block)
            && let Some(source) = &source
        {
            self.sources.add(source);
            port.iter().for_each(|port| self.ports.add(port));
        }
        match (event.event, event.target) {
            (EventName::Block, Some(target)) => self.begin(event, target),
            (EventName::Unblock | EventName::Expire, Some(target)) => self.keep_bans(|ban| ban.target != target),
            _ => {}
        }
        let target = event.target.map(|target| target.to_string()).or(source).unwrap_or_default();
        let reason = event.reason.as_deref().map(single_line).unwrap_or_default();
        let lost = event.events.map(|lost| format!("{} lost, because they came too fast", counted(lost, "event")));
        let class = event.class.map_or("", Class::key).to_owned();
        let mut parts = vec![target, port.unwrap_or_default(), class, reason, lost.unwrap_or_default()];
        parts.retain(|part| !part.is_empty());
        let time = clock(event.time.map_or(self.now, |time| time.0));
        push_bounded(&mut self.events, EventRow { time, name: event.event, text: parts.join(" ") }, MAX_EVENTS);
    }

    /// Adds the ban that an event reports.
    fn begin(&mut self, event: &EventRecord, target: BanTarget) {
        // A second backend blocks the same source; the event of the first one contains the expiry.
        let Some(BanEnd(until)) = event.expires else { return };
        let ports = compact_ports(event.ports.iter().flatten().map(|port| (port.proto, port.port)));
        let known = self.bans.iter().position(|ban| ban.target == target).map(|at| self.bans.remove(at));
        self.all += usize::from(known.is_none());
        let author = if event.evidence.is_some() { BanAuthor::Detector } else { BanAuthor::Operator };
        let ban = BanRow {
            target,
            class: author.label(event.class).to_owned(),
            ports,
            bans: event.strikes.or(known.and_then(|known| known.bans)),
            until: until.map(|time| time.0),
            lacking: false,
        };
        let place = self.bans.partition_point(|other| other.order(&ban) == Ordering::Less);
        self.bans.insert(place, ban);
    }

    fn take_answer(&mut self, request: &Request, answer: Result<Answer, String>) {
        let (text, done) = match (request, answer) {
            (Request::Explain { address }, Ok(answer)) => {
                let lines = answer.to_string().lines().map(single_line).collect();
                self.mode = Mode::Explained(address.to_string(), lines, 0);
                return;
            }
            (Request::Unblock { target: Some(target), .. }, Ok(_)) => (format!("{target} is unblocked"), true),
            (Request::Allow { target, .. }, Ok(_)) => {
                let target = plain(*target);
                (format!("{target} is allowed until `portsentry disallow {target}`"), true)
            }
            (_, Ok(_)) => ("done".to_owned(), true),
            (_, Err(error)) => (error, false),
        };
        self.show_answer(&text, done);
    }

    fn show_answer(&mut self, text: &str, done: bool) {
        self.answer = Some((single_line(text), done, self.now));
    }

    /// Handles a key; returns the action for the program.
    pub(super) fn press(&mut self, key: impl Into<KeyEvent>) -> Option<Action> {
        let KeyEvent { code, modifiers, .. } = key.into();
        self.changed = true;
        match (code, modifiers) {
            (KeyCode::Char('c'), KeyModifiers::CONTROL) => return Some(Action::Quit),
            (KeyCode::Char(_), KeyModifiers::NONE | KeyModifiers::SHIFT) => {}
            // A letter with Control or Alt has no meaning.
            (KeyCode::Char(_), _) => return None,
            _ => {}
        }
        match std::mem::replace(&mut self.mode, Mode::Bans) {
            Mode::Bans => self.press_in_bans(code),
            Mode::Confirm(question, request) => match code {
                KeyCode::Char('y' | 'Y') => Some(Action::Ask(request)),
                KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc => None,
                // Neither yes nor no: the question stays.
                _ => {
                    self.mode = Mode::Confirm(question, request);
                    None
                }
            },
            Mode::Filter => {
                self.mode = Mode::Filter;
                match code {
                    KeyCode::Enter => self.mode = Mode::Bans,
                    KeyCode::Esc => (self.mode, self.filter) = (Mode::Bans, String::new()),
                    KeyCode::Backspace => drop(self.filter.pop()),
                    KeyCode::Char(c) if self.filter.len() < MAX_FILTER_LEN && !is_hidden(c) => self.filter.push(c),
                    _ => {}
                }
                None
            }
            Mode::Help => None,
            Mode::Explained(title, lines, first) => {
                let last = lines.len().saturating_sub(1);
                let first = match code {
                    KeyCode::Down | KeyCode::Char('j') => (first + 1).min(last),
                    KeyCode::Up | KeyCode::Char('k') => first.saturating_sub(1),
                    KeyCode::PageDown => (first + 10).min(last),
                    KeyCode::PageUp => first.saturating_sub(10),
                    KeyCode::Home => 0,
                    KeyCode::End => last,
                    _ => return None,
                };
                self.mode = Mode::Explained(title, lines, first);
                None
            }
        }
    }

    fn press_in_bans(&mut self, key: KeyCode) -> Option<Action> {
        match key {
            KeyCode::Char('q') => return Some(Action::Quit),
            KeyCode::Down | KeyCode::Char('j') => self.select(1),
            KeyCode::Up | KeyCode::Char('k') => self.select(-1),
            KeyCode::PageDown => self.select(10),
            KeyCode::PageUp => self.select(-10),
            KeyCode::Home | KeyCode::Char('g') => self.select(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.select(isize::MAX),
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Esc => (self.selected, self.answer, self.filter) = (None, None, String::new()),
            KeyCode::Char('p') => self.pause(),
            KeyCode::Char('u' | 'a' | 'e') | KeyCode::Enter => {
                let Some(target) = self.selected().and_then(|at| Some(self.bans().nth(at)?.target)) else {
                    self.show_answer("select a ban first, with the arrows or j and k", false);
                    return None;
                };
                let network = target.network();
                let (question, request) = match key {
                    KeyCode::Char('u') => {
                        let question = format!("Unblock {target}? y/n");
                        (question, Request::Unblock { target: Some(target.into()), all: false })
                    }
                    KeyCode::Char('a') => {
                        let question = format!("Never block {}? y/n", plain(network));
                        (question, Request::Allow { target: network, span: None, force: false })
                    }
                    _ => {
                        let network = IpNet::from(network.addr());
                        let address = ScopedNetwork { network, ..ScopedNetwork::from(target) };
                        return Some(Action::Ask(Request::Explain { address }));
                    }
                };
                self.mode = Mode::Confirm(question, request);
            }
            _ => {}
        }
        None
    }

    /// Moves the selection by `by` places; selects the first ban if none is selected.
    fn select(&mut self, by: isize) {
        let last = self.bans().count().saturating_sub(1);
        let place = match self.selected() {
            None if by == isize::MAX => last,
            None => 0,
            Some(at) => at.saturating_add_signed(by).min(last),
        };
        let chosen = self.bans().nth(place).map(|ban| ban.target);
        self.selected = chosen;
    }

    fn pause(&mut self) {
        self.paused = !self.paused;
        if !self.paused {
            if std::mem::take(&mut self.skipped) > 0 {
                let text = "some events during the pause are not shown".to_owned();
                self.events.push_back(EventRow { time: clock(self.now), name: EventName::Note, text });
            }
            for message in std::mem::take(&mut self.buffered) {
                self.apply(message);
            }
            self.tick(self.now);
        }
    }

    /// The events that match the filter, newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = &EventRow> {
        self.events.iter().rev().filter(|line| matches(&self.filter, &[line.name.key(), &line.text]))
    }
}

/// Appends to a queue of at most `max`; true if the oldest item was dropped.
fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, max: usize) -> bool {
    queue.push_back(item);
    queue.len() > max && queue.pop_front().is_some()
}

/// True if one of these texts contains `filter`, ignoring case.
fn matches(filter: &str, texts: &[&str]) -> bool {
    let filter = filter.to_lowercase();
    filter.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&filter))
}

/// Replaces control characters: a name or a command's output may come from an attacker.
fn single_line(text: &str) -> String {
    masked(text, ' ').take(MAX_TEXT_LEN).collect()
}

/// "06:32:13", in UTC.
pub(super) fn clock(time: SystemTime) -> String {
    utc(time).time().to_string()
}
