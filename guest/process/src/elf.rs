//! Program files: static ELF64 for x86-64 (Linux: fs/binfmt_elf.c, `load_elf_binary`).
//!
//! [`Header::parse`] reads the first 64 bytes and says where the program headers are; [`Image::parse`] reads those and says
//! what is to be mapped where. Nothing else of the file is looked at, so it can be of any size and come in on demand.
//!
//! What an [`Image`] promises about its segments, whatever the file says:
//! E1  there is at least one, and each begins at or above `Image::first` and ends, with its bias, below the task's size;
//! E2  the bytes of the file are at most those in memory, and neither end overflows;
//! E3  address and file offset agree modulo the page, so that the file can be mapped.

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use mm_vma::ProtFlags;

use crate::Errno;
use crate::bytes::{u16_at, u32_at, u64_at};

const PAGE: u64 = 4096;
/// Size of the file's header.
pub const HEADER_LEN: usize = 64;
/// Size of one program header.
pub const PROGRAM_HEADER_LEN: usize = 56;
/// Program headers together are at most this long (Linux: `load_elf_phdrs`).
const PROGRAM_HEADERS_MAX: usize = 65536;
/// Where a static-PIE program's heap begins, and where programs with an interpreter would be (Linux: `ELF_ET_DYN_BASE`).
pub const DYN_BASE: u64 = ((1 << 47) - PAGE) / 3 * 2;

/// Why a file is no program for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// No ELF file at all: some other format may know it.
    Magic,
    /// An ELF file for another machine, or of another kind.
    Machine {
        /// `EI_CLASS`, 2 for 64 bits.
        class: u8,
        /// `e_machine`, 62 for x86-64.
        machine: u16,
        /// `e_type`: 2 is a program at fixed addresses, 3 one that goes anywhere.
        kind: u16,
    },
    /// The table of program headers has entries of a wrong size, none, or too many.
    Table {
        /// `e_phentsize`.
        entry_len: u16,
        /// `e_phnum`.
        entries: u16,
    },
    /// The file ends before its program headers do.
    Short,
    /// The program wants an interpreter (a dynamic linker), at this offset of its file.
    Interpreter {
        /// `p_offset` of PT_INTERP.
        offset: u64,
    },
    /// Nothing is to be loaded.
    Empty,
    /// This program header cannot be: more bytes in the file than in memory, an end past user space, or an address that does
    /// not go with its offset.
    Segment {
        /// Number in the table.
        index: usize,
    },
    /// No memory for the list of segments.
    NoMemory,
}

impl ElfError {
    /// What execve returns.
    ///
    /// Differs from Linux: a program with an interpreter is ELIBBAD whether or not the interpreter is there, since none can be
    /// loaded.
    pub const fn errno(self) -> Errno {
        match self {
            ElfError::Magic | ElfError::Machine { .. } | ElfError::Table { .. } | ElfError::Short => {
                Errno::Enoexec
            }
            ElfError::Interpreter { .. } => Errno::Elibbad,
            ElfError::Empty | ElfError::Segment { .. } => Errno::Einval,
            ElfError::NoMemory => Errno::Enomem,
        }
    }
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ElfError::Magic => f.write_str("no ELF file"),
            ElfError::Machine { class, machine, kind } => {
                write!(f, "ELF file of class {class}, machine {machine}, type {kind}: not an x86-64 program")
            }
            ElfError::Table { entry_len, entries } => {
                write!(f, "table of {entries} program headers of {entry_len} bytes")
            }
            ElfError::Short => f.write_str("file ends before its program headers"),
            ElfError::Interpreter { offset } => {
                write!(
                    f,
                    "dynamically linked (PT_INTERP at offset {offset:#x}): only static programs can run"
                )
            }
            ElfError::Empty => f.write_str("no segment to load"),
            ElfError::Segment { index } => write!(f, "program header {index} cannot be loaded"),
            ElfError::NoMemory => f.write_str("no memory for the list of segments"),
        }
    }
}

impl core::error::Error for ElfError {}

