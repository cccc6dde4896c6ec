//! Area descriptors in frames: fields by number, read and written through [`PhysMem`].

use core::mem::offset_of;

use memvisor_abi::{VM_AREA_NONE, VM_AREAS_PER_FRAME, VmArea, VmFlags, VmState};
use mm_core::{PFN_NONE, Pfn, PhysAddr, PhysMem};

const BYTES: u64 = size_of::<VmArea>() as u64;

/// Where the descriptors are: by number, and then by frame.
#[derive(Clone, Copy)]
pub(crate) struct Nodes<'a, M> {
    pub mem: &'a M,
    pub frames: &'a [u64],
}

/// Number of a descriptor; [`VM_AREA_NONE`] for none.
pub(crate) type Id = u32;
pub(crate) const NONE: Id = VM_AREA_NONE;

impl<M: PhysMem> Nodes<'_, M> {
    fn address(&self, id: Id, offset: usize) -> PhysAddr {
        let frame =
            self.frames.get((u64::from(id) / VM_AREAS_PER_FRAME) as usize).copied().unwrap_or(PFN_NONE);
        assert!(frame != PFN_NONE, "area descriptor {id} does not exist");
        let base = Pfn::new(frame).phys().as_u64() + u64::from(id) % VM_AREAS_PER_FRAME * BYTES;
        PhysAddr::new(base + offset as u64)
    }

    pub fn read(&self, id: Id, offset: usize) -> u64 {
        self.mem.read_u64(self.address(id, offset))
    }

    pub fn write(&self, id: Id, offset: usize, value: u64) {
        self.mem.write_u64(self.address(id, offset), value);
    }

    /// The two halves of the word at `offset`.
    fn pair(&self, id: Id, offset: usize) -> (u32, u32) {
        halves(self.read(id, offset))
    }

    fn set_pair(&self, id: Id, offset: usize, low: u32, high: u32) {
        self.write(id, offset, u64::from(low) | u64::from(high) << 32);
    }

    pub fn start(&self, id: Id) -> u64 {
        self.read(id, offset_of!(VmArea, start))
    }

    pub fn end(&self, id: Id) -> u64 {
        self.read(id, offset_of!(VmArea, end))
    }

    pub fn set_range(&self, id: Id, start: u64, end: u64) {
        self.write(id, offset_of!(VmArea, start), start);
        self.write(id, offset_of!(VmArea, end), end);
    }

    /// Length of the longest area in the subtree; 0 for no subtree.
    pub fn max(&self, id: Id) -> u64 {
        if id == NONE { 0 } else { self.read(id, offset_of!(VmArea, subtree_max)) }
    }

    pub fn set_max(&self, id: Id, max: u64) {
        self.write(id, offset_of!(VmArea, subtree_max), max);
    }

    pub fn children(&self, id: Id) -> (Id, Id) {
        self.pair(id, offset_of!(VmArea, left))
    }

    pub fn set_children(&self, id: Id, left: Id, right: Id) {
        self.set_pair(id, offset_of!(VmArea, left), left, right);
    }

    pub fn priority(&self, id: Id) -> u32 {
        self.pair(id, offset_of!(VmArea, priority)).0
    }

    pub fn next(&self, id: Id) -> Id {
        self.pair(id, offset_of!(VmArea, priority)).1
    }

    pub fn set_priority_next(&self, id: Id, priority: u32, next: Id) {
        self.set_pair(id, offset_of!(VmArea, priority), priority, next);
    }

    pub fn state(&self, id: Id) -> u32 {
        self.pair(id, offset_of!(VmArea, state)).0
    }

    pub fn flags(&self, id: Id) -> VmFlags {
        VmFlags::from_bits_retain(self.pair(id, offset_of!(VmArea, state)).1)
    }

    pub fn set_state(&self, id: Id, state: VmState, flags: VmFlags) {
        self.set_pair(id, offset_of!(VmArea, state), state as u32, flags.bits());
    }

    pub fn cache(&self, id: Id) -> u32 {
        self.pair(id, offset_of!(VmArea, cache)).0
    }

    /// What [`Nodes::set_caller`] wrote.
    pub fn caller(&self, id: Id) -> ([u8; 32], u32) {
        let mut file = [0; 32];
        for (word, bytes) in file.chunks_exact_mut(8).enumerate() {
            let raw = self.read(id, offset_of!(VmArea, caller_file) + 8 * word);
            bytes.copy_from_slice(&raw.to_le_bytes());
        }
        (file, self.pair(id, offset_of!(VmArea, cache)).1)
    }

    /// Cache mode, and the place in the source that the area is for.
    pub fn set_caller(&self, id: Id, cache: u32, file: &str, line: u32) {
        self.set_pair(id, offset_of!(VmArea, cache), cache, line);
        let at = offset_of!(VmArea, caller_file);
        let bytes = file.as_bytes();
        let tail = &bytes[bytes.len().saturating_sub(32)..];
        for word in 0..4 {
            let mut raw = [0; 8];
            for (to, from) in raw.iter_mut().zip(tail.iter().skip(8 * word)) {
                *to = *from;
            }
            self.write(id, at + 8 * word, u64::from_le_bytes(raw));
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}
