//! Pools of bounce slots.

use memvisor_abi::{
    IO_TLB_SEGSIZE, MAX_SWIOTLB_AREAS, MAX_SWIOTLB_POOLS, SwiotlbArea, SwiotlbPool, SwiotlbSlot, TableRef,
};

use super::tables::Absent;
use super::{Guest, GuestError, TableName};
use crate::MemorySource;

/// Slots of the largest pool that anybody asks for: 16 GiB.
const SLOTS_MAX: u64 = 1 << 23;

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Places of pools; those with no slots are not there.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn swiotlb_pools(&self) -> Result<Vec<SwiotlbPool>, GuestError> {
        self.table(TableName::Swiotlb, self.root.swiotlb, MAX_SWIOTLB_POOLS as u64, Absent::IsEmpty)
    }

    /// The areas of a pool; empty as long as nobody has bounced.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn swiotlb_areas(&self, pool: &SwiotlbPool) -> Result<Vec<SwiotlbArea>, GuestError> {
        if pool.slots_gpa == 0 && pool.areas_gpa == 0 {
            return Ok(Vec::new());
        }
        let stride = u32::try_from(size_of::<SwiotlbArea>()).unwrap_or(0);
        let place = TableRef { gpa: pool.areas_gpa, count: pool.nareas, stride };
        self.table(TableName::SwiotlbAreas, place, MAX_SWIOTLB_AREAS.into(), Absent::IsMissing)
    }

    /// The slots of a pool; empty as long as nobody has bounced, which is as if all were free.
    ///
    /// # Errors
    /// [`GuestError`], also for more slots than RAM can have behind them.
    pub fn swiotlb_slots(&self, pool: &SwiotlbPool) -> Result<Vec<SwiotlbSlot>, GuestError> {
        if pool.slots_gpa == 0 && pool.areas_gpa == 0 {
            return Ok(Vec::new());
        }
        let stride = u32::try_from(size_of::<SwiotlbSlot>()).unwrap_or(0);
        let place = TableRef { gpa: pool.slots_gpa, count: pool.nslabs, stride };
        let max = (self.source.ram_bytes() >> memvisor_abi::IO_TLB_SHIFT)
            .clamp(u64::from(IO_TLB_SEGSIZE), SLOTS_MAX);
        self.table(TableName::SwiotlbSlots, place, max, Absent::IsMissing)
    }
}
