//! The ring-3 program: a static ELF64 inside the kernel image, loaded on demand.

use mm_core::PAGE_SIZE;
use mm_pgtable::Prot;

/// The program's file.
static FILE: &[u8] = include_bytes!(env!("MEMVISOR_USER_ELF"));

/// A loadable segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// First address.
    pub start: u64,
    /// End of what the file holds.
    pub file_end: u64,
    /// End; zeroes follow the file's bytes.
    pub end: u64,
    /// Protection.
    pub prot: Prot,
    offset: u64,
}

impl Segment {
    const EMPTY: Segment = Segment { start: 0, file_end: 0, end: 0, prot: Prot::USER_RO, offset: 0 };

    /// The pages that it touches, as addresses.
    pub const fn pages(&self) -> (u64, u64) {
        (self.start & !(PAGE_SIZE - 1), self.end.next_multiple_of(PAGE_SIZE))
    }

    /// The file's bytes for `from..to`, which lies in `start..file_end`.
    pub fn bytes(&self, from: u64, to: u64) -> &'static [u8] {
        let at =
            |address: u64| usize::try_from(address - self.start + self.offset).expect("the file is small");
        &FILE[at(from)..at(to)]
    }
}

/// A program ready to run.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// First instruction.
    pub entry: u64,
    /// Segments; unused ones are empty.
    pub segments: [Segment; 4],
}

fn word<const N: usize>(at: usize) -> [u8; N] {
    FILE[at..at + N].try_into().expect("the range has that length")
}

fn u64_at(at: usize) -> u64 {
    u64::from_le_bytes(word(at))
}

/// Parses the program. It is part of this build, so a bad file is a bug of the build.
pub fn program() -> Program {
    const PT_LOAD: u32 = 1;
    assert!(FILE.starts_with(b"\x7fELF\x02\x01"), "the user program is not an ELF64 file");
    let table = usize::try_from(u64_at(32)).expect("the file is small");
    let entries = usize::from(u16::from_le_bytes(word(56)));
    let mut segments = [Segment::EMPTY; 4];
    let mut used = 0;
    for header in (0..entries).map(|index| table + 56 * index) {
        if u32::from_le_bytes(word(header)) != PT_LOAD {
            continue;
        }
        let flags = u32::from_le_bytes(word(header + 4));
        let start = u64_at(header + 16);
        let prot = Prot { write: flags & 2 != 0, exec: flags & 1 != 0, ..Prot::USER_RO };
        segments[used] = Segment {
            start,
            file_end: start + u64_at(header + 32),
            end: start + u64_at(header + 40),
            prot,
            offset: u64_at(header + 8),
        };
        used += 1;
    }
    Program { entry: u64_at(24), segments }
}
