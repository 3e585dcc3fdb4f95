//! Draws a [`View`]. Pure, and works for every size: with little room, the least important parts are omitted. Colours
//! only repeat information that is also shown as text.

use std::borrow::Cow;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Block, Borders, Clear, HighlightSpacing, Padding, Paragraph, RenderDirection, Row, Sparkline, Table, TableState,
};

use super::poller::BanRow;
use super::top_counts::TopCounts;
use super::view::{Mode, View, clock};
use crate::control::list::shortened;
use crate::events::json::EventName;
use crate::types::{brief, counted};

// Bold text is not faint, even on a faint line.
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD).remove_modifier(Modifier::DIM);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);
const GOOD: Style = Style::new().fg(Color::Green);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);

fn event_style(name: EventName) -> Style {
    match name {
        EventName::Block | EventName::Run => Style::new().fg(Color::Red),
        EventName::Error => BAD,
        EventName::Unblock | EventName::Expire | EventName::Heal => GOOD,
        EventName::Scan | EventName::Refused => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

/// Minimum width for a second column, which has [`SIDE`] columns.
const WIDE: u16 = 72;
const SIDE: u16 = 22;

/// Minimum size of the terminal.
const MIN_SIZE: (u16, u16) = (20, 8);

/// Minimum height at which a narrow screen shows lines for ports and sources.
const TALL: u16 = 18;

/// Capabilities of the terminal.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) colours: bool,
    /// False if the locale only supports ASCII.
    pub(super) unicode: bool,
}

pub(super) fn draw(frame: &mut Frame<'_>, view: &View, Look { colours, unicode }: Look) {
    let area = frame.area();
    if area.width < MIN_SIZE.0 || area.height < MIN_SIZE.1 {
        frame.render_widget(Paragraph::new(format!("{} by {} at least", MIN_SIZE.0, MIN_SIZE.1)), area);
        return;
    }
    let narrow = area.width < WIDE;
    let heads = if narrow { 3 } else { 2 };
    let lists = if narrow && area.height >= TALL { 2 } else { 0 };
    let rows = [Constraint::Length(heads), Constraint::Fill(1), Constraint::Length(lists), Constraint::Length(1)];
    let [head, body, tops, foot] = Layout::vertical(rows).areas(area);
    let side = if narrow { 0 } else { SIDE };
    let columns = Layout::horizontal([Constraint::Fill(1), Constraint::Length(side)]).spacing(u16::from(!narrow));
    let [main, side] = columns.areas(body);
    let [bans, events] = Layout::vertical([Constraint::Fill(3), Constraint::Fill(2)]).areas(main);
    self::head(frame, head, view);
    self::bans(frame, bans, view);
    self::events(frame, events, view);
    if narrow {
        top_lines(frame, tops, view);
    } else {
        side_panels(frame, side, view);
    }
    self::foot(frame, foot, view);
    match &view.mode {
        Mode::Help => popup(frame, body, "Keys", &HELP, 0),
        Mode::Explained(title, lines, first) => popup(frame, body, title, lines, *first),
        Mode::Bans | Mode::Confirm(..) | Mode::Filter => {}
    }
    if !colours {
        frame.buffer_mut().content.iter_mut().for_each(|cell| cell.fg = Color::Reset);
    }
    if !unicode {
        for cell in frame.buffer_mut().content.iter_mut().filter(|cell| !cell.symbol().is_ascii()) {
            let ascii = cell.symbol().chars().next().map_or(' ', in_ascii);
            cell.set_char(ascii);
        }
    }
}

/// The ASCII replacement of a character.
fn in_ascii(c: char) -> char {
    match c {
        '─' => '-',
        '│' => '|',
        '┌' | '┐' | '└' | '┘' => '+',
        '·' | '▁' => '.',
        '▂' | '▃' => ':',
        '▄' | '▅' => '+',
        '▆' | '▇' => '*',
        '█' => '#',
        '…' => '~',
        _ => '?',
    }
}

fn head(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let status = view.status.as_deref();
    let state = match (&view.lost, status) {
        (Some(_), _) => Span::styled("no connection", BAD),
        (None, None) => Span::styled("connecting", GOOD),
        (None, Some(status)) => Span::styled(status.state.to_string(), GOOD),
    };
    let version = status.map_or(String::new(), |status| format!(" {}", status.version));
    let mut title = Line::from_iter([Span::styled(format!("portsentry{version}"), STRONG), Span::raw("  "), state]);
    if view.paused {
        title.extend([Span::raw("  "), Span::styled(format!("PAUSED, {} new", view.waiting()), CHOSEN)]);
    }
    let clock = Line::from(Span::styled(format!("{} UTC", clock(view.now)), FAINT));
    if title.width() + clock.width() < usize::from(area.width) {
        frame.render_widget(clock.right_aligned(), area);
    }
    let rates = match view.rates() {
        Some([packets, probes, bans]) => {
            let word = if area.width < WIDE { "pkts" } else { "packets" };
            format!("{word} {}/s  probes {}/s  bans {}/min", rate(packets), rate(probes), rate(bans))
        }
        None => "packets -/s  probes -/s  bans -/min".to_owned(),
    };
    let sources = status.map_or(0, |status| status.sources_tracked);
    let mut counts = format!("blocked {}  suspects {sources}", view.all.max(view.bans().count()));
    // Only if the capture has lost packets.
    if let Some(dropped) = status.map(|status| status.packets.dropped).filter(|dropped| *dropped > 0) {
        counts.push_str(&format!("  {} lost", counted(dropped, "packet")));
    }
    let counters = if area.height > 2 { vec![rates, counts] } else { vec![format!("{rates}   {counts}")] };
    let counters = counters.iter().map(|text| Line::raw(shortened(text, area.width.into())));
    frame.render_widget(Paragraph::new(Vec::from_iter(std::iter::once(title).chain(counters))), area);
}

/// Formats a rate briefly: "0", "3.2", "140", "12.3k", "1.2M".
fn rate(value: f64) -> String {
    match value {
        value if value < 0.05 => "0".to_owned(),
        value if value < 10.0 => format!("{value:.1}"),
        value if value < 10_000.0 => format!("{value:.0}"),
        value if value < 1_000_000.0 => format!("{:.1}k", value / 1_000.0),
        value => format!("{:.1}M", value / 1_000_000.0),
    }
}

fn panel(title: &str) -> Block<'_> {
    Block::new().borders(Borders::TOP).border_style(FAINT).title(Span::styled(title, STRONG))
}

