//! Writing a dump.

use std::io::{self, Seek, SeekFrom, Write};

use memvisor_abi::PAGE_SIZE;
use serde::Serialize;
use thiserror::Error;
use zerocopy::IntoBytes;

use super::elf::{
    CLASS_64, DATA_LITTLE, EM_X86_64, ET_CORE, Header, MAGIC, NAME_CORE, NAME_MEMVISOR, NAME_VMCOREINFO,
    NT_MEMVISOR, NT_PRSTATUS, PHNUM_LIMIT, PT_LOAD, PT_NOTE, Prstatus, Segment, push_note,
};
use super::{MemvisorNote, NOTE_FORMAT, Vmcoreinfo};
use crate::{CpuRegisters, Facts, Fault, Guest, MemorySource, RamRegion, ReadError, Walker};

/// Bytes read and written at a time: large enough that system calls do not count, small enough to
/// stay in the second-level cache between read and write.
const CHUNK: usize = 256 << 10;
/// Zeroes shorter than this are written: a hole must be a whole page to save anything.
const HOLE: usize = 4096;
/// Bytes of RAM between two calls of the progress function.
const PROGRESS_STEP: u64 = 4 << 20;
/// Readable, writable, executable: what is true of physical memory.
const FLAGS_RWX: u32 = 7;

