//! Hand-made kernels for tests.

/// Builds a one-segment ELF64 image.
#[derive(Clone, Debug)]
pub struct ElfBuilder {
    paddr: u64,
    code: Vec<u8>,
    mem_len: u64,
    pvh: Option<u64>,
    kind: u16,
}

impl ElfBuilder {
    /// An ET_EXEC image of `code`, loaded and entered at `paddr`.
    pub fn new(paddr: u64, code: &[u8]) -> ElfBuilder {
        ElfBuilder { paddr, code: code.to_vec(), mem_len: code.len() as u64, pvh: None, kind: 2 }
    }

    /// Bytes in memory.
    pub fn mem_len(mut self, len: u64) -> ElfBuilder {
        self.mem_len = len;
        self
    }

    /// Adds a PVH note.
    pub fn pvh(mut self, entry: u64) -> ElfBuilder {
        self.pvh = Some(entry);
        self
    }

    /// Makes it ET_DYN.
    pub fn dynamic(mut self) -> ElfBuilder {
        self.kind = 3;
        self
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let mut note = Vec::new();
        if let Some(entry) = self.pvh {
            for word in [4u32, 8, 18] {
                note.extend(word.to_le_bytes());
            }
            note.extend(b"Xen\0");
            note.extend(entry.to_le_bytes());
        }
        let headers = 1 + u16::from(self.pvh.is_some());
        let note_at = 64 + 56 * u64::from(headers);
        let code_at = note_at + note.len() as u64;
        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        for half in [self.kind, 62] {
            file.extend(half.to_le_bytes());
        }
        file.extend(1u32.to_le_bytes());
        for word in [self.paddr, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for half in [64, 56, headers, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut header = |kind: u32, offset: u64, paddr: u64, file_len: u64, mem_len: u64, align: u64| {
            file.extend(kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for word in [offset, paddr, paddr, file_len, mem_len, align] {
                file.extend(word.to_le_bytes());
            }
        };
        header(1, code_at, self.paddr, self.code.len() as u64, self.mem_len, 4096);
        if self.pvh.is_some() {
            header(4, note_at, 0, note.len() as u64, note.len() as u64, 4);
        }
        file.extend(note);
        file.extend(&self.code);
        file
    }
}
