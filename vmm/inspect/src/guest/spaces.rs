//! Address spaces of processes: VMAs, their tree, and the lists that lead from a page to its VMAs.
//!
//! Lists are followed with their own bounds: no object is visited twice, none is believed to be where there is no RAM. What
//! stops a list is a [`LinkProblem`], which stands beside what was found up to there.

use std::collections::HashSet;

use memvisor_abi as abi;
use memvisor_abi::{
    AnonVma, AnonVmaChain, CpuTlb, MAX_MAP_COUNT, Mapping, MappingNode, Mm, VMA_FANOUT, VMA_SLOT_NODE,
    VMA_TREE_MAX_HEIGHT, Vma, VmaNode,
};
use serde::Serialize;
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::tables::{Absent, CPUS_MAX};
use super::{Guest, GuestError, TableName};
use crate::MemorySource;

/// Why a list of objects cannot be followed further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum LinkProblem {
    /// A link leads to where no object can be.
    #[error("a link leads to {gpa:#x}, where no {object} can be")]
    NotRam {
        /// What should be there.
        object: &'static str,
        /// Where the link leads.
        #[serde(serialize_with = "crate::hex")]
        gpa: u64,
    },
    /// A list comes back to where it was.
    #[error("the {object} at {gpa:#x} is on the list twice")]
    Cycle {
        /// What is twice there.
        object: &'static str,
        /// Its address.
        #[serde(serialize_with = "crate::hex")]
        gpa: u64,
    },
    /// More objects than there can be.
    #[error("there are more than {max} of {object}")]
    TooLong {
        /// What there is too much of.
        object: &'static str,
        /// How many were looked at.
        max: u32,
    },
    /// The link back does not lead to where the list came from.
    #[error("the {object} at {gpa:#x} leads back to {says:#x}, the list came from {from:#x}")]
    BackLink {
        /// What has the link.
        object: &'static str,
        /// Its address.
        #[serde(serialize_with = "crate::hex")]
        gpa: u64,
        /// Where the link leads.
        #[serde(serialize_with = "crate::hex")]
        says: u64,
        /// Where the list came from; 0 at its start.
        #[serde(serialize_with = "crate::hex")]
        from: u64,
    },
    /// An object on a list says that it belongs elsewhere.
    #[error("the {object} at {gpa:#x} belongs to {says:#x}, not to {to:#x}")]
    Foreign {
        /// What it is.
        object: &'static str,
        /// Its address.
        #[serde(serialize_with = "crate::hex")]
        gpa: u64,
        /// Whose it says it is.
        #[serde(serialize_with = "crate::hex")]
        says: u64,
        /// Whose list it is on.
        #[serde(serialize_with = "crate::hex")]
        to: u64,
    },
    /// A node of the tree with impossible contents.
    #[error("tree node at {gpa:#x}: {what}")]
    Node {
        /// Its address.
        #[serde(serialize_with = "crate::hex")]
        gpa: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// A VMA and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmaAt {
    /// Guest-physical address of the descriptor.
    pub gpa: u64,
    /// The descriptor.
    pub vma: Vma,
}

/// An entry of a leaf of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Its VMA.
    pub vma: u64,
}

/// What a list has, up to what stopped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked<T> {
    /// In the list's order.
    pub items: Vec<T>,
    /// Why there is no more.
    pub problem: Option<LinkProblem>,
}

/// A page in the tree of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedPage {
    /// Its page offset.
    pub index: u64,
    /// Its frame.
    pub pfn: u64,
    /// Marks, as [`Mapping::marks`] has them.
    pub marks: u32,
}

impl<T> Linked<T> {
    const fn new() -> Linked<T> {
        Linked { items: Vec::new(), problem: None }
    }
}

/// An address space, and whose it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressSpace {
    /// Guest-physical address of its [`Mm`].
    pub mm: u64,
    /// Frame of its top-level page table.
    pub pgd_pfn: u64,
    /// The process that has it, the one with the lowest number if several do (vfork); the one that it was made for if none has.
    pub pid: u32,
}

/// An address space with its VMAs.
#[derive(Clone, Debug)]
pub struct MmSpace {
    /// Which it is.
    pub space: AddressSpace,
    /// The address space itself; all zero if [`MmSpace::problem`] says that it cannot be read.
    pub mm: Mm,
    /// Why the address space itself cannot be read.
    pub problem: Option<LinkProblem>,
    /// VMAs by the list.
    pub vmas: Linked<VmaAt>,
    /// VMAs by the tree.
    pub tree: Linked<TreeEntry>,
}

