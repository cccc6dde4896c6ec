//! Areas by priority (Linux: `swap_active_head`, `swap_avail_heads`).

use memvisor_abi::MAX_SWAPFILES;

/// The areas that give slots out, highest priority first. Those of equal priority take turns.
#[derive(Clone, Copy, Debug)]
pub struct SwapList {
    areas: [(i32, u32); MAX_SWAPFILES],
    len: usize,
    least: i32,
}

impl Default for SwapList {
    fn default() -> Self {
        SwapList::new()
    }
}

impl SwapList {
    /// No areas.
    pub const fn new() -> SwapList {
        // The first area without a priority gets -2 (Linux: `least_priority`).
        SwapList { areas: [(0, 0); MAX_SWAPFILES], len: 0, least: -1 }
    }

    /// Areas, best first.
    pub fn areas(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries().iter().map(|(_, area)| *area)
    }

    /// The area at a place in the order.
    pub(crate) fn nth(&self, place: usize) -> Option<u32> {
        self.entries().get(place).map(|(_, area)| *area)
    }

    /// The priority that an area gets: what was asked for, else one less than any other got by itself.
    pub(crate) fn priority(&mut self, asked: Option<u16>) -> i32 {
        match asked {
            Some(prio) => i32::from(prio),
            None => {
                self.least = self.least.saturating_sub(1);
                self.least
            }
        }
    }

    /// Puts an area behind those of its priority; false if the list is full.
    pub(crate) fn insert(&mut self, area: u32, prio: i32) -> bool {
        let place = self.entries().partition_point(|(other, _)| *other >= prio);
        if self.len == MAX_SWAPFILES {
            return false;
        }
        self.len += 1;
        if let Some(moved) = self.areas.get_mut(place..self.len) {
            moved.rotate_right(1);
        }
        if let Some(slot) = self.areas.get_mut(place) {
            *slot = (prio, area);
        }
        true
    }

    /// Takes an area off; false if it is not there.
    pub(crate) fn remove(&mut self, area: u32) -> bool {
        let Some(place) = self.entries().iter().position(|(_, other)| *other == area) else { return false };
        if let Some(moved) = self.areas.get_mut(place..self.len) {
            moved.rotate_left(1);
        }
        self.len -= 1;
        true
    }

    /// The others of its priority come before an area now (Linux: `plist_requeue`).
    pub(crate) fn requeue(&mut self, area: u32) {
        let Some(&(prio, _)) = self.entries().iter().find(|(_, other)| *other == area) else { return };
        if self.remove(area) {
            self.insert(area, prio);
        }
    }

    fn entries(&self) -> &[(i32, u32)] {
        self.areas.get(..self.len).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(areas: &[(u32, i32)]) -> SwapList {
        let mut list = SwapList::new();
        for (area, prio) in areas {
            assert!(list.insert(*area, *prio));
        }
        list
    }

    fn order(list: &SwapList) -> Vec<u32> {
        list.areas().collect()
    }

    #[test]
    fn higher_priorities_come_first_and_equals_in_order_of_arrival() {
        assert_eq!(order(&list(&[(0, -2), (1, 5), (2, 5), (3, 9), (4, -3)])), [3, 1, 2, 0, 4]);
    }

    #[test]
    fn requeueing_lets_equals_take_turns_and_leaves_others() {
        let mut list = list(&[(0, 5), (1, 5), (2, 5), (3, 1), (4, 7)]);
        list.requeue(0);
        assert_eq!(order(&list), [4, 1, 2, 0, 3]);
        list.requeue(4);
        assert_eq!(order(&list), [4, 1, 2, 0, 3]);
    }

    #[test]
    fn areas_without_a_priority_rank_behind_each_other() {
        let mut list = SwapList::new();
        assert_eq!([list.priority(None), list.priority(None), list.priority(Some(0))], [-2, -3, 0]);
    }
}
