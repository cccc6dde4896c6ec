//! The zero page of the Linux boot protocol (Documentation/arch/x86/zero-page.rst).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use super::{Cargo, LoadError};
use crate::{machine::layout, memory::Memory};

const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
/// Protocol 2.15, the newest.
const VERSION: u16 = 0x20f;
/// "No assigned boot loader".
const LOADER_OTHER: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
const XLF_5LEVEL: u16 = 1 << 5;
const XLF_5LEVEL_ENABLED: u16 = 1 << 6;
/// `setup_data` type of further E820 entries.
const SETUP_E820_EXT: u32 = 1;
/// Bytes of `struct setup_data` before its payload.
const SETUP_DATA_HEADER: u64 = 16;
const ENTRY_BYTES: usize = size_of::<boot_e820_entry>();

/// Writes the zero page, and `setup_data` for entries past the 128 that the page holds. `header` is a
/// bzImage's own; an ELF image has none, and gets one that a kernel of any age reads.
pub(super) fn write_zero_page(
    memory: &Memory,
    cargo: &Cargo<'_>,
    initrd: Option<(u64, u64)>,
    header: Option<&setup_header>,
) -> Result<(), LoadError> {
    let mut page = boot_params { acpi_rsdp_addr: cargo.rsdp, ..Default::default() };
    match header {
        Some(header) => page.hdr = *header,
        None => page.hdr = make_header(cargo),
    }
    page.hdr.type_of_loader = LOADER_OTHER;
    (page.hdr.cmd_line_ptr, page.ext_cmd_line_ptr) = split(layout::CMDLINE);
    if let Some((base, len)) = initrd {
        (page.hdr.ramdisk_image, page.ext_ramdisk_image) = split(base);
        (page.hdr.ramdisk_size, page.ext_ramdisk_size) = split(len);
    }
    let in_page = cargo.e820.len().min(layout::E820_ZERO_PAGE_ENTRIES);
    let (first, rest) = cargo.e820.split_at(in_page);
    // At most 128, the assertion on the layout says.
    page.e820_entries = u8::try_from(first.len()).unwrap_or(u8::MAX);
    let entry = |fact: &memvisor_inspect::FactE820| boot_e820_entry {
        addr: fact.addr,
        size: fact.size,
        r#type: fact.kind,
    };
    let mut table = page.e820_table;
    for (slot, fact) in table.iter_mut().zip(first) {
        *slot = entry(fact);
    }
    page.e820_table = table;
    if !rest.is_empty() {
        page.hdr.setup_data = layout::SETUP_DATA;
        let payload: Vec<u8> = rest
            .iter()
            .flat_map(|fact| {
                let mut bytes = [0; ENTRY_BYTES];
                bytes[..8].copy_from_slice(&fact.addr.to_le_bytes());
                bytes[8..16].copy_from_slice(&fact.size.to_le_bytes());
                bytes[16..].copy_from_slice(&fact.kind.to_le_bytes());
                bytes
            })
            .collect();
        write_setup_data(memory, cargo.e820.len(), &payload)?;
    }
    memory.write(layout::ZERO_PAGE, page.as_slice())?;
    Ok(())
}

/// The header of a kernel that has none.
fn make_header(cargo: &Cargo<'_>) -> setup_header {
    let mut header = setup_header {
        boot_flag: 0xaa55,
        header: HDRS,
        version: VERSION,
        loadflags: LOADED_HIGH,
        kernel_alignment: 1 << 21,
        relocatable_kernel: 1,
        xloadflags: XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G,
        cmdline_size: u32::try_from(cargo.cmdline.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    if cargo.levels == 5 {
        header.xloadflags |= XLF_5LEVEL | XLF_5LEVEL_ENABLED;
    }
    header
}

fn write_setup_data(memory: &Memory, count: usize, payload: &[u8]) -> Result<(), LoadError> {
    let room = layout::SETUP_DATA_END - layout::SETUP_DATA - SETUP_DATA_HEADER;
    let len = u32::try_from(payload.len()).ok().filter(|len| u64::from(*len) <= room).ok_or(
        LoadError::TooManyE820 {
            count,
            room,
            max: room / ENTRY_BYTES as u64 + layout::E820_ZERO_PAGE_ENTRIES as u64,
        },
    )?;
    let mut block = Vec::new();
    block.extend(0u64.to_le_bytes());
    block.extend(SETUP_E820_EXT.to_le_bytes());
    block.extend(len.to_le_bytes());
    block.extend(payload);
    memory.write(layout::SETUP_DATA, &block)?;
    Ok(())
}

/// Low and high 32 bits.
fn split(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}
