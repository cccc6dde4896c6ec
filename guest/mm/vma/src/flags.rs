//! What a VMA allows, and the flags of the calls that say so.

use bitflags::bitflags;

bitflags! {
    /// `vm_flags` (Linux: include/linux/mm.h; same names and bits).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct VmFlags: u64 {
        /// Reads are allowed.
        const READ = 0x1;
        /// Writes are allowed.
        const WRITE = 0x2;
        /// Fetches are allowed.
        const EXEC = 0x4;
        /// Writes are seen by others.
        const SHARED = 0x8;
        /// mprotect may set READ.
        const MAYREAD = 0x10;
        /// mprotect may set WRITE.
        const MAYWRITE = 0x20;
        /// mprotect may set EXEC.
        const MAYEXEC = 0x40;
        /// Came from MAP_SHARED, whether or not it may ever be written.
        const MAYSHARE = 0x80;
        /// Grows towards lower addresses on a fault below it: a stack.
        const GROWSDOWN = 0x100;
        /// Frames without descriptors.
        const PFNMAP = 0x400;
        /// mlocked.
        const LOCKED = 0x2000;
        /// Device registers.
        const IO = 0x4000;
        /// MADV_SEQUENTIAL.
        const SEQ_READ = 0x8000;
        /// MADV_RANDOM.
        const RAND_READ = 0x1_0000;
        /// fork does not copy it.
        const DONTCOPY = 0x2_0000;
        /// mremap does not grow it.
        const DONTEXPAND = 0x4_0000;
        /// With LOCKED: pages are locked when they come, and not brought in.
        const LOCKONFAULT = 0x8_0000;
        /// Counts against the commit limit.
        const ACCOUNT = 0x10_0000;
        /// MAP_NORESERVE.
        const NORESERVE = 0x20_0000;
        /// A huge TLB area.
        const HUGETLB = 0x40_0000;
        /// MAP_SYNC.
        const SYNC = 0x80_0000;
        /// The child of a fork finds zeroes.
        const WIPEONFORK = 0x200_0000;
        /// Not in core dumps.
        const DONTDUMP = 0x400_0000;
        /// Frames with and without descriptors.
        const MIXEDMAP = 0x1000_0000;
        /// MADV_HUGEPAGE.
        const HUGEPAGE = 0x2000_0000;
        /// MADV_NOHUGEPAGE.
        const NOHUGEPAGE = 0x4000_0000;
        /// MADV_MERGEABLE.
        const MERGEABLE = 0x8000_0000;
        /// Its driver counts VMAs, so that none merges with another (Linux: `vm_ops->close`; not a bit there).
        const COUNTED = 1 << 62;

        /// `VM_ACCESS_FLAGS`.
        const ACCESS = Self::READ.bits() | Self::WRITE.bits() | Self::EXEC.bits();
        /// `VM_LOCKED_MASK`.
        const LOCKED_MASK = Self::LOCKED.bits() | Self::LOCKONFAULT.bits();
        /// `VM_SPECIAL`: cannot merge, nor be mlocked.
        const SPECIAL = Self::IO.bits() | Self::DONTEXPAND.bits() | Self::PFNMAP.bits() | Self::MIXEDMAP.bits();
        /// What `remap_pfn_range` gives a VMA.
        const REMAPPED =
            Self::IO.bits() | Self::PFNMAP.bits() | Self::DONTEXPAND.bits() | Self::DONTDUMP.bits();
        /// What every mmap starts with.
        const MAY_ALL = Self::MAYREAD.bits() | Self::MAYWRITE.bits() | Self::MAYEXEC.bits();
    }

    /// `PROT_*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ProtFlags: u64 {
        /// `PROT_READ`.
        const READ = 1;
        /// `PROT_WRITE`.
        const WRITE = 2;
        /// `PROT_EXEC`.
        const EXEC = 4;
        /// `PROT_SEM`: accepted, without effect.
        const SEM = 8;
        /// `PROT_GROWSDOWN`: from the start of the growing VMA on.
        const GROWSDOWN = 0x0100_0000;
        /// `PROT_GROWSUP`: no VMA grows upwards on x86.
        const GROWSUP = 0x0200_0000;
        const _ = !0;
    }

    /// `MAP_*` (x86-64).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct MapFlags: u64 {
        /// `MAP_SHARED`.
        const SHARED = 0x1;
        /// `MAP_PRIVATE`.
        const PRIVATE = 0x2;
        /// `MAP_FIXED`.
        const FIXED = 0x10;
        /// `MAP_ANONYMOUS`.
        const ANONYMOUS = 0x20;
        /// `MAP_32BIT`.
        const BIT32 = 0x40;
        /// `MAP_GROWSDOWN`.
        const GROWSDOWN = 0x100;
        /// `MAP_DENYWRITE`: ignored.
        const DENYWRITE = 0x800;
        /// `MAP_EXECUTABLE`: ignored.
        const EXECUTABLE = 0x1000;
        /// `MAP_LOCKED`.
        const LOCKED = 0x2000;
        /// `MAP_NORESERVE`.
        const NORESERVE = 0x4000;
        /// `MAP_POPULATE`.
        const POPULATE = 0x8000;
        /// `MAP_NONBLOCK`: with POPULATE, brings nothing in.
        const NONBLOCK = 0x1_0000;
        /// `MAP_STACK`.
        const STACK = 0x2_0000;
        /// `MAP_HUGETLB`.
        const HUGETLB = 0x4_0000;
        /// `MAP_SYNC`.
        const SYNC = 0x8_0000;
        /// `MAP_FIXED_NOREPLACE`.
        const FIXED_NOREPLACE = 0x10_0000;
        const _ = !0;
    }
}

