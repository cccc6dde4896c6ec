//! Structures of the file (System V ABI chapters 4 and 5; Linux: `include/uapi/linux/elf.h`,
//! `struct elf_prstatus`). All fields are little-endian, as the only host and guest are.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::CpuRegisters;

pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";
pub(super) const CLASS_64: u8 = 2;
pub(super) const DATA_LITTLE: u8 = 1;
pub(super) const ET_CORE: u16 = 4;
pub(super) const EM_X86_64: u16 = 62;
pub(super) const PT_LOAD: u32 = 1;
pub(super) const PT_NOTE: u32 = 4;
/// e_phnum is PN_XNUM from here on, and the number elsewhere; no machine needs so many.
pub(super) const PHNUM_LIMIT: usize = 0xffff;
pub(super) const NT_PRSTATUS: u32 = 1;
pub(super) const NT_MEMVISOR: u32 = 1;
pub(super) const NAME_CORE: &str = "CORE";
pub(super) const NAME_VMCOREINFO: &str = "VMCOREINFO";
pub(super) const NAME_MEMVISOR: &str = "MEMVISOR";

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 4],
    pub class: u8,
    pub data: u8,
    pub ident_version: u8,
    pub os_abi: u8,
    pub ident_rest: [u8; 8],
    pub kind: u16,
    pub machine: u16,
    pub version: u32,
    pub entry: u64,
    pub phoff: u64,
    pub shoff: u64,
    pub flags: u32,
    pub ehsize: u16,
    pub phentsize: u16,
    pub phnum: u16,
    pub shentsize: u16,
    pub shnum: u16,
    pub shstrndx: u16,
}
const _: () = assert!(size_of::<Header>() == 64);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Segment {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub vaddr: u64,
    pub paddr: u64,
    pub filesz: u64,
    pub memsz: u64,
    pub align: u64,
}
const _: () = assert!(size_of::<Segment>() == 56);

/// Linux's `struct elf_prstatus` on x86-64; `regs` is `struct user_regs_struct`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Prstatus {
    pub signal: [u32; 3],
    pub current_signal: u32,
    pub pending: [u64; 2],
    pub pid: u32,
    pub ppid: u32,
    pub pgrp: u32,
    pub sid: u32,
    pub times: [u64; 8],
    pub regs: [u64; 27],
    pub fp_valid: u64,
}
const _: () = assert!(size_of::<Prstatus>() == 336);

impl Prstatus {
    pub(super) fn of(cpu: &CpuRegisters) -> Prstatus {
        let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15] = cpu.gpr;
        let [cs, ds, es, fs, gs, ss] = cpu.selectors.map(u64::from);
        Prstatus {
            // Thread ids start at 1: gdb takes 0 for "no thread".
            pid: cpu.index.saturating_add(1),
            regs: [
                r15,
                r14,
                r13,
                r12,
                rbp,
                rbx,
                r11,
                r10,
                r9,
                r8,
                rax,
                rcx,
                rdx,
                rsi,
                rdi,
                u64::MAX, // orig_rax: in no system call
                cpu.rip,
                cs,
                cpu.rflags,
                rsp,
                ss,
                cpu.fs_base,
                cpu.gs_base,
                ds,
                es,
                fs,
                gs,
            ],
            ..Prstatus::default()
        }
    }
}

/// Appends a note to notes that end at a multiple of four bytes, to which both its parts are padded.
/// `None` if a length does not fit.
pub(super) fn push_note(out: &mut Vec<u8>, name: &str, kind: u32, contents: &[u8]) -> Option<()> {
    let name_len = u32::try_from(name.len() + 1).ok()?;
    out.extend_from_slice(&name_len.to_le_bytes());
    out.extend_from_slice(&u32::try_from(contents.len()).ok()?.to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(contents);
    out.resize(out.len().next_multiple_of(4), 0);
    Some(())
}

/// A note in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note<'a> {
    pub name: &'a [u8],
    pub kind: u32,
    pub contents: &'a [u8],
}

/// The next note of `bytes`, which is advanced; `None` at the end or at a note that does not fit.
pub(super) fn next_note<'a>(bytes: &mut &'a [u8]) -> Option<Note<'a>> {
    let (name_len, rest) = take_u32(bytes)?;
    let (len, rest) = take_u32(rest)?;
    let (kind, rest) = take_u32(rest)?;
    let (name, rest) = take_padded(rest, name_len)?;
    let (contents, rest) = take_padded(rest, len)?;
    *bytes = rest;
    Some(Note { name: name.strip_suffix(b"\0").unwrap_or(name), kind, contents })
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*word), rest))
}

fn take_padded(bytes: &[u8], len: u32) -> Option<(&[u8], &[u8])> {
    let len = usize::try_from(len).ok()?;
    let (part, _) = bytes.split_at_checked(len)?;
    // The last note's padding may be missing.
    Some((part, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}
