//! Address spaces: what an outsider needs to find every VMA of a process, and every entry of a page.
//!
//! Everything is linked by guest-physical address; 0 ends a list. A user page ([`crate::PageKind::User`]) leads to whoever may map
//! it: its [`crate::Page::mapping`] names an [`AnonVma`], with bit 0 set, or a [`Mapping`]; both lead to VMAs; its
//! [`crate::Page::index`] is the page's place in them, as [`Vma::pgoff`] counts.
//!
//! An entry of the lowest level that is not present and not 0 keeps its address bits, and has one mark:
//! [`PTE_PROTNONE`], a page in a VMA without access, or [`PTE_MIGRATION`], a page that is being moved from that frame. What a
//! [`PTE_PROTNONE`] entry names counts as mapped; a migration entry holds no reference and is no mapping. Nor does an entry with
//! [`PTE_SPECIAL`], which lies in a VMA with [`vm_flags::PFNMAP`]. An entry with [`crate::PTE_SWAP`] names a slot of a swap area and
//! no frame.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// In an entry that is not present: a mapped page that its VMA allows no access to (Linux: `_PAGE_PROTNONE`).
pub const PTE_PROTNONE: u64 = 1 << 9;
/// In an entry that is not present: the page is being moved (Linux: `SWP_MIGRATION_*`).
pub const PTE_MIGRATION: u64 = 1 << 10;
/// In an entry, present or not: a frame that a driver mapped and that nobody counts, though it may have a descriptor (Linux:
/// `_PAGE_SPECIAL`).
pub const PTE_SPECIAL: u64 = 1 << 11;
/// Bytes of [`Mapping::name`].
pub const MAPPING_NAME_LEN: usize = 96;
/// Words of [`Mm::cpus`].
pub const MM_CPU_WORDS: usize = 4;
/// VMAs of an address space at most, whatever `vm.max_map_count` is.
pub const MAX_MAP_COUNT: u32 = 1 << 20;
/// Pages that stay free below a stack (Linux: `stack_guard_gap`).
pub const STACK_GUARD_PAGES: u64 = 256;
/// Entries of a [`VmaNode`].
pub const VMA_FANOUT: usize = 15;
/// Levels that the tree of an address space may have.
pub const VMA_TREE_MAX_HEIGHT: u32 = 9;
/// In [`VmaNode::slot`], if it is a node's.
pub const VMA_SLOT_NODE: u64 = 1 << 63;

/// `vm_flags` (Linux: include/linux/mm.h; same bits). [`Vma::flags`] may have others.
pub mod vm_flags {
    /// `VM_READ`.
    pub const READ: u64 = 0x1;
    /// `VM_WRITE`.
    pub const WRITE: u64 = 0x2;
    /// `VM_EXEC`.
    pub const EXEC: u64 = 0x4;
    /// `VM_SHARED`: writes are seen by others.
    pub const SHARED: u64 = 0x8;
    /// `VM_MAYREAD`.
    pub const MAYREAD: u64 = 0x10;
    /// `VM_MAYWRITE`.
    pub const MAYWRITE: u64 = 0x20;
    /// `VM_MAYEXEC`.
    pub const MAYEXEC: u64 = 0x40;
    /// `VM_MAYSHARE`: came from MAP_SHARED.
    pub const MAYSHARE: u64 = 0x80;
    /// `VM_GROWSDOWN`: a stack.
    pub const GROWSDOWN: u64 = 0x100;
    /// `VM_PFNMAP`: frames whose descriptors nobody counts.
    pub const PFNMAP: u64 = 0x400;
    /// `VM_LOCKED`.
    pub const LOCKED: u64 = 0x2000;
    /// `VM_IO`: device registers.
    pub const IO: u64 = 0x4000;
    /// `VM_SEQ_READ`.
    pub const SEQ_READ: u64 = 0x8000;
    /// `VM_RAND_READ`.
    pub const RAND_READ: u64 = 0x1_0000;
    /// `VM_DONTCOPY`.
    pub const DONTCOPY: u64 = 0x2_0000;
    /// `VM_DONTEXPAND`.
    pub const DONTEXPAND: u64 = 0x4_0000;
    /// `VM_LOCKONFAULT`.
    pub const LOCKONFAULT: u64 = 0x8_0000;
    /// `VM_ACCOUNT`.
    pub const ACCOUNT: u64 = 0x10_0000;
    /// `VM_NORESERVE`.
    pub const NORESERVE: u64 = 0x20_0000;
    /// `VM_WIPEONFORK`.
    pub const WIPEONFORK: u64 = 0x200_0000;
    /// `VM_DONTDUMP`.
    pub const DONTDUMP: u64 = 0x400_0000;
    /// `VM_MIXEDMAP`: frames with and without counted descriptors.
    pub const MIXEDMAP: u64 = 0x1000_0000;
    /// `VM_HUGEPAGE`.
    pub const HUGEPAGE: u64 = 0x2000_0000;
    /// `VM_NOHUGEPAGE`.
    pub const NOHUGEPAGE: u64 = 0x4000_0000;
    /// `VM_MERGEABLE`.
    pub const MERGEABLE: u64 = 0x8000_0000;
    /// Its driver counts VMAs, so that none merges with another (Linux: `vm_ops->close`; not a bit there).
    pub const COUNTED: u64 = 1 << 62;
}