fn bans(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let shown = view.bans().count();
    let title = match (view.filter.as_str(), view.all > shown) {
        ("", false) => format!(" Bans {shown} "),
        ("", true) => format!(" Bans, the {shown} of {} that end next ", view.all),
        (filter, _) => format!(" Bans matching \"{filter}\": {shown} "),
    };
    let title = shortened(&title, area.width.into());
    let block = panel(&title);
    if shown == 0 {
        let text = match (view.filter.is_empty(), view.known) {
            (false, _) => "no match; Esc clears the filter",
            (true, true) => "no source is blocked",
            (true, false) => "no bans seen so far",
        };
        frame.render_widget(Paragraph::new(Line::styled(text, FAINT)).block(block), area);
        return;
    }
    // Only visible bans become rows: there may be thousands.
    let rows = usize::from(area.height).saturating_sub(2);
    let selected = view.selected();
    let offset = selected.map_or(0, |at| (at + 1).saturating_sub(rows.max(1)));
    let visible: Vec<&BanRow> = view.bans().skip(offset).take(rows).collect();
    let widths = column_widths(&visible, area.width);
    let row = |cells: [&str; 5]| {
        let cells = cells.into_iter().zip(widths).zip([false, true, false, true, false]);
        Row::new(cells.filter(|((_, width), _)| *width > 0).map(|((text, width), right)| {
            let cell = Line::raw(shortened(text, width.into()));
            if right { cell.right_aligned() } else { cell }
        }))
    };
    let table = visible.iter().map(|ban| {
        let address = format!("{} {}", if ban.lacking { '!' } else { ' ' }, ban.target);
        let left = ban.left(view.now).map_or_else(|| "no end".to_owned(), brief);
        let bans = ban.bans.map_or_else(|| "-".to_owned(), |bans| bans.to_string());
        row([&address, &left, &ban.class, &bans, &ban.ports])
    });
    let table = Table::new(table, widths.into_iter().filter(|width| *width > 0))
        .header(row(["  ADDRESS", "LEFT", "REASON", "BANS", "PORTS"]).style(FAINT))
        .column_spacing(GAP)
        .highlight_symbol(">")
        .highlight_spacing(HighlightSpacing::Always)
        .row_highlight_style(CHOSEN)
        .block(block);
    let mut state = TableState::new().with_selected(selected.map(|at| at - offset));
    frame.render_stateful_widget(table, area, &mut state);
}

