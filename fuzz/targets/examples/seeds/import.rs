//! What two machines say about themselves: one told by its kernel log, one by everything else.

use std::fmt::Write;

use memvisor::machine::{Overrides, acpi, load, resolve};
use memvisor_fuzz_targets::IMPORT_SEPARATOR;

/// Choices: sealed tables; a scale of 1/64.
const SEALED: u8 = 1;
const SCALED: u8 = 2 | 6 << 3;

const LOG: &str = "\
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009b3ff] usable
[    0.000000] BIOS-e820: [mem 0x000000000009b400-0x000000000009ffff] reserved
[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x0000000079f9ffff] usable
[    0.000000] BIOS-e820: [mem 0x000000007ac50000-0x000000007b67ffff] ACPI NVS
[    0.000000] BIOS-e820: [mem 0x0000000100000000-0x000000107fffffff] usable
[    0.012248] SRAT: PXM 0 -> APIC 0x00 -> Node 0
[    0.012250] SRAT: PXM 1 -> APIC 0x40 -> Node 1
[    0.012347] ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x87fffffff]
[    0.012350] ACPI: SRAT: Node 1 PXM 1 [mem 0x880000000-0x107fffffff]
[    0.012351] ACPI: SRAT: Node 1 PXM 1 [mem 0x2080000000-0x307fffffff] hotplug
[    0.030000] NUMA: Node 0 [mem 0x00000000-0x0009ffff] + [mem 0x00100000-0x7fffffff] -> [mem 0x00000000-0x7fffffff]
[    0.040000] smpboot: Allowing 2 CPUs, 0 hotplug CPUs
node distances:
node   0   1
  0:  10  21
  1:  21  10
";

const IOMEM: &str = "\
00000000-00000fff : Reserved
00001000-0009ffff : System RAM
000a0000-000fffff : Reserved
  000f0000-000fffff : System ROM
00100000-7fffffff : System RAM
  01000000-01ffffff : Kernel code
100000000-27fffffff : System RAM
";

const MEMMAP: &str = "\
/sys/firmware/memmap/0/start:0x0
/sys/firmware/memmap/0/end:0x9fbff
/sys/firmware/memmap/0/type:System RAM
/sys/firmware/memmap/1/start:0x100000
/sys/firmware/memmap/1/end:0xbfffffff
/sys/firmware/memmap/1/type:System RAM
";

const NODES: &str = "\
/sys/devices/system/node/node0/cpulist:0-1
/sys/devices/system/node/node0/distance:10 20
/sys/devices/system/node/node0/meminfo:Node 0 MemTotal:        1572864 kB
/sys/devices/system/node/node1/cpulist:2,3
/sys/devices/system/node/node1/distance:20 10
/sys/devices/system/node/node1/meminfo:Node 1 MemTotal:        1572864 kB
";

/// Seeds by name.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let tables = tables();
    let binary: Vec<&[u8]> = tables.iter().map(Vec::as_slice).collect();
    let dump: String = tables.iter().map(|table| hex_dump(table)).collect();
    vec![
        ("seed-log", input(SCALED, &[LOG.as_bytes()])),
        ("seed-iomem-nodes", input(0, &[IOMEM.as_bytes(), NODES.as_bytes()])),
        ("seed-memmap-tables", input(SEALED, &[&[MEMMAP.as_bytes()], binary.as_slice()].concat())),
        ("seed-memmap-acpidump", input(SCALED, &[MEMMAP.as_bytes(), dump.as_bytes()])),
        ("seed-log-against-nodes", input(0, &[LOG.as_bytes(), NODES.as_bytes(), IOMEM.as_bytes()])),
    ]
}

fn input(choice: u8, sources: &[&[u8]]) -> Vec<u8> {
    [&[choice], sources.join(IMPORT_SEPARATOR).as_slice()].concat()
}

/// MADT, SRAT, SLIT and HMAT of a machine with all of them.
fn tables() -> Vec<Vec<u8>> {
    let machine = resolve(load("numa4").expect("bundled"), &Overrides::default()).expect("resolves");
    let built = acpi::build(&machine).expect("has tables").tables.into_iter().map(|table| table.bytes);
    let wanted = [b"APIC", b"SRAT", b"SLIT", b"HMAT"];
    built.filter(|bytes| wanted.iter().any(|signature| bytes.starts_with(signature.as_slice()))).collect()
}

/// As acpidump prints it.
fn hex_dump(table: &[u8]) -> String {
    let mut text = format!("{} @ 0x00000000C9EA3D58\n", String::from_utf8_lossy(&table[..4]));
    for (line, bytes) in table.chunks(16).enumerate() {
        let columns: String = bytes.iter().map(|byte| format!(" {byte:02X}")).collect();
        writeln!(text, "    {:04X}:{columns:<48}  ................", line * 16).expect("a String takes all");
    }
    text + "\n"
}
