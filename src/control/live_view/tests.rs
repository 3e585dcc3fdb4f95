//! Tests of the live view: screens compared with text files, and the effect of keys and messages.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Cell;
use ratatui::crossterm::event::{KeyCode as Key, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Modifier};
use serde_json::{Value, json};

use super::draw::{Look, draw};
use super::poller::{BanRow, Message};
use super::view::{Action, Mode, View};
use crate::control::address_info::{AddressInfo, EndedBanInfo, PastBan, VerdictEnd};
use crate::control::ban_info::BanInfo;
use crate::control::protocol::{Answer, Request};
use crate::control::status::{BanCounts, PacketCounts, Status};
use crate::engine::Class;
use crate::events::json::{EventRecord, PortRecord};
use crate::ledger::BanAuthor;
use crate::types::{Backend, Expiry, Protocol};

/// 2026-11-21T06:32:13Z.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_242_733)
}

fn at(second: u64) -> SystemTime {
    now() + Duration::from_secs(second)
}

fn status(second: u64, packets: u64, probes: u64, bans: u64) -> Message {
    Message::Status(Box::new(Status {
        version: "0.1.0".to_owned(),
        probes,
        uptime_s: second,
        sources_tracked: 41,
        packets: PacketCounts { seen: packets, ..PacketCounts::default() },
        bans: BanCounts { made: bans, ..BanCounts::default() },
        ..Status::default()
    }))
}

fn ban(target: &str, class: &str, ports: &str, left: Option<u64>) -> BanRow {
    let [class, ports] = [class, ports].map(str::to_owned);
    BanRow { target: target.parse().unwrap(), class, ports, bans: Some(1), until: left.map(at), lacking: false }
}

fn event(second: u64, kind: &str, source: &str, port: u16, rest: Value) -> Message {
    let time = humantime::format_rfc3339_micros(at(second)).to_string();
    let mut event = json!({"event": kind, "time": time, "source": source, "subject": source, "class": "syn", "proto": "tcp",
        "port": port});
    event.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    received(event)
}

fn received(event: Value) -> Message {
    Message::Event(Box::new(serde_json::from_value(event).unwrap()))
}

const INTERRUPT: KeyEvent = KeyEvent::new(Key::Char('c'), KeyModifiers::CONTROL);

fn block(second: u64, source: &str, port: u16, expires: &str) -> Message {
    let ports = json!([{"proto": "tcp", "port": port, "class": "syn"}, {"proto": "tcp", "port": 23, "class": "syn"}]);
    let rest = json!({"ports": ports, "reason": "3 distinct closed ports were probed", "expires": expires, "method": "nft",
            "strikes": 1});
    event(second, "block", source, port, rest)
}

/// A view of a busy host.
fn scene() -> View {
    let mut view = View::new(now());
    for second in 0..12 {
        view.tick(at(second));
        view.apply(status(second, 1_000 + second * 1_234, 10 + second * (second % 4), 3 + second / 4));
    }
    let bans = vec![
        ban("203.0.113.77", "syn", "tcp/23,8080,5900", Some(600)),
        BanRow { bans: Some(4), ..ban("198.51.100.9", "null", "tcp/22", Some(7_200)) },
        BanRow { lacking: true, ..ban("2001:db8:1234:5678::/64", "syn", "tcp/3389,445,1433,6379", Some(86_000)) },
        ban("198.51.100.0/24", "by hand", "", None),
    ];
    view.apply(Message::Bans(bans, 4));
    for second in 0..9 {
        view.apply(event(second, "probe", "192.0.2.200", 23, json!({"distinct_ports": 1})));
    }
    view.apply(event(9, "probe", "2001:db8:1234:5678::1", 3389, json!({"distinct_ports": 2})));
    view.apply(block(10, "192.0.2.200", 8080, "2026-11-22T06:32:23.000000Z"));
    view.apply(received(
        json!({"event": "note", "time": "2026-11-21T06:32:24.000000Z", "reason": "the table was missing"}),
    ));
    view
}

fn paint(view: &View, width: u16, height: u16, colours: bool) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view, Look { colours, unicode: true })).unwrap();
    terminal
}

fn screen(view: &View, width: u16, height: u16) -> String {
    let terminal = paint(view, width, height, true);
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned() + "\n";
    (0..height).map(row).collect()
}

fn press(view: &mut View, keys: &[Key]) {
    keys.iter().for_each(|key| drop(view.press(*key)));
}

