//! The ring-3 program: a static ELF64 inside the kernel image, loaded on demand.

use mm_core::PAGE_SIZE;
use mm_vma::ProtFlags;

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
    pub prot: ProtFlags,
    /// Where the file has its first byte.
    pub offset: u64,
}

impl Segment {
    const EMPTY: Segment = Segment { start: 0, file_end: 0, end: 0, prot: ProtFlags::empty(), offset: 0 };
}

/// Bytes of the file.
pub const fn file_len() -> u64 {
    FILE.len() as u64
}

/// What the file holds of its page `pgoff`; `None` past its end.
pub fn file_page(pgoff: u64) -> Option<&'static [u8]> {
    let start = usize::try_from(pgoff.checked_mul(PAGE_SIZE)?).ok()?;
    let rest = FILE.get(start..).filter(|rest| !rest.is_empty())?;
    let len = usize::try_from(PAGE_SIZE).map_or(rest.len(), |page| page.min(rest.len()));
    rest.get(..len)
}

/// A program ready to run.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// First instruction.
    pub entry: u64,
    /// Segments; unused ones are empty.
    pub segments: [Segment; 4],
}

impl Program {
    /// Segments that are to be mapped.
    pub fn loaded(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.end > segment.start)
    }
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
    const PF_X: u32 = 1;
    const PF_W: u32 = 2;
    const PF_R: u32 = 4;
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
        let mut prot = ProtFlags::empty();
        prot.set(ProtFlags::READ, flags & PF_R != 0);
        prot.set(ProtFlags::WRITE, flags & PF_W != 0);
        prot.set(ProtFlags::EXEC, flags & PF_X != 0);
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