/// Modes of memory policies (Linux: include/uapi/linux/mempolicy.h; same numbers).
pub mod mpol {
    /// `MPOL_DEFAULT`: none; has no nodes.
    pub const DEFAULT: u32 = 0;
    /// `MPOL_PREFERRED`: one node.
    pub const PREFERRED: u32 = 1;
    /// `MPOL_BIND`: nodes.
    pub const BIND: u32 = 2;
    /// `MPOL_INTERLEAVE`: nodes.
    pub const INTERLEAVE: u32 = 3;
    /// `MPOL_LOCAL`: has no nodes.
    pub const LOCAL: u32 = 4;
    /// `MPOL_PREFERRED_MANY`: nodes.
    pub const PREFERRED_MANY: u32 = 5;
}

/// What the OOM killer did to an address space (Linux: `mm->flags`).
pub mod mm_flags {
    /// Those who use it are being killed (Linux: `MMF_OOM_VICTIM`).
    pub const OOM_VICTIM: u32 = 1;
    /// Nothing is to be had from it any more, so that another may be chosen (Linux: `MMF_OOM_SKIP`).
    pub const OOM_SKIP: u32 = 2;
    /// Pages may have been taken out that its users have not seen go: no fault brings one in (Linux: `MMF_UNSTABLE`).
    pub const UNSTABLE: u32 = 4;
}

