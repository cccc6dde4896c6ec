//! The text of the VMCOREINFO note (Linux: Documentation/admin-guide/kdump/vmcoreinfo.rst).

use std::fmt;
use std::str::FromStr;

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
                _ => (),
            }
        }
        Ok(info)
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
