//! What the boot loader hands over: Linux's zero page (Documentation/arch/x86/boot.rst, struct
//! boot_params) or PVH's start_info (Xen public/arch-x86/hvm/start_info.h, version 1).

use memvisor_abi::{BootProtocol, E820Entry};
use mm_core::PhysAddr;
use mm_memblock::E820Table;

use crate::mm::phys::Bytes;
use crate::{cmdline, println};

/// The parts that the kernel uses.
#[derive(Debug)]
pub struct BootInfo {
    /// Protocol of the loader.
    pub protocol: BootProtocol,
    /// ACPI's root pointer, 0 if the loader does not know.
    pub rsdp: u64,
    /// Initial RAM disk as (address, length); length 0 if there is none.
    pub initrd: (u64, u64),
    /// Everything the loader's structures occupy, as (address, length), to be reserved.
    pub occupied: [(u64, u64); 8],
}

impl BootInfo {
    fn occupy(&mut self, address: u64, len: u64) {
        if let Some(slot) = self.occupied.iter_mut().find(|slot| slot.1 == 0) {
            *slot = (address, len);
        }
    }
}

/// Reads the loader's structures at `info` into `e820` and the command line.
pub fn parse(protocol: u64, info: u64, e820: &mut E820Table) -> BootInfo {
    let mut boot = BootInfo {
        protocol: if protocol == 2 { BootProtocol::Pvh } else { BootProtocol::Linux64 },
        rsdp: 0,
        initrd: (0, 0),
        occupied: [(0, 0); 8],
    };
    match boot.protocol {
        BootProtocol::Linux64 => zero_page(&mut boot, info, e820),
        BootProtocol::Pvh => start_info(&mut boot, info, e820),
    }
    boot
}

fn add(e820: &mut E820Table, addr: u64, size: u64, kind: u32) {
    if e820.push(E820Entry { addr, size, kind, reserved: 0 }).is_err() {
        println!("e820: too many entries; ignoring [mem {addr:#018x}-{:#018x}]", addr.wrapping_add(size));
    }
}

fn zero_page(boot: &mut BootInfo, info: u64, e820: &mut E820Table) {
    const SETUP_E820_EXT: u32 = 1;
    let page = Bytes::at(PhysAddr::new(info), 4096);
    boot.occupy(info, 4096);
    boot.rsdp = page.u64(0x70).unwrap_or(0);
    let high = |low: usize, ext: usize| {
        u64::from(page.u32(low).unwrap_or(0)) | u64::from(page.u32(ext).unwrap_or(0)) << 32
    };
    boot.initrd = (high(0x218, 0xc0), high(0x21c, 0xc4));
    command_line(boot, high(0x228, 0xc8));
    let entry = |bytes: &Bytes, offset: usize| {
        Some((bytes.u64(offset)?, bytes.u64(offset + 8)?, bytes.u32(offset + 16)?))
    };
    for index in 0..usize::from(page.u8(0x1e8).unwrap_or(0)).min(128) {
        if let Some((addr, size, kind)) = entry(&page, 0x2d0 + 20 * index) {
            add(e820, addr, size, kind);
        }
    }
    let mut next = page.u64(0x250).unwrap_or(0);
    // A chain longer than this is a loop.
    for _ in 0..64 {
        if next == 0 {
            return;
        }
        let header = Bytes::at(PhysAddr::new(next), 16);
        let (Some(following), Some(kind), Some(len)) = (header.u64(0), header.u32(8), header.u32(12)) else {
            println!("setup_data: header at {next:#x} is out of reach; ignored");
            return;
        };
        boot.occupy(next, 16 + u64::from(len));
        if kind == SETUP_E820_EXT {
            let data = Bytes::at(PhysAddr::new(next + 16), len as usize);
            for index in 0..len as usize / 20 {
                if let Some((addr, size, kind)) = entry(&data, 20 * index) {
                    add(e820, addr, size, kind);
                }
            }
        }
        next = following;
    }
}

fn start_info(boot: &mut BootInfo, info: u64, e820: &mut E820Table) {
    const MAGIC: u32 = 0x336e_c578;
    let start = Bytes::at(PhysAddr::new(info), 56);
    boot.occupy(info, 56);
    assert!(start.u32(0) == Some(MAGIC), "PVH start_info at {info:#x} has no magic number");
    let word = |offset| start.u64(offset).unwrap_or(0);
    boot.rsdp = word(32);
    command_line(boot, word(24));
    if start.u32(12).unwrap_or(0) > 0 {
        let module = Bytes::at(PhysAddr::new(word(16)), 32);
        boot.occupy(word(16), 32);
        boot.initrd = (module.u64(0).unwrap_or(0), module.u64(8).unwrap_or(0));
    }
    if start.u32(4).unwrap_or(0) < 1 {
        println!("PVH: start_info version 0 has no memory map");
        return;
    }
    let count = start.u32(48).unwrap_or(0) as usize;
    let map = Bytes::at(PhysAddr::new(word(40)), count.saturating_mul(24));
    boot.occupy(word(40), count as u64 * 24);
    for index in 0..count {
        let at = 24 * index;
        if let (Some(addr), Some(size), Some(kind)) = (map.u64(at), map.u64(at + 8), map.u32(at + 16)) {
            add(e820, addr, size, kind);
        }
    }
}

fn command_line(boot: &mut BootInfo, address: u64) {
    if address == 0 {
        return;
    }
    let bytes = Bytes::at(PhysAddr::new(address), cmdline::MAX);
    let mut len = 0;
    cmdline::set(
        (0..cmdline::MAX)
            .map_while(|index| bytes.u8(index))
            .take_while(|&byte| byte != 0)
            .inspect(|_| len += 1),
    );
    boot.occupy(address, len + 1);
}
