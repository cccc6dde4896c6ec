//! The guest of the start-up benchmark: the least that prints a byte and ends, the same file for every VMM.
//!
//! An ELF64 file with one loadable segment and a PVH note. It is entered in 32-bit mode with flat
//! segments and paging off, and uses no memory but its own code.

/// First byte that the guest prints: one that no VMM prints itself.
pub const FIRST_BYTE: u8 = 0xfe;

/// Where the segment goes.
const LOAD: u32 = 0x10_0000;
/// Offset of the segment in the file.
const SEGMENT_AT: usize = 0x1000;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
const HEADER_BYTES: u16 = 64;
const SEGMENT_HEADER_BYTES: u16 = 56;

/// Prints [`FIRST_BYTE`] and a newline, and ends: by QEMU's isa-debug-exit (at 0xf4, also what the
/// bare program takes), else by ACPI power-off (PM1a control of memvisor at 0x604), else it halts.
const CODE: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, FIRST_BYTE, // mov al, FIRST_BYTE
    0xee,       // out dx, al
    0xb0, b'\n', // mov al, '\n'
    0xee,  // out dx, al
    0x66, 0xba, 0xf4, 0x00, // mov dx, 0xf4
    0x30, 0xc0, // xor al, al
    0xee, // out dx, al
    0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34, // mov ax, 5 << 10 | 1 << 13
    0x66, 0xef, // out dx, ax
    0xfa, // cli
    0xf4, // hlt
    0xeb, 0xfd, // jmp to hlt
];

/// The file.
pub fn elf() -> Vec<u8> {
    let note_at = usize::from(HEADER_BYTES) + 2 * usize::from(SEGMENT_HEADER_BYTES);
    let mut note = Vec::new();
    for word in [4, 8, NOTE_PHYS32_ENTRY] {
        note.extend(u32::to_le_bytes(word));
    }
    note.extend(b"Xen\0");
    note.extend(u64::from(LOAD).to_le_bytes());

    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    file.resize(16, 0);
    file.extend(2u16.to_le_bytes()); // ET_EXEC
    file.extend(62u16.to_le_bytes()); // EM_X86_64
    file.extend(1u32.to_le_bytes());
    for word in [u64::from(LOAD), u64::from(HEADER_BYTES), 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [HEADER_BYTES, SEGMENT_HEADER_BYTES, 2, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    segment(&mut file, 1, 5, SEGMENT_AT, u64::from(LOAD), CODE.len(), 0x1000);
    segment(&mut file, 4, 4, note_at, 0, note.len(), 4);
    file.extend(note);
    file.resize(SEGMENT_AT, 0);
    file.extend(CODE);
    file
}

fn segment(file: &mut Vec<u8>, kind: u32, flags: u32, offset: usize, address: u64, len: usize, align: u64) {
    file.extend(kind.to_le_bytes());
    file.extend(flags.to_le_bytes());
    for word in [offset as u64, address, address, len as u64, len as u64, align] {
        file.extend(word.to_le_bytes());
    }
}
