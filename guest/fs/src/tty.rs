//! A terminal: the line discipline (Linux: drivers/tty/n_tty.c) and its settings (include/uapi/asm-generic/termbits.h).
//!
//! A state machine: bytes from the keyboard go in by [`Tty::input`], a program reads by [`Tty::read`] and writes by [`Tty::write`];
//! what is to appear on the screen comes out as bytes, and a signal for the foreground group as a [`TtySignal`].
//!
//! Differs from Linux: one terminal, no flow control by ^S and ^Q, no delays, VTIME counts as no time at all when VMIN is 0 and
//! as for ever when it is not.

mod settings;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

pub use settings::{Termios, Winsize};
use settings::{cc, iflag, lflag, oflag};

use crate::poll::PollFlags;
use crate::{Errno, no_memory};

/// A signal for the foreground process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtySignal {
    /// ^C.
    Interrupt,
    /// ^\.
    Quit,
    /// ^Z.
    Suspend,
}

impl TtySignal {
    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            TtySignal::Interrupt => 2,
            TtySignal::Quit => 3,
            TtySignal::Suspend => 20,
        }
    }
}

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtyRead {
    /// So many bytes; 0 at an end of file (^D).
    Bytes(usize),
    /// Wait for input.
    Empty,
}

/// Bytes kept for readers (Linux: `N_TTY_BUF_SIZE`).
const INPUT_MAX: usize = 4096;

/// A byte that was typed; `end` marks the last of a line, `eof` an end that is not read itself.
#[derive(Clone, Copy, Debug)]
struct Typed {
    byte: u8,
    end: bool,
    eof: bool,
}

/// A terminal.
#[derive(Debug)]
pub struct Tty {
    termios: Termios,
    winsize: Winsize,
    /// The line that is being typed (canonical mode).
    line: Vec<u8>,
    /// What may be read.
    ready: VecDeque<Typed>,
    /// Where the cursor is; for tabs that are erased.
    column: usize,
    /// Column at which the typed line begins.
    canon_column: usize,
    /// The next byte means itself (^V).
    literal: bool,
    /// Foreground process group; 0 for none.
    pub pgrp: u32,
    /// Session that it controls; 0 for none.
    pub session: u32,
}

impl Default for Tty {
    fn default() -> Tty {
        Tty::new()
    }
}

impl Tty {
    /// A terminal with Linux's settings.
    pub const fn new() -> Tty {
        Tty {
            termios: Termios::INITIAL,
            winsize: Winsize { rows: 0, columns: 0, x: 0, y: 0 },
            line: Vec::new(),
            ready: VecDeque::new(),
            column: 0,
            canon_column: 0,
            literal: false,
            pgrp: 0,
            session: 0,
        }
    }