impl MmSpace {
    /// The VMA that holds `va`, by the list.
    pub fn find(&self, va: u64) -> Option<&VmaAt> {
        let after = self.vmas.items.partition_point(|at| at.vma.end <= va);
        self.vmas.items.get(after).filter(|at| at.vma.start <= va && va < at.vma.end)
    }
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// All address spaces, the one that was made first first.
    ///
    /// # Errors
    /// [`GuestError`] if the list or the table of tasks cannot be read.
    pub fn address_spaces(&self) -> Result<Vec<AddressSpace>, GuestError> {
        let head: Vec<u64> = self.table(TableName::MmList, self.root().mm_list, 1, Absent::IsEmpty)?;
        let tasks = self.tasks()?;
        let mut spaces = Vec::new();
        let mut steps = Steps::new("mm_struct");
        let (mut at, mut from) = (head.first().copied().unwrap_or(0), 0);
        while at != 0 {
            steps.step(at)?;
            let mm: Mm = self.object("mm_struct", at)?;
            if let Some(problem) = back("mm_struct", at, mm.prev, from) {
                return Err(problem.into());
            }
            let users = tasks.iter().filter(|task| task.mm == at).map(|task| task.tgid);
            let pid = users.min().unwrap_or(mm.owner);
            spaces.push(AddressSpace { mm: at, pgd_pfn: mm.pgd_pfn, pid });
            (from, at) = (at, mm.next);
        }
        spaces.reverse();
        Ok(spaces)
    }

    /// All address spaces with their VMAs, in the same order.
    ///
    /// # Errors
    /// As [`Guest::address_spaces`].
    pub fn mm_spaces(&self) -> Result<Vec<MmSpace>, GuestError> {
        Ok(self.address_spaces()?.into_iter().map(|space| self.mm_space(space)).collect())
    }

    fn mm_space(&self, space: AddressSpace) -> MmSpace {
        match self.object::<Mm>("mm_struct", space.mm) {
            Ok(mm) => {
                MmSpace { space, mm, problem: None, vmas: self.vma_list(&mm), tree: self.vma_tree(&mm) }
            }
            Err(problem) => MmSpace {
                space,
                mm: Mm::default(),
                problem: Some(problem),
                vmas: Linked::new(),
                tree: Linked::new(),
            },
        }
    }

