//! A kernel file.

use std::error::Error;

use memvisor::{
    loader::{Cargo, load},
    machine::Boot,
    memory::Memory,
};
use memvisor_inspect::{FactE820, RamRegion};

use crate::{Input, check_error};

const MIB: u64 = 1 << 20;
const RAM: [(u64, u64); 2] = [(0, 0x9_f000), (MIB, 7 * MIB)];

/// The first byte chooses the protocol, the depth and a ramdisk; the rest is the kernel.
pub fn kernel_image(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let regions = RAM.map(|(gpa, len)| RamRegion { gpa, len });
    let memory = Memory::new(&regions).expect("the host gives 8 MiB");
    let cargo = Cargo {
        kernel_name: "fuzz.elf",
        kernel: input.rest(),
        initrd: (choice & 4 != 0).then_some(&[7; 5000]),
        cmdline: "quiet",
        boot: if choice & 1 == 0 { Boot::Linux } else { Boot::Pvh },
        e820: &RAM.map(|(addr, size)| FactE820 { addr, size, kind: 1 }),
        ram: &RAM,
        rsdp: 0xe_0000,
        levels: if choice & 2 == 0 { 4 } else { 5 },
    };
    match load(&memory, &cargo) {
        Ok(entry) => {
            let (base, len) = entry.image;
            assert!(memory.is_ram(base, len), "the image at {base:#x} (+{len:#x}) is not in RAM");
            let initrd = entry.initrd.unwrap_or((0, 0));
            assert!(memory.is_ram(initrd.0, initrd.1));
            assert!(initrd.1 == 0 || initrd.0 >= base + len || initrd.0 + initrd.1 <= base, "they overlap");
        }
        Err(error) => {
            check_error(&error);
            let mut cause = error.source();
            while let Some(error) = cause {
                check_error(error);
                cause = error.source();
            }
        }
    }
}