impl MapFlags {
    /// Whether the bits from `MAP_HUGE_SHIFT` on say a size of huge pages that the machine has, 2 MiB or 1 GiB, or leave it open.
    pub const fn has_known_huge_size(self) -> bool {
        matches!(self.bits() >> 26 & 0x3f, 0 | 21 | 30)
    }
}

/// `MAP_TYPE`.
const MAP_TYPE: u64 = 0xf;
/// What `MAP_SHARED_VALIDATE` accepts (Linux: `LEGACY_MAP_MASK`).
const LEGACY: u64 = 0x1
    | 0x2
    | 0x10
    | 0x20
    | 0x40
    | 0x100
    | 0x800
    | 0x1000
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000
    | 0x4_0000
    | 0x3f << 26;

/// Who sees writes to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// `MAP_SHARED`.
    Shared,
    /// `MAP_PRIVATE`.
    Private,
    /// `MAP_SHARED_VALIDATE`.
    SharedValidate,
}

impl MapFlags {
    /// The type; `None` for a number that is none.
    pub const fn map_type(self) -> Option<MapType> {
        match self.bits() & MAP_TYPE {
            1 => Some(MapType::Shared),
            2 => Some(MapType::Private),
            3 => Some(MapType::SharedValidate),
            _ => None,
        }
    }

    /// Whether there is a flag that old kernels ignored silently.
    pub const fn has_unknown(self) -> bool {
        self.bits() & !LEGACY != 0
    }

    /// Linux: `calc_vm_flag_bits`.
    pub fn vm_flags(self) -> VmFlags {
        let mut flags = VmFlags::empty();
        flags.set(VmFlags::GROWSDOWN, self.contains(MapFlags::GROWSDOWN));
        flags.set(VmFlags::LOCKED, self.contains(MapFlags::LOCKED));
        flags.set(VmFlags::NOHUGEPAGE, self.contains(MapFlags::STACK));
        flags.set(VmFlags::SYNC, self.contains(MapFlags::SYNC));
        flags
    }
}

impl ProtFlags {
    /// Linux: `calc_vm_prot_bits`.
    pub fn vm_flags(self) -> VmFlags {
        VmFlags::from_bits_truncate(self.bits() & VmFlags::ACCESS.bits())
    }
}

impl VmFlags {
    /// Some access is allowed (Linux: `vma_is_accessible`).
    pub const fn is_accessible(self) -> bool {
        self.intersects(VmFlags::ACCESS)
    }

    /// Private memory that may become writable is copied on write (Linux: `is_cow_mapping`).
    pub const fn is_cow(self) -> bool {
        self.bits() & (VmFlags::SHARED.bits() | VmFlags::MAYWRITE.bits()) == VmFlags::MAYWRITE.bits()
    }

    /// Counts as data (Linux: `is_data_mapping`).
    pub const fn is_data(self) -> bool {
        let mask = VmFlags::WRITE.bits() | VmFlags::SHARED.bits() | VmFlags::GROWSDOWN.bits();
        self.bits() & mask == VmFlags::WRITE.bits()
    }

    /// Counts as text (Linux: `is_exec_mapping`).
    pub const fn is_exec(self) -> bool {
        let mask = VmFlags::EXEC.bits() | VmFlags::WRITE.bits() | VmFlags::GROWSDOWN.bits();
        self.bits() & mask == VmFlags::EXEC.bits()
    }

    /// A new writable private mapping is charged (Linux: `accountable_mapping`).
    pub const fn is_accountable(self) -> bool {
        let mask = VmFlags::NORESERVE.bits() | VmFlags::SHARED.bits() | VmFlags::WRITE.bits();
        self.bits() & mask == VmFlags::WRITE.bits()
    }
}