    /// What CPUs may cache, by CPU number; empty if the guest publishes nothing of it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn cpu_tlbs(&self) -> Result<Vec<CpuTlb>, GuestError> {
        self.table(TableName::CpuTlbs, self.root().cpu_tlbs, CPUS_MAX, Absent::IsEmpty)
    }

    /// The frame of zeroes that is mapped without being counted, if there is one.
    pub fn zero_pfn(&self) -> Option<u64> {
        let pfn = self.root().zero_pfn;
        (pfn != abi::PFN_NONE).then_some(pfn)
    }

    /// An [`AnonVma`].
    ///
    /// # Errors
    /// It cannot be there.
    pub fn anon_vma(&self, gpa: u64) -> Result<AnonVma, LinkProblem> {
        self.object("anon_vma", gpa)
    }

    /// A [`Mapping`].
    ///
    /// # Errors
    /// It cannot be there.
    pub fn mapping(&self, gpa: u64) -> Result<Mapping, LinkProblem> {
        self.object("address_space", gpa)
    }

    /// The frame that the tree of a mapping has at a page offset, if the mapping holds pages and it has one (Linux: `xa_load`).
    pub fn cached_page(&self, mapping: u64, index: u64) -> Option<u64> {
        let at = self.mapping(mapping).ok().filter(|at| at.flags & Mapping::HOLDS_PAGES != 0)?;
        let (mut entry, mut bits) = (at.root, u64::BITS);
        let mut covered = index == 0;
        while entry & 3 == 2 {
            let node: MappingNode = self.object("xa_node", entry & !3).ok()?;
            // Each level resolves 6 bits less than the one above, and the first all that are left.
            let above = node.shift.checked_add(6).filter(|_| node.shift < bits && node.shift <= 60)?;
            covered |= index.checked_shr(above).is_none_or(|rest| rest == 0);
            bits = node.shift;
            entry = node.slots.get(usize::try_from(index >> node.shift & 63).ok()?).copied()?;
        }
        (covered && entry != 0 && entry & 3 == 0).then_some(entry >> abi::PAGE_SHIFT)
    }

    /// All pages that the tree of a mapping has, by ascending index, with their marks as far as every node above them repeats them. Ends where
    /// the tree makes no sense.
    pub fn cached_pages(&self, mapping: &Mapping) -> Vec<CachedPage> {
        let mut found = Vec::new();
        // Nodes to come: entry, the index at which it begins, bits that it resolves at most, marks so far.
        let mut todo = vec![(mapping.root, 0_u64, u64::BITS, mapping.marks)];
        // A tree has at most a node for each page.
        let mut nodes = self.entry_limit();
        while let Some((entry, base, bits, marks)) = todo.pop() {
            match entry & 3 {
                _ if entry == 0 => {}
                0 => found.push(CachedPage { index: base, pfn: entry >> abi::PAGE_SHIFT, marks }),
                2 => {
                    let Ok(node) = self.object::<MappingNode>("xa_node", entry & !3) else { continue };
                    let Some(left) = nodes.checked_sub(1).filter(|_| node.shift < bits) else { break };
                    nodes = left;
                    for (slot, below) in node.slots.into_iter().enumerate().rev() {
                        let slot = slot as u64;
                        let kept = (0..3)
                            .filter(|mark| node.marks.get(*mark).is_some_and(|slots| slots & 1 << slot != 0));
                        let kept = kept.fold(0, |kept, mark| kept | 1 << mark) & marks;
                        let at = slot.checked_shl(node.shift).unwrap_or(0).wrapping_add(base);
                        todo.push((below, at, node.shift, kept));
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// The VMAs that an [`AnonVma`] leads to (Linux: `anon_vma_interval_tree_foreach`).
    pub fn anon_vma_vmas(&self, gpa: u64) -> Linked<u64> {
        let mut found = Linked::new();
        let anon = match self.anon_vma(gpa) {
            Ok(anon) => anon,
            Err(problem) => return Linked { problem: Some(problem), ..found },
        };
        let mut steps = Steps::new("anon_vma_chain");
        let (mut at, mut from) = (anon.chains, 0);
        while at != 0 {
            let step = steps.step(at).and_then(|()| self.object::<AnonVmaChain>("anon_vma_chain", at));
            let chain = match step {
                Ok(chain) => chain,
                Err(problem) => return Linked { problem: Some(problem), ..found },
            };
            found.problem = found
                .problem
                .or_else(|| foreign("anon_vma_chain", at, chain.anon_vma, gpa))
                .or_else(|| back("anon_vma_chain", at, chain.anon_prev, from));
            found.items.push(chain.vma);
            (from, at) = (at, chain.anon_next);
        }
        found
    }

    /// The [`AnonVma`]s that a VMA is linked to, newest first.
    pub fn vma_anon_vmas(&self, at: &VmaAt) -> Linked<u64> {
        let mut found = Linked::new();
        let mut steps = Steps::new("anon_vma_chain");
        let (mut link, mut from) = (at.vma.chain_first, 0);
        while link != 0 {
            let step = steps.step(link).and_then(|()| self.object::<AnonVmaChain>("anon_vma_chain", link));
            let chain = match step {
                Ok(chain) => chain,
                Err(problem) => return Linked { problem: Some(problem), ..found },
            };
            found.problem = found
                .problem
                .or_else(|| foreign("anon_vma_chain", link, chain.vma, at.gpa))
                .or_else(|| back("anon_vma_chain", link, chain.vma_prev, from));
            found.items.push(chain.anon_vma);
            (from, link) = (link, chain.vma_next);
        }
        found.problem = found.problem.or_else(|| back("vm_area_struct", at.gpa, at.vma.chain_last, from));
        found
    }

    /// The VMAs that map a [`Mapping`] (Linux: `vma_interval_tree_foreach`).
    pub fn mapping_vmas(&self, gpa: u64) -> Linked<u64> {
        let mut found = Linked::new();
        let mapping = match self.mapping(gpa) {
            Ok(mapping) => mapping,
            Err(problem) => return Linked { problem: Some(problem), ..found },
        };
        let mut steps = Steps::new("vm_area_struct");
        let (mut at, mut from) = (mapping.vmas, 0);
        while at != 0 {
            let vma = match steps.step(at).and_then(|()| self.object::<Vma>("vm_area_struct", at)) {
                Ok(vma) => vma,
                Err(problem) => return Linked { problem: Some(problem), ..found },
            };
            found.problem = found
                .problem
                .or_else(|| foreign("vm_area_struct", at, vma.mapping, gpa))
                .or_else(|| back("vm_area_struct", at, vma.shared_prev, from));
            found.items.push(at);
            (from, at) = (at, vma.shared_next);
        }
        found
    }

    fn vma_list(&self, mm: &Mm) -> Linked<VmaAt> {
        let mut found = Linked::new();
        let mut steps = Steps::new("vm_area_struct");
        let (mut gpa, mut from) = (mm.first, 0);
        while gpa != 0 {
            let vma = match steps.step(gpa).and_then(|()| self.object::<Vma>("vm_area_struct", gpa)) {
                Ok(vma) => vma,
                Err(problem) => return Linked { problem: Some(problem), ..found },
            };
            found.problem = found.problem.or_else(|| back("vm_area_struct", gpa, vma.prev, from));
            found.items.push(VmaAt { gpa, vma });
            (from, gpa) = (gpa, vma.next);
        }
        found
    }

    fn vma_tree(&self, mm: &Mm) -> Linked<TreeEntry> {
        let mut found = Linked::new();
        if mm.tree_root == 0 {
            return found;
        }
        if mm.tree_height == 0 || mm.tree_height > VMA_TREE_MAX_HEIGHT {
            let what = "the tree's height cannot be";
            return Linked { problem: Some(LinkProblem::Node { gpa: mm.tree_root, what }), ..found };
        }
        let mut steps = Steps::new("maple_node");
        let walked = self.tree_below(mm.tree_root, mm.tree_height, &mut steps, &mut found.items);
        found.problem = walked.err();
        found
    }

    /// First and last address of what is below the node.
    fn tree_below(
        &self,
        gpa: u64,
        level: u32,
        steps: &mut Steps,
        found: &mut Vec<TreeEntry>,
    ) -> Result<(u64, u64), LinkProblem> {
        steps.step(gpa)?;
        let node: VmaNode = self.object("maple_node", gpa)?;
        let wrong = |what| LinkProblem::Node { gpa, what };
        let len = usize::try_from(node.len).ok().filter(|len| (1..=VMA_FANOUT).contains(len));
        let len = len.ok_or(wrong("it has no entry, or more than fit"))?;
        let entries = node.start.iter().zip(&node.end).zip(&node.slot);
        // Searches do not look at the length.
        if entries.clone().skip(len).any(|entry| entry != ((&0, &0), &0)) {
            return Err(wrong("it has something behind its last entry"));
        }
        let mut bounds: Option<(u64, u64)> = None;
        for ((&start, &end), &slot) in entries.take(len).rev() {
            if start >= end || bounds.is_some_and(|(_, last)| start < last) {
                return Err(wrong("its entries do not descend"));
            }
            bounds = Some((bounds.map_or(start, |(first, _)| first), end));
            if (slot & VMA_SLOT_NODE == 0) != (level == 1) {
                return Err(wrong("an entry has not what its level has"));
            }
            if level == 1 {
                found.push(TreeEntry { start, end, vma: slot });
            } else if self.tree_below(slot & !VMA_SLOT_NODE, level - 1, steps, found)? != (start, end) {
                return Err(wrong("an entry has other bounds than what is below it"));
            }
        }
        bounds.ok_or(wrong("it has no entry, or more than fit"))
    }

    /// A copy of the object at `gpa`.
    pub(super) fn object<T: FromBytes + IntoBytes>(
        &self,
        object: &'static str,
        gpa: u64,
    ) -> Result<T, LinkProblem> {
        let problem = LinkProblem::NotRam { object, gpa };
        if !gpa.is_multiple_of(8) || !self.source().is_ram(gpa, size_of::<T>() as u64) {
            return Err(problem);
        }
        let mut copy = T::new_zeroed();
        self.source().read(gpa, copy.as_mut_bytes()).map_err(|_| problem)?;
        Ok(copy)
    }
}

fn foreign(object: &'static str, gpa: u64, says: u64, to: u64) -> Option<LinkProblem> {
    (says != to).then_some(LinkProblem::Foreign { object, gpa, says, to })
}

fn back(object: &'static str, gpa: u64, says: u64, from: u64) -> Option<LinkProblem> {
    (says != from).then_some(LinkProblem::BackLink { object, gpa, says, from })
}

/// Objects that a list has visited.
struct Steps {
    object: &'static str,
    seen: HashSet<u64>,
}

impl Steps {
    fn new(object: &'static str) -> Steps {
        Steps { object, seen: HashSet::new() }
    }

    fn step(&mut self, gpa: u64) -> Result<(), LinkProblem> {
        let object = self.object;
        if self.seen.len() >= MAX_MAP_COUNT as usize {
            return Err(LinkProblem::TooLong { object, max: MAX_MAP_COUNT });
        }
        if self.seen.insert(gpa) { Ok(()) } else { Err(LinkProblem::Cycle { object, gpa }) }
    }
}
