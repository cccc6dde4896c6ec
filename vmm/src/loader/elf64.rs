//! ELF64 images: what is loaded where, and where each protocol enters.
//!
//! Reads bytes from a user's file: every offset is checked, and an error says what is wrong.
//! Numbers are from the System V ABI (generic part, and the x86-64 supplement); the PVH note is
//! Xen's `XEN_ELFNOTE_PHYS32_ENTRY` (xen/include/public/elfnote.h).

use thiserror::Error;

/// Largest kernel file, bytes.
pub const MAX_FILE: u64 = 1 << 30;

/// What is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ElfError {
    /// Empty file.
    #[error("the file is empty")]
    Empty,
    /// Not ELF at all.
    #[error("neither an ELF file nor a bzImage (it begins with {first:02x?})")]
    NotElf {
        /// First bytes.
        first: Vec<u8>,
    },
    /// A 32-bit or big-endian image.
    #[error("not a 64-bit little-endian ELF file (class {class}, data {data})")]
    NotElf64 {
        /// `e_ident[EI_CLASS]`.
        class: u8,
        /// `e_ident[EI_DATA]`.
        data: u8,
    },
    /// Another machine.
    #[error("not for x86-64 (e_machine is {machine}, 62 is needed)")]
    NotX86_64 {
        /// `e_machine`.
        machine: u16,
    },
    /// Neither ET_EXEC nor ET_DYN.
    #[error("not an executable (e_type is {kind}; 2 or 3 is needed)")]
    NotExecutable {
        /// `e_type`.
        kind: u16,
    },
    /// The file ends early.
    #[error("truncated: {what} at file offset {offset:#x} (+{len:#x}) is past the end ({file_len:#x} bytes)")]
    Truncated {
        /// The missing part.
        what: &'static str,
        /// Where it should begin.
        offset: u64,
        /// How long it should be.
        len: u64,
        /// Length of the file.
        file_len: u64,
    },
    /// Header fields that contradict each other.
    #[error("damaged: {0}")]
    Damaged(String),
    /// No PT_LOAD.
    #[error("nothing to load: the file has no PT_LOAD segment with a size")]
    NothingToLoad,
    /// A program for a user space.
    #[error("a program that wants a dynamic linker, not a kernel: is this the right file?")]
    NotKernel,
    /// PVH wanted but not offered.
    #[error("no PVH entry (ELF note 18 of \"Xen\"): boot it with --boot linux")]
    NoPvhEntry,
}

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Physical address that the image asks for.
    pub paddr: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Bytes in memory, at least `file_len`; the rest is zero.
    pub mem_len: u64,
}

/// A checked image.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    /// Segments in file order.
    pub segments: Vec<Segment>,
    /// Physical entry point of the Linux 64-bit protocol.
    pub entry: u64,
    /// Physical 32-bit entry point of PVH.
    pub pvh_entry: Option<u64>,
    /// Whether the image may be moved (it is ET_DYN, or carries memvisor's note).
    pub relocatable: bool,
    /// Whether it carries memvisor's note: it knows the memvisor device and publishes a root descriptor.
    pub has_root_note: bool,
}

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

impl<'a> Image<'a> {
    /// Checks an image.
    ///
    /// # Errors
    /// [`ElfError`], which says what is wrong with the file.
    pub fn parse(bytes: &'a [u8]) -> Result<Image<'a>, ElfError> {
        let header = Header::parse(bytes)?;
        let mut image = Image {
            bytes,
            segments: Vec::new(),
            entry: header.entry,
            pvh_entry: None,
            relocatable: header.kind == ET_DYN,
            has_root_note: false,
        };
        for index in 0..u64::from(header.program_count) {
            let at = index
                .checked_mul(u64::from(header.program_size))
                .and_then(|skip| header.program_offset.checked_add(skip))
                .ok_or_else(|| ElfError::Damaged("program headers wrap".into()))?;
            image.take_program_header(at)?;
        }
        if image.segments.is_empty() {
            return Err(ElfError::NothingToLoad);
        }
        image.check_entry("entry point", image.entry)?;
        if let Some(entry) = image.pvh_entry {
            image.check_entry("PVH entry point", entry)?;
        }
        Ok(image)
    }

    /// Bytes of a segment in the file.
    pub fn contents(&self, segment: &Segment) -> &'a [u8] {
        // Checked by `take_program_header`; an empty slice cannot happen for a segment of `self`.
        slice(self.bytes, "segment", segment.offset, segment.file_len).unwrap_or(&[])
    }

