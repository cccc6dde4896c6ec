//! A virtual memory area (Linux: `struct vm_area_struct`).

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use abi::mpol;
use memvisor_abi as abi;
use mm_core::{NodeMask, PAGE_SHIFT, Policy, PolicyAt};
use mm_pgtable::Prot;

use crate::id::{Id, Link, fields};
use crate::{AnonVma, AnonVmaChain, Mapping, Mm, VmFlags};

/// A range of addresses with one kind of contents and one protection.
///
/// mmap_lock, held for writing, guards all fields; the page-fault path reads them under the VMA's own lock.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Vma {
    start: AtomicU64,
    end: AtomicU64,
    /// The address space, so that a reader without locks notices a descriptor that went elsewhere.
    pub(crate) mm: Link<Mm>,
    flags: AtomicU64,
    /// See `lock.rs`.
    pub(crate) lock_seq: AtomicU64,
    pub(crate) refcount: AtomicU32,
    /// Mode of its memory policy.
    policy: AtomicU32,
    pgoff: AtomicU64,
    /// What it maps; nothing for private anonymous memory.
    pub(crate) mapping: Link<Mapping>,
    /// Where its own anonymous pages are found from; nothing until the first of them.
    pub(crate) anon_vma: Link<AnonVma>,
    /// All `AnonVma`s that pages in this VMA may belong to, newest first.
    pub(crate) chain_first: Link<AnonVmaChain>,
    pub(crate) chain_last: Link<AnonVmaChain>,
    /// Neighbours by address.
    pub(crate) next: Link<Vma>,
    pub(crate) prev: Link<Vma>,
    /// Neighbours in the list of what maps the same `Mapping`.
    pub(crate) shared_next: Link<Vma>,
    pub(crate) shared_prev: Link<Vma>,
    /// Nodes of its memory policy.
    policy_nodes: AtomicU64,
}

const _: () = assert!(
    size_of::<Vma>() == size_of::<abi::Vma>()
        && offset_of!(Vma, start) == offset_of!(abi::Vma, start)
        && offset_of!(Vma, end) == offset_of!(abi::Vma, end)
        && offset_of!(Vma, mm) == offset_of!(abi::Vma, mm)
        && offset_of!(Vma, flags) == offset_of!(abi::Vma, flags)
        && offset_of!(Vma, lock_seq) == offset_of!(abi::Vma, lock_seq)
        && offset_of!(Vma, refcount) == offset_of!(abi::Vma, refcount)
        && offset_of!(Vma, policy) == offset_of!(abi::Vma, policy)
        && offset_of!(Vma, pgoff) == offset_of!(abi::Vma, pgoff)
        && offset_of!(Vma, mapping) == offset_of!(abi::Vma, mapping)
        && offset_of!(Vma, anon_vma) == offset_of!(abi::Vma, anon_vma)
        && offset_of!(Vma, chain_first) == offset_of!(abi::Vma, chain_first)
        && offset_of!(Vma, chain_last) == offset_of!(abi::Vma, chain_last)
        && offset_of!(Vma, next) == offset_of!(abi::Vma, next)
        && offset_of!(Vma, prev) == offset_of!(abi::Vma, prev)
        && offset_of!(Vma, shared_next) == offset_of!(abi::Vma, shared_next)
        && offset_of!(Vma, shared_prev) == offset_of!(abi::Vma, shared_prev)
        && offset_of!(Vma, policy_nodes) == offset_of!(abi::Vma, policy_nodes)
);

impl Vma {
    fields! {
        /// First address.
        start, set_start, u64;
        /// First address after it.
        end, set_end, u64;
        /// Page offset of `start`: in the mapping; for private anonymous memory the virtual page number where it
        /// was first mapped, so that areas that move keep the offsets of their pages.
        pgoff, set_pgoff, u64;
    }

    /// What it allows.
    #[inline]
    pub fn flags(&self) -> VmFlags {
        VmFlags::from_bits_retain(self.flags.load(Relaxed))
    }

    pub(crate) fn set_flags(&self, flags: VmFlags) {
        self.flags.store(flags.bits(), Relaxed);
    }

    /// Where its pages are to come from; [`Policy::Default`] leaves it to the task (Linux: `vm_policy`). A word says that there is none,
    /// and no fault in such an area looks further.
    #[inline]
    pub fn policy(&self) -> Policy {
        match self.policy.load(Relaxed) {
            mpol::DEFAULT => Policy::Default,
            mode => Policy::from_parts(mode, NodeMask::from_bits(self.policy_nodes.load(Relaxed))),
        }
    }

    pub(crate) fn set_policy(&self, policy: Policy) {
        self.policy.store(policy.mode(), Relaxed);
        self.policy_nodes.store(policy.nodes().bits(), Relaxed);
    }

    /// [`Vma::policy`] as it is kept: mode and nodes. For audits.
    pub fn policy_parts(&self) -> (u32, u64) {
        (self.policy.load(Relaxed), self.policy_nodes.load(Relaxed))
    }

    /// [`Vma::policy`] for the page at an address in it.
    #[inline]
    pub fn policy_at(&self, addr: u64) -> PolicyAt {
        PolicyAt { policy: self.policy(), index: self.index_of(addr) }
    }

    /// What it maps; `None` for private anonymous memory.
    pub fn mapping(&self) -> Option<Id<Mapping>> {
        self.mapping.load()
    }

    /// See [`AnonVma`].
    pub fn anon_vma(&self) -> Option<Id<AnonVma>> {
        self.anon_vma.load()
    }

    /// The VMA above.
    pub fn next(&self) -> Option<Id<Vma>> {
        self.next.load()
    }

    /// The VMA below.
    pub fn prev(&self) -> Option<Id<Vma>> {
        self.prev.load()
    }

    /// Pages (Linux: `vma_pages`).
    pub fn pages(&self) -> u64 {
        (self.end() - self.start()) >> PAGE_SHIFT
    }

    /// Private anonymous (Linux: `vma_is_anonymous`).
    pub fn is_anonymous(&self) -> bool {
        self.mapping.load().is_none()
    }

    /// Page offset of an address in it (Linux: `linear_page_index`).
    pub fn index_of(&self, addr: u64) -> u64 {
        self.pgoff().wrapping_add(addr.wrapping_sub(self.start()) >> PAGE_SHIFT)
    }

    /// The address of a page offset, if it is in the VMA (Linux: `vma_address`).
    pub fn address_of(&self, index: u64) -> Option<u64> {
        let pages = index.checked_sub(self.pgoff())?;
        (pages < self.pages()).then(|| self.start() + (pages << PAGE_SHIFT))
    }

    /// How far down the VMA reaches with its guard gap (Linux: `vm_start_gap`).
    pub fn start_gap(&self, gap: u64) -> u64 {
        if self.flags().contains(VmFlags::GROWSDOWN) {
            self.start().saturating_sub(gap)
        } else {
            self.start()
        }
    }

    /// Protection of a fresh entry (Linux: `vm_page_prot`): writable only if what is written there may be seen by
    /// all who map it.
    pub fn page_prot(&self) -> Prot {
        let flags = self.flags();
        Prot {
            write: flags.contains(VmFlags::WRITE | VmFlags::SHARED),
            exec: flags.contains(VmFlags::EXEC),
            ..Prot::USER_RO
        }
    }
}
