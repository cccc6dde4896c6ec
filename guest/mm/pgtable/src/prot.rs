//! What a mapping allows, and how it is cached.

use crate::{Entry, PteFlags};

/// Cache modes, numbered by their index in Linux's PAT (Linux: `enum page_cache_mode`,
/// `arch/x86/mm/pat/memtype.c`). The CPU must have [`CacheMode::PAT_MSR`] before any mode but
/// write-back is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum CacheMode {
    /// Write-back: RAM.
    #[default]
    Wb = 0,
    /// Write-combining: frame buffers.
    Wc = 1,
    /// Uncached, unless an MTRR says write-combining: `ioremap`.
    UcMinus = 2,
    /// Uncached.
    Uc = 3,
    /// Write-protected.
    Wp = 5,
    /// Write-through.
    Wt = 7,
}

impl CacheMode {
    /// Value of IA32_PAT (MSR 0x277) that gives the modes these indices.
    pub const PAT_MSR: u64 = 0x0407_0506_0007_0106;

    /// The mode that an index 0..=7 selects; indices 4 and 6 repeat 0 and 2.
    pub const fn from_index(index: u8) -> CacheMode {
        match index % 8 {
            1 => CacheMode::Wc,
            2 | 6 => CacheMode::UcMinus,
            3 => CacheMode::Uc,
            5 => CacheMode::Wp,
            7 => CacheMode::Wt,
            _ => CacheMode::Wb,
        }
    }

    /// The mode that the bits PWT, PCD and PAT of a leaf select.
    pub const fn from_flags(flags: PteFlags) -> CacheMode {
        CacheMode::from_index(
            flags.contains(PteFlags::PWT) as u8
                | (flags.contains(PteFlags::PCD) as u8) << 1
                | (flags.contains(PteFlags::PAT) as u8) << 2,
        )
    }

    /// The bits that select the mode.
    pub const fn flags(self) -> PteFlags {
        let index = self as u8;
        let mut flags = PteFlags::empty();
        if index & 1 != 0 {
            flags = flags.union(PteFlags::PWT);
        }
        if index & 2 != 0 {
            flags = flags.union(PteFlags::PCD);
        }
        if index & 4 != 0 {
            flags = flags.union(PteFlags::PAT);
        }
        flags
    }
}

/// Protection of a mapping (Linux: `pgprot_t`). Reading is always allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Prot {
    /// Writes are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub exec: bool,
    /// Ring 3 may access.
    pub user: bool,
    /// The same in every address space: survives a CR3 write.
    pub global: bool,
    /// How accesses are cached.
    pub cache: CacheMode,
}

impl Prot {
    const NONE: Prot = Prot { write: false, exec: false, user: false, global: false, cache: CacheMode::Wb };
    /// Kernel, read-only (Linux: `PAGE_KERNEL_RO`).
    pub const KERNEL_RO: Prot = Prot { global: true, ..Prot::NONE };
    /// Kernel data (Linux: `PAGE_KERNEL`).
    pub const KERNEL_RW: Prot = Prot { write: true, ..Prot::KERNEL_RO };
    /// Kernel text (Linux: `PAGE_KERNEL_ROX`).
    pub const KERNEL_RX: Prot = Prot { exec: true, ..Prot::KERNEL_RO };
    /// Device registers (Linux: `PAGE_KERNEL_IO_NOCACHE`).
    pub const KERNEL_IO: Prot = Prot { cache: CacheMode::UcMinus, ..Prot::KERNEL_RW };
    /// User, read-only (Linux: `PAGE_READONLY`).
    pub const USER_RO: Prot = Prot { user: true, ..Prot::NONE };
    /// User data (Linux: `PAGE_SHARED`).
    pub const USER_RW: Prot = Prot { write: true, ..Prot::USER_RO };
    /// User text (Linux: `PAGE_READONLY_EXEC`).
    pub const USER_RX: Prot = Prot { exec: true, ..Prot::USER_RO };

    /// Flags of a new leaf. ACCESSED is set, as Linux does for kernel memory and for pages that
    /// a fault brings in; DIRTY for writable kernel memory, whose dirtiness nobody asks for.
    pub const fn flags(self) -> PteFlags {
        let mut flags = PteFlags::PRESENT.union(PteFlags::ACCESSED).union(self.cache.flags());
        if self.write {
            flags = flags.union(PteFlags::WRITE);
            if !self.user {
                flags = flags.union(PteFlags::DIRTY);
            }
        }
        if self.user {
            flags = flags.union(PteFlags::USER);
        }
        if self.global {
            flags = flags.union(PteFlags::GLOBAL);
        }
        if !self.exec {
            flags = flags.union(PteFlags::NX);
        }
        flags
    }

    /// What the flags of a leaf say.
    pub const fn from_flags(flags: PteFlags) -> Prot {
        Prot {
            write: flags.contains(PteFlags::WRITE),
            exec: !flags.contains(PteFlags::NX),
            user: flags.contains(PteFlags::USER),
            global: flags.contains(PteFlags::GLOBAL),
            cache: CacheMode::from_flags(flags),
        }
    }

    /// What remains of this below a table entry: write and user only if both allow, no fetches
    /// if either refuses (SDM 3A, 4.6.1).
    #[must_use]
    pub const fn below(self, table: Entry) -> Prot {
        Prot {
            write: self.write && table.has(PteFlags::WRITE),
            exec: self.exec && !table.has(PteFlags::NX),
            user: self.user && table.has(PteFlags::USER),
            ..self
        }
    }
}
