//! An address space (Linux: `struct mm_struct`).

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Relaxed};

use memvisor_abi as abi;
use mm_core::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use mm_pgtable::{Levels, PageTable, layout};

use crate::id::{Id, Link, fields};
use crate::tree::{Node, Tree};
use crate::{Arena, Errno, VmFlags, Vma};

/// Pages that stay free below a stack (Linux: `stack_guard_gap`).
pub const STACK_GUARD_GAP: u64 = 256 * PAGE_SIZE;

/// An address space. All zero is one without VMAs and page tables.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Mm {
    pub(crate) tree: Tree,
    /// Odd while mmap_lock is held for writing; see `lock.rs`.
    pub(crate) lock_seq: AtomicU64,
    pub(crate) first: Link<Vma>,
    root: AtomicU64,
    levels: AtomicU32,
    map_count: AtomicU32,
    mmap_base: AtomicU64,
    mmap_legacy_base: AtomicU64,
    task_size: AtomicU64,
    total_vm: AtomicU64,
    data_vm: AtomicU64,
    exec_vm: AtomicU64,
    stack_vm: AtomicU64,
    locked_vm: AtomicU64,
    def_flags: AtomicU64,
    start_data: AtomicU64,
    end_data: AtomicU64,
    start_brk: AtomicU64,
    brk: AtomicU64,
    rss: [AtomicU64; 2],
    min_flt: AtomicU64,
    maj_flt: AtomicU64,
    table_pages: AtomicU64,
    tlb_flush_pending: AtomicU32,
    oom: AtomicU32,
    user_root: AtomicU64,
    swapents: AtomicU64,
    hiwater_rss: AtomicU64,
    hiwater_vm: AtomicU64,
    start_code: AtomicU64,
    end_code: AtomicU64,
}

// What the kernel adds begins at `mmap_lock`.
const _: () = assert!(
    size_of::<Mm>() == offset_of!(abi::Mm, mmap_lock)
        && offset_of!(Mm, tree) == offset_of!(abi::Mm, tree_root)
        && offset_of!(Mm, lock_seq) == offset_of!(abi::Mm, lock_seq)
        && offset_of!(Mm, first) == offset_of!(abi::Mm, first)
        && offset_of!(Mm, root) == offset_of!(abi::Mm, pgd_pfn)
        && offset_of!(Mm, levels) == offset_of!(abi::Mm, levels)
        && offset_of!(Mm, map_count) == offset_of!(abi::Mm, map_count)
        && offset_of!(Mm, mmap_base) == offset_of!(abi::Mm, mmap_base)
        && offset_of!(Mm, mmap_legacy_base) == offset_of!(abi::Mm, mmap_legacy_base)
        && offset_of!(Mm, task_size) == offset_of!(abi::Mm, task_size)
        && offset_of!(Mm, total_vm) == offset_of!(abi::Mm, total_vm)
        && offset_of!(Mm, data_vm) == offset_of!(abi::Mm, data_vm)
        && offset_of!(Mm, exec_vm) == offset_of!(abi::Mm, exec_vm)
        && offset_of!(Mm, stack_vm) == offset_of!(abi::Mm, stack_vm)
        && offset_of!(Mm, locked_vm) == offset_of!(abi::Mm, locked_vm)
        && offset_of!(Mm, def_flags) == offset_of!(abi::Mm, def_flags)
        && offset_of!(Mm, start_data) == offset_of!(abi::Mm, start_data)
        && offset_of!(Mm, end_data) == offset_of!(abi::Mm, end_data)
        && offset_of!(Mm, start_brk) == offset_of!(abi::Mm, start_brk)
        && offset_of!(Mm, brk) == offset_of!(abi::Mm, brk)
        && offset_of!(Mm, rss) == offset_of!(abi::Mm, rss)
        && offset_of!(Mm, min_flt) == offset_of!(abi::Mm, min_flt)
        && offset_of!(Mm, maj_flt) == offset_of!(abi::Mm, maj_flt)
        && offset_of!(Mm, table_pages) == offset_of!(abi::Mm, table_pages)
        && offset_of!(Mm, tlb_flush_pending) == offset_of!(abi::Mm, tlb_flush_pending)
        && offset_of!(Mm, oom) == offset_of!(abi::Mm, oom)
        && offset_of!(Mm, user_root) == offset_of!(abi::Mm, user_pgd_pfn)
        && offset_of!(Mm, swapents) == offset_of!(abi::Mm, swapents)
        && offset_of!(Mm, hiwater_rss) == offset_of!(abi::Mm, hiwater_rss)
        && offset_of!(Mm, end_code) == offset_of!(abi::Mm, end_code)
        && STACK_GUARD_GAP == abi::STACK_GUARD_PAGES * PAGE_SIZE
);

