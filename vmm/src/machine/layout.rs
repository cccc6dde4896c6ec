//! Everything at a fixed guest-physical place or I/O port, in address order.
//!
//! L1  below [`BOOT_DATA_END`] every byte is RAM on every machine ([`super::resolve`] refuses others),
//!     and the ranges here do not overlap;
//! L2  boot data is dead once the guest has read it: the guest may reuse all of it;
//! L3  [`FIRMWARE_START`]..[`FIRMWARE_END`] is backed by memory but is not E820 RAM.

/// Bytes of a page frame; all of guest memory is given out in frames.
pub const PAGE_SIZE: u64 = 4096;

/// GDT for the entry into the kernel (Linux boot protocol: flat code and data, `__BOOT_CS` 0x10).
pub const BOOT_GDT: u64 = 0x500;
/// IDT for the entry into the kernel: empty.
pub const BOOT_IDT: u64 = 0x520;
/// `struct hvm_start_info` of PVH.
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux's zero page, `struct boot_params`: one frame.
pub const ZERO_PAGE: u64 = 0x7000;
/// First stack pointer, growing down from here.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// First of the boot page tables: an identity map of the first 4 GiB at 4 or 5 levels.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// End of the room for boot page tables.
pub const BOOT_PAGE_TABLES_END: u64 = CMDLINE;
/// The NUL-terminated command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes of room for the command line, terminator included.
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// Longest command line, terminator not included: Linux and our guest cut longer ones, and lose what
/// memvisor appends (Linux: `COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: u64 = 2047;
/// Linux: `setup_data` with the E820 entries past the zero page's 128. PVH: memory map, then modules.
pub const SETUP_DATA: u64 = CMDLINE + CMDLINE_SIZE;
/// End of the room for `setup_data`.
pub const SETUP_DATA_END: u64 = BOOT_DATA_END;
/// Everything below must be RAM: the VMM puts boot data there, and the guest the page in which
/// application processors start.
pub const BOOT_DATA_END: u64 = 0x9_0000;

/// End of conventional memory: the extended BIOS data area begins.
pub const EBDA_START: u64 = 0x9_fc00;
/// Video memory and option ROMs of a PC begin: a hole.
pub const LEGACY_HOLE_START: u64 = 0xa_0000;
/// First byte of the memory with firmware tables: here the ACPI tables that an OS may reclaim.
pub const FIRMWARE_START: u64 = 0xe_0000;
/// End of the room for ACPI tables; what follows stays reserved for ever.
pub const ACPI_TABLES_END: u64 = 0xf_0000;
/// The RSDP, inside the area that an OS scans for it (ACPI 6.5 section 5.2.5.1).
pub const RSDP: u64 = 0xf_0000;
/// The FACS: an OS writes to it, so it is not in reclaimable memory. 64-byte aligned.
pub const FACS: u64 = 0xf_0040;
/// End of the memory with firmware tables.
pub const FIRMWARE_END: u64 = HIGH_RAM_START;
/// RAM above the legacy hole begins.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Where a relocatable kernel is put if its header does not say (Linux: `CONFIG_PHYSICAL_START`).
pub const KERNEL_LOAD: u64 = 0x100_0000;

/// The hole for memory-mapped devices below 4 GiB begins.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// The window of the PCI bus, where its functions have their BARs. There is a bus only if there are disks or DMA engines.
pub const PCI_WINDOW: u64 = MMIO_HOLE_START;
/// End of the window of the PCI bus.
pub const PCI_WINDOW_END: u64 = IOAPIC;
/// BAR 0 of the first disk; those of the others follow.
pub const DISK_BARS: u32 = 0xc000_0000;
/// BAR 0 of the first DMA engine; those of the others follow.
pub const DMA_BARS: u32 = 0xc010_0000;
/// Most DMA engines.
pub const MAX_DMA_ENGINES: usize = 4;
/// Most disks: /dev/vda to /dev/vdz.
pub const MAX_DISKS: usize = 26;
/// The I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Bytes of the I/O APIC's window.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// The local APIC.
pub const LAPIC: u64 = 0xfee0_0000;
/// Bytes of the local APIC's window.
pub const LAPIC_SIZE: u64 = 0x1000;
/// Three frames that KVM wants for itself on Intel (KVM_SET_TSS_ADDR), and one for its identity map before them.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// See [`KVM_IDENTITY_MAP`].
pub const KVM_TSS: u64 = 0xfffb_d000;
/// The hole for memory-mapped devices ends.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;

