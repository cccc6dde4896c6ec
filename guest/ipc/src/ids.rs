//! Identifiers (Linux: ipc/util.c, `ipc_idr_alloc`).

use alloc::vec::Vec;

use crate::Errno;

/// Bits of an identifier that are the index (Linux: `IPCMNI_SHIFT`).
const SHIFT: u32 = 15;
/// Objects at most.
pub const IPCMNI: usize = 1 << SHIFT;
/// Sequence numbers (Linux: `ipcid_seq_max`: 31 bits are an identifier).
const SEQUENCES: u16 = u16::MAX;
/// Indices that are gone through before one is used again (Linux: `ipc_min_cycle`).
const MIN_CYCLE: usize = 64;

/// Objects by identifier. An index is used again late, and then with another sequence number, so that who has an old
/// identifier does not get another object by it.
#[derive(Debug)]
pub struct Ids<T> {
    slots: Vec<Option<(u16, T)>>,
    in_use: usize,
    seq: u16,
    last: Option<usize>,
}

impl<T> Default for Ids<T> {
    fn default() -> Ids<T> {
        Ids { slots: Vec::new(), in_use: 0, seq: 0, last: None }
    }
}

const fn number(index: usize, seq: u16) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "an index has 15 bits")]
    let index = index as u32;
    (seq as u32) << SHIFT | index
}

impl<T> Ids<T> {
    /// Objects.
    pub const fn len(&self) -> usize {
        self.in_use
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.in_use == 0
    }

    /// The identifier that the next object gets, for which there is room then; `limit` is the most objects.
    ///
    /// # Errors
    /// `ENOSPC`, `ENOMEM`.
    pub(crate) fn reserve(&mut self, limit: usize) -> Result<(usize, u16), Errno> {
        let limit = limit.min(IPCMNI);
        if self.in_use >= limit {
            return Err(Errno::Enospc);
        }
        let cycle = (self.in_use * 3 / 2).max(MIN_CYCLE).min(limit);
        let after = self.last.map_or(0, |last| last + 1);
        let free = |index: &usize| self.slots.get(*index).is_none_or(Option::is_none);
        // Cyclic: behind the last one first.
        let index = (after..cycle).find(free).or_else(|| (0..cycle).find(free)).ok_or(Errno::Enospc)?;
        if index >= self.slots.len() {
            let more = index + 1 - self.slots.len();
            self.slots.try_reserve(more).map_err(|_| Errno::Enomem)?;
            self.slots.resize_with(index + 1, || None);
        }
        let mut seq = self.seq;
        if self.last.is_some_and(|last| index <= last) {
            seq = (seq + 1) % SEQUENCES;
        }
        Ok((index, seq))
    }

    /// Puts an object at what [`Ids::reserve`] gave; its identifier.
    pub(crate) fn insert(&mut self, (index, seq): (usize, u16), object: T) -> u32 {
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some((seq, object));
            self.in_use += 1;
            (self.last, self.seq) = (Some(index), seq);
        }
        number(index, seq)
    }

    fn index_of(&self, id: u32) -> Option<usize> {
        let index = id as usize % IPCMNI;
        let seq = self.slots.get(index)?.as_ref()?.0;
        (number(index, seq) == id).then_some(index)
    }

    /// The object.
    pub fn get(&self, id: u32) -> Option<&T> {
        self.slots.get(self.index_of(id)?)?.as_ref().map(|(_, object)| object)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        let index = self.index_of(id)?;
        self.slots.get_mut(index)?.as_mut().map(|(_, object)| object)
    }

    pub(crate) fn remove(&mut self, id: u32) -> Option<T> {
        let index = self.index_of(id)?;
        let (_, object) = self.slots.get_mut(index)?.take()?;
        self.in_use -= 1;
        Some(object)
    }

    /// The identifier of the object at the index that `id` has, whatever its sequence number.
    pub fn at_index(&self, id: u32) -> Option<u32> {
        let index = id as usize % IPCMNI;
        let (seq, _) = self.slots.get(index)?.as_ref()?;
        Some(number(index, *seq))
    }

    /// All, ascending by index, with their identifiers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let (seq, object) = slot.as_ref()?;
            Some((number(index, *seq), object))
        })
    }

    /// The highest index in use; 0 without any.
    pub fn highest(&self) -> u32 {
        self.iter().last().map_or(0, |(id, _)| id & ((1 << SHIFT) - 1))
    }
}
