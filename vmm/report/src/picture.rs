//! Rows of coloured cells, in the terminal and as SVG.
//!
//! A [`Picture`] has rows of cells and one or more [`Layer`]s, each of which gives every cell a colour of its legend. In
//! the terminal a cell is a character, coloured or not; in SVG layers are panels below each other, and
//! neighbours of one colour are one rectangle, so that a uniform machine of any size is a small file.

use std::fmt::{self, Write};

/// A colour with a meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Legend {
    /// What it means.
    pub label: String,
    /// `0xRRGGBB`.
    pub colour: u32,
    /// The character that stands for it where there are no colours.
    pub letter: char,
}

impl Legend {
    /// A legend's entry.
    pub fn new(label: impl Into<String>, colour: u32, letter: char) -> Legend {
        Legend { label: label.into(), colour, letter }
    }
}

/// One aspect of all cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What is shown.
    pub title: String,
    /// Meanings.
    pub legend: Vec<Legend>,
    /// For each row and each of its cells an index into the legend; an index past its end is drawn as nothing.
    pub cells: Vec<Vec<usize>>,
}

/// A picture. All layers have as many cells in each row as the row has labels for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// First line.
    pub title: String,
    /// What stands before each row.
    pub rows: Vec<String>,
    /// Aspects.
    pub layers: Vec<Layer>,
}

/// Whether a terminal shows colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// 24-bit colours by escape sequences.
    On,
    /// Letters.
    Off,
}

const CELL: usize = 8;
const LINE: usize = 18;
const MARGIN: usize = 16;

impl Picture {
    /// One layer as text; `None` if there is no such layer.
    pub fn text(&self, layer: usize, colours: Colours) -> Option<String> {
        let layer = self.layers.get(layer)?;
        let width = self.rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
        let mut text = format!("{}: {}\n", self.title, layer.title);
        for (label, cells) in self.rows.iter().zip(&layer.cells) {
            let _ = write!(text, "{label:<width$} ");
            let mut last = None;
            for &cell in cells {
                let Some(entry) = layer.legend.get(cell) else {
                    text.push(' ');
                    continue;
                };
                if colours == Colours::On && last.replace(cell) != Some(cell) {
                    let _ = write!(text, "\x1b[38;2;{}m", rgb(entry.colour));
                }
                text.push(if colours == Colours::On { '█' } else { entry.letter });
            }
            text.push_str(if colours == Colours::On { "\x1b[0m\n" } else { "\n" });
        }
        for entry in layer.used() {
            match colours {
                Colours::On => {
                    let _ = write!(text, "\x1b[38;2;{}m█\x1b[0m {}  ", rgb(entry.colour), entry.label);
                }
                Colours::Off => {
                    let _ = write!(text, "{} {}  ", entry.letter, entry.label);
                }
            }
        }
        Some(text.trim_end().to_owned() + "\n")
    }