/// An address space (Linux: `struct mm_struct`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Mm {
    /// Root of the tree of VMAs, a [`VmaNode`]; 0 if there is no VMA.
    pub tree_root: u64,
    /// Nodes kept for insertions to come, linked by their first slot.
    pub tree_spare: u64,
    /// Levels of the tree.
    pub tree_height: u32,
    /// Nodes on [`Self::tree_spare`].
    pub tree_spares: u32,
    /// Odd while mmap_lock is held for writing (Linux: `mm_lock_seq`).
    pub lock_seq: u64,
    /// First [`Vma`] by address.
    pub first: u64,
    /// Frame of the top-level page table (Linux: `pgd`).
    pub pgd_pfn: u64,
    /// Paging levels.
    pub levels: u32,
    /// VMAs.
    pub map_count: u32,
    /// Where mmap goes down from.
    pub mmap_base: u64,
    /// Where mmap goes up from.
    pub mmap_legacy_base: u64,
    /// First address past user space.
    pub task_size: u64,
    /// Pages of all VMAs.
    pub total_vm: u64,
    /// Pages of private writable VMAs that are no stacks.
    pub data_vm: u64,
    /// Pages of executable VMAs that cannot be written and are no stacks.
    pub exec_vm: u64,
    /// Pages of stacks.
    pub stack_vm: u64,
    /// Pages of mlocked VMAs.
    pub locked_vm: u64,
    /// Flags of every new VMA.
    pub def_flags: u64,
    /// First address of the program's data.
    pub start_data: u64,
    /// First address after the program's data.
    pub end_data: u64,
    /// First address of the heap.
    pub start_brk: u64,
    /// First address after the heap.
    pub brk: u64,
    /// Resident pages: anonymous, of mappings (Linux: `MM_ANONPAGES`; `MM_FILEPAGES` and `MM_SHMEMPAGES`). The zero page is not
    /// counted; a migration entry is.
    pub rss: [u64; 2],
    /// Faults without I/O.
    pub min_flt: u64,
    /// Faults that read from a device.
    pub maj_flt: u64,
    /// Page tables, the top-level one included (Linux: `pgtables_bytes`, in pages).
    pub table_pages: u64,
    /// Removals whose flush has not been done yet (Linux: `tlb_flush_pending`).
    pub tlb_flush_pending: u32,
    /// What the OOM killer did to it: [`mm_flags`].
    pub oom: u32,
    /// Frame of the top-level table that ring 3 runs on with page-table isolation; [`crate::PFN_NONE`] or 0 without.
    pub user_pgd_pfn: u64,
    /// Entries of its tables that name a slot of a swap area (Linux: `MM_SWAPENTS`).
    pub swapents: u64,
    /// Most resident pages before the count last fell (Linux: `hiwater_rss`); the count itself may be higher now.
    pub hiwater_rss: u64,
    /// The same of pages of all VMAs (Linux: `hiwater_vm`).
    pub hiwater_vm: u64,
    /// First address of the program's code.
    pub start_code: u64,
    /// First address after the program's code.
    pub end_code: u64,
    /// Readers of mmap_lock; -1 for a writer.
    pub mmap_lock: i32,
    /// Tasks that use it, and others that need it to stay; 0 of a guest that does not count them (Linux: `mm_users`).
    pub users: u32,
    /// CPUs that may hold translations of it, bit by number (Linux: `mm_cpumask`).
    pub cpus: [u64; MM_CPU_WORDS],
    /// Neighbours in the list of all address spaces, which [`crate::Root::mm_list`] begins; 0 at its ends.
    pub next: u64,
    /// See [`Self::next`].
    pub prev: u64,
    /// Process that it was made for (Linux: `mm->owner`). Whose it is now say the tasks that have it; none has it before its first task
    /// begins, and after its last one ended.
    pub owner: u32,
    /// Always 0.
    pub reserved2: u32,
}
const _: () = assert!(
    size_of::<Mm>() == 320
        && offset_of!(Mm, first) == 32
        && offset_of!(Mm, rss) == 160
        && offset_of!(Mm, table_pages) == 192
        && offset_of!(Mm, mmap_lock) == 256
);

/// A range of addresses with one kind of contents and one protection (Linux: `struct vm_area_struct`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Its [`Mm`]; 0 for a VMA that is not in use.
    pub mm: u64,
    /// See [`vm_flags`].
    pub flags: u64,
    /// [`Mm::lock_seq`] of the last writer.
    pub lock_seq: u64,
    /// 1 in a tree, plus readers; 0 if not in use.
    pub refcount: u32,
    /// Mode of its memory policy: [`mpol`].
    pub policy: u32,
    /// Page offset of `start`: in the mapping; for private anonymous memory the virtual page number where it was first mapped.
    pub pgoff: u64,
    /// [`Mapping`] that it maps; 0 for private anonymous memory.
    pub mapping: u64,
    /// [`AnonVma`] of its own new pages; 0 before the first.
    pub anon_vma: u64,
    /// First and last [`AnonVmaChain`], newest first.
    pub chain_first: u64,
    /// See [`Self::chain_first`].
    pub chain_last: u64,
    /// The VMA above.
    pub next: u64,
    /// The VMA below.
    pub prev: u64,
    /// Neighbours in the list of what maps the same [`Mapping`].
    pub shared_next: u64,
    /// See [`Self::shared_next`].
    pub shared_prev: u64,
    /// Nodes of its memory policy, bit by number; 0 of one that has none.
    pub policy_nodes: u64,
}
const _: () = assert!(
    size_of::<Vma>() == 128
        && offset_of!(Vma, policy) == 44
        && offset_of!(Vma, pgoff) == 48
        && offset_of!(Vma, next) == 88
        && offset_of!(Vma, policy_nodes) == 120
);

