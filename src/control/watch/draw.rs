//! A [`View`] to a frame of the terminal. Pure, and for every size: where there is little room, what matters least goes.
//! A colour says nothing that is not there as a word or a mark as well.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph};
use serde_json::Value;

use super::ban::Ban;
use super::tally::Tally;
use super::view::{Mode, View, Wish};
use super::words::clock;
use crate::control::list::{brief, shortened};

/// The styles of the screen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette(bool);

impl Palette {
    /// With colours or without.
    pub(super) fn of(colours: bool) -> Self {
        Self(colours)
    }

    fn colour(self, colour: Color) -> Style {
        if self.0 { Style::new().fg(colour) } else { Style::new() }
    }

    fn strong(self) -> Style {
        // On a faint line it is not faint.
        Style::new().add_modifier(Modifier::BOLD).remove_modifier(Modifier::DIM)
    }

    fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn bad(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn good(self) -> Style {
        self.colour(Color::Green)
    }

    fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    fn event(self, kind: &str) -> Style {
        match kind {
            "block" | "run" => self.colour(Color::Red),
            "error" => self.bad(),
            "unblock" | "expire" | "heal" => self.good(),
            "scan" | "refused" => self.colour(Color::Yellow),
            _ => Style::new(),
        }
    }
}

/// Columns from which on there is a second column of lists.
const WIDE: u16 = 72;
const SIDE: u16 = 22;

/// Below this there is no room for anything.
const LEAST: (u16, u16) = (20, 8);

/// Rows from which on a narrow screen has a line for each list.
const TALL: u16 = 18;

/// Paints `view`.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, palette: Palette) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!("{} by {} at least", LEAST.0, LEAST.1);
        frame.render_widget(Paragraph::new(shortened(&text, area.width.into())), area);
        return;
    }
    let narrow = area.width < WIDE;
    let heads = if narrow { 3 } else { 2 };
    let lists = if narrow && area.height >= TALL { 2 } else { 0 };
    let rows = [Constraint::Length(heads), Constraint::Fill(1), Constraint::Length(lists), Constraint::Length(1)];
    let [head, body, tops, foot] = Layout::vertical(rows).areas(area);
    self::head(frame, head, view, palette);
    let side = if narrow { 0 } else { SIDE };
    let columns = Layout::horizontal([Constraint::Fill(1), Constraint::Length(side)]).spacing(u16::from(!narrow));
    let [main, side] = columns.areas(body);
    let [bans, events] = Layout::vertical([Constraint::Fill(3), Constraint::Fill(2)]).areas(main);
    self::bans(frame, bans, view, palette);
    self::events(frame, events, view, palette);
    if narrow {
        brief_lists(frame, tops, view, palette);
    } else {
        lists_beside(frame, side, view, palette);
    }
    self::foot(frame, foot, view, palette);
    match &view.mode {
        Mode::Help => popup(frame, body, "Keys", &HELP.map(str::to_owned), 0, palette),
        Mode::Explained(title, lines, first) => popup(frame, body, title, lines, *first, palette),
        Mode::Bans | Mode::Sure(..) | Mode::Filter => {}
    }
}