/// How addresses in the file become addresses in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They are the same (`ET_EXEC`).
    Fixed,
    /// A bias is added (`ET_DYN` without interpreter: static-PIE).
    Anywhere,
}

/// The file's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Fixed or not.
    pub kind: Kind,
    /// First instruction, without bias.
    pub entry: u64,
    /// Where in the file the program headers are.
    pub table_offset: u64,
    /// How many there are, at least one.
    pub table_entries: u16,
}

impl Header {
    /// Reads the first bytes of a file; more than [`HEADER_LEN`] are ignored.
    ///
    /// # Errors
    /// The header's, in Linux's order.
    pub fn parse(file: &[u8]) -> Result<Header, ElfError> {
        const X86_64: u16 = 62;
        if !file.starts_with(b"\x7fELF") {
            return Err(ElfError::Magic);
        }
        if file.len() < HEADER_LEN {
            return Err(ElfError::Short);
        }
        let (class, order) = (file[4], file[5]);
        let (kind, machine) = (u16_at(file, 16), u16_at(file, 18));
        let known = class == 2 && order == 1 && machine == X86_64;
        let kind = match kind {
            2 if known => Kind::Fixed,
            3 if known => Kind::Anywhere,
            kind => return Err(ElfError::Machine { class, machine, kind }),
        };
        let header = Header {
            kind,
            entry: u64_at(file, 24),
            table_offset: u64_at(file, 32),
            table_entries: u16_at(file, 56),
        };
        let entry_len = u16_at(file, 54);
        let good = usize::from(entry_len) == PROGRAM_HEADER_LEN
            && (1..=PROGRAM_HEADERS_MAX).contains(&header.table_len());
        if good { Ok(header) } else { Err(ElfError::Table { entry_len, entries: header.table_entries }) }
    }

    /// Bytes of the program headers, up to 64 KiB.
    pub fn table_len(&self) -> usize {
        usize::from(self.table_entries) * PROGRAM_HEADER_LEN
    }
}

/// Something to map, without bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address, not rounded.
    pub start: u64,
    /// End of what the file holds.
    pub file_end: u64,
    /// End; zeroes follow the file's bytes.
    pub end: u64,
    /// Protection.
    pub prot: ProtFlags,
    /// Where the file has its first byte; modulo the page as `start`.
    pub offset: u64,
}

impl Segment {
    /// First page.
    pub const fn page_start(&self) -> u64 {
        self.start & !(PAGE - 1)
    }

    /// End of the last page.
    pub const fn page_end(&self) -> u64 {
        self.end.next_multiple_of(PAGE)
    }

    /// The same at another place.
    #[must_use]
    pub const fn moved(self, bias: u64) -> Segment {
        Segment {
            start: self.start.wrapping_add(bias),
            file_end: self.file_end.wrapping_add(bias),
            end: self.end.wrapping_add(bias),
            ..self
        }
    }
}

/// A program ready to be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Fixed or not.
    pub kind: Kind,
    /// First instruction, without bias.
    pub entry: u64,
    /// What is to be mapped, in the file's order, which is that of addresses in every sane file.
    pub segments: Vec<Segment>,
    /// Where the program headers are in memory, without bias; 0 if no segment has them (`AT_PHDR`).
    pub table_at: u64,
    /// How many program headers there are (`AT_PHNUM`).
    pub table_entries: u16,
    /// The stack's memory can be executed (PT_GNU_STACK with PF_X). Without the header it cannot, as on Linux's x86-64.
    pub exec_stack: bool,
    /// Alignment the segments ask for, a power of two of at least a page (Linux: `maximum_alignment`).
    pub align: u64,
    /// First page of all.
    first: u64,
    /// End of the last page of all.
    last: u64,
}