    /// Takes the memory for input once, so that [`Tty::input`] allocates nothing but for the echo.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn reserve(&mut self) -> Result<(), Errno> {
        self.ready.try_reserve_exact(INPUT_MAX).map_err(no_memory)?;
        self.line.try_reserve_exact(INPUT_MAX).map_err(no_memory)
    }

    /// The settings.
    pub const fn termios(&self) -> &Termios {
        &self.termios
    }

    /// New settings (TCSETS). When canonical mode ends, what was typed of a line may be read (Linux: `n_tty_set_termios`).
    pub fn set_termios(&mut self, termios: Termios) {
        let canonical = termios.lflag & lflag::ICANON != 0;
        if !canonical && self.canonical() {
            self.push_line(false);
        }
        self.termios = termios;
    }

    /// Size of the window.
    pub const fn winsize(&self) -> Winsize {
        self.winsize
    }

    /// Sets it; whether it changed, which is a SIGWINCH.
    pub fn set_winsize(&mut self, winsize: Winsize) -> bool {
        core::mem::replace(&mut self.winsize, winsize) != winsize
    }

    /// Throws input away (TCFLSH, TCSETSF).
    pub fn flush_input(&mut self) {
        self.line.clear();
        self.ready.clear();
        self.literal = false;
    }

    const fn local(&self, flag: u32) -> bool {
        self.termios.lflag & flag != 0
    }

    const fn canonical(&self) -> bool {
        self.local(lflag::ICANON)
    }

    /// Whether this byte is the character at `index`. A zero disables it (Linux: `__DISABLED_CHAR`).
    fn is(&self, byte: u8, index: usize) -> bool {
        byte != 0 && self.termios.cc.get(index) == Some(&byte)
    }

    /// A byte from the keyboard. The echo goes to `screen`, for which memory is taken if there is any.
    pub fn input(&mut self, byte: u8, screen: &mut Vec<u8>) -> Option<TtySignal> {
        let mut byte = byte;
        if self.termios.iflag & iflag::ISTRIP != 0 {
            byte &= 0x7f;
        }
        if self.literal {
            self.literal = false;
            self.take(byte, screen);
            return None;
        }
        match byte {
            b'\r' if self.termios.iflag & iflag::IGNCR != 0 => return None,
            b'\r' if self.termios.iflag & iflag::ICRNL != 0 => byte = b'\n',
            b'\n' if self.termios.iflag & iflag::INLCR != 0 => byte = b'\r',
            _ => {}
        }
        if self.local(lflag::ISIG)
            && let Some(signal) = self.signal_of(byte)
        {
            self.signal(byte, screen);
            return Some(signal);
        }
        if self.canonical() && self.edit(byte, screen) {
            return None;
        }
        if self.local(lflag::IEXTEN) && self.canonical() && self.is(byte, cc::LNEXT) {
            self.literal = true;
            if self.local(lflag::ECHO) && self.local(lflag::ECHOCTL) {
                self.put(screen, b"^\x08");
            }
            return None;
        }
        self.take(byte, screen);
        None
    }

    fn signal_of(&self, byte: u8) -> Option<TtySignal> {
        let signals =
            [(cc::INTR, TtySignal::Interrupt), (cc::QUIT, TtySignal::Quit), (cc::SUSP, TtySignal::Suspend)];
        signals.into_iter().find(|(index, _)| self.is(byte, *index)).map(|(_, signal)| signal)
    }

    /// Linux: `isig`, `n_tty_receive_signal_char`.
    fn signal(&mut self, byte: u8, screen: &mut Vec<u8>) {
        if !self.local(lflag::NOFLSH) {
            self.flush_input();
        }
        if self.local(lflag::ECHO) {
            self.echo(byte, screen);
        }
    }

    /// Characters that change the line, or end it; whether it was one.
    fn edit(&mut self, byte: u8, screen: &mut Vec<u8>) -> bool {
        let extended = self.local(lflag::IEXTEN);
        if self.is(byte, cc::ERASE) {
            self.erase_last(screen);
        } else if self.is(byte, cc::KILL) {
            self.kill_line(byte, screen);
        } else if extended && self.is(byte, cc::WERASE) {
            self.erase_word(screen);
        } else if extended && self.local(lflag::ECHO) && self.is(byte, cc::REPRINT) {
            self.reprint(byte, screen);
        } else if byte == b'\n' {
            if self.local(lflag::ECHO) || self.local(lflag::ECHONL) {
                self.out(byte, screen);
            }
            self.end_line(Some(byte));
        } else if self.is(byte, cc::EOF) {
            self.end_line(None);
        } else if self.is(byte, cc::EOL) || extended && self.is(byte, cc::EOL2) {
            if self.local(lflag::ECHO) {
                self.echo(byte, screen);
            }
            self.end_line(Some(byte));
        } else {
            return false;
        }
        true
    }

    /// A byte of text. When the line is full, further ones are dropped with a bell (Linux: `n_tty_receive_char_special`, room
    /// for the line's end is kept).
    fn take(&mut self, byte: u8, screen: &mut Vec<u8>) {
        if self.line.len() + self.ready.len() + 1 >= INPUT_MAX {
            if self.termios.iflag & iflag::IMAXBEL != 0 {
                self.put(screen, b"\x07");
            }
            return;
        }
        if self.local(lflag::ECHO) {
            if self.line.is_empty() {
                self.canon_column = self.column;
            }
            self.echo(byte, screen);
        }
        if self.canonical() {
            self.line.push(byte);
        } else {
            self.ready.push_back(Typed { byte, end: false, eof: false });
        }
    }

    /// The line may be read; `last` ends it, or an end of file.
    fn end_line(&mut self, last: Option<u8>) {
        self.push_line(false);
        let typed = match last {
            Some(byte) => Typed { byte, end: true, eof: false },
            None => Typed { byte: 0, end: true, eof: true },
        };
        self.ready.push_back(typed);
    }

    fn push_line(&mut self, end: bool) {
        for byte in self.line.drain(..) {
            self.ready.push_back(Typed { byte, end, eof: false });
        }
    }

    /// Columns that the byte takes when echoed.
    fn width(&self, byte: u8) -> usize {
        match byte {
            b'\t' => 0,
            byte if byte.is_ascii_control() => 2 * usize::from(self.local(lflag::ECHOCTL)),
            // A byte that goes on with a character of UTF-8 takes none.
            byte if self.termios.iflag & iflag::IUTF8 != 0 && byte & 0xc0 == 0x80 => 0,
            _ => 1,
        }
    }

    fn echo(&mut self, byte: u8, screen: &mut Vec<u8>) {
        if self.local(lflag::ECHOCTL) && byte.is_ascii_control() && byte != b'\t' && byte != b'\n' {
            self.put(screen, &[b'^', byte ^ 0x40]);
        } else {
            self.out(byte, screen);
        }
    }

    fn erase_last(&mut self, screen: &mut Vec<u8>) {
        loop {
            let Some(byte) = self.line.pop() else { return };
            // The rest of a character of UTF-8 goes with its first byte.
            let part = self.termios.iflag & iflag::IUTF8 != 0 && byte & 0xc0 == 0x80;
            if self.local(lflag::ECHO) {
                self.show_erased(byte, screen);
            }
            if !part {
                return;
            }
        }
    }

    fn show_erased(&mut self, byte: u8, screen: &mut Vec<u8>) {
        if !self.local(lflag::ECHOE) {
            let erase = self.termios.cc[cc::ERASE];
            self.echo(erase, screen);
            return;
        }
        if byte == b'\t' {
            // Back to where the tab began: the columns of what is before it.
            let start = self.canon_column;
            let before = self.line.iter().fold(start, |column, byte| match byte {
                b'\t' => (column | 7) + 1,
                byte => column + self.width(*byte),
            });
            while self.column > before {
                self.put(screen, b"\x08");
            }
            return;
        }
        for _ in 0..self.width(byte) {
            self.put(screen, b"\x08 \x08");
        }
    }

    fn kill_line(&mut self, byte: u8, screen: &mut Vec<u8>) {
        if self.local(lflag::ECHO)
            && self.local(lflag::ECHOK)
            && self.local(lflag::ECHOKE)
            && self.local(lflag::ECHOE)
        {
            while let Some(byte) = self.line.pop() {
                self.show_erased(byte, screen);
            }
            return;
        }
        self.line.clear();
        if self.local(lflag::ECHO) {
            self.echo(byte, screen);
            if self.local(lflag::ECHOK) {
                self.out(b'\n', screen);
            }
        }
    }

    /// Blanks, then letters and digits (Linux: `eraser` with WERASE).
    fn erase_word(&mut self, screen: &mut Vec<u8>) {
        let mut seen = false;
        while let Some(&byte) = self.line.last() {
            let word = byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
            if seen && !word {
                return;
            }
            seen |= word;
            self.line.pop();
            if self.local(lflag::ECHO) {
                self.show_erased(byte, screen);
            }
        }
    }

    fn reprint(&mut self, byte: u8, screen: &mut Vec<u8>) {
        self.echo(byte, screen);
        self.out(b'\n', screen);
        for at in 0..self.line.len() {
            let byte = self.line[at];
            self.echo(byte, screen);
        }
    }

    /// Bytes for the screen as they are.
    fn put(&mut self, screen: &mut Vec<u8>, bytes: &[u8]) {
        if screen.try_reserve(bytes.len()).is_err() {
            return;
        }
        for &byte in bytes {
            match byte {
                b'\r' => self.column = 0,
                b'\n' => {}
                0x08 => self.column = self.column.saturating_sub(1),
                byte if byte.is_ascii_control() => {}
                byte if byte & 0xc0 == 0x80 => {}
                _ => self.column += 1,
            }
            screen.push(byte);
        }
    }

    /// A byte of output (Linux: `do_output_char`).
    fn out(&mut self, byte: u8, screen: &mut Vec<u8>) {
        let flags = self.termios.oflag;
        if flags & oflag::OPOST == 0 {
            return self.put(screen, &[byte]);
        }
        match byte {
            b'\n' if flags & oflag::ONLRET != 0 => {
                self.column = 0;
                self.put(screen, b"\n");
            }
            b'\n' if flags & oflag::ONLCR != 0 => self.put(screen, b"\r\n"),
            b'\r' if flags & oflag::ONOCR != 0 && self.column == 0 => {}
            b'\r' if flags & oflag::OCRNL != 0 => {
                if flags & oflag::ONLRET != 0 {
                    self.column = 0;
                }
                self.put(screen, b"\n");
            }
            b'\t' => {
                let spaces = 8 - self.column % 8;
                if flags & oflag::TABDLY == oflag::XTABS {
                    for _ in 0..spaces {
                        self.put(screen, b" ");
                    }
                } else {
                    self.put(screen, b"\t");
                    self.column += spaces;
                }
            }
            byte if flags & oflag::OLCUC != 0 => self.put(screen, &[byte.to_ascii_uppercase()]),
            byte => self.put(screen, &[byte]),
        }
    }

    /// What a program writes, as the screen gets it.
    pub fn write(&mut self, bytes: &[u8], screen: &mut Vec<u8>) {
        for &byte in bytes {
            self.out(byte, screen);
        }
    }

    /// Whether a read would not wait.
    fn readable(&self) -> bool {
        if self.canonical() {
            return self.ready.iter().any(|typed| typed.end);
        }
        let (min, time) = (self.termios.cc[cc::MIN], self.termios.cc[cc::TIME]);
        let enough = if time == 0 { usize::from(min).max(1) } else { 1 };
        self.ready.len() >= enough
    }

    /// A program reads.
    pub fn read(&mut self, buffer: &mut [u8]) -> TtyRead {
        if buffer.is_empty() {
            return TtyRead::Bytes(0);
        }
        if self.canonical() {
            return self.read_line(buffer);
        }
        let min = usize::from(self.termios.cc[cc::MIN]);
        // Not more than what was asked for is waited for.
        if self.ready.len() < min.min(buffer.len()) {
            return TtyRead::Empty;
        }
        let len = self.ready.len().min(buffer.len());
        // An end of file of the time before raw mode is a zero then, as in Linux.
        for (slot, typed) in buffer.iter_mut().zip(self.ready.drain(..len)) {
            *slot = typed.byte;
        }
        TtyRead::Bytes(len)
    }

    fn read_line(&mut self, buffer: &mut [u8]) -> TtyRead {
        if !self.readable() {
            return TtyRead::Empty;
        }
        let mut done = 0;
        while let Some(typed) = self.ready.front().copied() {
            if typed.eof {
                self.ready.pop_front();
                break;
            }
            let Some(slot) = buffer.get_mut(done) else { break };
            *slot = typed.byte;
            done += 1;
            self.ready.pop_front();
            if typed.end {
                break;
            }
            // An end of file right behind what fills the buffer goes with it.
            if done == buffer.len() && self.ready.front().is_some_and(|next| next.eof) {
                self.ready.pop_front();
                break;
            }
        }
        TtyRead::Bytes(done)
    }

    /// Bytes that could be read (FIONREAD).
    pub fn len(&self) -> usize {
        if !self.canonical() {
            return self.ready.len();
        }
        let last = self.ready.iter().rposition(|typed| typed.end).map_or(0, |last| last + 1);
        self.ready.iter().take(last).filter(|typed| !typed.eof).count()
    }

    /// Whether nothing could be read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What poll reports.
    pub fn poll(&self) -> PollFlags {
        let out = PollFlags::OUT | PollFlags::WRNORM;
        if self.readable() { out | PollFlags::IN | PollFlags::RDNORM } else { out }
    }
}