fn head(frame: &mut Frame<'_>, area: Rect, view: &View, palette: Palette) {
    let width = usize::from(area.width);
    let text = |key: &str| view.status.get(key).and_then(Value::as_str).unwrap_or_default();
    let state = match (&view.lost, view.status.is_empty()) {
        (Some(_), _) => "not reached".to_owned(),
        (None, true) => "asking".to_owned(),
        (None, false) => text("state").to_owned(),
    };
    let clock = format!("{} UTC", clock(view.now));
    let mut first =
        vec![Span::styled(format!("portsentry {}", text("version")).trim_end().to_owned(), palette.strong())];
    let style = if view.lost.is_some() { palette.bad() } else { palette.good() };
    first.extend([Span::raw("  "), Span::styled(state, style)]);
    if view.paused {
        first.extend([Span::raw("  "), Span::styled(format!("PAUSED, {} wait", view.waiting()), palette.chosen())]);
    }
    let used: usize = first.iter().map(|span| span.content.chars().count()).sum();
    if let Some(gap) = width.checked_sub(used + clock.len()).filter(|gap| *gap > 0) {
        first.extend([Span::raw(" ".repeat(gap)), Span::styled(clock, palette.faint())]);
    }
    let rates = match view.rates() {
        Some([packets, probes, bans]) => [
            format!("{} {}/s", if area.width < WIDE { "pkts" } else { "packets" }, rate(packets)),
            format!("probes {}/s", rate(probes)),
            format!("bans {}/min", rate(bans)),
        ],
        None => ["packets -/s", "probes -/s", "bans -/min"].map(str::to_owned),
    };
    let of = |part: &str, key: &str| view.status.get(part).and_then(|part| part.get(key)).and_then(Value::as_u64);
    let sources = view.status.get("sources_tracked").and_then(Value::as_u64).unwrap_or(0);
    let mut counts = vec![format!("blocked {}", view.all.max(view.bans().count())), format!("suspects {sources}")];
    // What the capture lost is worth a place only where it lost something.
    if let Some(dropped) = of("packets", "dropped").filter(|dropped| *dropped > 0) {
        counts.push(format!("{dropped} packets lost"));
    }
    let mut lines = vec![Line::from(first)];
    if area.height > 2 {
        lines.push(Line::raw(shortened(&rates.join("  "), width)));
        lines.push(Line::raw(shortened(&counts.join("  "), width)));
    } else {
        lines.push(Line::raw(shortened(&format!("{}   {}", rates.join("  "), counts.join("  ")), width)));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// Short enough to be read at a glance: "0", "3.2", "140", "12.3k", "1.2M".
fn rate(value: f64) -> String {
    match value {
        value if value < 0.05 => "0".to_owned(),
        value if value < 10.0 => format!("{value:.1}"),
        value if value < 10_000.0 => format!("{value:.0}"),
        value if value < 1_000_000.0 => format!("{:.1}k", value / 1_000.0),
        value => format!("{:.1}M", value / 1_000_000.0),
    }
}

fn titled(title: String, palette: Palette) -> Block<'static> {
    Block::new().borders(Borders::TOP).border_style(palette.faint()).title(Span::styled(title, palette.strong()))
}

/// Paints the frame's head and gives the room below it.
fn panel(frame: &mut Frame<'_>, area: Rect, title: String, palette: Palette) -> Rect {
    let block = titled(title, palette);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    inner
}

fn bans(frame: &mut Frame<'_>, area: Rect, view: &View, palette: Palette) {
    let shown = view.bans().count();
    let title = match (view.filter.as_str(), view.all > shown) {
        ("", false) => format!(" Bans {shown} "),
        ("", true) => format!(" Bans, the next {shown} of {} to end ", view.all),
        (filter, _) => format!(" Bans {shown} with \"{filter}\" "),
    };
    let inner = panel(frame, area, shortened(&title, area.width.into()), palette);
    let (width, rows) = (usize::from(inner.width), usize::from(inner.height).saturating_sub(1));
    if shown == 0 {
        let nobody = match (view.filter.is_empty(), view.known) {
            (false, _) => "none of them; Esc ends the filter",
            (true, true) => "nobody is blocked",
            (true, false) => "none seen so far",
        };
        frame.render_widget(Paragraph::new(Line::styled(nobody, palette.faint())), inner);
        return;
    }
    let selected = view.selected();
    let offset = selected.map_or(0, |at| (at + 1).saturating_sub(rows.max(1)));
    let visible: Vec<&Ban> = view.bans().skip(offset).take(rows).collect();
    let columns = Columns::fit(&visible, width);
    let mut lines =
        vec![Line::styled(columns.row("   ", ["ADDRESS", "LEFT", "REASON", "BANS", "PORTS"]), palette.faint())];
    for (at, ban) in visible.iter().enumerate() {
        let left = ban.left(view.now).map_or_else(|| "ever".to_owned(), brief);
        let chosen = selected == Some(at + offset);
        let marks = format!("{}{} ", if chosen { '>' } else { ' ' }, if ban.lacking { '!' } else { ' ' });
        let bans = (u64::from(ban.strikes) + 1).to_string();
        let text = columns.row(&marks, [&ban.subject, &left, &ban.class, &bans, &ban.ports]);
        lines.push(Line::styled(text, if chosen { palette.chosen() } else { Style::new() }));
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

/// How wide the columns of the bans are; 0: left out.
struct Columns {
    width: usize,
    address: usize,
    class: usize,
    bans: usize,
    ports: usize,
}

impl Columns {
    /// As wide as these bans need, in the order of what matters: address, time, reason, ports, how often.
    fn fit(bans: &[&Ban], width: usize) -> Self {
        let longest = |least: usize, text: fn(&Ban) -> &str| {
            bans.iter().map(|ban| text(ban).chars().count()).max().unwrap_or(0).max(least)
        };
        let address = longest(7, |ban| &ban.subject).min((width / 2).max(15));
        let room = width.saturating_sub(MARKS + address + GAP + LEFT);
        // What `wanted` gets of `room`; less than `least` is none.
        let share = |room: usize, wanted: usize, least: usize| {
            let got = room.saturating_sub(GAP).min(wanted);
            if got < least { (0, room) } else { (got, room - got - GAP) }
        };
        let (class, room) = share(room, longest(6, |ban| &ban.class), 4);
        let wanted = longest(5, |ban| &ban.ports);
        let (ports, left) = share(room, wanted, 5);
        let bans = if left >= BANS + GAP { BANS } else { 0 };
        Self { width, address, class, bans, ports }
    }

    fn row(&self, marks: &str, [subject, left, class, bans, ports]: [&str; 5]) -> String {
        let address = self.address;
        let mut text = format!("{marks}{:<address$}  {left:>LEFT$}", shortened(subject, address));
        for (cell, width, right) in [(class, self.class, false), (bans, self.bans, true), (ports, self.ports, false)] {
            if width > 0 {
                let cell = shortened(cell, width);
                text.push_str(&if right { format!("  {cell:>width$}") } else { format!("  {cell:<width$}") });
            }
        }
        shortened(text.trim_end(), self.width)
    }
}

const MARKS: usize = 3;
const GAP: usize = 2;
/// "23h59m" and the like.
const LEFT: usize = 7;
const BANS: usize = 4;

fn events(frame: &mut Frame<'_>, area: Rect, view: &View, palette: Palette) {
    let inner = panel(frame, area, " Events ".to_owned(), palette);
    let width = usize::from(inner.width);
    let mut lines: Vec<Line<'_>> = view
        .newest()
        .take(inner.height.into())
        .map(|line| {
            let kind = format!("{:<8}", shortened(&line.kind, 8));
            let rest = shortened(&line.text, width.saturating_sub(18));
            Line::from(vec![
                Span::styled(format!("{} ", line.time), palette.faint()),
                Span::styled(kind, palette.event(&line.kind)),
                Span::raw(" "),
                Span::raw(rest),
            ])
        })
        .collect();
    lines.reverse();
    if lines.is_empty() {
        lines.push(Line::styled("nothing yet", palette.faint()));
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

/// Ports, sources and the last minute, beside the rest.
fn lists_beside(frame: &mut Frame<'_>, area: Rect, view: &View, palette: Palette) {
    let rows = if area.height >= 14 { 3 } else { 0 };
    let areas = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1), Constraint::Length(rows)]);
    let [ports, sources, minute] = areas.areas(area);
    for (area, title, tally) in [(ports, " Ports ", &view.ports), (sources, " Sources ", &view.sources)] {
        let inner = panel(frame, area, title.to_owned(), palette);
        let width = usize::from(inner.width);
        let line = |(kind, count): (&str, u64)| {
            let count = count.to_string();
            let kind = shortened(kind, width.saturating_sub(count.len() + 1));
            let gap = width.saturating_sub(kind.chars().count() + count.len());
            Line::raw(format!("{kind}{}{count}", " ".repeat(gap)))
        };
        let lines: Vec<Line<'_>> = tally.top(inner.height.into()).into_iter().map(line).collect();
        frame.render_widget(Paragraph::new(lines), inner);
    }
    if rows > 0 {
        let inner = panel(frame, minute, " Probes, last minute ".to_owned(), palette);
        frame.render_widget(
            Paragraph::new(Line::styled(bars(&view.probes(), inner.width.into()), palette.good())),
            inner,
        );
    }
}

/// One bar a stretch of seconds, in eighths of the highest.
fn bars(values: &[u64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let stretch = values.len().div_ceil(width.max(1)).max(1);
    let sums: Vec<u64> = values.rchunks(stretch).rev().map(|part| part.iter().sum()).collect();
    let most = sums.iter().copied().max().unwrap_or(0).max(1);
    let bar = |sum: &u64| {
        let height = usize::try_from((sum.saturating_mul(7)).div_ceil(most)).unwrap_or(7);
        if *sum == 0 { '·' } else { BARS.get(height).copied().unwrap_or('█') }
    };
    let line: String = sums.iter().map(bar).collect();
    format!("{line:>width$}")
}

/// The same in a line each.
fn brief_lists(frame: &mut Frame<'_>, area: Rect, view: &View, palette: Palette) {
    let line = |word: &'static str, tally: &Tally| {
        let top: Vec<String> = tally.top(5).into_iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let rest = shortened(&top.join("  "), usize::from(area.width).saturating_sub(word.len() + 1));
        Line::from(vec![Span::styled(word, palette.faint()), Span::raw(" "), Span::raw(rest)])
    };
    frame.render_widget(Paragraph::new(vec![line("ports", &view.ports), line("from", &view.sources)]), area);
}

fn foot(frame: &mut Frame<'_>, area: Rect, view: &View, palette: Palette) {
    let width = usize::from(area.width);
    let (text, style) = match (&view.mode, &view.answer, &view.lost, &view.note) {
        (Mode::Sure(Wish::Unblock, subject), ..) => (format!("Unblock {subject}? y/n"), palette.strong()),
        (Mode::Sure(Wish::Allow, subject), ..) => {
            (format!("Never block {subject} until the daemon ends? y/n"), palette.strong())
        }
        (Mode::Filter, ..) => (format!("filter: {}_  Enter keeps it, Esc ends it", view.filter), palette.strong()),
        (Mode::Help, ..) => ("any key closes".to_owned(), palette.faint()),
        (Mode::Explained(..), ..) => ("j k scroll  any other key closes".to_owned(), palette.faint()),
        (Mode::Bans, Some((answer, true)), ..) => (answer.clone(), palette.good()),
        (Mode::Bans, Some((answer, false)), ..) => (answer.clone(), palette.bad()),
        (Mode::Bans, None, Some(lost), _) => (format!("waiting: {lost}"), palette.bad()),
        (Mode::Bans, None, None, Some(note)) if view.events.is_empty() => (note.clone(), palette.faint()),
        (Mode::Bans, ..) => {
            let fits = KEYS.iter().find(|keys| keys.chars().count() <= width);
            (fits.copied().unwrap_or("? help").to_owned(), palette.faint())
        }
    };
    frame.render_widget(Paragraph::new(Line::styled(shortened(&text, width), style)), area);
}

/// The last line, from the longest on.
const KEYS: [&str; 3] = [
    "j k select  u unblock  a allow  e explain  / filter  p pause  ? help  q quit",
    "jk select u unblock a allow ? help q quit",
    "jk u a e / p  ? help  q quit",
];

const HELP: [&str; 10] = [
    "j k arrows  select a ban",
    "g G         the first, the last",
    "u           unblock it; asks first",
    "a           never block it; asks",
    "e Enter     what is known of it",
    "/           only what has this in it",
    "Esc         all, and none selected",
    "p           pause, and go on",
    "q Ctrl-C    quit",
    "!           the kernel lacks the ban",
];

/// A window over the middle of `area`, as large as its lines need.
fn popup(frame: &mut Frame<'_>, area: Rect, title: &str, lines: &[String], first: usize, palette: Palette) {
    let longest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0).max(title.chars().count() + 2);
    let size = |wanted: usize, most: u16| u16::try_from(wanted).unwrap_or(u16::MAX).min(most);
    let width = size(longest + 4, area.width);
    // A long line goes on below.
    let inside = usize::from(width.saturating_sub(4)).max(1);
    let folded: Vec<Line<'_>> = lines.iter().flat_map(|line| folded(line, inside)).map(Line::raw).collect();
    let height = size(folded.len() + 2, area.height);
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let rows = usize::from(height.saturating_sub(2));
    let first = first.min(folded.len().saturating_sub(rows));
    let more = if folded.len() > first + rows { " more below " } else { "" };
    let block = Block::bordered()
        .title(Span::styled(format!(" {title} "), palette.strong()))
        .title_bottom(Span::styled(more, palette.faint()));
    let inner = block.inner(place);
    frame.render_widget(Clear, place);
    frame.render_widget(block, place);
    let inner = Rect { x: inner.x + 1, width: inner.width.saturating_sub(2), ..inner };
    frame.render_widget(Paragraph::new(folded.into_iter().skip(first).take(rows).collect::<Vec<_>>()), inner);
}

/// A line in pieces of at most `width` columns, those after the first set in where there is room for it.
fn folded(line: &str, width: usize) -> Vec<String> {
    let indent = if width > 24 { 12 } else { 0 };
    let mut pieces = Vec::new();
    let mut piece = String::new();
    let mut used = 0;
    for word in line.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if used + length > width && used > indent {
            pieces.push(std::mem::take(&mut piece));
            piece = " ".repeat(indent);
            used = indent;
        }
        for c in word.chars() {
            if used >= width {
                // A blank at the end is no loss.
                if c == ' ' {
                    continue;
                }
                pieces.push(std::mem::take(&mut piece));
                piece = " ".repeat(indent);
                used = indent;
            }
            piece.push(c);
            used += 1;
        }
    }
    pieces.push(piece);
    pieces
}