/// Compares with a file next to this one; `SCREENS=write` in the environment rewrites the file for review.
fn assert_matches_file(name: &str, painted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control/live_view/screens").join(name);
    if std::env::var("SCREENS").is_ok_and(|value| value == "write") {
        std::fs::write(&path, painted).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(painted, expected, "{name}:\n{painted}");
}

#[test]
fn locale_without_unicode_gets_ascii_only() {
    let view = scene();
    for (width, height) in [(80, 24), (40, 20), (120, 40)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &view, Look { colours: true, unicode: false })).unwrap();
        let cells = &terminal.backend().buffer().content;
        let marks = |cells: &[Cell]| cells.iter().filter(|cell| cell.symbol() == "?").count();
        let unicode = paint(&view, width, height, true);
        assert!(cells.iter().all(|cell| cell.symbol().is_ascii()), "{width} by {height}");
        assert_eq!(
            marks(cells),
            marks(&unicode.backend().buffer().content),
            "distinct characters have distinct replacements"
        );
        assert!(cells.iter().any(|cell| cell.symbol() == "-"));
    }
    for (variables, unicode) in [
        (&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")][..], false),
        (&[("LC_ALL", ""), ("LANG", "de_DE.UTF-8")], true),
        (&[("LC_CTYPE", "C.utf8")], true),
        (&[("LANG", "POSIX")], false),
        (&[], false),
    ] {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(super::is_unicode(variable), unicode, "{variables:?}");
    }
}

#[test]
fn rates_are_those_of_last_minute() {
    let mut view = View::new(now());
    for second in 0..=120 {
        // Nothing in the first minute; then 600 packets, 60 probes and 6 bans in total.
        let late = second.max(60) - 60;
        view.tick(at(second));
        view.apply(status(second, late * 10, late, late / 10));
    }
    assert_eq!(view.rates(), Some([10.0, 1.0, 6.0]));
}

#[test]
fn screens_match_their_files() {
    let mut view = scene();
    assert_matches_file("80x24.txt", &screen(&view, 80, 24));
    assert_matches_file("40x20.txt", &screen(&view, 40, 20));
    assert_matches_file("120x40.txt", &screen(&view, 120, 40));
    press(&mut view, &[Key::Down, Key::Down, Key::Char('u')]);
    assert_matches_file("unblock-80x24.txt", &screen(&view, 80, 24));
    press(&mut view, &[Key::Esc, Key::Char('?')]);
    assert_matches_file("help-80x24.txt", &screen(&view, 80, 24));
    assert_matches_file("help-40x20.txt", &screen(&view, 40, 20));
    view.press(Key::Esc);
    let known = AddressInfo::unsuspected("203.0.113.77");
    let ban = PastBan {
        target: known.target,
        since: "2026-11-20T06:32:13Z".parse().unwrap(),
        expires: "2026-11-21T06:32:13Z".parse().unwrap(),
        class: Some(Class::Syn),
        evidence: None,
        ports: vec![PortRecord { proto: Protocol::Tcp, port: 23, class: None }],
        probes: 1,
        method: Backend::Nft.into(),
        author: BanAuthor::Detector,
        note: None,
        strikes: 1,
        ended: Some(EndedBanInfo { at: "2026-11-21T06:32:13Z".parse().unwrap(), how: "expired".to_owned() }),
    };
    let expires = "2026-11-21T06:42:13Z".parse().unwrap();
    let info = AddressInfo {
        blocked: Some(VerdictEnd { expires, left_s: Some(600), ..VerdictEnd::default() }),
        strikes: 1,
        bans: Some(2),
        history: Some(vec![ban]),
        ..known
    };
    view.apply(Message::Answer(Request::Explain { address: info.address }, Ok(Answer::Explained(Box::new(info)))));
    assert_matches_file("explain-80x24.txt", &screen(&view, 80, 24));
    assert_matches_file("explain-40x20.txt", &screen(&view, 40, 20));
    view.press(Key::Esc);
    press(&mut view, &[Key::Char('/'), Key::Char('2'), Key::Char('0'), Key::Char('0')]);
    assert_matches_file("filter-80x24.txt", &screen(&view, 80, 24));
    let mut fresh = View::new(now());
    assert_matches_file("fresh-80x24.txt", &screen(&fresh, 80, 24));
    fresh.apply(Message::Lost(
        "portsentry is not running: no daemon answers at /run/portsentry/portsentry.sock".to_owned(),
    ));
    assert_matches_file("lost-40x20.txt", &screen(&fresh, 40, 20));
}

#[test]
fn every_size_is_painted_within_bounds() {
    let mut view = scene();
    for mode in [Key::Esc, Key::Char('?'), Key::Char('/')] {
        view.press(Key::Esc);
        view.press(Key::Down);
        view.press(mode);
        for width in (0..100).step_by(7) {
            for height in (0..30).step_by(3) {
                paint(&view, width, height, true);
            }
        }
    }
    for size in [(1, 1), (500, 200), (20, 8), (19, 7), (71, 17), (72, 14), (73, 13)] {
        paint(&view, size.0, size.1, true);
    }
}

