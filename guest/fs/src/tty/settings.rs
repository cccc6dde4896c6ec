//! Settings of a terminal, with Linux's bits.

/// `c_iflag`.
pub mod iflag {
    pub const ISTRIP: u32 = 0o40;
    pub const INLCR: u32 = 0o100;
    pub const IGNCR: u32 = 0o200;
    pub const ICRNL: u32 = 0o400;
    pub const IXON: u32 = 0o2000;
    pub const IMAXBEL: u32 = 0o2_0000;
    pub const IUTF8: u32 = 0o4_0000;
}

/// `c_oflag`.
pub mod oflag {
    pub const OPOST: u32 = 0o1;
    pub const OLCUC: u32 = 0o2;
    pub const ONLCR: u32 = 0o4;
    pub const OCRNL: u32 = 0o10;
    pub const ONOCR: u32 = 0o20;
    pub const ONLRET: u32 = 0o40;
    pub const TABDLY: u32 = 0o1_4000;
    pub const XTABS: u32 = 0o1_4000;
}

/// `c_cflag`.
mod cflag {
    pub const B9600: u32 = 0o15;
    pub const CS8: u32 = 0o60;
    pub const CREAD: u32 = 0o200;
    pub const HUPCL: u32 = 0o2000;
    pub const CLOCAL: u32 = 0o4000;
}

/// `c_lflag`.
pub mod lflag {
    pub const ISIG: u32 = 0o1;
    pub const ICANON: u32 = 0o2;
    pub const ECHO: u32 = 0o10;
    pub const ECHOE: u32 = 0o20;
    pub const ECHOK: u32 = 0o40;
    pub const ECHONL: u32 = 0o100;
    pub const NOFLSH: u32 = 0o200;
    pub const ECHOCTL: u32 = 0o1000;
    pub const ECHOKE: u32 = 0o4000;
    pub const IEXTEN: u32 = 0o10_0000;
}

/// Indices of `c_cc`.
pub mod cc {
    pub const INTR: usize = 0;
    pub const QUIT: usize = 1;
    pub const ERASE: usize = 2;
    pub const KILL: usize = 3;
    pub const EOF: usize = 4;
    pub const TIME: usize = 5;
    pub const MIN: usize = 6;
    pub const SUSP: usize = 10;
    pub const EOL: usize = 11;
    pub const REPRINT: usize = 12;
    pub const WERASE: usize = 14;
    pub const LNEXT: usize = 15;
    pub const EOL2: usize = 16;
}

/// Settings (Linux: `struct termios` of the kernel's interface, 36 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termios {
    /// Input.
    pub iflag: u32,
    /// Output.
    pub oflag: u32,
    /// Line; kept, without meaning here.
    pub cflag: u32,
    /// Local: echo, signals, lines.
    pub lflag: u32,
    /// Line discipline; 0 is the only one.
    pub line: u8,
    /// Characters: interrupt, quit, erase and so on.
    pub cc: [u8; 19],
}

impl Termios {
    /// Linux: `tty_std_termios`, with the characters of `INIT_C_CC`.
    pub const INITIAL: Termios = Termios {
        iflag: iflag::ICRNL | iflag::IXON,
        oflag: oflag::OPOST | oflag::ONLCR,
        cflag: cflag::B9600 | cflag::CS8 | cflag::CREAD | cflag::HUPCL | cflag::CLOCAL,
        lflag: lflag::ISIG
            | lflag::ICANON
            | lflag::ECHO
            | lflag::ECHOE
            | lflag::ECHOK
            | lflag::ECHOCTL
            | lflag::ECHOKE
            | lflag::IEXTEN,
        line: 0,
        cc: [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0],
    };

    /// The structure's bytes.
    pub fn to_bytes(&self) -> [u8; 36] {
        let mut bytes = [0; 36];
        for (slot, word) in bytes.chunks_exact_mut(4).zip([self.iflag, self.oflag, self.cflag, self.lflag]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes[16] = self.line;
        bytes[17..].copy_from_slice(&self.cc);
        bytes
    }

    /// From the structure's bytes.
    pub fn from_bytes(bytes: &[u8; 36]) -> Termios {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut cc = [0; 19];
        cc.copy_from_slice(&bytes[17..]);
        Termios { iflag: word(0), oflag: word(4), cflag: word(8), lflag: word(12), line: bytes[16], cc }
    }
}

/// Size of a terminal's window (Linux: `struct winsize`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Winsize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
    /// Width in pixels.
    pub x: u16,
    /// Height in pixels.
    pub y: u16,
}

impl Winsize {
    /// The structure's bytes.
    pub fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        for (slot, word) in bytes.chunks_exact_mut(2).zip([self.rows, self.columns, self.x, self.y]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From the structure's bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Winsize {
        let [r0, r1, c0, c1, x0, x1, y0, y1] = bytes;
        Winsize {
            rows: u16::from_le_bytes([r0, r1]),
            columns: u16::from_le_bytes([c0, c1]),
            x: u16::from_le_bytes([x0, x1]),
            y: u16::from_le_bytes([y0, y1]),
        }
    }
}
