//! /proc/iomem (Linux: kernel/resource.c, `r_show`; arch/x86/kernel/e820.c, setup.c).
//!
//! What firmware said, the kernel image inside, and the interrupt controllers. Differs from Linux: windows of PCI buses and what devices claimed is
//! not there; the table is printed in order, and what lies in something else is indented under it.

use core::fmt::{self, Write};

use memvisor_abi::E820Type;
use mm_core::PAGE_SIZE;

use crate::init::E820;
use crate::mm::phys;

/// A range, both ends included, what it is, and how deep it lies.
type Line = (u64, u64, &'static str);

/// Parts of the image (Linux: `code_resource` and so on).
fn image() -> [Line; 3] {
    let image = phys::image();
    let at = |offset: u64| image.phys + offset;
    [
        (at(0), at(image.text) - 1, "Kernel code"),
        (at(image.text), at(image.rodata) - 1, "Kernel rodata"),
        (at(image.rodata), at(image.len).next_multiple_of(PAGE_SIZE) - 1, "Kernel data"),
    ]
}

/// Controllers that every PC has where it has them.
const CONTROLLERS: [Line; 2] =
    [(0xfec0_0000, 0xfec0_03ff, "IOAPIC 0"), (0xfee0_0000, 0xfee0_0fff, "Local APIC")];

/// /proc/iomem.
///
/// # Errors
/// Those of `out`.
pub fn iomem(out: &mut dyn Write) -> fmt::Result {
    let mut controllers = CONTROLLERS.iter().peekable();
    let mut index = 0;
    // One by one: the table is not locked while the text is written.
    while let Some(entry) = { E820.lock().clean.entries().get(index).copied() } {
        index += 1;
        if entry.size == 0 {
            continue;
        }
        let (start, last) = (entry.addr, entry.addr.saturating_add(entry.size - 1));
        while let Some(line) = controllers.next_if(|line| line.1 < start) {
            put(out, 0, line)?;
        }
        put(out, 0, &(start, last, E820Type::iomem_name(entry.kind)))?;
        let inside = |line: &Line| line.0 >= start && line.1 <= last;
        for line in image().iter().filter(|line| inside(line)) {
            put(out, 1, line)?;
        }
        while let Some(line) = controllers.next_if(|line| inside(line)) {
            put(out, 1, line)?;
        }
    }
    controllers.try_for_each(|line| put(out, 0, line))
}

fn put(out: &mut dyn Write, depth: usize, (start, last, name): &Line) -> fmt::Result {
    writeln!(out, "{:width$}{start:08x}-{last:08x} : {name}", "", width = depth * 2)
}
