//! Who owns each frame, as derived from outside: one byte a frame.
//!
//! Frames are held by section. A section whose frames all have one state costs a few bytes, so a
//! machine with terabytes of RAM that the guest has not touched yet stays cheap.

use std::collections::BTreeMap;

use memvisor_abi::{PAGES_PER_SECTION, PageKind};

use crate::frames::{Frames, clip};

/// The owner of a frame. Exact owners are derived from a structure that uses the frame; the generic
/// ones from a memblock reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Owner {
    /// Not RAM.
    Hole,
    /// Nobody claimed it.
    Nobody,
    /// Reserved in memblock and nothing more exact.
    Reserved,
    /// Reserved in memblock below 1 MiB.
    Firmware,
    Kernel,
    Memmap,
    Table,
    PerCpu,
    Buddy,
    User,
    Deferred,
    Allocated,
    Slab,
    Pcp,
    Vmalloc,
    KernelStack,
    Zswap,
}

impl Owner {
    pub const OWNERS: [Owner; 15] = [
        Owner::Reserved,
        Owner::Firmware,
        Owner::Kernel,
        Owner::Memmap,
        Owner::Table,
        Owner::PerCpu,
        Owner::Buddy,
        Owner::User,
        Owner::Deferred,
        Owner::Allocated,
        Owner::Slab,
        Owner::Pcp,
        Owner::Vmalloc,
        Owner::KernelStack,
        Owner::Zswap,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Owner::Hole => "no RAM",
            Owner::Nobody => "nobody",
            Owner::Reserved => "reserved",
            Owner::Firmware => "firmware",
            Owner::Kernel => "kernel image",
            Owner::Memmap => "memmap",
            Owner::Table => "page table",
            Owner::PerCpu => "per-CPU",
            Owner::Buddy => "buddy",
            Owner::User => "user",
            Owner::Deferred => "deferred free",
            Owner::Allocated => "allocated",
            Owner::Slab => "slab",
            Owner::Pcp => "per-CPU list",
            Owner::Vmalloc => "vmalloc",
            Owner::KernelStack => "kernel stack",
            Owner::Zswap => "zswap",
        }
    }

    /// Whether a second claim of the same kind is no contradiction: a table is reached from many
    /// roots, a user frame may be mapped more than once.
    const fn may_repeat(self) -> bool {
        matches!(self, Owner::Table | Owner::User)
    }

    /// Whether a descriptor may call a frame of this owner `kind`.
    pub const fn allows(self, kind: PageKind) -> bool {
        match self {
            Owner::Hole | Owner::Nobody | Owner::Deferred => matches!(kind, PageKind::None),
            Owner::Reserved | Owner::Firmware => matches!(kind, PageKind::Reserved),
            Owner::Kernel => matches!(kind, PageKind::Kernel),
            Owner::Memmap => matches!(kind, PageKind::Memmap),
            Owner::Table => matches!(kind, PageKind::Table | PageKind::Tail),
            Owner::PerCpu => matches!(kind, PageKind::PerCpu),
            Owner::Buddy => matches!(kind, PageKind::Buddy | PageKind::Tail),
            Owner::User => matches!(kind, PageKind::User),
            Owner::Slab => matches!(kind, PageKind::Slab | PageKind::Tail | PageKind::Allocated),
            Owner::Pcp => matches!(kind, PageKind::Pcp | PageKind::Tail),
            Owner::Vmalloc => matches!(kind, PageKind::Vmalloc),
            Owner::KernelStack => matches!(kind, PageKind::KernelStack),
            Owner::Zswap => matches!(kind, PageKind::Zswap),
            Owner::Allocated => matches!(kind, PageKind::Allocated | PageKind::Tail),
        }
    }
}

/// A claim that met another owner, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clash {
    pub frames: Frames,
    pub held_by: Owner,
}

#[derive(Debug)]
enum Chunk {
    Uniform(Owner),
    Each(Box<[Owner]>),
}

/// The owners of all frames.
#[derive(Debug)]
pub(crate) struct OwnerMap {
    chunks: BTreeMap<u64, Chunk>,
    ram: Vec<Frames>,
}

