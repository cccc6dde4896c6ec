//! Opening a dump.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memvisor_abi::PAGE_SIZE;
use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use super::elf::{
    CLASS_64, DATA_LITTLE, EM_X86_64, ET_CORE, Header, MAGIC, NAME_MEMVISOR, NAME_VMCOREINFO, NT_MEMVISOR,
    PT_LOAD, PT_NOTE, Segment, next_note,
};
use super::{MemvisorNote, NOTE_FORMAT, Vmcoreinfo};
use crate::source::find;
use crate::{CpuRegisters, Facts, MapError, MappedMemory, MemorySource, RamRegion, ReadError};

/// Most bytes of notes that are read.
const NOTES_MAX: u64 = 64 << 20;

/// Why a file is not a dump that can be read.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file cannot be opened or read.
    #[error("read dump {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Not an ELF core file of this architecture.
    #[error("{} is not a dump: {what}", path.display())]
    NotCore {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// A core file by another program.
    #[error("{} is an ELF core file, but not one of memvisor's ({what}); make one with `memvisor dump`", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// The file ends early.
    #[error("dump {} is truncated: {what} ends at byte {need}, the file at {len}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is cut.
        what: &'static str,
        /// Where it ends.
        need: u64,
        /// Length of the file in bytes.
        len: u64,
    },
    /// The RAM in the file cannot be mapped.
    #[error("map dump {}", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: MapError,
    },
}

/// A dump, open for reading.
#[derive(Debug)]
pub struct CoreFile {
    memory: MappedMemory,
    registers: Vec<CpuRegisters>,
    facts: Facts,
    vmcoreinfo: String,
}

impl CoreFile {
    /// Opens a dump that [`super::write`] wrote.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: impl AsRef<Path>) -> Result<CoreFile, OpenError> {
        let path = path.as_ref();
        let fail = |source| OpenError::Read { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(OpenError::NotCore { path: path.to_path_buf(), what: "it is not a regular file" });
        }
        let reader = Reader { path, file: Arc::new(file), len: metadata.len() };
        let segments = reader.segments()?;
        let (note, vmcoreinfo) = reader.notes(&segments)?;
        let memory = reader.memory(&segments)?;
        Ok(CoreFile { memory, registers: note.registers, facts: note.facts, vmcoreinfo })
    }

    /// Registers of every CPU.
    pub fn registers(&self) -> &[CpuRegisters] {
        &self.registers
    }

    /// The machine as built.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Text of the VMCOREINFO note.
    pub fn vmcoreinfo(&self) -> &str {
        &self.vmcoreinfo
    }

    /// Guest-physical address of the root descriptor, as noted.
    pub fn root_gpa(&self) -> Option<u64> {
        let Ok(info) = self.vmcoreinfo.parse::<Vmcoreinfo>();
        info.root_gpa
    }
}

impl MemorySource for CoreFile {
    fn regions(&self) -> &[RamRegion] {
        self.memory.regions()
    }

    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.memory.read(gpa, buf)
    }

    #[inline]
    fn read_u64(&self, gpa: u64) -> Result<u64, ReadError> {
        self.memory.read_u64(gpa)
    }

    fn next_data(&self, gpa: u64) -> Option<u64> {
        self.memory.next_data(gpa)
    }
}

struct Reader<'a> {
    path: &'a Path,
    file: Arc<File>,
    len: u64,
}

