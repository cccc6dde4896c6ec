//! The boot protocols' structures: Linux's zero page (Documentation/arch/x86/boot.rst, `struct
//! boot_params`) and PVH's start_info (Xen public/arch-x86/hvm/start_info.h, version 1).

use memvisor_abi::{BootProtocol, E820Entry};

use crate::{Bytes, Memory, Say};

/// Linux's `COMMAND_LINE_SIZE` on x86; longer lines are cut.
pub const MAX_COMMAND_LINE: usize = 2048;

/// A chain of setup_data longer than this is a loop.
const MAX_SETUP_DATA: usize = 64;
/// More entries than any memory map has; what follows is reported and ignored.
const MAX_MAP: usize = 4096;

/// The parts that the kernel uses.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// Protocol of the loader.
    pub protocol: BootProtocol,
    /// ACPI's root pointer, 0 if the loader does not know.
    pub rsdp: u64,
    /// Initial RAM disk as (address, length); length 0 if there is none.
    pub initrd: (u64, u64),
    /// Address of the command line, 0 if there is none, and its length without the NUL.
    pub command_line: (u64, usize),
    /// Everything the loader's structures occupy, as (address, length), to be reserved; unused
    /// elements have length 0.
    pub occupied: [(u64, u64); MAX_SETUP_DATA + 4],
}

impl BootInfo {
    /// Reads the loader's structures at `info`, calling `add` with every entry of the memory map.
    /// `None` if there is no such structure.
    pub fn read<M: Memory>(
        memory: &M,
        protocol: BootProtocol,
        info: u64,
        say: Say<'_>,
        mut add: impl FnMut(E820Entry),
    ) -> Option<BootInfo> {
        let mut boot = BootInfo {
            protocol,
            rsdp: 0,
            initrd: (0, 0),
            command_line: (0, 0),
            occupied: [(0, 0); MAX_SETUP_DATA + 4],
        };
        match protocol {
            BootProtocol::Linux64 => boot.read_zero_page(memory, info, say, &mut add)?,
            BootProtocol::Pvh => boot.read_start_info(memory, info, say, &mut add)?,
        }
        Some(boot)
    }

    /// The command line's bytes.
    pub fn command_line_bytes<'m, M: Memory>(&self, memory: &'m M) -> impl Iterator<Item = u8> + 'm {
        let (addr, len) = self.command_line;
        let bytes = Bytes::at(memory, addr, len);
        (0..len).map_while(move |at| bytes.u8(at))
    }

    fn occupy(&mut self, address: u64, len: u64) {
        if let Some(slot) = self.occupied.iter_mut().find(|slot| slot.1 == 0) {
            *slot = (address, len);
        }
    }

    fn find_command_line<M: Memory>(&mut self, memory: &M, address: u64) {
        if address == 0 {
            return;
        }
        let bytes = Bytes::at(memory, address, MAX_COMMAND_LINE);
        let len = (0..MAX_COMMAND_LINE).take_while(|&at| bytes.u8(at).is_some_and(|byte| byte != 0)).count();
        self.command_line = (address, len);
        self.occupy(address, len as u64 + 1);
    }

    fn read_zero_page<M: Memory>(
        &mut self,
        memory: &M,
        info: u64,
        say: Say<'_>,
        add: &mut dyn FnMut(E820Entry),
    ) -> Option<()> {
        const TABLE: usize = 0x2d0;
        const TABLE_MAX: usize = 128;
        let page = Bytes::at(memory, info, 4096);
        page.u8(4095)?;
        self.occupy(info, 4096);
        self.rsdp = page.u64(0x70)?;
        let wide = |low, high| Some(u64::from(page.u32(low)?) | u64::from(page.u32(high)?) << 32);
        self.initrd = (wide(0x218, 0xc0)?, wide(0x21c, 0xc4)?);
        self.find_command_line(memory, wide(0x228, 0xc8)?);
        let count = usize::from(page.u8(0x1e8)?);
        if count > TABLE_MAX {
            say(format_args!(
                "zero page: {count} E820 entries, but there is room for {TABLE_MAX}; rest ignored"
            ));
        }
        for index in 0..count.min(TABLE_MAX) {
            packed_entry(&page, TABLE + 20 * index).into_iter().for_each(&mut *add);
        }
        self.read_setup_data(memory, page.u64(0x250)?, say, add);
        Some(())
    }

    fn read_setup_data<M: Memory>(
        &mut self,
        memory: &M,
        first: u64,
        say: Say<'_>,
        add: &mut dyn FnMut(E820Entry),
    ) {
        const SETUP_E820_EXT: u32 = 1;
        let mut next = first;
        for _ in 0..MAX_SETUP_DATA {
            if next == 0 {
                return;
            }
            let header = Bytes::at(memory, next, 16);
            let (Some(following), Some(kind), Some(len)) = (header.u64(0), header.u32(8), header.u32(12))
            else {
                say(format_args!("setup_data: header at {next:#x} is out of reach; ignored"));
                return;
            };
            self.occupy(next, 16 + u64::from(len));
            if kind == SETUP_E820_EXT {
                let entries = usize::try_from(len / 20).unwrap_or(0);
                let data = Bytes::at(memory, next + 16, 20 * entries.min(MAX_MAP));
                (0..entries.min(MAX_MAP))
                    .filter_map(|index| packed_entry(&data, 20 * index))
                    .for_each(&mut *add);
            }
            next = following;
        }
        say(format_args!("setup_data: more than {MAX_SETUP_DATA} elements; rest ignored"));
    }

    fn read_start_info<M: Memory>(
        &mut self,
        memory: &M,
        info: u64,
        say: Say<'_>,
        add: &mut dyn FnMut(E820Entry),
    ) -> Option<()> {
        const MAGIC: u32 = 0x336e_c578;
        let start = Bytes::at(memory, info, 56);
        if start.u32(0)? != MAGIC {
            return None;
        }
        let version = start.u32(4)?;
        // Version 0 ends before the memory map.
        self.occupy(info, if version >= 1 { 56 } else { 40 });
        self.rsdp = start.u64(32)?;
        self.find_command_line(memory, start.u64(24)?);
        if start.u32(12)? > 0 {
            let module = Bytes::at(memory, start.u64(16)?, 32);
            self.occupy(module.address(), 32);
            self.initrd = (module.u64(0).unwrap_or(0), module.u64(8).unwrap_or(0));
        }
        if version < 1 {
            say(format_args!("PVH: start_info version 0 has no memory map"));
            return Some(());
        }
        let count = usize::try_from(start.u32(48)?).unwrap_or(0);
        if count > MAX_MAP {
            say(format_args!("PVH: {count} memory map entries; only {MAX_MAP} are read"));
        }
        let count = count.min(MAX_MAP);
        let map = Bytes::at(memory, start.u64(40)?, 24 * count);
        self.occupy(map.address(), 24 * count as u64);
        (0..count).filter_map(|index| packed_entry(&map, 24 * index)).for_each(add);
        Some(())
    }
}