impl OwnerMap {
    /// Nobody owns `ram` (normalized); everything else is a hole.
    pub fn new(ram: &[Frames]) -> OwnerMap {
        let mut map = OwnerMap { chunks: BTreeMap::new(), ram: ram.to_vec() };
        for &range in ram {
            map.update(range, &mut |_, _| Some(Owner::Nobody));
        }
        map
    }

    /// RAM, normalized.
    pub fn ram(&self) -> &[Frames] {
        &self.ram
    }

    /// Owner of a frame.
    pub fn owner(&self, pfn: u64) -> Owner {
        match self.chunks.get(&(pfn / PAGES_PER_SECTION)) {
            None => Owner::Hole,
            Some(Chunk::Uniform(owner)) => *owner,
            Some(Chunk::Each(owners)) => {
                owners.get(index_of(pfn % PAGES_PER_SECTION)).copied().unwrap_or(Owner::Hole)
            }
        }
    }

    /// Claims `frames` for `owner`. Frames that somebody else holds keep their owner and are
    /// returned as clashes, as are holes; a repeated claim of a kind that [may repeat] is fine.
    ///
    /// [may repeat]: Owner::may_repeat
    pub fn claim(&mut self, frames: Frames, owner: Owner) -> Vec<Clash> {
        let mut clashes: Vec<Clash> = Vec::new();
        // Everything outside RAM is a hole whether it shares a section with RAM or not.
        let inside: Vec<Frames> = clip(&self.ram, frames).collect();
        for gap in crate::frames::gaps(&self.ram, frames) {
            clashes.push(Clash { frames: gap, held_by: Owner::Hole });
        }
        for part in inside {
            self.update(part, &mut |run, held_by| {
                if held_by == Owner::Nobody {
                    return Some(owner);
                }
                if held_by != owner || !owner.may_repeat() {
                    match clashes.last_mut() {
                        Some(last) if last.frames.end == run.start && last.held_by == held_by => {
                            last.frames.end = run.end;
                        }
                        _ => clashes.push(Clash { frames: run, held_by }),
                    }
                }
                None
            });
        }
        clashes
    }

    /// Claims those of `frames` that nobody owns.
    pub fn claim_rest(&mut self, frames: Frames, owner: Owner) {
        let inside: Vec<Frames> = clip(&self.ram, frames).collect();
        for part in inside {
            self.update(part, &mut |_, held_by| (held_by == Owner::Nobody).then_some(owner));
        }
    }

    /// Maximal runs of frames with one owner inside a section, ascending, holes left out.
    pub fn runs(&self) -> impl Iterator<Item = (Frames, Owner)> + '_ {
        self.chunks.iter().flat_map(|(&number, chunk)| {
            let base = number * PAGES_PER_SECTION;
            let mut runs = Vec::new();
            match chunk {
                Chunk::Uniform(owner) => runs.push((Frames::from_count(base, PAGES_PER_SECTION), *owner)),
                Chunk::Each(owners) => {
                    let mut at = base;
                    for same in owners.chunk_by(|a, b| a == b) {
                        let frames = Frames::from_count(at, same.len() as u64);
                        at = frames.end;
                        if let Some(&owner) = same.first() {
                            runs.push((frames, owner));
                        }
                    }
                }
            }
            runs.into_iter().filter(|(_, owner)| *owner != Owner::Hole)
        })
    }

    /// Calls `change` for runs of one owner within `range`; `Some` replaces the owner.
    fn update(&mut self, range: Frames, change: &mut dyn FnMut(Frames, Owner) -> Option<Owner>) {
        let mut at = range.start;
        while at < range.end {
            let number = at / PAGES_PER_SECTION;
            let base = number * PAGES_PER_SECTION;
            let part = Frames::new(at, range.end.min(base.saturating_add(PAGES_PER_SECTION)));
            at = part.end;
            let chunk = self.chunks.entry(number).or_insert(Chunk::Uniform(Owner::Hole));
            if let Chunk::Uniform(owner) = *chunk {
                let Some(new) = change(part, owner).filter(|&new| new != owner) else { continue };
                if part.len() == PAGES_PER_SECTION {
                    *chunk = Chunk::Uniform(new);
                    continue;
                }
                let mut owners = vec![owner; index_of(PAGES_PER_SECTION)].into_boxed_slice();
                if let Some(slice) = owners.get_mut(index_of(part.start - base)..index_of(part.end - base)) {
                    slice.fill(new);
                }
                *chunk = Chunk::Each(owners);
            } else if let Chunk::Each(owners) = chunk {
                let Some(slice) = owners.get_mut(index_of(part.start - base)..index_of(part.end - base))
                else {
                    continue;
                };
                let mut start = part.start;
                for same in slice.chunk_by_mut(|a, b| a == b) {
                    let run = Frames::from_count(start, same.len() as u64);
                    start = run.end;
                    let Some(&owner) = same.first() else { continue };
                    if let Some(new) = change(run, owner) {
                        same.fill(new);
                    }
                }
            }
        }
    }
}