/// Space between two columns.
const GAP: u16 = 2;

/// Widths of the columns in screen order; 0 if omitted. They get room by importance: address with its mark, time,
/// reason, ports, number of bans.
fn column_widths(bans: &[&BanRow], width: u16) -> [u16; 5] {
    let longest = |length: fn(&BanRow) -> usize| {
        let longest = bans.iter().map(|ban| length(ban)).max().unwrap_or(0);
        u16::try_from(longest).unwrap_or(u16::MAX)
    };
    // The first column marks the selected ban.
    let mut room = width.saturating_sub(1);
    let mut column = |wanted: u16, least: u16| {
        let got = room.min(wanted);
        if got < least {
            return 0;
        }
        room = room.saturating_sub(got + GAP);
        got
    };
    let address = column(longest(|ban| ban.target.to_string().len()).clamp(7, (width / 2).max(15)) + 2, 1);
    let left = column(7, 7);
    let class = column(longest(|ban| ban.class.len()).max(6), 4);
    let ports = column(longest(|ban| ban.ports.len()).max(5), 5);
    let bans = column(4, 4);
    [address, left, class, bans, ports]
}

fn events(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let block = panel(" Events ");
    if view.newest().next().is_none() {
        frame.render_widget(Paragraph::new(Line::styled("no events yet", FAINT)).block(block), area);
        return;
    }
    let rows = view.newest().take(usize::from(area.height).saturating_sub(1)).map(|line| {
        Row::new([
            Span::styled(line.time.as_str(), FAINT),
            Span::styled(line.name.key(), event_style(line.name)),
            Span::raw(shortened(&line.text, usize::from(area.width).saturating_sub(18))),
        ])
    });
    let mut rows = Vec::from_iter(rows);
    rows.reverse();
    let widths = [Constraint::Length(8), Constraint::Length(8), Constraint::Fill(1)];
    frame.render_widget(Table::new(rows, widths).block(block), area);
}

/// Ports, sources and the last minute, in a column next to the lists.
fn side_panels(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let rows = if area.height >= 14 { 3 } else { 0 };
    let areas = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1), Constraint::Length(rows)]);
    let [ports, sources, minute] = areas.areas(area);
    let width = usize::from(area.width);
    for (area, title, counts) in [(ports, " Ports ", &view.ports), (sources, " Sources ", &view.sources)] {
        let line = |(kind, count): (&str, u64)| {
            let count = count.to_string();
            let room = width.saturating_sub(count.len());
            Line::raw(format!("{:<room$}{count}", shortened(kind, room.saturating_sub(1))))
        };
        let lines: Vec<Line<'_>> = counts.top(area.height.into()).into_iter().map(line).collect();
        frame.render_widget(Paragraph::new(lines).block(panel(title)), area);
    }
    let block = panel(" Probes, last minute ");
    let inner = block.inner(minute);
    frame.render_widget(block, minute);
    let bars = Sparkline::default()
        .data(bars(&view.probes(), width))
        .max(BAR_HEIGHT)
        .direction(RenderDirection::RightToLeft)
        .absent_value_symbol("·")
        .style(GOOD);
    frame.render_widget(bars, Rect { height: inner.height.min(1), ..inner });
}

/// Height of a full bar in eighths of a row.
const BAR_HEIGHT: u64 = 8;

