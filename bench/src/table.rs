//! Tables of results, in Markdown so that they can be published as they are printed.

use std::fmt::Display;

/// A bound that a ratio or a value must keep.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// None: the row is for information.
    None,
}

impl Target {
    /// Whether `value` keeps the bound; `None` without one.
    pub fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Target::AtLeast(bound) => Some(value >= bound),
            Target::AtMost(bound) => Some(value <= bound),
            Target::None => None,
        }
    }

    fn describe(self) -> String {
        match self {
            Target::AtLeast(bound) => format!(">= {bound}"),
            Target::AtMost(bound) => format!("<= {bound}"),
            Target::None => "-".into(),
        }
    }
}

/// How a benchmark went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    /// Rows that keep their target.
    pub met: usize,
    /// Rows with a target.
    pub judged: usize,
}

/// One table.
#[derive(Debug)]
pub struct Table {
    rows: Vec<[String; 6]>,
    score: Score,
}

impl Table {
    /// A table under a title, with a line about what was measured.
    pub fn new(title: &str, about: &str) -> Table {
        println!("\n### {title}\n\n{about}\n");
        Table { rows: Vec::new(), score: Score::default() }
    }

    /// A row. `judged` is what the target is about, and `unit` what it is called, such as `x`.
    pub fn row(
        &mut self,
        work: &str,
        ours: &dyn Display,
        (peer, theirs): (&str, &dyn Display),
        (judged, unit): (f64, &str),
        target: Target,
    ) {
        let verdict = match target.is_met(judged) {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        self.score.judged += usize::from(!verdict.is_empty());
        self.score.met += usize::from(verdict == "met");
        let bound = match target {
            Target::None => target.describe(),
            _ => format!("{}{unit}: {verdict}", target.describe()),
        };
        self.rows.push([
            work.into(),
            ours.to_string(),
            peer.into(),
            theirs.to_string(),
            format!("{judged:.2}{unit}"),
            bound,
        ]);
    }

    /// A row for a comparison that could not be made.
    pub fn absent(&mut self, work: &str, peer: &str, reason: &str) {
        self.rows.push([
            work.into(),
            "-".into(),
            peer.into(),
            format!("not measured: {reason}"),
            "-".into(),
            "-".into(),
        ]);
    }

    /// Prints the table and its closing line.
    pub fn print(self, name: &str) -> Score {
        let head = ["work", "memvisor", "peer", "peer's", "ratio", "target"].map(String::from);
        let width = |column: usize| {
            self.rows
                .iter()
                .chain([&head])
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let line = |row: &[String; 6]| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            println!("| {} |", cells.join(" | "));
        };
        line(&head);
        let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
        println!("|{}|", rules.join("|"));
        self.rows.iter().for_each(line);
        println!("\n{name}: {} of {} targets met", self.score.met, self.score.judged);
        self.score
    }
}