/// An index below `PAGES_PER_SECTION` always fits.
fn index_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_second_exact_claim_is_a_clash_and_changes_nothing() {
        let mut map = OwnerMap::new(&[Frames::new(0, 100)]);
        assert_eq!(map.claim(Frames::new(10, 20), Owner::Table), []);
        assert_eq!(
            map.claim(Frames::new(15, 30), Owner::Buddy),
            [Clash { frames: Frames::new(15, 20), held_by: Owner::Table }]
        );
        assert_eq!(map.owner(15), Owner::Table);
        assert_eq!(map.owner(20), Owner::Buddy);
    }

    #[test]
    fn tables_and_user_frames_may_be_claimed_again_and_buddy_blocks_may_not() {
        let mut map = OwnerMap::new(&[Frames::new(0, 100)]);
        for owner in [Owner::Table, Owner::Table] {
            assert_eq!(map.claim(Frames::new(1, 2), owner), []);
        }
        assert_eq!(map.claim(Frames::new(8, 16), Owner::Buddy), []);
        assert_eq!(map.claim(Frames::new(8, 9), Owner::Buddy).len(), 1);
    }

    #[test]
    fn claims_outside_ram_meet_a_hole() {
        let mut map = OwnerMap::new(&[Frames::new(0, 10), Frames::new(12, 20)]);
        assert_eq!(
            map.claim(Frames::new(9, 13), Owner::Kernel),
            [Clash { frames: Frames::new(10, 12), held_by: Owner::Hole }]
        );
        assert_eq!(map.owner(12), Owner::Kernel);
        assert_eq!(map.owner(10), Owner::Hole);
    }

    #[test]
    fn a_terabyte_with_one_owner_costs_no_array() {
        let terabyte = Frames::new(0, 1 << 28);
        let mut map = OwnerMap::new(&[terabyte]);
        assert_eq!(map.claim(terabyte, Owner::Deferred), []);
        assert!(map.chunks.values().all(|chunk| matches!(chunk, Chunk::Uniform(Owner::Deferred))));
    }

    proptest! {
        #[test]
        fn claims_agree_with_a_plain_array(
            claims in proptest::collection::vec((0_u64..70, 0_u64..20, 0_usize..10, any::<bool>()), 0..30),
        ) {
            // Straddles a section boundary and has a hole.
            let base = PAGES_PER_SECTION - 32;
            let ram = [Frames::new(base, base + 40), Frames::new(base + 44, base + 64)];
            let mut map = OwnerMap::new(&ram);
            let mut model: Vec<Owner> = (0..96)
                .map(|i| if ram.iter().any(|r| r.contains(base + i)) { Owner::Nobody } else { Owner::Hole })
                .collect();
            for (start, len, owner, rest) in claims {
                let owner = Owner::OWNERS[owner];
                let frames = Frames::from_count(base + start, len);
                let mut clashing = 0;
                for i in start..start + len {
                    let slot = &mut model[usize::try_from(i).unwrap()];
                    if *slot == Owner::Nobody {
                        *slot = owner;
                    } else if *slot != owner || !owner.may_repeat() {
                        clashing += 1;
                    }
                }
                if rest {
                    map.claim_rest(frames, owner);
                } else {
                    let clashes = map.claim(frames, owner);
                    prop_assert_eq!(clashes.iter().map(|clash| clash.frames.len()).sum::<u64>(), clashing);
                }
            }
            for (i, owner) in model.iter().enumerate() {
                prop_assert_eq!(map.owner(base + i as u64), *owner);
            }
            let runs: u64 = map.runs().map(|(frames, _)| frames.len()).sum();
            prop_assert_eq!(runs, 60);
        }
    }
}