/// Address, size and type, as both protocols have them.
fn packed_entry<M: Memory>(bytes: &Bytes<'_, M>, at: usize) -> Option<E820Entry> {
    Some(E820Entry { addr: bytes.u64(at)?, size: bytes.u64(at + 8)?, kind: bytes.u32(at + 16)?, reserved: 0 })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Ram, heard};

    fn read(ram: &Ram, protocol: BootProtocol, info: u64) -> (Option<BootInfo>, Vec<E820Entry>) {
        let mut map = Vec::new();
        let (boot, _) = heard(|say| BootInfo::read(ram, protocol, info, say, |entry| map.push(entry)));
        (boot, map)
    }

    fn entry(addr: u64, size: u64, kind: u32) -> E820Entry {
        E820Entry { addr, size, kind, reserved: 0 }
    }

    fn packed(addr: u64, size: u64, kind: u32) -> Vec<u8> {
        [&addr.to_le_bytes()[..], &size.to_le_bytes(), &kind.to_le_bytes()].concat()
    }

    #[test]
    fn a_zero_page_is_read_with_its_extension() {
        let mut ram = Ram::new();
        ram.0[0x71e8] = 1;
        ram.put(0x72d0, &packed(0, 0x9_fc00, 1));
        ram.put(0x7228, &0x2_0000_u32.to_le_bytes());
        ram.put(0x2_0000, b"quiet no5lvl\0");
        ram.put(0x7250, &0x3_0000_u64.to_le_bytes());
        ram.put(0x3_0008, &1_u32.to_le_bytes());
        ram.put(0x3_000c, &40_u32.to_le_bytes());
        ram.put(0x3_0010, &packed(0x10_0000, 0x1000, 1));
        ram.put(0x3_0024, &packed(0x20_0000, 0x1000, 2));
        let (boot, map) = read(&ram, BootProtocol::Linux64, 0x7000);
        let boot = boot.unwrap();
        assert_eq!(map, [entry(0, 0x9_fc00, 1), entry(0x10_0000, 0x1000, 1), entry(0x20_0000, 0x1000, 2)]);
        let line: Vec<u8> = boot.command_line_bytes(&ram).collect();
        assert_eq!(line, b"quiet no5lvl");
        let occupied: Vec<_> = boot.occupied.iter().filter(|slot| slot.1 > 0).copied().collect();
        assert_eq!(occupied, [(0x7000, 4096), (0x2_0000, 13), (0x3_0000, 56)]);
    }

    #[test]
    fn a_circle_of_setup_data_ends() {
        let mut ram = Ram::new();
        ram.put(0x7250, &0x3_0000_u64.to_le_bytes());
        ram.put(0x3_0000, &0x3_0000_u64.to_le_bytes());
        assert!(read(&ram, BootProtocol::Linux64, 0x7000).0.is_some());
    }

    #[test]
    fn start_info_needs_its_magic_number() {
        let mut ram = Ram::new();
        assert!(read(&ram, BootProtocol::Pvh, 0x6000).0.is_none());
        ram.put(0x6000, &0x336e_c578_u32.to_le_bytes());
        ram.put(0x6004, &1_u32.to_le_bytes());
        ram.put(0x6028, &0x8000_u64.to_le_bytes());
        ram.put(0x6030, &1_u32.to_le_bytes());
        ram.put(0x8000, &packed(0, 0x1000, 1));
        let (boot, map) = read(&ram, BootProtocol::Pvh, 0x6000);
        assert!(boot.is_some());
        assert_eq!(map, [entry(0, 0x1000, 1)]);
    }

    proptest! {
        /// Whatever the loader wrote, nothing panics, and no more entries come than the bounds allow.
        #[test]
        fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 4096), pvh: bool) {
            let mut ram = Ram::new();
            ram.put(0x7000, &bytes);
            ram.put(0x7000, &0x336e_c578_u32.to_le_bytes());
            let protocol = if pvh { BootProtocol::Pvh } else { BootProtocol::Linux64 };
            let (_, map) = read(&ram, protocol, 0x7000);
            prop_assert!(map.len() <= MAX_MAP * (MAX_SETUP_DATA + 1));
        }
    }
}
