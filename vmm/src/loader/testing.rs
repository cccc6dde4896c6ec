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

/// Builds a bzImage for the 64-bit entry.
#[derive(Clone, Debug)]
pub struct BzImageBuilder {
    file: Vec<u8>,
}

impl BzImageBuilder {
    /// A relocatable image of protocol 2.15 whose 64-bit entry is `code`; it prefers 16 MiB and
    /// needs 1 MiB.
    pub fn new(code: &[u8]) -> BzImageBuilder {
        let kernel_len = (0x200 + code.len()).next_multiple_of(16);
        let mut file = vec![0; 2 * 512 + kernel_len];
        let code_at = 2 * 512 + 0x200;
        file[code_at..code_at + code.len()].copy_from_slice(code);
        let paragraphs = u32::try_from(kernel_len / 16).unwrap_or(u32::MAX);
        BzImageBuilder { file }
            .set(0x1f1, &[1])
            .set(0x1f4, &paragraphs.to_le_bytes())
            .set(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a])
            .set(0x202, b"HdrS")
            .set(0x206, &[0x0f, 0x02])
            .set(0x211, &[1])
            .set(0x22c, &0x7fff_ffffu32.to_le_bytes())
            .set(0x230, &0x20_0000u32.to_le_bytes())
            .set(0x234, &[1, 21])
            .set(0x236, &[0x7f, 0])
            .set(0x238, &2047u32.to_le_bytes())
            .set(0x258, &0x100_0000u64.to_le_bytes())
            .set(0x260, &0x10_0000u32.to_le_bytes())
    }

    /// Puts `bytes` at `offset` of the file.
    pub fn set(mut self, offset: usize, bytes: &[u8]) -> BzImageBuilder {
        self.file[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        self.file.clone()
    }
}
