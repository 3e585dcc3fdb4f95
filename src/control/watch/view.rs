//! All that is on the screen, and how keys and messages change it. Pure: the time comes in, requests go out.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::ban::Ban;
use super::feed::Message;
use super::keys::{Action, Key};
use super::tally::Tally;
use super::words::{clock, compact, passes, plain, port};
use crate::control::commands;
use crate::control::protocol::Request;

/// Events that are kept: some screens of them.
const EVENTS: usize = 500;

/// Messages that wait while the view is paused; beyond it the oldest are let go, counted.
const HELD: usize = 2_000;

/// Samples of the counters, one a second: rates are over a minute at most.
const SAMPLES: usize = 61;

/// How long an answer stays on the last line.
const ANSWERED: Duration = Duration::from_secs(8);

/// A line that is typed.
const LONGEST: usize = 64;

/// An event on the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// "06:32:13".
    pub(super) time: String,
    pub(super) kind: String,
    pub(super) text: String,
}

/// What is asked about a ban before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Unblock,
    Allow,
}

/// What keys are for at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Bans,
    /// Yes or no?
    Sure(Wish, String),
    /// The filter is typed.
    Filter,
    Help,
    /// What is known about an address: the title, the lines, and the first one that is shown.
    Explained(String, Vec<String>, usize),
}

/// The daemon's counters at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: SystemTime,
    packets: u64,
    probes: u64,
    bans: u64,
}

/// All that is on the screen.
pub(super) struct View {
    pub(super) now: SystemTime,
    pub(super) mode: Mode,
    pub(super) filter: String,
    pub(super) status: Map<String, Value>,
    /// Why the daemon cannot be reached, while it cannot.
    pub(super) lost: Option<String>,
    pub(super) events: VecDeque<Line>,
    pub(super) ports: Tally,
    pub(super) sources: Tally,
    pub(super) paused: bool,
    /// What came of the last request, and whether it went well.
    pub(super) answer: Option<(String, bool)>,
    /// What is to be known about the bans.
    pub(super) note: Option<String>,
    /// Bans in all, of which the view may hold fewer.
    pub(super) all: usize,
    /// Whether they have been read, or only those are known that began since.
    pub(super) known: bool,
    bans: Vec<Ban>,
    selected: Option<String>,
    held: VecDeque<Message>,
    /// Messages that were let go while the view was paused.
    skipped: usize,
    samples: VecDeque<Sample>,
    answered: SystemTime,
    changed: bool,
}