    /// First byte and length of the physical range that the image asks for.
    pub fn span(&self) -> (u64, u64) {
        let start = self.segments.iter().map(|s| s.paddr).min().unwrap_or(0);
        let end = self.segments.iter().map(|s| s.paddr.saturating_add(s.mem_len)).max().unwrap_or(0);
        (start, end.saturating_sub(start))
    }

    fn take_program_header(&mut self, at: u64) -> Result<(), ElfError> {
        let header = slice(self.bytes, "program header", at, 56)?;
        let field = |offset| read_u64(header, offset);
        let (offset, paddr, file_len, mem_len) = (field(8), field(24), field(32), field(40));
        match read_u32(header, 0) {
            PT_LOAD if mem_len != 0 => {
                slice(self.bytes, "segment", offset, file_len)?;
                if file_len > mem_len {
                    return Err(ElfError::Damaged(format!(
                        "segment at {paddr:#x} has {file_len:#x} bytes in the file but {mem_len:#x} in memory"
                    )));
                }
                if paddr.checked_add(mem_len).is_none() {
                    return Err(ElfError::Damaged(format!("segment at {paddr:#x} (+{mem_len:#x}) wraps")));
                }
                self.segments.push(Segment { paddr, offset, file_len, mem_len });
            }
            PT_INTERP => return Err(ElfError::NotKernel),
            PT_NOTE => {
                let align = if field(48) == 8 { 8 } else { 4 };
                self.take_notes(slice(self.bytes, "note segment", offset, file_len)?, align);
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads notes; a damaged note ends the list, as it does for other readers.
    fn take_notes(&mut self, mut notes: &[u8], align: usize) {
        while notes.len() >= 12 {
            let name_len = read_u32(notes, 0) as usize;
            let desc_len = read_u32(notes, 4) as usize;
            let kind = read_u32(notes, 8);
            let desc_at = (12usize.saturating_add(name_len)).next_multiple_of(align);
            let Some(name) = notes.get(12..12usize.saturating_add(name_len)) else { return };
            let Some(desc) = notes.get(desc_at..desc_at.saturating_add(desc_len)) else { return };
            match (name, kind) {
                (b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY) if desc.len() >= 8 => {
                    self.pvh_entry = Some(read_u64(desc, 0));
                }
                (b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY) if desc.len() >= 4 => {
                    self.pvh_entry = Some(u64::from(read_u32(desc, 0)));
                }
                (b"memvisor\0", memvisor_abi::ELF_NOTE_ROOT) => {
                    (self.relocatable, self.has_root_note) = (true, true);
                }
                _ => {}
            }
            let next = desc_at.saturating_add(desc_len).next_multiple_of(align);
            notes = notes.get(next..).unwrap_or(&[]);
        }
    }

    fn check_entry(&self, what: &str, entry: u64) -> Result<(), ElfError> {
        let inside = self.segments.iter().any(|s| entry >= s.paddr && entry - s.paddr < s.mem_len);
        inside.then_some(()).ok_or_else(|| {
            ElfError::Damaged(format!("{what} {entry:#x} is in no segment (it must be a physical address)"))
        })
    }
}

struct Header {
    kind: u16,
    entry: u64,
    program_offset: u64,
    program_size: u16,
    program_count: u16,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Header, ElfError> {
        if bytes.is_empty() {
            return Err(ElfError::Empty);
        }
        if bytes.get(..4) != Some(b"\x7fELF") {
            return Err(ElfError::NotElf { first: bytes.iter().take(4).copied().collect() });
        }
        let header = slice(bytes, "ELF header", 0, 64)?;
        let (class, data) = (header[4], header[5]);
        if (class, data) != (2, 1) {
            return Err(ElfError::NotElf64 { class, data });
        }
        let (kind, machine) = (read_u16(header, 16), read_u16(header, 18));
        if machine != EM_X86_64 {
            return Err(ElfError::NotX86_64 { machine });
        }
        if kind != ET_EXEC && kind != ET_DYN {
            return Err(ElfError::NotExecutable { kind });
        }
        let program_size = read_u16(header, 54);
        let program_count = read_u16(header, 56);
        if program_count != 0 && program_size < 56 {
            return Err(ElfError::Damaged(format!(
                "program headers have {program_size} bytes, 56 are needed"
            )));
        }
        Ok(Header {
            kind,
            entry: read_u64(header, 24),
            program_offset: read_u64(header, 32),
            program_size,
            program_count,
        })
    }
}

/// Part of the file, or an error that names what is missing.
fn slice<'a>(bytes: &'a [u8], what: &'static str, offset: u64, len: u64) -> Result<&'a [u8], ElfError> {
    let missing = || ElfError::Truncated { what, offset, len, file_len: bytes.len() as u64 };
    let start = usize::try_from(offset).map_err(|_| missing())?;
    let len = usize::try_from(len).map_err(|_| missing())?;
    start.checked_add(len).and_then(|end| bytes.get(start..end)).ok_or_else(missing)
}

/// Little-endian number at `at`; the caller has checked that it is there, else 0.
fn read_bytes<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}
fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(read_bytes(bytes, at))
}
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(read_bytes(bytes, at))
}
fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(read_bytes(bytes, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::loader::testing::ElfBuilder;

    #[test]
    fn a_good_image_gives_segments_entries_and_span() {
        let file = ElfBuilder::new(0x20_0000, b"\xf4").mem_len(0x3000).pvh(0x20_0000).build();
        let image = Image::parse(&file).expect("good image");
        assert_eq!(image.entry, 0x20_0000);
        assert_eq!(image.pvh_entry, Some(0x20_0000));
        assert_eq!(image.span(), (0x20_0000, 0x3000));
        assert!(!image.relocatable);
        assert_eq!(image.contents(&image.segments[0]), b"\xf4");
        let dynamic = ElfBuilder::new(0x20_0000, b"\xf4").dynamic().build();
        assert!(Image::parse(&dynamic).expect("good image").relocatable);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let good = ElfBuilder::new(0x20_0000, b"\xf4").build();
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            Image::parse(&bad).expect_err("damaged").to_string()
        };
        assert!(Image::parse(b"").expect_err("empty").to_string().contains("empty"));
        assert!(Image::parse(b"#!/bin/sh\n").expect_err("text").to_string().contains("neither an ELF file"));
        assert!(with(4, 1).contains("64-bit"));
        assert!(with(18, 183).contains("183"));
        assert!(with(16, 1).contains("executable"));
        assert!(with(26, 0x77).contains("in no segment"));
        assert!(Image::parse(&good[..40]).expect_err("cut").to_string().contains("truncated: ELF header"));
        assert!(Image::parse(&good[..100]).expect_err("cut").to_string().contains("program header"));
        let cut = &good[..good.len() - 1];
        assert!(Image::parse(cut).expect_err("cut").to_string().contains("truncated: segment"));
    }

    proptest! {
        #[test]
        fn damage_never_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
                               cut in any::<prop::sample::Index>()) {
            let mut file = ElfBuilder::new(0x20_0000, b"\xf4\xf4").pvh(0x20_0000).build();
            for (at, byte) in edits {
                let at = at.index(file.len());
                file[at] = byte;
            }
            let keep = cut.index(file.len() + 1);
            let _ = Image::parse(&file);
            let _ = Image::parse(&file[..keep]);
        }
    }
}
