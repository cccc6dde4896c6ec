//! The text of the VMCOREINFO note (Linux: Documentation/admin-guide/kdump/vmcoreinfo.rst).

use std::fmt;
use std::str::FromStr;

use crate::MemorySource;

/// What we say in a VMCOREINFO note. Readers ignore lines they do not know, and so do we.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmcoreinfo {
    /// `OSRELEASE`: release of the guest kernel.
    pub os_release: String,
    /// `NUMBER(memvisor_root)`: guest-physical address of the root descriptor.
    pub root_gpa: Option<u64>,
    /// `NUMBER(pgtable_l5_enabled)`.
    pub five_levels: bool,
    /// `NUMBER(phys_base)`: physical minus linked address of the kernel image, less Linux's
    /// `__START_KERNEL_map`.
    pub phys_base: i64,
    /// `KERNELOFFSET`: distance by which the kernel was moved from its link address.
    pub kernel_offset: u64,
    /// `SYMBOL(_stext)`: virtual address of Linux's image. Read, never written.
    pub stext: Option<u64>,
}

impl fmt::Display for Vmcoreinfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "OSRELEASE={}", self.os_release)?;
        writeln!(f, "PAGESIZE={}", memvisor_abi::PAGE_SIZE)?;
        if let Some(gpa) = self.root_gpa {
            writeln!(f, "NUMBER(memvisor_root)={gpa}")?;
        }
        writeln!(f, "NUMBER(pgtable_l5_enabled)={}", u32::from(self.five_levels))?;
        writeln!(f, "NUMBER(phys_base)={}", self.phys_base)?;
        writeln!(f, "KERNELOFFSET={:x}", self.kernel_offset)
    }
}

impl FromStr for Vmcoreinfo {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Vmcoreinfo, Self::Err> {
        let mut info = Vmcoreinfo::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "OSRELEASE" => value.clone_into(&mut info.os_release),
                "NUMBER(memvisor_root)" => info.root_gpa = parse_number(value),
                "NUMBER(pgtable_l5_enabled)" => info.five_levels = value.trim() == "1",
                "NUMBER(phys_base)" => info.phys_base = value.trim().parse().unwrap_or_default(),
                "KERNELOFFSET" => {
                    info.kernel_offset = u64::from_str_radix(value.trim(), 16).unwrap_or_default();
                }
                "SYMBOL(_stext)" => info.stext = u64::from_str_radix(value.trim(), 16).ok(),
                _ => (),
            }
        }
        Ok(info)
    }
}

/// The text that a Linux guest keeps for its own dumps: a page that begins with `OSRELEASE=` (Linux:
/// kernel/crash_core.c, `crash_save_vmcoreinfo_init`). With it, readers such as crash and drgn find the
/// kernel wherever it was loaded.
pub fn find_linux<S: MemorySource + ?Sized>(source: &S) -> Option<String> {
    const START: &[u8] = b"OSRELEASE=";
    const NEEDED: &str = "\nPAGESIZE=4096\n";
    const PAGE: usize = 4096;
    /// Pages looked at before asking again where data is.
    const BATCH: u32 = 64;
    let mut at = source.next_data(0)?;
    loop {
        let mut gpa = at.checked_next_multiple_of(PAGE as u64)?;
        for _ in 0..BATCH {
            let mut page = [0; PAGE];
            if source.read(gpa, &mut page[..START.len()]).is_ok()
                && page.starts_with(START)
                && source.read(gpa, &mut page).is_ok()
            {
                let text = page.split(|byte| *byte == 0).next().unwrap_or(&[]);
                let text = std::str::from_utf8(text).ok().filter(|text| text.contains(NEEDED));
                if let Some(text) = text {
                    return Some(text.to_owned());
                }
            }
            gpa = gpa.checked_add(PAGE as u64)?;
        }
        at = source.next_data(gpa)?;
    }
}

/// Linux writes NUMBER() in decimal; others write hexadecimal with a prefix.
fn parse_number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RamRegion, SparseMemory};

    #[test]
    fn linux_text_is_found_at_a_page_and_damaged_text_is_not() {
        let mut memory = SparseMemory::new(&[RamRegion { gpa: 0x10_0000, len: 0x10_0000 }]).unwrap();
        assert_eq!(find_linux(&memory), None);
        let text = "OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff82a19a60\n";
        memory.write(0x12_3010, text.as_bytes()).unwrap();
        memory.write(0x12_5000, b"OSRELEASE=none").unwrap();
        assert_eq!(find_linux(&memory), None, "not at a page, or without what every kernel says");
        memory.write(0x15_5000, text.as_bytes()).unwrap();
        assert_eq!(find_linux(&memory).as_deref(), Some(text));
    }
}
