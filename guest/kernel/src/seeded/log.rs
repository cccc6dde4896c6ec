//! Faults of the kernel's log.

use core::mem::offset_of;

use memvisor_abi::{KernelLog, LogHeader, LogState};
use mm_core::{PhysAddr, PhysMem};

use crate::mm::phys::DirectMap;
use crate::printk;

type Outcome = Result<(), &'static str>;

/// Address of the oldest record, of which the part is changed that begins at `offset`.
fn oldest(offset: usize) -> PhysAddr {
    let state = printk::with_log(|log| *log.state());
    PhysAddr::new(state.buffer_gpa + (state.tail + offset as u64) % state.len)
}

/// A record with the number of another one.
pub fn number() -> Outcome {
    let at = oldest(offset_of!(LogHeader, seq));
    DirectMap.write_u64(at, DirectMap.read_u64(at) + 1);
    Ok(())
}

/// A record that is longer than records can be.
pub fn length() -> Outcome {
    let at = oldest(offset_of!(LogHeader, text_len));
    DirectMap.write_u64(at, DirectMap.read_u64(at) | 0x8000);
    Ok(())
}

/// A log that has lost a record.
pub fn next() -> Outcome {
    let next = offset_of!(KernelLog, state) + offset_of!(LogState, next_seq);
    let at = PhysAddr::new(printk::table().gpa + next as u64);
    DirectMap.write_u64(at, DirectMap.read_u64(at) + 1);
    Ok(())
}