/// What a resident page counts as (Linux: `mm_counter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RssKind {
    /// `MM_ANONPAGES`.
    Anon = 0,
    /// `MM_FILEPAGES` and `MM_SHMEMPAGES`.
    File = 1,
}

/// Where an address space puts what has no fixed place (Linux: `arch_pick_mmap_layout`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where mmap goes down from.
    pub mmap_base: u64,
    /// Where mmap goes up from if there is nothing below `mmap_base`.
    pub mmap_legacy_base: u64,
    /// First address past user space.
    pub task_size: u64,
}

impl Layout {
    /// The layout of a program whose stack may grow to `stack_limit` bytes. `random_pages` moves the mmap area down
    /// (Linux: `arch_mmap_rnd`); 0 is `norandmaps`. Without randomisation the stack itself ends at the end of user space.
    pub fn new(levels: Levels, stack_limit: u64, random_pages: u64) -> Layout {
        // Linux keeps programs below 2^47 until one asks for more.
        let task_size = layout::task_size(levels);
        let window = task_size.min((1 << 47) - PAGE_SIZE);
        let random = random_pages << PAGE_SHIFT;
        // 16 GiB of room to randomise a 64-bit stack in (Linux: `__STACK_RND_MASK`).
        let stack_random = if random_pages == 0 { 0 } else { (0x3f_ffff << PAGE_SHIFT) + PAGE_SIZE };
        let gap = stack_limit.saturating_add(STACK_GUARD_GAP + stack_random);
        let gap = gap.clamp(128 << 20, window / 6 * 5);
        Layout {
            mmap_base: (window - gap).saturating_sub(random) & !(PAGE_SIZE - 1),
            mmap_legacy_base: ((window / 3) & !(PAGE_SIZE - 1)) + random,
            task_size,
        }
    }
}

impl Mm {
    fields! {
        /// VMAs.
        map_count, set_map_count, u32;
        /// Pages mapped.
        total_vm, set_total_vm, u64;
        /// Pages of private writable memory.
        data_vm, set_data_vm, u64;
        /// Pages of text.
        exec_vm, set_exec_vm, u64;
        /// Pages of stacks.
        stack_vm, set_stack_vm, u64;
        /// Pages of mlocked VMAs.
        locked_vm, set_locked_vm, u64;
        /// Where mmap goes down from.
        mmap_base, set_mmap_base, u64;
        /// Where mmap goes up from.
        mmap_legacy_base, set_mmap_legacy_base, u64;
        /// First address past user space.
        task_size, set_task_size, u64;
        /// First address of the program's data.
        start_data, set_start_data, u64;
        /// First address after the program's data.
        end_data, set_end_data, u64;
        /// First address of the heap.
        start_brk, set_start_brk, u64;
        /// First address after the heap.
        brk, set_brk, u64;
    }

    /// Gives an address space without VMAs, all zero or after [`crate::Space::exit`], its tables and its shape.
    pub fn init(&self, tables: PageTable, shape: Layout) {
        let counts =
            [&self.total_vm, &self.data_vm, &self.exec_vm, &self.stack_vm, &self.locked_vm, &self.def_flags];
        let rest = [
            &self.min_flt,
            &self.maj_flt,
            &self.swapents,
            &self.hiwater_rss,
            &self.hiwater_vm,
            &self.start_code,
            &self.end_code,
        ];
        for count in counts.into_iter().chain(&self.rss).chain(rest) {
            count.store(0, Relaxed);
        }
        self.set_map_count(0);
        self.table_pages.store(1, Relaxed);
        self.tlb_flush_pending.store(0, Relaxed);
        self.oom.store(0, Relaxed);
        self.set_program(0, 0, 0);
        self.root.store(tables.root.as_u64(), Relaxed);
        self.levels.store(u32::from(tables.levels.count()), Relaxed);
        self.set_mmap_base(shape.mmap_base);
        self.set_mmap_legacy_base(shape.mmap_legacy_base);
        self.set_task_size(shape.task_size);
    }

