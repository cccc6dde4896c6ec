//! Aligned columns.

use std::fmt;

/// Side of a column on which its text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Names.
    Left,
    /// Numbers.
    Right,
}

/// Rows of text under a heading, printed with aligned columns, two spaces apart, without trailing
/// blanks. A row shorter than the heading leaves its last columns empty; a longer one is allowed
/// and its extra columns have no heading.
///
/// ```
/// use memvisor_report::{Align, Table};
/// let mut table = Table::new(["zone", "pages"]).align(1, Align::Right);
/// table.row(["DMA", "4000"]);
/// table.row(["DMA32", "7"]);
/// assert_eq!(table.to_string(), "zone   pages\nDMA     4000\nDMA32      7\n");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Table {
    heading: Vec<String>,
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this heading and all columns to the left.
    pub fn new<I>(heading: I) -> Table
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Table { heading: heading.into_iter().map(Into::into).collect(), ..Table::default() }
    }

    /// Sets the side of a column, counted from 0.
    #[must_use]
    pub fn align(mut self, column: usize, align: Align) -> Table {
        if self.aligns.len() <= column {
            self.aligns.resize(column + 1, Align::Left);
        }
        if let Some(slot) = self.aligns.get_mut(column) {
            *slot = align;
        }
        self
    }

    /// Adds a row.
    pub fn row<I>(&mut self, cells: I)
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Rows so far, without the heading.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row yet.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths = Vec::new();
        for row in std::iter::once(&self.heading).chain(&self.rows) {
            if widths.len() < row.len() {
                widths.resize(row.len(), 0);
            }
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in std::iter::once(&self.heading).chain(&self.rows).filter(|row| !row.is_empty()) {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                match self.aligns.get(column) {
                    Some(Align::Right) => line.push_str(&format!("{cell:>width$}")),
                    _ => line.push_str(&format!("{cell:<width$}")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_cells_widen_their_column_only() {
        let mut table = Table::new(["a", "b"]);
        table.row(["long cell", "x"]);
        table.row(["s"]);
        assert_eq!(table.to_string(), "a          b\nlong cell  x\ns\n");
    }

    #[test]
    fn columns_beyond_the_heading_are_printed() {
        let mut table = Table::new(["a"]).align(1, Align::Right);
        table.row(["1", "22"]);
        table.row(["1", "3"]);
        assert_eq!(table.to_string(), "a\n1  22\n1   3\n");
    }

    #[test]
    fn width_counts_characters_and_not_bytes() {
        let mut table = Table::new(["é", "b"]);
        table.row(["xx", "y"]);
        assert_eq!(table.to_string(), "é   b\nxx  y\n");
    }

    #[test]
    fn a_table_without_rows_is_its_heading() {
        assert_eq!(Table::new(["only"]).to_string(), "only\n");
        assert!(Table::new(["only"]).is_empty());
    }
}