#[test]
fn colour_is_never_the_only_sign() {
    let mut view = scene();
    view.press(Key::Down);
    let plain = paint(&view, 80, 24, false);
    let colourful = paint(&view, 80, 24, true);
    let (plain, colourful) = (plain.backend().buffer(), colourful.backend().buffer());
    let texts = |buffer: &ratatui::buffer::Buffer| {
        buffer.content().iter().map(|cell| cell.symbol().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(texts(plain), texts(colourful));
    assert!(plain.content().iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    assert!(colourful.content().iter().any(|cell| cell.fg == Color::Red));
    let reversed = plain.content().iter().filter(|cell| cell.modifier.contains(Modifier::REVERSED)).count();
    assert!(reversed > 10, "the selected line is marked by more than a colour");
    assert!(screen(&view, 80, 24).contains(">  203.0.113.77"));
}

#[test]
fn keys_act_only_after_confirmation() {
    let mut view = scene();
    assert_eq!(view.press(Key::Char('u')), None);
    assert_eq!(view.mode, Mode::Bans, "nothing is selected");
    assert!(view.answer.as_ref().unwrap().0.starts_with("select a ban first"));
    view.press(Key::Down);
    view.press(Key::Down);
    assert_eq!(view.press(Key::Char('u')), None);
    assert_eq!(view.press(Key::Char('x')), None, "the key is neither yes nor no");
    let unblock = Request::Unblock { target: "198.51.100.9".parse().ok(), all: false };
    assert_eq!(view.press(Key::Char('y')), Some(Action::Ask(unblock)));
    assert_eq!((view.press(Key::Char('a')), view.press(Key::Char('n'))), (None, None));
    view.press(Key::Char('a'));
    let allow = Request::Allow { target: "198.51.100.9/32".parse().unwrap(), span: None, force: false };
    assert_eq!(view.press(Key::Char('y')), Some(Action::Ask(allow)));
    view.press(Key::End);
    view.press(Key::Char('k'));
    view.press(Key::Char('k'));
    let explain = Request::Explain { address: "2001:db8:1234:5678::".parse().unwrap() };
    assert_eq!(view.press(Key::Char('e')), Some(Action::Ask(explain)));
    assert_eq!(view.press(Key::Char('q')), Some(Action::Quit));
    for key in ['u', '/', '?'] {
        view.press(Key::Char(key));
        assert_eq!(view.press(INTERRUPT), Some(Action::Quit), "from everywhere");
    }
}

#[test]
fn letter_with_modifier_is_ignored() {
    let mut view = scene();
    view.press(Key::Down);
    for modifiers in [KeyModifiers::ALT, KeyModifiers::CONTROL] {
        assert_eq!(view.press(KeyEvent::new(Key::Char('u'), modifiers)), None);
        assert_eq!(view.mode, Mode::Bans, "{modifiers}");
    }
    view.press(KeyEvent::new(Key::Char('?'), KeyModifiers::SHIFT));
    assert_eq!(view.mode, Mode::Help);
}

#[test]
fn letter_in_filter_is_text() {
    let mut view = scene();
    view.press(Key::Char('/'));
    for c in "quNULL".chars() {
        assert_eq!(view.press(Key::Char(c)), None);
    }
    press(&mut view, &[Key::Home; 3]);
    assert_eq!((view.filter.as_str(), view.bans().count()), ("quNULL", 0));
    view.press(Key::Esc);
    view.press(Key::Char('/'));
    "null".chars().for_each(|c| drop(view.press(Key::Char(c))));
    view.press(Key::Enter);
    assert_eq!(view.bans().map(|ban| ban.target.to_string()).collect::<Vec<_>>(), ["198.51.100.9"]);
    assert_eq!((view.press(Key::Char('j')), view.selected()), (None, Some(0)));
    view.press(Key::Esc);
    assert_eq!(view.bans().count(), 5);
}

#[test]
fn selection_stays_with_its_ban() {
    let mut view = scene();
    view.press(Key::Char('j'));
    view.press(Key::Char('j'));
    assert_eq!(view.selected(), Some(1), "198.51.100.9");
    view.apply(block(12, "192.0.2.5", 21, "2026-11-21T06:33:00Z"));
    assert_eq!(view.bans().next().unwrap().target.to_string(), "192.0.2.5", "the next to expire comes first");
    assert_eq!(view.selected(), Some(2));
    view.tick(at(700));
    assert_eq!(view.bans().count(), 4, "two have expired");
    assert_eq!(view.selected(), Some(0));
    view.apply(event(12, "unblock", "198.51.100.9", 22, json!({})));
    assert_eq!((view.bans().count(), view.selected()), (3, None));
    view.apply(event(12, "expire", "nobody", 22, json!({})));
    assert_eq!((view.bans().count(), view.all), (3, 3));
    view.apply(Message::Bans(Vec::new(), 0));
    assert_eq!((view.bans().count(), view.press(Key::Down), view.selected()), (0, None, None));
}

#[test]
fn events_during_pause_appear_afterwards() {
    let mut view = scene();
    let before = (view.events.clone(), view.bans().cloned().collect::<Vec<_>>());
    view.press(Key::Char('p'));
    for second in 0..5 {
        view.apply(block(second, "192.0.2.66", 21, "never"));
    }
    view.tick(at(100_000));
    assert_eq!((view.events.clone(), view.bans().cloned().collect::<Vec<_>>()), before);
    assert!(screen(&view, 80, 24).contains("PAUSED, 5 new"));
    (0..10_000).for_each(|_| view.apply(event(5, "probe", "192.0.2.67", 21, json!({}))));
    assert_eq!(view.waiting(), 10_005);
    view.press(Key::Char('p'));
    assert!(view.events.iter().any(|line| line.text.contains("are not shown")) || view.events.len() == 500);
    assert_eq!((view.waiting(), view.events.len()), (0, 500));
}

#[test]
fn number_of_bans_is_known_before_next_poll() {
    let mut view = View::new(now());
    let bans = |view: &View| view.bans().map(|ban| ban.bans).collect::<Vec<_>>();
    let expires = "2026-11-22T06:32:23Z";
    view.apply(event(1, "block", "192.0.2.7", 23, json!({"expires": expires, "strikes": 3})));
    assert_eq!(bans(&view), [Some(3)]);
    view.apply(event(1, "block", "192.0.2.7", 23, json!({"expires": expires, "method": "hosts-deny"})));
    assert_eq!(bans(&view), [Some(3)], "only the first backend reports the number");
    let unknown = BanInfo::new("192.0.2.9".parse().unwrap(), None, Some(Expiry::Never), now());
    view.apply(Message::Bans(vec![BanRow::from(&unknown)], 1));
    assert_eq!(bans(&view), [None], "the ledger does not have it");
    assert!(screen(&view, 120, 40).contains("unknown     -"), "{}", screen(&view, 120, 40));
}

#[test]
fn rates_restart_with_daemon() {
    let mut view = View::new(now());
    assert_eq!(view.rates(), None);
    for second in 0..100 {
        view.tick(at(second));
        view.apply(status(second, second * 100, second * 2, second));
    }
    let [packets, probes, bans] = view.rates().unwrap();
    assert_eq!([packets.round(), probes.round(), bans.round()], [100.0, 2.0, 60.0]);
    assert_eq!(view.probes(), vec![2; 60]);
    view.tick(at(101));
    view.apply(status(0, 5, 0, 0));
    assert_eq!(view.rates(), None, "another daemon");
}

#[test]
fn attacker_text_is_escaped_for_terminal() {
    let mut view = View::new(now());
    let evil = "\u{1b}[2J\u{7}\u{202e}\u{9b}31mred\n";
    view.apply(event(0, evil, evil, 23, json!({"reason": evil, "class": evil, "subject": evil})));
    let times = json!({"event": "block", "time": "2026-11-21T06:32:13Z", "subject": evil, "expires": "never", "ports": [{"proto": evil, "port": 1, "class": evil}, {"proto": "tcp", "port": 2, "class": evil}]});
    view.apply(received(times));
    view.apply(Message::Answer(Request::Confirm, Err(evil.to_owned())));
    let info = AddressInfo { protected: Some(evil.to_owned()), ..AddressInfo::unsuspected("192.0.2.7") };
    let address = info.address;
    view.apply(Message::Answer(Request::Explain { address }, Ok(Answer::Explained(Box::new(info)))));
    let painted = screen(&view, 80, 24);
    assert!(!painted.chars().any(|c| c != '\n' && c.is_control() || c == '\u{202e}'), "{painted:?}");
    // Lines that are no JSON object, or another object, must not end the view.
    let evil_time = json!({"event": "block", "time": evil, "subject": "192.0.2.1"});
    assert!(serde_json::from_value::<EventRecord>(evil_time.clone()).is_err());
    for value in [json!(null), json!([]), json!("x"), json!({"event": 5, "ports": 7, "time": "äöüäöü"}), evil_time]
    {
        if let Ok(event) = serde_json::from_value(value) {
            view.apply(Message::Event(Box::new(event)));
        }
    }
    screen(&view, 80, 24);
}

#[test]
fn events_and_kinds_are_bounded() {
    let mut view = View::new(now());
    for number in 0..20_000_u32 {
        let source = std::net::Ipv4Addr::from_bits(number).to_string();
        view.apply(event(0, "probe", &source, u16::try_from(number % 60_000).unwrap(), json!({})));
    }
    assert_eq!(view.events.len(), 500);
    assert!(view.sources.top(100_000).len() <= 4_096 && view.ports.top(100_000).len() <= 4_096);
}
