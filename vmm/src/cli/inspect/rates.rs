//! `memvisor inspect vmstat --rate`: what changes in a running guest, by second, read without stopping it.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use memvisor_inspect::views::VmstatView;
use memvisor_report::{Align, Table};
use serde::Serialize;

use crate::cli::{out, source::Source};

/// A look at what changed.
#[derive(Debug, Serialize)]
struct Rates<'a> {
    /// Seconds since the first look.
    seconds: f64,
    /// What changed.
    rates: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    count: u64,
    per_second: f64,
}

/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) fn run(source: &Source, json: bool, interval: Duration, count: Option<u64>) -> anyhow::Result<()> {
    let look = || -> anyhow::Result<VmstatView> { Ok(VmstatView::new(&source.guest()?)?) };
    let begin = Instant::now();
    let (mut before, mut then) = (look()?, 0.0);
    let mut left = count;
    while left != Some(0) && !source.is_gone() {
        std::thread::sleep(interval);
        let now = look()?;
        let seconds = begin.elapsed().as_secs_f64();
        let rates = now.rates(&before, seconds - then);
        let rows = rates.iter().map(|(row, per_second)| Row {
            name: &row.name,
            count: row.count,
            per_second: *per_second,
        });
        show(&Rates { seconds, rates: rows.collect() }, json)?;
        drop(rates);
        (before, then) = (now, seconds);
        left = left.map(|left| left - 1);
    }
    Ok(())
}

fn show(rates: &Rates<'_>, json: bool) -> anyhow::Result<()> {
    if json {
        let mut line = serde_json::to_vec(rates)?;
        line.push(b'\n');
        return Ok(out::write(&line)?);
    }
    let mut table = Table::new(["count", "now", "by second"]).align(1, Align::Right).align(2, Align::Right);
    for row in &rates.rates {
        table.row([row.name.to_owned(), row.count.to_string(), format!("{:+.0}", row.per_second)]);
    }
    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
    Ok(out::text(&format!("{clear}{:.1} s: {} counts changed\n{table}", rates.seconds, rates.rates.len()))?)
}