/// A node of the tree of VMAs: a B+ tree whose leaves, at depth [`Mm::tree_height`], have VMAs in their slots (Linux: the maple
/// tree).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmaNode {
    /// First address after what each entry holds. The highest entry comes first.
    pub end: [u64; VMA_FANOUT],
    /// Entries in use. Behind them `start`, `end` and `slot` are 0.
    pub len: u32,
    /// Always 0.
    pub reserved: u32,
    /// First address of it.
    pub start: [u64; VMA_FANOUT],
    /// A VMA in a leaf; above, a node and [`VMA_SLOT_NODE`].
    pub slot: [u64; VMA_FANOUT],
    /// Above the leaves, no gap between VMAs below the entry is longer.
    pub gap: [u64; VMA_FANOUT],
}
const _: () = assert!(size_of::<VmaNode>() == 488 && offset_of!(VmaNode, len) == 120);

impl VmaNode {
    /// A node without entries.
    pub const EMPTY: VmaNode = VmaNode {
        end: [0; VMA_FANOUT],
        len: 0,
        reserved: 0,
        start: [0; VMA_FANOUT],
        slot: [0; VMA_FANOUT],
        gap: [0; VMA_FANOUT],
    };
}

/// From where the VMAs of anonymous pages are found (Linux: `struct anon_vma`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AnonVma {
    /// The oldest ancestor, itself if it has none.
    pub root: u64,
    /// The parent process's, itself if it is a root.
    pub parent: u64,
    /// First [`AnonVmaChain`].
    pub chains: u64,
    /// 1 while it has VMAs, plus those whose root it is.
    pub refcount: u32,
    /// Those whose parent it is; itself included if it is a root.
    pub num_children: u32,
    /// VMAs whose [`Vma::anon_vma`] it is.
    pub num_active_vmas: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<AnonVma>() == 40);

/// A link between a VMA and an [`AnonVma`] (Linux: `struct anon_vma_chain`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AnonVmaChain {
    /// The VMA.
    pub vma: u64,
    /// The [`AnonVma`].
    pub anon_vma: u64,
    /// Next link of the same VMA.
    pub vma_next: u64,
    /// Previous link of the same VMA.
    pub vma_prev: u64,
    /// Next link of the same [`AnonVma`].
    pub anon_next: u64,
    /// Previous link of the same [`AnonVma`].
    pub anon_prev: u64,
}
const _: () = assert!(size_of::<AnonVmaChain>() == 48);

/// What VMAs map that is not private anonymous memory: pages of a file, or of shared memory (Linux: `struct address_space`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Mapping {
    /// First [`Vma`] that maps it; the list goes on at [`Vma::shared_next`] (Linux: `i_mmap`).
    pub vmas: u64,
    /// What the tree of pages holds at its root: 0; the address of the frame of page 0; a value, with bit 0 set; or the address of a
    /// [`MappingNode`] with bit 1 set (Linux: `i_pages`).
    pub root: u64,
    /// Marks that any page has: bit 0 dirty, 1 writeback, 2 to write.
    pub marks: u32,
    /// Nodes that left the tree so far.
    pub changes: u32,
    /// Pages in the tree.
    pub nrpages: u64,
    /// Bytes (Linux: `i_size`).
    pub size: u64,
    /// VMAs and others that use it.
    pub references: u32,
    /// [`Mapping::HOLDS_PAGES`].
    pub flags: u32,
    /// The next of the mappings that had pages in swap areas, which [`crate::Root::shmem_swaplist`] begins; 0 ends it. In the trees of these,
    /// and nowhere else, values name slots (Linux: `swaplist`).
    pub swap_next: u64,
    /// The one before; of the first its own address, and 0 of one that is not on the list.
    pub swap_prev: u64,
    /// Number of the file system, as `st_dev` has it; 0 of what is no file.
    pub dev: u64,
    /// Number of the inode; 0 of what is no file.
    pub ino: u64,
    /// The path by which it was opened first, padded with NUL; of a long one the end.
    pub name: [u8; MAPPING_NAME_LEN],
}
const _: () = assert!(size_of::<Mapping>() == 80 + MAPPING_NAME_LEN && offset_of!(Mapping, dev) == 64);

