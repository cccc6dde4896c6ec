//! The dashboard.

use memvisor_inspect::views::{MemoryKind, ZoneSample};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::look::{Look, mib, number};

/// By [`MemoryKind`].
const COLOURS: [Color; MemoryKind::ALL.len()] = [
    Color::Blue,
    Color::Cyan,
    Color::Green,
    Color::Yellow,
    Color::Magenta,
    Color::Red,
    Color::Gray,
    Color::DarkGray,
];

/// Draws a look; `note` says what is unusual.
pub(super) fn dashboard(frame: &mut Frame<'_>, look: &Look, note: &str) {
    let zones = u16::try_from(look.sample.zones.len()).unwrap_or(u16::MAX).min(frame.area().height / 3);
    let [head, kinds, middle, tasks] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(4),
        Constraint::Length(zones.max(12) + 2),
        Constraint::Min(3),
    ])
    .areas(frame.area());
    let [zones, lists, rates] = Layout::horizontal([
        Constraint::Percentage(50),
        Constraint::Percentage(22),
        Constraint::Percentage(28),
    ])
    .areas(middle);

    let title = format!("memvisor top  guest {}  {:.1} s  ", look.name, look.seconds);
    let keys = Span::styled("q quit  space stop  m t f p sort", Style::new().fg(Color::DarkGray));
    let note = Span::styled(format!("{note}  "), Style::new().fg(Color::Yellow));
    frame.render_widget(Line::from(vec![Span::raw(title), note, keys]), head);
    draw_kinds(frame, kinds, look);
    draw_zones(frame, zones, &look.sample.zones);
    draw_lists(frame, lists, look);
    draw_rates(frame, rates, look);
    draw_tasks(frame, tasks, look);
}

/// One bar of all memory, and its legend.
fn draw_kinds(frame: &mut Frame<'_>, area: Rect, look: &Look) {
    let block = Block::bordered().title("memory by kind, MiB");
    let width = block.inner(area).width;
    let pages: u64 = look.sample.pages.iter().sum();
    let mut bar = Vec::new();
    let mut legend = Vec::new();
    let (mut drawn, mut sum) = (0, 0);
    for (kind, colour) in MemoryKind::ALL.into_iter().zip(COLOURS) {
        let count = look.sample.of(kind);
        sum += count;
        // By the end of each part, so that rounding does not add up.
        let end = cells(sum, pages, width);
        bar.push(Span::styled("█".repeat(usize::from(end.saturating_sub(drawn))), Style::new().fg(colour)));
        drawn = end;
        if count > 0 {
            legend.push(Span::styled("■ ", Style::new().fg(colour)));
            legend.push(Span::raw(format!("{} {:.1}  ", kind.name(), mib(count))));
        }
    }
    frame.render_widget(Paragraph::new(vec![Line::from(bar), Line::from(legend)]).block(block), area);
}

/// Zones: free pages as a bar of what is managed, red below min, yellow below low.
fn draw_zones(frame: &mut Frame<'_>, area: Rect, zones: &[ZoneSample]) {
    const BAR: u16 = 20;
    let rows = zones.iter().map(|zone| {
        let [min, low, high] = zone.watermarks;
        let colour = if zone.free < min {
            Color::Red
        } else if zone.free < low {
            Color::Yellow
        } else {
            Color::Green
        };
        let bar = "█".repeat(usize::from(cells(zone.free, zone.managed, BAR)));
        Row::new([
            Cell::from(format!("{} {}", zone.node, zone.zone)),
            Cell::from(Span::styled(bar, Style::new().fg(colour))),
            Cell::from(format!("{:>9}", zone.free)),
            Cell::from(format!("{min:>7}")),
            Cell::from(format!("{low:>7}")),
            Cell::from(format!("{high:>7}")),
        ])
    });
    let widths = [
        Constraint::Length(10),
        Constraint::Length(BAR),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(7),
    ];
    let table = Table::new(rows, widths)
        .header(heading(["zone", "free of managed", "     free", "    min", "    low", "   high"]))
        .block(Block::bordered().title("zones, pages"));
    frame.render_widget(table, area);
}

/// LRU lists and swap, and below what reclaim does to them.
fn draw_lists(frame: &mut Frame<'_>, area: Rect, look: &Look) {
    let lists = look.lists().map(|(name, pages)| (name, format!("{:>9.1}", mib(pages))));
    let reclaim = look.reclaim().map(|(name, per_second)| (name, format!("{per_second:>7.0}/s")));
    let rows = lists.chain(reclaim).map(|(name, value)| Row::new([Cell::from(value), Cell::from(name)]));
    let table = Table::new(rows, [Constraint::Length(9), Constraint::Min(10)])
        .block(Block::bordered().title("LRU and swap, MiB"));
    frame.render_widget(table, area);
}

fn draw_rates(frame: &mut Frame<'_>, area: Rect, look: &Look) {
    let rows = look
        .rates
        .iter()
        .map(|rate| Row::new([Cell::from(format!("{:>10.0}", rate.per_second)), Cell::from(rate.name)]));
    let table = Table::new(rows, [Constraint::Length(10), Constraint::Min(10)])
        .block(Block::bordered().title("events per second"));
    frame.render_widget(table, area);
}

fn draw_tasks(frame: &mut Frame<'_>, area: Rect, look: &Look) {
    let rows = look.processes().map(|row| {
        Row::new([
            format!("{:>6}", row.pid),
            row.name.clone(),
            row.state.unwrap_or("-").to_owned(),
            format!("{:>10}", row.rss_kib),
            format!("{:>10}", row.swap_kib),
            format!("{:>10}", row.vsz_kib),
            format!("{:>8}", row.tables_kib),
            format!("{:>9}", row.min_flt),
            format!("{:>7}", row.maj_flt),
        ])
    });
    let widths = [6, 16, 12, 10, 10, 10, 8, 9, 7].map(Constraint::Length);
    let table = Table::new(rows, widths)
        .header(heading([
            "   pid",
            "name",
            "state",
            "   RSS KiB",
            "  swap KiB",
            "   VSZ KiB",
            "  tables",
            "   minflt",
            " majflt",
        ]))
        .block(Block::bordered().title("processes"));
    frame.render_widget(table, area);
}

fn heading<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

/// How many of `width` cells a part of a whole takes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to width")]
fn cells(part: u64, whole: u64, width: u16) -> u16 {
    if whole == 0 {
        return 0;
    }
    (number(part.min(whole)) / number(whole) * f64::from(width)).round() as u16
}

#[cfg(test)]
mod tests {
    use super::super::look::tests::look;
    use super::*;
    use ratatui::{Terminal, backend::TestBackend};

    fn drawn(width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| dashboard(frame, &look(), "it has ended")).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn every_part_is_on_the_screen() {
        let screen = drawn(110, 30);
        for part in [
            "guest lab",
            "it has ended",
            "anonymous 1.0",
            "1 Normal",
            "pgfree",
            "eater",
            "90000",
            "active_anon",
            "88/s",
        ] {
            assert!(screen.contains(part), "{part}:\n{screen}");
        }
    }

    #[test]
    fn no_terminal_is_too_small() {
        for (width, height) in [(1, 1), (20, 5), (200, 3), (3, 60)] {
            drawn(width, height);
        }
    }

    #[test]
    fn a_bar_is_as_long_as_its_part() {
        assert_eq!(cells(1, 2, 20), 10);
        assert_eq!(cells(5, 2, 20), 20, "never beyond its end");
        assert_eq!(cells(1, 0, 20), 0);
    }
}