/// Why a dump could not be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The output failed.
    #[error("write the dump at offset {offset:#x}")]
    Output {
        /// Offset in the file.
        offset: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The guest's memory failed.
    #[error("read guest memory for the dump")]
    Memory(#[from] ReadError),
    /// The notes are too big for the format.
    #[error("the dump's notes do not fit in an ELF file: {0}")]
    Notes(String),
    /// Too many RAM regions for the format.
    #[error("{segments} segments are more than an ELF file can list ({PHNUM_LIMIT})")]
    TooManySegments {
        /// Segments needed.
        segments: usize,
    },
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Bytes of RAM in it.
    pub ram_len: u64,
    /// Bytes of RAM that are zero and were left out as holes.
    pub hole_len: u64,
}

/// Writes a dump of `source` to `out`, which is empty. `vmcoreinfo` is the text of the note of that
/// name ([`Vmcoreinfo`] makes one); if it names a root descriptor that can be attached to, virtual
/// addresses of the direct map and of the kernel image are recorded, and if it is a Linux's own, those of its
/// image: drgn reads the first page table by its virtual address. `progress` is called now and then, and at the end, with the bytes of RAM done and in total.
///
/// The guest should be paused: memory that changes meanwhile is dumped as it is read. The caller
/// writes to a temporary name and renames.
///
/// # Errors
/// [`WriteError`].
pub fn write<W: Write + Seek, S: MemorySource + ?Sized>(
    out: &mut W,
    source: &S,
    cpus: &[CpuRegisters],
    facts: &Facts,
    vmcoreinfo: &str,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Summary, WriteError> {
    let notes = notes(cpus, facts, vmcoreinfo)?;
    let Ok(info) = vmcoreinfo.parse::<Vmcoreinfo>();
    let guest = info.root_gpa.and_then(|gpa| Guest::attach(source, gpa).ok());

    let regions = source.regions();
    let mut loads = loads(regions, guest.as_ref());
    loads.extend(linux_loads(source, cpus, &info));
    let segments = loads.len() + 1;
    if segments >= PHNUM_LIMIT {
        return Err(WriteError::TooManySegments { segments });
    }
    let notes_at = (size_of::<Header>() + segments * size_of::<Segment>()) as u64;
    let data_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE_SIZE);

    let mut head = Vec::new();
    head.extend_from_slice(header(segments).as_bytes());
    let note = Segment {
        kind: PT_NOTE,
        offset: notes_at,
        filesz: notes.len() as u64,
        memsz: notes.len() as u64,
        align: 4,
        ..Segment::default()
    };
    head.extend_from_slice(note.as_bytes());
    for mut load in loads {
        load.offset += data_at;
        head.extend_from_slice(load.as_bytes());
    }
    head.extend_from_slice(&notes);
    out.write_all(&head).map_err(|source| WriteError::Output { offset: 0, source })?;

    let mut data =
        Data { out, at: head.len() as u64, progress, done: 0, told: 0, total: source.ram_bytes(), holes: 0 };
    for (region, offset) in regions.iter().zip(offsets(regions)) {
        data.copy_region(source, *region, data_at + offset)?;
    }
    let end = offsets(regions)
        .zip(regions)
        .last()
        .map_or(data_at, |(offset, region)| data_at + offset + region.len);
    data.finish(end)?;
    Ok(Summary { file_len: end, ram_len: data.total, hole_len: data.holes })
}

fn notes(cpus: &[CpuRegisters], facts: &Facts, vmcoreinfo: &str) -> Result<Vec<u8>, WriteError> {
    let note = MemvisorNote { format: NOTE_FORMAT, facts: facts.clone(), registers: cpus.to_vec() };
    let json = serde_json::to_vec(&note).map_err(|error| WriteError::Notes(error.to_string()))?;
    let mut notes = Vec::new();
    let too_long = || WriteError::Notes("a note is longer than 4 GiB".into());
    for cpu in cpus {
        push_note(&mut notes, NAME_CORE, NT_PRSTATUS, Prstatus::of(cpu).as_bytes()).ok_or_else(too_long)?;
    }
    push_note(&mut notes, NAME_VMCOREINFO, 0, vmcoreinfo.as_bytes()).ok_or_else(too_long)?;
    push_note(&mut notes, NAME_MEMVISOR, NT_MEMVISOR, &json).ok_or_else(too_long)?;
    Ok(notes)
}

fn header(segments: usize) -> Header {
    Header {
        magic: MAGIC,
        class: CLASS_64,
        data: DATA_LITTLE,
        ident_version: 1,
        kind: ET_CORE,
        machine: EM_X86_64,
        version: 1,
        phoff: size_of::<Header>() as u64,
        ehsize: 64,
        phentsize: 56,
        phnum: u16::try_from(segments).unwrap_or(u16::MAX),
        ..Header::default()
    }
}

/// Offset of each region from the start of the data. Every region starts on a page of the file, so
/// that the reader can map it.
fn offsets(regions: &[RamRegion]) -> impl Iterator<Item = u64> {
    let mut next = 0u64;
    regions.iter().map(move |region| {
        let offset = next;
        next = (next + region.len).next_multiple_of(PAGE_SIZE);
        offset
    })
}

fn segment(gpa: u64, len: u64, offset: u64, vaddr: Option<u64>) -> Segment {
    Segment {
        kind: PT_LOAD,
        flags: FLAGS_RWX,
        offset,
        vaddr: vaddr.unwrap_or(gpa),
        paddr: gpa,
        filesz: len,
        memsz: len,
        align: PAGE_SIZE,
    }
}

/// The segments of RAM, then those of the kernel image, with offsets from the start of the data.
fn loads<S: MemorySource + ?Sized>(regions: &[RamRegion], guest: Option<&Guest<'_, S>>) -> Vec<Segment> {
    let root = guest.map(Guest::root);
    let mut loads: Vec<_> = regions
        .iter()
        .zip(offsets(regions))
        .map(|(region, offset)| {
            let vaddr = root
                .and_then(|root| root.page_offset.checked_add(region.gpa))
                .filter(|vaddr| vaddr.checked_add(region.len - 1).is_some());
            segment(region.gpa, region.len, offset, vaddr)
        })
        .collect();
    if let Some(root) = root {
        let end = root.kernel_gpa.saturating_add(root.kernel_len);
        for (region, offset) in regions.iter().zip(offsets(regions)) {
            let first = root.kernel_gpa.max(region.gpa);
            let last = end.min(region.gpa.saturating_add(region.len));
            if first < last {
                let vaddr = root.kernel_va.wrapping_add(first - root.kernel_gpa);
                loads.push(segment(first, last - first, offset + (first - region.gpa), Some(vaddr)));
            }
        }
    }
    loads
}

/// The segments of a Linux image: what its page tables map in one piece from `_stext` on, as far as it is where
/// `phys_base` says. Parts that Linux has unmapped since, between text and data, are left out.
fn linux_loads<S: MemorySource + ?Sized>(
    source: &S,
    cpus: &[CpuRegisters],
    info: &Vmcoreinfo,
) -> Vec<Segment> {
    /// Linux: `__START_KERNEL_map`, and the most that an image takes there (`KERNEL_IMAGE_SIZE` with KASLR).
    const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
    const KERNEL_MAP_END: u64 = KERNEL_MAP + (1 << 30);
    /// Linux 6.1 has three.
    const RUNS_MAX: usize = 64;
    let Some(stext) = info.stext.filter(|va| (KERNEL_MAP..KERNEL_MAP_END).contains(va)) else {
        return Vec::new();
    };
    let Some(walker) = cpus.iter().find_map(Walker::from_registers) else { return Vec::new() };
    // First virtual address and length of each run.
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let place = |va: u64| (va - KERNEL_MAP).wrapping_add_signed(info.phys_base);
    let mut va = stext & !(PAGE_SIZE - 1);
    while va < KERNEL_MAP_END {
        let (size, is_there) = match walker.lookup(source, va) {
            Ok(mapped) => (mapped.page_size.bytes(), mapped.gpa == place(va)),
            Err(Fault::NotPresent { level: level @ 2..=4, .. }) => (1 << (12 + 9 * (level - 1)), false),
            Err(_) => (PAGE_SIZE, false),
        };
        let Some(next) = (va & !(size - 1)).checked_add(size) else { break };
        if is_there {
            match runs.last_mut() {
                Some((first, len)) if *first + *len == va => *len += next - va,
                _ => runs.push((va, next - va)),
            }
        }
        va = next;
    }
    // The guest decides about its tables: what no Linux does must not make its dump impossible.
    runs.truncate(RUNS_MAX);
    let regions = source.regions();
    let parts = runs.iter().flat_map(|(first, len)| {
        regions.iter().zip(offsets(regions)).filter_map(move |(region, offset)| {
            let gpa = place(*first);
            let (start, end) = (gpa.max(region.gpa), (gpa + len).min(region.gpa + region.len));
            (start < end).then(|| {
                segment(start, end - start, offset + (start - region.gpa), Some(first + (start - gpa)))
            })
        })
    });
    parts.collect()
}

/// The RAM part of the file.
struct Data<'a, W> {
    out: &'a mut W,
    /// Where the next write goes.
    at: u64,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    /// What `progress` was last told.
    told: u64,
    total: u64,
    holes: u64,
}

