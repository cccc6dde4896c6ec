//! What the guest reads of firmware and boot loaders.

use std::cell::Cell;

use guest_firmware::{BootInfo, Memory, acpi};
use memvisor_abi::{BootProtocol, E820Entry, MAX_NUMNODES};

use crate::Input;

const RAM: usize = 1 << 20;
/// Bytes that reading everything may take: every table once at its largest, and the scans.
const BUDGET: u64 = 64 << 20;

/// Bytes from address 0, and how many may still be read.
struct Ram {
    bytes: Vec<u8>,
    left: Cell<u64>,
}

impl Memory for Ram {
    fn read<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        let left = self.left.get().checked_sub(N as u64);
        assert!(left.is_some(), "a reader takes more than {BUDGET} bytes from 1 MiB");
        self.left.set(left.unwrap_or(0));
        let at = usize::try_from(addr).ok()?;
        self.bytes.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

/// A byte of choices, then pieces: an address, a length and bytes that lie there. Pieces that begin
/// with a length at their fifth byte may get the checksum of a table.
pub fn firmware(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let mut ram = Ram { bytes: vec![0; RAM], left: Cell::new(BUDGET) };
    let mut tables = Vec::new();
    while !input.is_empty() {
        let at = usize::try_from(input.u32()).unwrap_or(0) % RAM;
        let len = usize::from(input.u16());
        let bytes = input.bytes(len);
        for (slot, byte) in ram.bytes.iter_mut().skip(at).zip(bytes) {
            *slot = *byte;
        }
        tables.push(at);
    }
    if choice & 1 != 0 {
        tables.iter().for_each(|at| seal(&mut ram.bytes, *at));
    }
    read_acpi(&ram, if choice & 2 == 0 { 0 } else { 0xe_0000 });
    ram.left.set(BUDGET);
    let protocol = if choice & 4 == 0 { BootProtocol::Linux64 } else { BootProtocol::Pvh };
    read_boot_info(&ram, protocol);
}

/// Makes the checksums right, so that what they protect is reached.
fn seal(bytes: &mut [u8], at: usize) {
    let Some(start) = bytes.get(at..at + 36) else { return };
    if start.starts_with(b"RSD PTR ") {
        fix(bytes, at, 20, 8);
        return fix(bytes, at, 36, 32);
    }
    let len = u32::from_le_bytes([start[4], start[5], start[6], start[7]]);
    fix(bytes, at, usize::try_from(len).unwrap_or(0), 9);
}

fn fix(bytes: &mut [u8], at: usize, len: usize, sum: usize) {
    let Some(table) = at.checked_add(len).and_then(|end| bytes.get_mut(at..end)) else { return };
    let Some(slot) = table.get_mut(sum) else { return };
    *slot = 0;
    let rest = table.iter().fold(0_u8, |rest, byte| rest.wrapping_sub(*byte));
    table[sum] = rest;
}

fn read_acpi(ram: &Ram, hint: u64) {
    let mut said = 0_u64;
    let say = &mut |text: std::fmt::Arguments<'_>| said += text.to_string().len() as u64;
    let tables = acpi::Tables::find(ram, hint, say);
    let madt = acpi::Madt::read(tables.madt.as_ref(), say);
    assert!(madt.apic_ids().len() <= acpi::MAX_CPUS);
    let mut srat = acpi::Srat::new();
    if let Some(table) = &tables.srat {
        srat.read(table, say);
    }
    let nodes = usize::try_from(srat.nodes()).unwrap_or(usize::MAX);
    assert!(nodes <= MAX_NUMNODES);
    for (base, len, node) in srat.memory() {
        assert!(base.checked_add(*len).is_some() && *node < srat.nodes());
    }
    for id in madt.apic_ids() {
        assert!(srat.node_of_cpu(*id).is_none_or(|node| node < srat.nodes()));
    }
    let mut slit = acpi::Slit::new();
    slit.read(tables.slit.as_ref(), nodes, say);
    assert_eq!(slit.distances().len(), slit.nodes() * slit.nodes());
    if let Some(power_off) = tables.power_off {
        assert!(power_off.slp_typ < 8);
    }
}

fn read_boot_info(ram: &Ram, protocol: BootProtocol) {
    let mut map: Vec<E820Entry> = Vec::new();
    let boot = BootInfo::read(ram, protocol, 0x7000, &mut |_| (), |entry| map.push(entry));
    if let Some(boot) = boot {
        let line: Vec<u8> = boot.command_line_bytes(ram).collect();
        assert!(line.len() == boot.command_line.1 && !line.contains(&0));
    }
    assert!(map.len() <= 1 << 19, "{} entries of 1 MiB", map.len());
}