    /// All layers as an SVG document.
    pub fn svg(&self) -> String {
        let label = self.rows.iter().map(|row| row.chars().count()).max().unwrap_or(0) * 7 + 8;
        let columns =
            self.layers.iter().flat_map(|layer| layer.cells.iter().map(Vec::len)).max().unwrap_or(0);
        let width = (2 * MARGIN + label + columns * CELL).max(720);
        let panel = |layer: &Layer| LINE * (2 + layer.legend_lines(width)) + self.rows.len() * CELL + MARGIN;
        let height = 2 * MARGIN + LINE + self.layers.iter().map(panel).sum::<usize>();
        let mut svg = String::new();
        let _ = writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"monospace\" font-size=\"11\">"
        );
        let _ = writeln!(svg, "<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>");
        let mut y = MARGIN + LINE;
        let _ =
            writeln!(svg, "<text x=\"{MARGIN}\" y=\"{y}\" font-size=\"14\">{}</text>", Escaped(&self.title));
        for layer in &self.layers {
            y += LINE;
            layer.draw(&mut svg, &self.rows, label, width, y);
            y += panel(layer) - LINE;
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// Columns of a legend's entry in pixels.
const ENTRY: usize = 170;

impl Layer {
    /// Entries that some cell has.
    fn used(&self) -> impl Iterator<Item = &Legend> {
        let is_used = |index: &usize| self.cells.iter().any(|row| row.contains(index));
        (0..self.legend.len()).filter(is_used).filter_map(|index| self.legend.get(index))
    }

    fn legend_lines(&self, width: usize) -> usize {
        self.used().count().div_ceil((width - 2 * MARGIN) / ENTRY)
    }

    fn draw(&self, svg: &mut String, rows: &[String], label: usize, width: usize, top: usize) {
        let mut y = top + LINE;
        let _ = writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            y - 5,
            Escaped(&self.title)
        );
        let columns = (width - 2 * MARGIN) / ENTRY;
        for (number, entry) in self.used().enumerate() {
            let x = MARGIN + number % columns * ENTRY;
            let y = y + number / columns * LINE;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"#{:06x}\"/><text x=\"{}\" y=\"{}\">{}</text>",
                y + 2,
                entry.colour,
                x + 14,
                y + 11,
                Escaped(&entry.label)
            );
        }
        y += self.legend_lines(width) * LINE;
        // Rows are narrower than letters: not each can have its label.
        let every = LINE.div_ceil(CELL);
        for (number, (text, cells)) in rows.iter().zip(&self.cells).enumerate() {
            let y = y + number * CELL;
            if number % every == 0 {
                let _ = writeln!(
                    svg,
                    "<text x=\"{MARGIN}\" y=\"{}\" fill=\"#555555\">{}</text>",
                    y + CELL,
                    Escaped(text)
                );
            }
            let mut column = 0;
            for run in cells.chunk_by(|a, b| a == b) {
                if let Some(entry) = run.first().and_then(|cell| self.legend.get(*cell)) {
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"#{:06x}\"/>",
                        MARGIN + label + column * CELL,
                        run.len() * CELL,
                        CELL - 1,
                        entry.colour
                    );
                }
                column += run.len();
            }
        }
    }
}

/// A colour as terminals take it.
fn rgb(colour: u32) -> String {
    format!("{};{};{}", colour >> 16 & 0xff, colour >> 8 & 0xff, colour & 0xff)
}

/// Text inside an SVG element.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        Picture {
            title: "RAM <64 MiB>".into(),
            rows: vec!["0x0".into(), "0x4000".into()],
            layers: vec![Layer {
                title: "owner".into(),
                legend: vec![
                    Legend::new("free", 0x0d_ba_54, '.'),
                    Legend::new("kernel & data", 0xcc_33_11, 'K'),
                    Legend::new("unused", 0, 'x'),
                ],
                cells: vec![vec![1, 1, 0, 0], vec![0, 9, 1]],
            }],
        }
    }

    #[test]
    fn text_has_rows_and_the_legend_that_is_needed() {
        let text = picture().text(0, Colours::Off).expect("a layer");
        assert_eq!(text, "RAM <64 MiB>: owner\n0x0    KK..\n0x4000 . K\n. free  K kernel & data\n");
        assert_eq!(picture().text(1, Colours::Off), None);
        let colours = picture().text(0, Colours::On).expect("a layer");
        assert!(colours.contains("\x1b[38;2;204;51;17m██\x1b[38;2;13;186;84m██\x1b[0m"), "{colours:?}");
    }

    #[test]
    fn svg_has_a_rectangle_a_run_and_no_raw_markup() {
        let wanted = "\
<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"136\" viewBox=\"0 0 720 136\" font-family=\"monospace\" font-size=\"11\">
<rect width=\"720\" height=\"136\" fill=\"#ffffff\"/>
<text x=\"16\" y=\"34\" font-size=\"14\">RAM &lt;64 MiB&gt;</text>
<text x=\"16\" y=\"65\" font-weight=\"bold\">owner</text>
<rect x=\"16\" y=\"72\" width=\"10\" height=\"10\" fill=\"#0dba54\"/><text x=\"30\" y=\"81\">free</text>
<rect x=\"186\" y=\"72\" width=\"10\" height=\"10\" fill=\"#cc3311\"/><text x=\"200\" y=\"81\">kernel &amp; data</text>
<text x=\"16\" y=\"96\" fill=\"#555555\">0x0</text>
<rect x=\"66\" y=\"88\" width=\"16\" height=\"7\" fill=\"#cc3311\"/>
<rect x=\"82\" y=\"88\" width=\"16\" height=\"7\" fill=\"#0dba54\"/>
<rect x=\"66\" y=\"96\" width=\"8\" height=\"7\" fill=\"#0dba54\"/>
<rect x=\"82\" y=\"96\" width=\"8\" height=\"7\" fill=\"#cc3311\"/>
</svg>
";
        assert_eq!(picture().svg(), wanted);
    }
}