impl View {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            now,
            mode: Mode::Bans,
            filter: String::new(),
            status: Map::new(),
            lost: None,
            events: VecDeque::new(),
            ports: Tally::default(),
            sources: Tally::default(),
            paused: false,
            answer: None,
            note: None,
            all: 0,
            known: false,
            bans: Vec::new(),
            selected: None,
            held: VecDeque::new(),
            skipped: 0,
            samples: VecDeque::new(),
            answered: now,
            changed: true,
        }
    }

    /// True where the screen is not what the view is; then it is taken to be.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// It is `now`: what is over goes.
    pub(super) fn tick(&mut self, now: SystemTime) {
        self.now = now;
        if self.answer.is_some() && now.duration_since(self.answered).is_ok_and(|age| age >= ANSWERED) {
            self.answer = None;
            self.changed = true;
        }
        if !self.paused {
            let before = self.bans.len();
            self.bans.retain(|ban| ban.until.is_none_or(|until| until > now));
            self.all = self.all.saturating_sub(before - self.bans.len());
        }
    }

    /// The bans that the filter lets through.
    pub(super) fn bans(&self) -> impl Iterator<Item = &Ban> {
        self.bans.iter().filter(|ban| passes(&self.filter, &[&ban.subject, &ban.class, &ban.ports]))
    }

    /// The place of the selected ban among them.
    pub(super) fn selected(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.bans().position(|ban| ban.subject == *selected)
    }

    /// What the view holds back while it is paused.
    pub(super) fn waiting(&self) -> usize {
        self.held.len() + self.skipped
    }

    /// Packets a second, probes a second and bans a minute; `None` before there are two looks at the counters.
    pub(super) fn rates(&self) -> Option<[f64; 3]> {
        let last = self.samples.back()?;
        let over = |span: usize, value: fn(&Sample) -> u64| {
            let first = self.samples.get(self.samples.len().saturating_sub(span + 1))?;
            let time = last.at.duration_since(first.at).ok().filter(|time| !time.is_zero())?;
            let count = u32::try_from(value(last).saturating_sub(value(first))).unwrap_or(u32::MAX);
            Some(f64::from(count) / time.as_secs_f64())
        };
        let [packets, probes] = [over(5, |one| one.packets)?, over(5, |one| one.probes)?];
        Some([packets, probes, over(SAMPLES, |one| one.bans)? * 60.0])
    }

    /// Probes in each second of the last minute, the oldest first.
    pub(super) fn probes(&self) -> Vec<u64> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs.map(|(before, after)| after.probes.saturating_sub(before.probes)).collect()
    }

    /// Takes a message, or holds it back while the view is paused.
    pub(super) fn absorb(&mut self, message: Message) {
        self.changed = true;
        match message {
            Message::Status(told) => self.sample(told),
            Message::Lost(why) => self.lost = Some(plain(&why)),
            Message::Note(note) => self.note = Some(plain(&note)),
            Message::Answer(request, answer) => self.answered(&request, answer),
            Message::Event(_) | Message::Bans(..) if self.paused => {
                self.held.push_back(message);
                if self.held.len() > HELD {
                    self.held.pop_front();
                    self.skipped += 1;
                }
            }
            Message::Event(event) => self.event(&event),
            Message::Bans(bans, all) => (self.bans, self.all, self.known) = (bans, all, true),
            Message::End => {}
        }
    }

    fn sample(&mut self, told: Map<String, Value>) {
        let number = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or(0);
        let part = |key: &str, of: &str| number(told.get(key).and_then(|part| part.get(of)));
        let sample = Sample {
            at: self.now,
            packets: part("packets", "seen"),
            probes: number(told.get("probes")),
            bans: part("bans", "made"),
        };
        // Counters that run backwards are another daemon's.
        if self.samples.back().is_some_and(|last| last.packets > sample.packets || last.at >= sample.at) {
            self.samples.clear();
        }
        self.samples.push_back(sample);
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        self.status = told;
        self.lost = None;
    }

    fn event(&mut self, event: &Value) {
        let text = |key: &str| event.get(key).and_then(Value::as_str).map(plain).unwrap_or_default();
        let kind = text("event");
        let (subject, source) = (text("subject"), text("source"));
        let port = port(event);
        if matches!(kind.as_str(), "probe" | "scan" | "block") && !source.is_empty() {
            self.sources.add(&source);
            if let Some(port) = &port {
                self.ports.add(port);
            }
        }
        match kind.as_str() {
            "block" if !subject.is_empty() => self.begin(event, &subject),
            "unblock" | "expire" if !subject.is_empty() => {
                let before = self.bans.len();
                self.bans.retain(|ban| ban.subject != subject);
                self.all = self.all.saturating_sub(before - self.bans.len());
            }
            _ => {}
        }
        let who = if subject.is_empty() { source } else { subject };
        let lost = event.get("events").and_then(Value::as_u64).map(|lost| format!("{lost} events came too fast"));
        let parts = [who, port.unwrap_or_default(), text("class"), text("reason"), lost.unwrap_or_default()];
        let text = parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(" ");
        let time = match event.get("time").and_then(Value::as_str).and_then(|time| time.get(11..19)) {
            Some(time) => plain(time),
            None => clock(self.now),
        };
        self.events.push_back(Line { time, kind, text });
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    /// A ban that an event tells of.
    fn begin(&mut self, event: &Value, subject: &str) {
        let until = match event.get("expires").and_then(Value::as_str) {
            Some("never") => None,
            Some(time) => humantime::parse_rfc3339(time).ok(),
            // A second way that blocks the same source: the first one's event has it.
            None => return,
        };
        let touched = event.get("ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let ports: Vec<String> = touched.iter().filter_map(self::port).collect();
        let class = event.get("class").and_then(Value::as_str).map_or("by hand".to_owned(), plain);
        let known = self.bans.iter().position(|ban| ban.subject == subject).map(|at| self.bans.remove(at));
        self.all += usize::from(known.is_none());
        let strikes = known.map_or(0, |known| known.strikes);
        let ban = Ban { subject: subject.to_owned(), class, ports: compact(&ports), strikes, until, lacking: false };
        let place = self.bans.partition_point(|other| other.order(&ban) == Ordering::Less);
        self.bans.insert(place, ban);
    }

    fn answered(&mut self, request: &Request, answer: Result<Map<String, Value>, String>) {
        self.answered = self.now;
        self.answer = Some(match (request, answer) {
            (Request::Explain { address }, Ok(told)) => {
                let lines = commands::explain(&told).lines().map(plain).collect();
                self.mode = Mode::Explained(plain(address), lines, 0);
                return;
            }
            (Request::Unblock { target, .. }, Ok(_)) => {
                (format!("{} is free again", plain(target.as_deref().unwrap_or("everybody"))), true)
            }
            (Request::Allow { target, .. }, Ok(_)) => {
                (format!("{} is allowed until the daemon ends", plain(target)), true)
            }
            (_, Ok(_)) => ("done".to_owned(), true),
            (_, Err(error)) => (plain(&error), false),
        });
    }

    /// Does what `key` means now; what is to be done outside.
    pub(super) fn press(&mut self, key: Key) -> Option<Action> {
        self.changed = true;
        if key == Key::Interrupt {
            return Some(Action::Quit);
        }
        match std::mem::replace(&mut self.mode, Mode::Bans) {
            Mode::Bans => self.press_in_bans(key),
            Mode::Sure(wish, subject) => match key {
                Key::Char('y' | 'Y') => Some(Action::Ask(match wish {
                    Wish::Unblock => Request::Unblock { target: Some(subject), all: false },
                    Wish::Allow => Request::Allow { target: subject, span: None },
                })),
                Key::Char('n' | 'N' | 'q') | Key::Escape => None,
                // Neither yes nor no: the question stays.
                _ => {
                    self.mode = Mode::Sure(wish, subject);
                    None
                }
            },
            Mode::Filter => {
                self.mode = Mode::Filter;
                match key {
                    Key::Enter => self.mode = Mode::Bans,
                    Key::Escape => (self.mode, self.filter) = (Mode::Bans, String::new()),
                    Key::Erase => drop(self.filter.pop()),
                    Key::Char(c) if self.filter.len() < LONGEST && !c.is_control() => self.filter.push(c),
                    _ => {}
                }
                None
            }
            Mode::Help => None,
            Mode::Explained(title, lines, first) => {
                let last = lines.len().saturating_sub(1);
                let first = match key {
                    Key::Down | Key::Char('j') => (first + 1).min(last),
                    Key::Up | Key::Char('k') => first.saturating_sub(1),
                    Key::PageDown => (first + 10).min(last),
                    Key::PageUp => first.saturating_sub(10),
                    Key::First => 0,
                    Key::Last => last,
                    _ => return None,
                };
                self.mode = Mode::Explained(title, lines, first);
                None
            }
        }
    }

    fn press_in_bans(&mut self, key: Key) -> Option<Action> {
        match key {
            Key::Char('q') => return Some(Action::Quit),
            Key::Down | Key::Char('j') => self.select(1),
            Key::Up | Key::Char('k') => self.select(-1),
            Key::PageDown => self.select(10),
            Key::PageUp => self.select(-10),
            Key::First | Key::Char('g') => self.select(isize::MIN),
            Key::Last | Key::Char('G') => self.select(isize::MAX),
            Key::Char('/') => self.mode = Mode::Filter,
            Key::Char('?') => self.mode = Mode::Help,
            Key::Escape => (self.selected, self.answer, self.filter) = (None, None, String::new()),
            Key::Char('p') => self.pause(),
            Key::Char('u' | 'a' | 'e') | Key::Enter => {
                let Some(subject) = self.selected().and_then(|at| Some(self.bans().nth(at)?.subject.clone())) else {
                    self.answered = self.now;
                    self.answer = Some(("select a ban first, with the arrows or j and k".to_owned(), false));
                    return None;
                };
                match key {
                    Key::Char('u') => self.mode = Mode::Sure(Wish::Unblock, subject),
                    Key::Char('a') => self.mode = Mode::Sure(Wish::Allow, subject),
                    _ => {
                        let address = subject.split('/').next().unwrap_or_default().to_owned();
                        return Some(Action::Ask(Request::Explain { address }));
                    }
                }
            }
            _ => {}
        }
        None
    }

    /// Selects the ban so many places further; from none the first one.
    fn select(&mut self, by: isize) {
        let last = self.bans().count().saturating_sub(1);
        let place = match self.selected() {
            None if by == isize::MAX => last,
            None => 0,
            Some(at) => at.saturating_add_signed(by).min(last),
        };
        let chosen = self.bans().nth(place).map(|ban| ban.subject.clone());
        self.selected = chosen;
    }

    fn pause(&mut self) {
        self.paused = !self.paused;
        if !self.paused {
            if std::mem::take(&mut self.skipped) > 0 {
                let text = "some events came while it was paused and are not shown".to_owned();
                self.events.push_back(Line { time: clock(self.now), kind: "note".to_owned(), text });
            }
            for message in std::mem::take(&mut self.held) {
                self.absorb(message);
            }
            self.tick(self.now);
        }
    }

    /// The events that the filter lets through, the newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = &Line> {
        self.events.iter().rev().filter(|line| passes(&self.filter, &[&line.kind, &line.text]))
    }
}
