use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{XEN_HVM_START_MAGIC_VALUE, hvm_start_info};
use memvisor_inspect::{MemorySource, RamRegion};
use vm_memory::ByteValued;

use super::{
    testing::{BzImageBuilder, ElfBuilder},
    *,
};

const MIB: u64 = 1 << 20;

fn memory(ranges: &[(u64, u64)]) -> Memory {
    let regions: Vec<RamRegion> = ranges.iter().map(|&(gpa, len)| RamRegion { gpa, len }).collect();
    Memory::new(&regions).expect("small memfds")
}

const LOW: (u64, u64) = (0, 0x9_f000);

fn cargo<'a>(kernel: &'a [u8], ram: &'a [(u64, u64)], e820: &'a [FactE820]) -> Cargo<'a> {
    Cargo {
        kernel_name: "test.elf",
        kernel,
        initrd: None,
        cmdline: "console=ttyS0",
        boot: Boot::Linux,
        e820,
        ram,
        rsdp: 0xf_0000,
        levels: 4,
    }
}

fn read<const N: usize>(memory: &Memory, gpa: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read(gpa, &mut bytes).expect("RAM");
    bytes
}

#[test]
fn an_image_goes_where_it_asks_to_be() {
    let ram = [LOW, (MIB, 8 * MIB)];
    let memory = memory(&ram);
    let kernel = ElfBuilder::new(2 * MIB, b"kernel").build();
    let entry = load(&memory, &cargo(&kernel, &ram, &[])).expect("fits");
    assert_eq!((entry.rip, entry.image), (2 * MIB, (2 * MIB, 6)));
    assert_eq!(&read::<6>(&memory, 2 * MIB), b"kernel");
    assert_eq!(&read::<14>(&memory, layout::CMDLINE), b"console=ttyS0\0");
}

#[test]
fn a_movable_image_goes_to_the_lowest_ram_that_fits_in_steps_of_2_mib() {
    // The first range is too short, the second starts between two steps.
    let ram = [LOW, (MIB, MIB), (5 * MIB, 8 * MIB)];
    let memory = memory(&ram);
    let kernel = ElfBuilder::new(64 * MIB + 0x1000, b"kernel").mem_len(2 * MIB).dynamic().build();
    let entry = load(&memory, &cargo(&kernel, &ram, &[])).expect("fits");
    assert_eq!(entry.image, (6 * MIB + 0x1000, 2 * MIB));
    assert_eq!(&read::<6>(&memory, entry.rip), b"kernel");
}

#[test]
fn an_image_that_cannot_move_or_does_not_fit_is_refused() {
    let ram = [LOW, (MIB, 2 * MIB)];
    let memory = memory(&ram);
    let fixed = ElfBuilder::new(64 * MIB, b"k").build();
    let error = load(&memory, &cargo(&fixed, &ram, &[])).expect_err("not RAM");
    assert!(matches!(error, LoadError::Fixed { start: 0x400_0000, .. }), "{error}");
    let big = ElfBuilder::new(64 * MIB, b"k").mem_len(32 * MIB).dynamic().build();
    let error = load(&memory, &cargo(&big, &ram, &[])).expect_err("no room");
    assert!(matches!(error, LoadError::NoRoom { largest: 0x20_0000, .. }), "{error}");
    // Over the boot data.
    let low = ElfBuilder::new(layout::ZERO_PAGE, b"k").build();
    assert!(load(&memory, &cargo(&low, &ram, &[])).is_err());
}

fn hostile_map(count: u32) -> Vec<FactE820> {
    (0..count)
        .map(|number| FactE820 {
            addr: u64::from(number) << 12,
            size: u64::from(number),
            kind: 1 + number % 9,
        })
        .collect()
}