impl Default for Mapping {
    fn default() -> Mapping {
        Mapping {
            vmas: 0,
            root: 0,
            marks: 0,
            changes: 0,
            nrpages: 0,
            size: 0,
            references: 0,
            flags: 0,
            swap_next: 0,
            swap_prev: 0,
            dev: 0,
            ino: 0,
            name: [0; MAPPING_NAME_LEN],
        }
    }
}

impl Mapping {
    /// In `flags`: the mapping is a cache, which holds one reference of each page that names it.
    pub const HOLDS_PAGES: u32 = 1;
    /// In `flags`: a device's, without pages. Its VMAs map frames by [`PTE_SPECIAL`] entries.
    pub const DEVICE: u32 = 2;
    /// In `flags`: a segment of System V shared memory.
    pub const SYSV: u32 = 4;
    /// In `flags`: shared memory, all of whose size is promised; without it, of shared memory, its pages are.
    pub const ACCOUNTED: u32 = 16;
    /// In `flags`: on a disk, to which dirty pages are written back. Only here have flags of pages marks in the tree.
    pub const WRITTEN_BACK: u32 = 8;
}

/// A node of a mapping's tree of pages: an index has 6 bits here, and [`MappingNode::shift`] below (Linux: `struct xa_node`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MappingNode {
    /// As [`Mapping::root`]; nodes only where `shift` is not 0, frames and values only where it is.
    pub slots: [u64; 64],
    /// Slots that are not 0.
    pub present: u64,
    /// By mark: slots that have it, or have it below them.
    pub marks: [u64; 3],
    /// The node above; 0 for none.
    pub parent: u64,
    /// The slot of the node above that holds this one.
    pub offset: u32,
    /// Bits of an index below those of this node.
    pub shift: u32,
    /// Of the slots that are not 0, those that hold values (Linux: `nr_values`).
    pub values: u64,
    /// The [`Mapping`] while the node is on the list of [`ShadowNodes`], else 0.
    pub mapping: u64,
    /// The next on that list; 0 ends it.
    pub list_next: u64,
    /// The one before; 0 of the first.
    pub list_prev: u64,
}
const _: () = assert!(size_of::<MappingNode>() == 592);

/// The nodes of trees of files that hold nothing but values, which say when a page was evicted, the oldest first (Linux: `shadow_nodes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ShadowNodes {
    /// The first [`MappingNode`]; 0 for none.
    pub head: u64,
    /// The last.
    pub tail: u64,
    /// How many.
    pub count: u64,
}
const _: () = assert!(size_of::<ShadowNodes>() == 24);

/// What a CPU may hold translations of (Linux: `cpu_tlbstate`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuTlb {
    /// The [`Mm`] whose tables are in CR3; 0 for the kernel's own.
    pub mm: u64,
    /// Flushes that others asked this CPU for.
    pub flush_requested: u64,
    /// Of those, done.
    pub flush_done: u64,
    /// [`Self::IDLE`], [`Self::CHECKPOINT`], or 0.
    pub rests: u64,
}

impl CpuTlb {
    /// In `rests`: the CPU's idle task has nothing to do; nothing is half done there while interrupts are on, too.
    pub const IDLE: u64 = 1;
    /// In `rests`: the CPU stands at a checkpoint, or the guest ended there: nothing is half done.
    pub const CHECKPOINT: u64 = 2;
}
const _: () = assert!(size_of::<CpuTlb>() == 32);