/// Heights of at most `width` bars, newest first, each for a number of seconds; `None` without probes, otherwise at
/// least two eighths.
fn bars(values: &[u64], width: usize) -> Vec<Option<u64>> {
    let stretch = values.len().div_ceil(width.max(1)).max(1);
    let sums: Vec<u64> = values.rchunks(stretch).map(|part| part.iter().sum()).collect();
    let most = sums.iter().copied().max().unwrap_or(0).max(1);
    sums.iter().map(|sum| (*sum > 0).then(|| 1 + sum.saturating_mul(BAR_HEIGHT - 1).div_ceil(most))).collect()
}

/// Ports and sources in one line each.
fn top_lines(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let line = |label: &'static str, counts: &TopCounts| {
        let top: Vec<String> = counts.top(5).into_iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let rest = shortened(&top.join("  "), usize::from(area.width).saturating_sub(label.len() + 1));
        Line::from_iter([Span::styled(label, FAINT), Span::raw(" "), Span::raw(rest)])
    };
    frame.render_widget(Paragraph::new(vec![line("ports", &view.ports), line("sources", &view.sources)]), area);
}

fn foot(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let width = usize::from(area.width);
    let (text, style): (Cow<'_, str>, Style) = match (&view.mode, &view.answer, &view.lost, &view.note) {
        (Mode::Confirm(question, _), ..) => (question.into(), STRONG),
        (Mode::Filter, ..) => (format!("filter: {}_  Enter keeps it, Esc clears it", view.filter).into(), STRONG),
        (Mode::Help, ..) => ("any key closes".into(), FAINT),
        (Mode::Explained(..), ..) => ("j k scroll  any other key closes".into(), FAINT),
        (Mode::Bans, Some((answer, done, _)), ..) => (answer.into(), if *done { GOOD } else { BAD }),
        (Mode::Bans, None, Some(lost), _) => (format!("reconnecting: {lost}").into(), BAD),
        (Mode::Bans, None, None, Some(note)) if view.events.is_empty() => (note.into(), FAINT),
        (Mode::Bans, ..) => {
            let fits = KEYS.iter().find(|keys| keys.chars().count() <= width);
            (fits.copied().unwrap_or("? help").into(), FAINT)
        }
    };
    frame.render_widget(Paragraph::new(Line::styled(shortened(&text, width), style)), area);
}

/// The key line, longest version first.
const KEYS: [&str; 3] = [
    "j k select  u unblock  a allow  e explain  / filter  p pause  ? help  q quit",
    "jk select u unblock a allow ? help q quit",
    "jk u a e / p  ? help  q quit",
];

const HELP: [&str; 10] = [
    "j k arrows  select a ban",
    "g G         first or last ban",
    "u           unblock it, if confirmed",
    "a           allow it, if confirmed",
    "e Enter     explain it",
    "/           filter by a text",
    "Esc         show all, select nothing",
    "p           pause or resume",
    "q Ctrl-C    quit",
    "!           missing in the kernel",
];

/// A window in the middle of `area`, as large as its lines need. Long lines continue with an indent.
fn popup(frame: &mut Frame<'_>, area: Rect, title: &str, lines: &[impl AsRef<str>], first: usize) {
    let longest =
        lines.iter().map(|line| line.as_ref().chars().count()).max().unwrap_or(0).max(title.chars().count() + 2);
    let width = u16::try_from(longest + 4).unwrap_or(u16::MAX).min(area.width);
    let inside = usize::from(width.saturating_sub(4)).max(1);
    // Addresses and times are not broken at hyphens.
    let wrapping = textwrap::Options::new(inside)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .subsequent_indent(if inside > 24 { INDENT } else { "" });
    let lines: Vec<Line<'_>> =
        lines.iter().flat_map(|line| textwrap::wrap(line.as_ref(), &wrapping)).map(Line::from).collect();
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let rows = usize::from(height.saturating_sub(2));
    let first = first.min(lines.len().saturating_sub(rows));
    let more = if lines.len() > first + rows { " more below " } else { "" };
    let block = Block::bordered()
        .padding(Padding::horizontal(1))
        .title(Span::styled(format!(" {title} "), STRONG))
        .title_bottom(Span::styled(more, FAINT));
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let lines: Vec<Line<'_>> = lines.into_iter().skip(first).collect();
    frame.render_widget(Paragraph::new(lines).block(block), place);
}

/// The width of the labels of `explain`.
const INDENT: &str = "            ";
