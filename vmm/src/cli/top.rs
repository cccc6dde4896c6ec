//! `memvisor top`: a guest's memory as it changes, read from outside without stopping it.

mod draw;
mod look;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::{
    out,
    source::{Source, SourceArgs},
};
use look::{Look, Order, Watch};

/// How soon a key is answered.
const KEYS: Duration = Duration::from_millis(50);

/// Arguments of `top`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Keys: q quit, space stop and go on, m processes by memory, t by page tables, f by faults, p by number

Examples:
  memvisor top                               the only running guest, twice a second
  memvisor top --vm lab --interval 0.1
  memvisor top --once                        one look as text, for a script or a log
  memvisor top --json --count 20 > looks.jsonl")]
pub(super) struct TopArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Seconds from one look to the next
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = parse_interval)]
    interval: Duration,
    /// Print one look as text and end
    #[arg(long, conflicts_with_all = ["json", "count"])]
    once: bool,
    /// Print each look as a line of JSON
    #[arg(long)]
    json: bool,
    /// End after so many looks
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{text:?} is no number of seconds: {error}"))?;
    let interval = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if interval < Duration::from_millis(10) {
        return Err("at least 0.01 seconds".to_owned());
    }
    Ok(interval)
}

pub(super) fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let source = args.source.open()?;
    let mut watch = Watch::new(&source);
    if args.once {
        // Rates need two looks.
        watch.look(Order::Memory)?;
        std::thread::sleep(args.interval);
        out::text(&watch.look(Order::Memory)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.json {
        return lines(args, &source, &mut watch);
    }
    if !io::stdout().is_terminal() {
        return Err(out::BadInput(
            "top draws on a terminal, and the output is none: use --once or --json".to_owned(),
        )
        .into());
    }
    let mut terminal = ratatui::try_init()?;
    let shown = show(args, &source, &mut watch, &mut terminal);
    ratatui::restore();
    shown?;
    Ok(ExitCode::SUCCESS)
}

/// A line of JSON for each look, until the guest is gone.
fn lines(args: &TopArgs, source: &Source, watch: &mut Watch<'_>) -> anyhow::Result<ExitCode> {
    let mut left = args.count;
    while left != Some(0) {
        let mut line = serde_json::to_vec(&watch.look(Order::Memory)?)?;
        line.push(b'\n');
        out::write(&line)?;
        left = left.map(|left| left - 1);
        if left == Some(0) || source.is_gone() {
            break;
        }
        std::thread::sleep(args.interval);
    }
    Ok(ExitCode::SUCCESS)
}

/// Draws until somebody says `q`, or enough was seen.
fn show(
    args: &TopArgs,
    source: &Source,
    watch: &mut Watch<'_>,
    terminal: &mut ratatui::DefaultTerminal,
) -> anyhow::Result<()> {
    let mut order = Order::Memory;
    let mut stopped = false;
    let mut left = args.count;
    let mut next = Instant::now();
    let mut look: Option<Look> = None;
    loop {
        if !stopped && Instant::now() >= next {
            // A guest that is gone stands as it was.
            if !source.is_gone() {
                look = Some(watch.look(order)?);
                left = left.map(|left| left.saturating_sub(1));
            }
            next = Instant::now() + args.interval;
        }
        let note = if source.is_gone() {
            "it has ended"
        } else if stopped {
            "stopped looking"
        } else {
            ""
        };
        if let Some(look) = &look {
            terminal.draw(|frame| draw::dashboard(frame, look, note))?;
        }
        if left == Some(0) {
            return Ok(());
        }
        if !event::poll(KEYS)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind != KeyEventKind::Press {
            continue;
        }
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
            KeyCode::Char(' ') => stopped = !stopped,
            KeyCode::Char(letter) => {
                if let Some(chosen) = Order::of_key(letter) {
                    order = chosen;
                    if let Some(look) = &mut look {
                        look.sort(order);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_seconds_and_not_too_short() {
        assert_eq!(parse_interval("0.25"), Ok(Duration::from_millis(250)));
        for wrong in ["0", "-1", "soon", "inf", "0.001"] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
        }
    }
}
