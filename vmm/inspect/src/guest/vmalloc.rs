//! Areas of the vmalloc range, kmap windows and tasks.

use std::mem::size_of;

use memvisor_abi as abi;
use memvisor_abi::{
    KmapSlot, KmapWindow, PFN_NONE, TaskInfo, TaskState, VM_AREAS_PER_FRAME, VmArea, VmState,
};
use zerocopy::{FromZeros, IntoBytes};

use super::tables::Absent;
use super::{Guest, GuestError, TableName};
use crate::MemorySource;

/// Linux's largest PID_MAX_LIMIT.
const TASKS_MAX: u64 = 1 << 22;
/// A window a CPU, and two more.
const WINDOWS_MAX: u64 = 8192 + 2;
/// Slots of a window, at least.
const SLOTS_MAX: u32 = 4096;

/// [`VM_AREAS_PER_FRAME`] as a length.
const PER_FRAME: usize = 32;
const _: () = assert!(PER_FRAME as u64 == VM_AREAS_PER_FRAME);

/// An area that is not unused, with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmAreaAt {
    /// Its number.
    pub number: u64,
    /// Its descriptor.
    pub area: VmArea,
}

/// A window with its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmapWindowSlots {
    /// The window.
    pub window: KmapWindow,
    /// Its slots.
    pub slots: Vec<KmapSlot>,
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Areas of the vmalloc range that are free, busy or lazy, ascending by address; empty if none are published.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn vm_areas(&self) -> Result<Vec<VmAreaAt>, GuestError> {
        let max = (self.source.ram_bytes() / abi::PAGE_SIZE).max(u64::from(self.root.vm_areas.count));
        let frames: Vec<u64> =
            self.table(TableName::VmAreas, self.root.vm_areas, max.min(1 << 20), Absent::IsEmpty)?;
        let mut areas = Vec::new();
        for (index, &frame) in frames.iter().enumerate().filter(|(_, frame)| **frame != PFN_NONE) {
            let gpa =
                frame.checked_mul(abi::PAGE_SIZE).filter(|&gpa| self.source.is_ram(gpa, abi::PAGE_SIZE));
            let gpa = gpa.ok_or(GuestError::Element {
                table: TableName::VmAreas,
                index,
                field: "pfn",
                value: frame,
                why: "it must be a frame of RAM",
            })?;
            let mut nodes = [VmArea::new_zeroed(); PER_FRAME];
            self.source.read(gpa, nodes.as_mut_bytes())?;
            for (number, area) in (index as u64 * VM_AREAS_PER_FRAME..).zip(nodes) {
                if area.state != VmState::Unused as u32 {
                    areas.push(VmAreaAt { number, area });
                }
            }
        }
        areas.sort_by_key(|at| (at.area.start, at.number));
        Ok(areas)
    }

    /// Windows onto single frames, with their slots; empty if none are published.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn kmap_windows(&self) -> Result<Vec<KmapWindowSlots>, GuestError> {
        let windows: Vec<KmapWindow> =
            self.table(TableName::Kmaps, self.root.kmaps, WINDOWS_MAX, Absent::IsEmpty)?;
        let mut found = Vec::new();
        for (index, window) in windows.into_iter().enumerate() {
            let bad =
                |field, value, why| GuestError::Element { table: TableName::Kmaps, index, field, value, why };
            if window.count > SLOTS_MAX {
                return Err(bad("count", window.count.into(), "a window has at most 4096 slots"));
            }
            let len = u64::from(window.count) * size_of::<KmapSlot>() as u64;
            if !self.source.is_ram(window.slots_gpa, len) {
                return Err(bad("slots_gpa", window.slots_gpa, "the slots must be in RAM"));
            }
            let empty = KmapSlot { pfn: PFN_NONE, count: 0, next: 0 };
            let mut slots = vec![empty; window.count as usize];
            self.source.read(window.slots_gpa, slots.as_mut_slice().as_mut_bytes())?;
            found.push(KmapWindowSlots { window, slots });
        }
        Ok(found)
    }

    /// Tasks, unused slots left out; empty if none are published.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn tasks(&self) -> Result<Vec<TaskInfo>, GuestError> {
        let mut tasks: Vec<TaskInfo> =
            self.table(TableName::Tasks, self.root.tasks, TASKS_MAX, Absent::IsEmpty)?;
        tasks.retain(|task| task.state != TaskState::Unused as u32);
        Ok(tasks)
    }
}