#[test]
fn the_zero_page_holds_128_entries_and_setup_data_the_rest() {
    let ram = [LOW, (MIB, 4 * MIB)];
    let memory = memory(&ram);
    let kernel = ElfBuilder::new(2 * MIB, b"k").build();
    let map = hostile_map(300);
    let entry = load(&memory, &cargo(&kernel, &ram, &map)).expect("fits");
    assert_eq!(entry.argument, layout::ZERO_PAGE);
    let mut page = boot_params::default();
    memory.read(layout::ZERO_PAGE, page.as_mut_slice()).expect("RAM");
    let (header, setup_data, rsdp) = (page.hdr.header, page.hdr.setup_data, page.acpi_rsdp_addr);
    assert_eq!((header, page.e820_entries, rsdp), (HDRS_TEXT, 128, 0xf_0000));
    let raw: [u8; 4096] = read(&memory, layout::ZERO_PAGE);
    let mut found: Vec<u8> = raw[0x2d0..0x2d0 + 128 * 20].to_vec();
    let head: [u8; 16] = read(&memory, setup_data);
    assert_eq!(head[..8], [0; 8], "no further setup_data");
    assert_eq!(head[8..12], 1u32.to_le_bytes());
    assert_eq!(head[12..], (172u32 * 20).to_le_bytes());
    found.extend(read::<{ 172 * 20 }>(&memory, setup_data + 16));
    let want: Vec<u8> = map
        .iter()
        .flat_map(|e| [&e.addr.to_le_bytes()[..], &e.size.to_le_bytes(), &e.kind.to_le_bytes()].concat())
        .collect();
    assert_eq!(found, want);
}

const HDRS_TEXT: u32 = u32::from_le_bytes(*b"HdrS");

#[test]
fn too_many_entries_are_refused_with_the_limit() {
    let ram = [LOW, (MIB, 4 * MIB)];
    let memory = memory(&ram);
    let kernel = ElfBuilder::new(2 * MIB, b"k").pvh(2 * MIB).build();
    let map = hostile_map(40_000);
    for boot in [Boot::Linux, Boot::Pvh] {
        let error = load(&memory, &Cargo { boot, ..cargo(&kernel, &ram, &map) }).expect_err("too many");
        assert!(matches!(error, LoadError::TooManyE820 { count: 40_000, .. }), "{error}");
    }
}