/// Physical address bits of RAM under 4-level paging (Linux: `MAX_PHYSMEM_BITS`).
pub const PHYS_BITS_4_LEVEL: u32 = 46;
/// Physical address bits of RAM under 5-level paging.
pub const PHYS_BITS_5_LEVEL: u32 = 52;

/// Most E820 entries that the zero page holds (Linux: `E820_MAX_ENTRIES_ZEROPAGE`).
pub const E820_ZERO_PAGE_ENTRIES: usize = 128;
/// Most E820 entries of a machine: a PVH memory map, 24 bytes an entry, leaves the last frame of
/// [`SETUP_DATA`] to the module list.
pub const E820_MAX_ENTRIES: usize = 16_213;
/// Most CPUs of a machine.
pub const MAX_CPUS: u32 = 1024;
/// Most nodes of a machine: what the guest handles.
pub const MAX_NODES: usize = memvisor_abi::MAX_NUMNODES;

/// CONFIG_ADDRESS and CONFIG_DATA of the PCI bus.
pub const PCI_CONFIG: u16 = 0xcf8;
/// Ports of the PCI bus.
pub const PCI_CONFIG_LEN: u16 = 8;
/// i8042 data port.
pub const I8042_DATA: u16 = 0x60;
/// i8042 command port, also the ACPI reset register.
pub const I8042_COMMAND: u16 = 0x64;
/// Written to [`I8042_COMMAND`], resets the machine.
pub const RESET_VALUE: u8 = 0xfe;
/// Index port of the CMOS clock; its data port follows.
pub const CMOS_INDEX: u16 = 0x70;
/// First port of the 16550 serial port.
pub const COM1: u16 = 0x3f8;
/// Ports of the 16550.
pub const COM1_LEN: u16 = 8;
/// Interrupt of the 16550.
pub const COM1_IRQ: u32 = 4;
/// PM1a status (2 bytes), then PM1a enable (2 bytes).
pub const PM1A_EVT: u16 = 0x600;
/// Bytes of the PM1a event block.
pub const PM1A_EVT_LEN: u8 = 4;
/// PM1a control. Reads have SCI_EN (bit 0) set: there is no other mode than ACPI mode.
pub const PM1A_CNT: u16 = 0x604;
/// Bytes of the PM1a control block.
pub const PM1A_CNT_LEN: u8 = 2;
/// SLP_TYP (bits 10..13 of PM1a control) of power-off, as `\_S5` says.
pub const S5_SLP_TYP: u8 = 5;
/// SLP_EN: written to PM1a control together with SLP_TYP.
pub const PM1_SLP_EN: u16 = 1 << 13;
/// System control interrupt.
pub const SCI_IRQ: u16 = 9;

const _: () = {
    assert!(
        BOOT_IDT < PVH_START_INFO && PVH_START_INFO < ZERO_PAGE && ZERO_PAGE + PAGE_SIZE < BOOT_STACK_TOP
    );
    assert!(BOOT_STACK_TOP < BOOT_PAGE_TABLES && BOOT_PAGE_TABLES_END - BOOT_PAGE_TABLES >= 7 * PAGE_SIZE);
    assert!(SETUP_DATA < SETUP_DATA_END && BOOT_DATA_END < EBDA_START && EBDA_START < LEGACY_HOLE_START);
    assert!(E820_MAX_ENTRIES as u64 * 24 <= SETUP_DATA_END - SETUP_DATA - PAGE_SIZE);
    assert!(RSDP.is_multiple_of(16) && FACS.is_multiple_of(64) && FACS + 64 < FIRMWARE_END);
    assert!(ACPI_TABLES_END <= RSDP && RSDP + 36 <= FACS);
};
