//! Corruptions of what the guest believes about its machine.

use mm_memblock::E820Table;

use crate::init::E820;
use crate::sync::Lock;
use crate::topology::SLIT;

type Outcome = Result<(), &'static str>;

/// A sanitized map that has lost a page.
pub fn e820_clean() -> Outcome {
    // Too large for a kernel stack.
    static CHANGED: Lock<E820Table> = Lock::new(E820Table::new());
    let mut e820 = E820.lock();
    let mut changed = CHANGED.lock();
    for (index, entry) in e820.clean.entries().iter().enumerate() {
        let mut entry = *entry;
        if index == 0 {
            entry.size -= 4096;
        }
        changed.push(entry).map_err(|_| "the map is full")?;
    }
    core::mem::swap(&mut e820.clean, &mut changed);
    Ok(())
}

/// A node that is farther from node 0 than the machine says.
pub fn numa_distance() -> Outcome {
    let mut slit = SLIT.lock();
    if slit.nodes() < 2 {
        return Err("it has one node");
    }
    slit.distances_mut()[1] += 7;
    Ok(())
}