    /// Says where the loader put data and heap (Linux: `load_elf_binary`).
    pub fn set_program(&self, start_data: u64, end_data: u64, start_brk: u64) {
        self.set_start_data(start_data);
        self.set_end_data(end_data);
        self.set_start_brk(start_brk);
        self.set_brk(start_brk);
    }

    /// The page tables.
    pub fn page_table(&self) -> PageTable {
        let levels = if self.levels.load(Relaxed) == 5 { Levels::Five } else { Levels::Four };
        PageTable { root: Pfn::new(self.root.load(Relaxed)), levels }
    }

    /// Frame of the top-level table that ring 3 runs on, where that is not the kernel's; whoever provides tables looks after it.
    pub fn user_root(&self) -> u64 {
        self.user_root.load(Relaxed)
    }

    /// See [`Mm::user_root`].
    pub fn set_user_root(&self, pfn: u64) {
        self.user_root.store(pfn, Relaxed);
    }

    /// Flags of every new VMA: LOCKED after mlockall(MCL_FUTURE).
    pub fn def_flags(&self) -> VmFlags {
        VmFlags::from_bits_retain(self.def_flags.load(Relaxed))
    }

    pub(crate) fn set_def_flags(&self, flags: VmFlags) {
        self.def_flags.store(flags.bits(), Relaxed);
    }

    /// Resident pages of a kind.
    pub fn rss(&self, kind: RssKind) -> u64 {
        self.rss.get(kind as usize).map_or(0, |count| count.load(Relaxed))
    }

    pub(crate) fn add_rss(&self, kind: RssKind, pages: i64) {
        if pages < 0 {
            self.hiwater_rss.store(self.hiwater_rss(), Relaxed);
        }
        if let Some(count) = self.rss.get(kind as usize) {
            count.fetch_add(pages.cast_unsigned(), Relaxed);
        }
    }

    /// Most pages ever resident (Linux: `get_mm_hiwater_rss`).
    pub fn hiwater_rss(&self) -> u64 {
        let now = self.rss(RssKind::Anon).saturating_add(self.rss(RssKind::File));
        self.hiwater_rss.load(Relaxed).max(now)
    }

    /// Most pages that all VMAs ever had (Linux: `get_mm_hiwater_vm`).
    pub fn hiwater_vm(&self) -> u64 {
        self.hiwater_vm.load(Relaxed).max(self.total_vm())
    }

    /// Where the loader put the program's code, up to its end.
    pub fn code(&self) -> (u64, u64) {
        (self.start_code.load(Relaxed), self.end_code.load(Relaxed))
    }

    /// See [`Mm::code`].
    pub fn set_code(&self, start: u64, end: u64) {
        self.start_code.store(start, Relaxed);
        self.end_code.store(end, Relaxed);
    }

    /// Pages of executable VMAs.
    pub fn exec_pages(&self) -> u64 {
        self.exec_vm()
    }

    /// Entries that name a slot of a swap area (Linux: `MM_SWAPENTS`).
    pub fn swapents(&self) -> u64 {
        self.swapents.load(Relaxed)
    }

    pub(crate) fn add_swapents(&self, entries: i64) {
        self.swapents.fetch_add(entries.cast_unsigned(), Relaxed);
    }

    /// Page tables, the top-level one included (Linux: `mm_pgtables_bytes`).
    pub fn table_pages(&self) -> u64 {
        self.table_pages.load(Relaxed)
    }

    /// Under the page-table lock or not: only the sum matters.
    pub(crate) fn add_tables(&self, tables: i64) {
        self.table_pages.fetch_add(tables.cast_unsigned(), Relaxed);
    }

    /// Removals whose flush has not been done yet (Linux: `mm_tlb_flush_pending`).
    pub fn flushes_pending(&self) -> u32 {
        self.tlb_flush_pending.load(Relaxed)
    }

    /// A removal begins, whose flush comes later (Linux: `inc_tlb_flush_pending`).
    pub(crate) fn begin_removal(&self) {
        self.tlb_flush_pending.fetch_add(1, Relaxed);
    }

    /// Its flush is done (Linux: `dec_tlb_flush_pending`).
    pub(crate) fn end_removal(&self) {
        self.tlb_flush_pending.fetch_sub(1, Relaxed);
    }

