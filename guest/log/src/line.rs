//! A line on its way to the log.

use memvisor_abi::LOG_LINE_MAX;

/// Pieces of a line, gathered until its line feed comes. The first piece gives it its level (Linux: `LOG_CONT`).
#[derive(Debug)]
pub struct Line {
    text: [u8; LOG_LINE_MAX],
    len: usize,
    level: u8,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Line {
        Line { text: [0; LOG_LINE_MAX], len: 0, level: 0 }
    }

    /// Takes text; calls `store` with each line that it ends, and with what does not fit into one.
    pub fn add(&mut self, level: u8, text: &[u8], mut store: impl FnMut(u8, &[u8])) {
        let mut pieces = text.split(|byte| *byte == b'\n').peekable();
        while let Some(mut piece) = pieces.next() {
            if self.len == 0 {
                self.level = level;
            }
            while !piece.is_empty() {
                let room = self.text.get_mut(self.len..).unwrap_or_default();
                let (now, later) = piece.split_at(piece.len().min(room.len()));
                room.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
                self.len += now.len();
                piece = later;
                if !piece.is_empty() {
                    self.end(&mut store);
                }
            }
            if pieces.peek().is_some() {
                self.end(&mut store);
            }
        }
    }

    fn end(&mut self, store: &mut impl FnMut(u8, &[u8])) {
        store(self.level, self.text.get(..self.len).unwrap_or_default());
        self.len = 0;
    }
}

impl Default for Line {
    fn default() -> Self {
        Line::new()
    }
}