impl Reader<'_> {
    fn segments(&self) -> Result<Vec<Segment>, OpenError> {
        let not_core = |what| Err(OpenError::NotCore { path: self.path.to_path_buf(), what });
        let mut magic = [0; 4];
        if self.len < 4 || self.file.read_exact_at(&mut magic, 0).is_err() || magic != MAGIC {
            return not_core("it does not start with the ELF magic");
        }
        let mut header = Header::new_zeroed();
        self.read(0, header.as_mut_bytes(), "the ELF header")?;
        if header.class != CLASS_64 || header.data != DATA_LITTLE || header.machine != EM_X86_64 {
            return not_core("it is ELF, but not 64-bit x86");
        }
        if header.kind != ET_CORE {
            return not_core("it is ELF, but not a core file");
        }
        if usize::from(header.phentsize) != size_of::<Segment>() {
            return not_core("its program headers have an unknown size");
        }
        let mut segments = vec![Segment::default(); header.phnum.into()];
        self.read(header.phoff, segments.as_mut_slice().as_mut_bytes(), "the program headers")?;
        Ok(segments)
    }

    fn notes(&self, segments: &[Segment]) -> Result<(MemvisorNote, String), OpenError> {
        let mut note = None;
        let mut vmcoreinfo = None;
        for segment in segments.iter().filter(|segment| segment.kind == PT_NOTE) {
            if segment.filesz > NOTES_MAX {
                return Err(self.foreign(format!("{} bytes of notes", segment.filesz)));
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most NOTES_MAX")]
            let mut bytes = vec![0; segment.filesz.min(self.len) as usize];
            self.check(segment.offset, segment.filesz, "the notes")?;
            self.read(segment.offset, &mut bytes, "the notes")?;
            let mut rest = bytes.as_slice();
            while let Some(found) = next_note(&mut rest) {
                if found.name == NAME_MEMVISOR.as_bytes() && found.kind == NT_MEMVISOR {
                    note = Some(self.parse_note(found.contents)?);
                } else if found.name == NAME_VMCOREINFO.as_bytes() && found.kind == 0 {
                    vmcoreinfo = Some(String::from_utf8_lossy(found.contents).into_owned());
                }
            }
        }
        let note = note.ok_or_else(|| self.foreign("it has no MEMVISOR note".into()))?;
        Ok((note, vmcoreinfo.unwrap_or_default()))
    }

    fn parse_note(&self, contents: &[u8]) -> Result<MemvisorNote, OpenError> {
        let note: MemvisorNote = serde_json::from_slice(contents)
            .map_err(|error| self.foreign(format!("its MEMVISOR note cannot be read: {error}")))?;
        if note.format != NOTE_FORMAT {
            let format = note.format;
            return Err(
                self.foreign(format!("MEMVISOR note of format {format}, this reader knows {NOTE_FORMAT}"))
            );
        }
        Ok(note)
    }

    /// Maps the RAM. Segments of the kernel image repeat RAM that was listed before, and are left out.
    fn memory(&self, segments: &[Segment]) -> Result<MappedMemory, OpenError> {
        let mut parts: Vec<(RamRegion, Arc<File>, u64)> = Vec::new();
        let mut regions: Vec<RamRegion> = Vec::new();
        for segment in segments.iter().filter(|segment| segment.kind == PT_LOAD) {
            if segment.memsz == 0 || find(&regions, segment.paddr).is_some() {
                continue;
            }
            self.check(segment.offset, segment.filesz, "RAM")?;
            if segment.filesz != segment.memsz || !segment.offset.is_multiple_of(PAGE_SIZE) {
                return Err(self.foreign(format!("the RAM at {:#x} is not stored whole", segment.paddr)));
            }
            let region = RamRegion { gpa: segment.paddr, len: segment.filesz };
            let place = regions.partition_point(|other| other.gpa < region.gpa);
            regions.insert(place, region);
            parts.push((region, Arc::clone(&self.file), segment.offset));
        }
        let mut places: Vec<_> = parts.iter().map(|(region, _, offset)| (*offset, *region)).collect();
        places.sort_unstable_by_key(|(offset, _)| *offset);
        for pair in places.windows(2) {
            // Else a small file could claim any amount of RAM.
            if let [(one, first), (two, second)] = pair
                && two - one < first.len
            {
                let what =
                    format!("the RAM at {:#x} and at {:#x} is stored in one place", first.gpa, second.gpa);
                return Err(self.foreign(what));
            }
        }
        MappedMemory::from_files(parts)
            .map_err(|source| OpenError::Map { path: self.path.to_path_buf(), source })
    }

    fn check(&self, offset: u64, len: u64, what: &'static str) -> Result<(), OpenError> {
        let need = offset.saturating_add(len);
        if need > self.len {
            return Err(OpenError::Truncated { path: self.path.to_path_buf(), what, need, len: self.len });
        }
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8], what: &'static str) -> Result<(), OpenError> {
        self.check(offset, buf.len() as u64, what)?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(|source| OpenError::Read { path: self.path.to_path_buf(), source })
    }

    fn foreign(&self, what: String) -> OpenError {
        OpenError::Foreign { path: self.path.to_path_buf(), what }
    }
}