    /// What the OOM killer did to it: bits of `memvisor_abi::mm_flags`.
    pub fn oom(&self) -> u32 {
        self.oom.load(Relaxed)
    }

    /// Sets bits of [`Mm::oom`]; what was set before.
    pub fn set_oom(&self, bits: u32) -> u32 {
        self.oom.fetch_or(bits, AcqRel)
    }

    /// Faults that needed no I/O.
    pub fn min_flt(&self) -> u64 {
        self.min_flt.load(Relaxed)
    }

    /// Faults that read from a device.
    pub fn maj_flt(&self) -> u64 {
        self.maj_flt.load(Relaxed)
    }

    pub(crate) fn count_fault(&self, major: bool) {
        if major { &self.maj_flt } else { &self.min_flt }.fetch_add(1, Relaxed);
    }

    /// The first VMA.
    pub fn first(&self) -> Option<Id<Vma>> {
        self.first.load()
    }

    /// The first VMA that ends after `addr` (Linux: `find_vma`).
    pub fn find<K: Arena<Node>>(&self, k: &K, addr: u64) -> Option<Id<Vma>> {
        self.tree.find(k, addr)
    }

    /// All VMAs, ascending.
    pub fn vmas<'a, K: Arena<Vma>>(&self, k: &'a K) -> impl Iterator<Item = (Id<Vma>, &'a Vma)> {
        let mut next = self.first();
        core::iter::from_fn(move || {
            let id = next?;
            let vma = k.at(id);
            next = vma.next();
            Some((id, vma))
        })
    }

    /// Linux: `vm_stat_account`.
    pub(crate) fn account(&self, flags: VmFlags, pages: i64) {
        let add = |now: u64| now.wrapping_add_signed(pages);
        if pages < 0 {
            self.hiwater_vm.store(self.hiwater_vm(), Relaxed);
        }
        self.set_total_vm(add(self.total_vm()));
        if flags.is_exec() {
            self.set_exec_vm(add(self.exec_vm()));
        } else if flags.contains(VmFlags::GROWSDOWN) {
            self.set_stack_vm(add(self.stack_vm()));
        } else if flags.is_data() {
            self.set_data_vm(add(self.data_vm()));
        }
    }
}

/// Limits of a process and of the system (Linux: `rlimit`, `capable`, sysctls of `vm`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// RLIMIT_AS, bytes.
    pub address_space: u64,
    /// RLIMIT_DATA, bytes.
    pub data: u64,
    /// RLIMIT_STACK, bytes.
    pub stack: u64,
    /// RLIMIT_MEMLOCK, bytes.
    pub memlock: u64,
    /// `vm.max_map_count`.
    pub max_map_count: u32,
    /// `vm.mmap_min_addr`.
    pub mmap_min_addr: u64,
    /// CAP_IPC_LOCK: memlock does not count.
    pub ipc_lock: bool,
    /// CAP_SYS_RAWIO: mmap_min_addr does not count.
    pub raw_io: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            address_space: u64::MAX,
            data: u64::MAX,
            stack: 8 << 20,
            memlock: 8 << 20,
            max_map_count: 65530,
            mmap_min_addr: 65536,
            ipc_lock: false,
            raw_io: false,
        }
    }
}

impl Limits {
    /// Linux: `can_do_mlock`.
    pub(crate) fn can_do_mlock(&self) -> Result<(), Errno> {
        if self.memlock != 0 || self.ipc_lock { Ok(()) } else { Err(Errno::Eperm) }
    }

    /// Linux: `mlock_future_ok`.
    pub(crate) fn mlock_future_ok(&self, mm: &Mm, flags: VmFlags, bytes: u64) -> bool {
        !flags.contains(VmFlags::LOCKED)
            || self.ipc_lock
            || (bytes >> PAGE_SHIFT).saturating_add(mm.locked_vm()) <= self.memlock >> PAGE_SHIFT
    }

    /// Linux: `may_expand_vm`.
    pub(crate) fn may_expand(&self, mm: &Mm, flags: VmFlags, pages: u64) -> bool {
        if mm.total_vm().saturating_add(pages) > self.address_space >> PAGE_SHIFT {
            return false;
        }
        !flags.is_data() || mm.data_vm().saturating_add(pages) <= self.data >> PAGE_SHIFT
    }
}