#[test]
fn start_info_has_the_whole_map_and_the_module() {
    let ram = [LOW, (MIB, 4 * MIB)];
    let memory = memory(&ram);
    let kernel = ElfBuilder::new(2 * MIB, b"k").pvh(2 * MIB).build();
    let map = hostile_map(200);
    let initrd = vec![7; 5000];
    let cargo = Cargo { boot: Boot::Pvh, initrd: Some(&initrd), ..cargo(&kernel, &ram, &map) };
    let entry = load(&memory, &cargo).expect("fits");
    let (base, len) = entry.initrd.expect("placed");
    assert_eq!((base, len), (5 * MIB - 8192, 5000));
    assert_eq!(read::<1>(&memory, base + len - 1), [7]);

    let info: [u8; 56] = read(&memory, entry.argument);
    let u32_at = |at: usize| u32::from_le_bytes(info[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(info[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(u32_at(std::mem::offset_of!(hvm_start_info, magic)), XEN_HVM_START_MAGIC_VALUE);
    assert_eq!(u32_at(std::mem::offset_of!(hvm_start_info, nr_modules)), 1);
    assert_eq!(u32_at(std::mem::offset_of!(hvm_start_info, memmap_entries)), 200);
    assert_eq!(u64_at(std::mem::offset_of!(hvm_start_info, cmdline_paddr)), layout::CMDLINE);
    assert_eq!(u64_at(std::mem::offset_of!(hvm_start_info, rsdp_paddr)), 0xf_0000);
    let modules = u64_at(std::mem::offset_of!(hvm_start_info, modlist_paddr));
    assert_eq!(memory.read_u64(modules).expect("RAM"), base);
    let last = u64_at(std::mem::offset_of!(hvm_start_info, memmap_paddr)) + 199 * 24;
    assert_eq!(memory.read_u64(last).expect("RAM"), 199 << 12);
}

/// Follows the boot tables.
fn translate(memory: &Memory, cr3: u64, levels: u32, va: u64) -> Option<u64> {
    let mut table = cr3;
    for level in (2..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = memory.read_u64(table + ((va >> shift) & 511) * 8).expect("RAM");
        if entry & 1 == 0 {
            return None;
        }
        if entry & 0x80 != 0 {
            let offset = va & ((1 << shift) - 1);
            return Some((entry & (0x000f_ffff_ffff_f000 & !((1 << shift) - 1))) + offset);
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    None
}

#[test]
fn the_identity_map_covers_4_gib_and_the_image_at_both_depths() {
    let high = 0x100_0000_0000;
    let ram = [LOW, (high, 4 * MIB)];
    let memory = memory(&ram);
    let kernel = ElfBuilder::new(16 * MIB, b"k").dynamic().build();
    for levels in [4, 5] {
        let entry = load(&memory, &Cargo { levels, ..cargo(&kernel, &ram, &[]) }).expect("fits");
        assert_eq!(entry.rip, high);
        for va in [0, 0x1234_5678, 0xffff_ffff, high, high + 3 * MIB] {
            assert_eq!(translate(&memory, entry.cr3, levels, va), Some(va), "{va:#x} at {levels} levels");
        }
        assert_eq!(translate(&memory, entry.cr3, levels, 1 << 32), None);
    }
}

#[test]
fn pvh_cannot_enter_above_4_gib() {
    let ram = [LOW, (0x1_0000_0000, 4 * MIB)];
    let memory = memory(&ram);
    let kernel = ElfBuilder::new(16 * MIB, b"k").pvh(16 * MIB).dynamic().build();
    let error = load(&memory, &Cargo { boot: Boot::Pvh, ..cargo(&kernel, &ram, &[]) }).expect_err("too high");
    assert!(matches!(error, LoadError::EntryTooHigh { .. }), "{error}");
}

#[test]
fn the_command_line_has_a_limit() {
    let ram = [LOW, (MIB, 4 * MIB)];
    let memory = memory(&ram);
    let kernel = ElfBuilder::new(2 * MIB, b"k").build();
    let long = "x".repeat(0x1_0000);
    let error = load(&memory, &Cargo { cmdline: &long, ..cargo(&kernel, &ram, &[]) }).expect_err("too long");
    assert!(matches!(error, LoadError::CmdlineTooLong { .. }), "{error}");
    assert!(load(&memory, &Cargo { cmdline: "a\0b", ..cargo(&kernel, &ram, &[]) }).is_err());
}

#[test]
fn kernel_files_are_named_in_errors() {
    let error = read_kernel(Some(Path::new("/nonexistent/kernel"))).expect_err("missing");
    assert!(error.to_string().contains("/nonexistent/kernel"), "{error}");
}

fn zero_page(memory: &Memory) -> boot_params {
    let mut page = boot_params::default();
    memory.read(layout::ZERO_PAGE, page.as_mut_slice()).expect("RAM");
    page
}

#[test]
fn a_bzimage_goes_where_it_prefers_and_its_header_into_the_zero_page() {
    let ram = [LOW, (MIB, 31 * MIB)];
    let memory = memory(&ram);
    let kernel = BzImageBuilder::new(b"entry").build();
    let initrd = vec![7; 5000];
    let cargo = Cargo { initrd: Some(&initrd), ..cargo(&kernel, &ram, &[]) };
    let entry = load(&memory, &cargo).expect("fits");
    assert_eq!((entry.rip, entry.image, entry.foreign), (16 * MIB + 0x200, (16 * MIB, MIB), true));
    assert_eq!(&read::<5>(&memory, entry.rip), b"entry");
    let page = zero_page(&memory);
    let (magic, init_size, loader, xloadflags) =
        (page.hdr.header, page.hdr.init_size, page.hdr.type_of_loader, page.hdr.xloadflags);
    assert_eq!((magic, init_size, loader, xloadflags), (HDRS_TEXT, 0x10_0000, 0xff, 0x7f));
    let (cmdline, image, size) = (page.hdr.cmd_line_ptr, page.hdr.ramdisk_image, page.hdr.ramdisk_size);
    assert_eq!((u64::from(cmdline), size), (layout::CMDLINE, 5000));
    assert_eq!(u64::from(image), 32 * MIB - 8192);
    assert_eq!(read::<1>(&memory, u64::from(image)), [7]);
}

#[test]
fn a_bzimage_moves_up_to_aligned_ram_and_never_down() {
    // 16 MiB is in a hole; the next RAM is not aligned.
    let ram = [LOW, (MIB, 8 * MIB), (33 * MIB, 8 * MIB)];
    let memory = memory(&ram);
    let kernel = BzImageBuilder::new(b"e").build();
    let entry = load(&memory, &cargo(&kernel, &ram, &[])).expect("fits");
    assert_eq!(entry.image, (34 * MIB, MIB));
    let fixed = BzImageBuilder::new(b"e").set(0x234, &[0]).build();
    let error = load(&memory, &cargo(&fixed, &ram, &[])).expect_err("cannot move");
    assert!(matches!(error, LoadError::Fixed { start: 0x100_0000, .. }), "{error}");
}

#[test]
fn a_bzimage_needs_its_init_size_of_ram_and_not_only_its_file() {
    let ram = [LOW, (MIB, 31 * MIB)];
    let memory = memory(&ram);
    let big = BzImageBuilder::new(b"e").set(0x260, &0x200_0000u32.to_le_bytes()).build();
    let error = load(&memory, &cargo(&big, &ram, &[])).expect_err("too big");
    assert!(matches!(error, LoadError::NoRoom { len: 0x200_0000, largest: 0x100_0000, .. }), "{error}");
}

#[test]
fn limits_of_the_setup_header_hold_for_initrd_and_command_line() {
    let ram = [LOW, (MIB, 63 * MIB)];
    let memory = memory(&ram);
    let low = BzImageBuilder::new(b"e").set(0x22c, &0x1ff_ffffu32.to_le_bytes()).build();
    let initrd = vec![7; 5000];
    let with_initrd = Cargo { initrd: Some(&initrd), ..cargo(&low, &ram, &[]) };
    let entry = load(&memory, &with_initrd).expect("fits");
    assert_eq!(entry.initrd, Some((32 * MIB - 8192, 5000)));
    let big = vec![0; 17 << 20];
    let error = load(&memory, &Cargo { initrd: Some(&big), ..with_initrd }).expect_err("too big");
    assert!(error.to_string().contains("initrd_addr_max"), "{error}");
    let long = "x".repeat(2048);
    let error = load(&memory, &Cargo { cmdline: &long, ..cargo(&low, &ram, &[]) }).expect_err("too long");
    assert!(matches!(error, LoadError::CmdlineTooLong { max: 2047, .. }), "{error}");
}

#[test]
fn a_bzimage_is_entered_with_the_levels_that_it_knows_and_not_by_pvh() {
    let ram = [LOW, (MIB, 31 * MIB)];
    let memory = memory(&ram);
    let kernel = BzImageBuilder::new(b"e").build();
    let old = BzImageBuilder::new(b"e").set(0x236, &[0x1f]).build();
    let levels =
        |kernel: &[u8]| load(&memory, &Cargo { levels: 5, ..cargo(kernel, &ram, &[]) }).expect("fits").levels;
    assert_eq!((levels(&kernel), levels(&old)), (5, 4));
    let error = load(&memory, &Cargo { boot: Boot::Pvh, ..cargo(&kernel, &ram, &[]) }).expect_err("no PVH");
    assert!(error.to_string().contains("test.elf"), "{error}");
}