impl<W: Write + Seek> Data<'_, W> {
    fn copy_region<S: MemorySource + ?Sized>(
        &mut self,
        source: &S,
        region: RamRegion,
        offset: u64,
    ) -> Result<(), WriteError> {
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        // Up to here the source said that there is data.
        let mut data_end = 0;
        while done < region.len {
            if done >= data_end {
                // What the source knows to be zero is not even read.
                let data = source.next_data(region.gpa + done).unwrap_or(u64::MAX);
                let start = (data.max(region.gpa) - region.gpa).max(done) / PAGE_SIZE * PAGE_SIZE;
                let start = start.max(done).min(region.len);
                self.advance(start - done);
                self.holes += start - done;
                done = start;
                data_end = match source.data_end(data) {
                    Some(end) if end > data => (end - region.gpa).next_multiple_of(PAGE_SIZE).min(region.len),
                    _ => (done + CHUNK as u64).min(region.len),
                };
            }
            let len = (data_end - done).min(CHUNK as u64);
            #[expect(clippy::cast_possible_truncation, reason = "at most CHUNK")]
            let Some(chunk) = buffer.get_mut(..len as usize) else { break };
            if !chunk.is_empty() {
                source.read(region.gpa + done, chunk)?;
                self.put(chunk, offset + done)?;
                done += len;
                self.advance(len);
            }
        }
        Ok(())
    }

    /// Writes the parts of `chunk` that are not zero.
    fn put(&mut self, chunk: &[u8], offset: u64) -> Result<(), WriteError> {
        let mut start = None;
        let mut at = 0;
        for page in chunk.chunks(HOLE) {
            if is_zero(page) {
                self.holes += page.len() as u64;
                if let Some(start) = start.take() {
                    self.write_at(chunk.get(start..at).unwrap_or_default(), offset + start as u64)?;
                }
            } else {
                start.get_or_insert(at);
            }
            at += page.len();
        }
        match start {
            Some(start) => self.write_at(chunk.get(start..).unwrap_or_default(), offset + start as u64),
            None => Ok(()),
        }
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), WriteError> {
        let fail = |source| WriteError::Output { offset, source };
        if self.at != offset {
            self.out.seek(SeekFrom::Start(offset)).map_err(fail)?;
        }
        self.out.write_all(bytes).map_err(fail)?;
        self.at = offset + bytes.len() as u64;
        Ok(())
    }

    /// Makes the file end at `end` even if its last bytes are a hole.
    fn finish(&mut self, end: u64) -> Result<(), WriteError> {
        if self.at < end {
            self.write_at(&[0], end - 1)?;
        }
        self.out.flush().map_err(|source| WriteError::Output { offset: end, source })
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.done - self.told >= PROGRESS_STEP || (bytes > 0 && self.done == self.total) {
            self.told = self.done;
            (self.progress)(self.done, self.total);
        }
    }
}

/// Most pages differ from zero early, so look at a little first and then at all of it at once.
fn is_zero(page: &[u8]) -> bool {
    let (head, tail) = page.split_at(page.len().min(64));
    let or = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    or(head) && tail.chunks(512).all(or)
}
