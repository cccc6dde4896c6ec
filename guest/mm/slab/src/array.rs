//! A CPU's array of objects ready for reuse (Linux: SLAB's `array_cache`, and since 6.18 SLUB's sheaves).

use memvisor_abi::CacheCpu;

/// Drops the `count` objects that were freed first.
pub(crate) fn drop_oldest(cpu: &mut CacheCpu, count: u32) {
    let (count, avail) = (count.min(cpu.avail) as usize, cpu.avail as usize);
    if avail <= cpu.array.len() {
        cpu.array.copy_within(count..avail, 0);
    }
    cpu.avail -= u32::try_from(count).unwrap_or(0);
}

/// Adds an object; `false` if the array is full.
pub(crate) fn push(cpu: &mut CacheCpu, object: u64) -> bool {
    if cpu.avail >= cpu.limit {
        return false;
    }
    let Some(slot) = cpu.array.get_mut(cpu.avail as usize) else { return false };
    *slot = object;
    cpu.avail += 1;
    true
}