impl Image {
    /// Reads the program headers: `table` holds [`Header::table_len`] bytes from [`Header::table_offset`]. `task_size` is the
    /// end of user space.
    ///
    /// # Errors
    /// [`ElfError`], about the first thing that is wrong.
    pub fn parse(header: &Header, table: &[u8], task_size: u64) -> Result<Image, ElfError> {
        const PT_LOAD: u32 = 1;
        const PT_INTERP: u32 = 3;
        const PT_GNU_STACK: u32 = 0x6474_e551;
        const PF_X: u32 = 1;
        let table = table.get(..header.table_len()).ok_or(ElfError::Short)?;
        let mut image = Image {
            kind: header.kind,
            entry: header.entry,
            segments: Vec::new(),
            table_at: 0,
            table_entries: header.table_entries,
            exec_stack: false,
            align: PAGE,
            first: u64::MAX,
            last: 0,
        };
        for (index, bytes) in table.chunks_exact(PROGRAM_HEADER_LEN).enumerate() {
            let flags = u32_at(bytes, 4);
            match u32_at(bytes, 0) {
                PT_LOAD => image.load(header, bytes, task_size).map_err(|error| match error {
                    Bad::Segment => ElfError::Segment { index },
                    Bad::Memory => ElfError::NoMemory,
                })?,
                PT_INTERP => return Err(ElfError::Interpreter { offset: u64_at(bytes, 8) }),
                PT_GNU_STACK => image.exec_stack = flags & PF_X != 0,
                _ => {}
            }
        }
        if image.segments.is_empty() || image.first >= image.last {
            return Err(ElfError::Empty);
        }
        Ok(image)
    }

    fn load(&mut self, header: &Header, bytes: &[u8], task_size: u64) -> Result<(), Bad> {
        let [offset, start] = [8, 16].map(|at| u64_at(bytes, at));
        let [file_len, mem_len, align] = [32, 40, 48].map(|at| u64_at(bytes, at));
        // As Linux: the sum cannot overflow once `mem_len` is below the task's size.
        if file_len > mem_len || mem_len > task_size || task_size - mem_len < start {
            return Err(Bad::Segment);
        }
        if offset % PAGE != start % PAGE || offset.checked_add(file_len).is_none() {
            return Err(Bad::Segment);
        }
        let (file_end, end) = (start + file_len, start + mem_len);
        if end.next_multiple_of(PAGE) > task_size {
            return Err(Bad::Segment);
        }
        if self.table_at == 0 && (offset..offset + file_len).contains(&header.table_offset) {
            self.table_at = header.table_offset - offset + start;
        }
        // A bad alignment is ignored, not refused.
        if align.is_power_of_two() {
            self.align = self.align.max(align);
        }
        let segment = Segment { start, file_end, end, prot: prot(u32_at(bytes, 4)), offset };
        self.first = self.first.min(segment.page_start());
        self.last = self.last.max(segment.page_end());
        self.segments.try_reserve(1).map_err(|_| Bad::Memory)?;
        self.segments.push(segment);
        Ok(())
    }

    /// First page of all segments, without bias.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// Bytes from the first page to the end of the last, at least a page (Linux: `total_mapping_size`).
    pub const fn span(&self) -> u64 {
        self.last - self.first
    }

    /// What is to be added to every address if the first page is at `base` (Linux: `load_bias`); 0 for a fixed program.
    pub const fn bias(&self, base: u64) -> u64 {
        match self.kind {
            Kind::Fixed => 0,
            Kind::Anywhere => base.wrapping_sub(self.first),
        }
    }

    /// Where the heap begins: behind the last segment, or, for a program that was put anywhere, at [`DYN_BASE`] rounded up to a
    /// page, so that it does not run into what is mapped above the program (Linux: the end of `load_elf_binary`).
    pub const fn brk_start(&self) -> u64 {
        match self.kind {
            Kind::Fixed => self.last,
            Kind::Anywhere => DYN_BASE.next_multiple_of(PAGE),
        }
    }
}

enum Bad {
    Segment,
    Memory,
}

/// Linux: `make_prot`.
fn prot(flags: u32) -> ProtFlags {
    [(4, ProtFlags::READ), (2, ProtFlags::WRITE), (1, ProtFlags::EXEC)]
        .into_iter()
        .filter(|(bit, _)| flags & bit != 0)
        .fold(ProtFlags::empty(), |prot, (_, flag)| prot | flag)
}
