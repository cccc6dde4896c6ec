//! The host side of a running guest's memory, as far as the host lets this process look.
//!
//! Frames come from /proc/PID/pagemap (numbers need CAP_SYS_ADMIN), page sizes from /proc/kpageflags
//! (root) or the mapping's line in /proc/PID/smaps. What cannot be known is said, with the reason.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use memvisor_inspect::{Stage2, Stage2Info, Stage2Pages};

use crate::{control::api::VmInfo, memory::SlotInfo, vcpu::second_stage_levels};

const HOST_PAGE: u64 = 4096;
/// `PM_PRESENT`, `PM_SWAP` and the frame number (Linux: Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FRAME: u64 = (1 << 55) - 1;
/// `KPF_HUGE`, `KPF_THP`.
const KPF_HUGE: u64 = 1 << 17;
const KPF_THP: u64 = 1 << 22;

/// A running guest's second stage.
#[derive(Debug)]
pub(crate) struct LiveStage2 {
    slots: Vec<SlotInfo>,
    pagemap: io::Result<File>,
    kpageflags: Option<File>,
    smaps: Vec<(u64, u64, u64)>,
    levels: u32,
    pages: Option<Stage2Pages>,
}

impl LiveStage2 {
    /// Of the guest that says `info` about itself.
    pub(crate) fn new(info: &VmInfo) -> LiveStage2 {
        let count = |name: &str| info.stats.kvm.get(name).copied();
        let pages = || {
            Some(Stage2Pages {
                pages_4k: count("pages_4k")?,
                pages_2m: count("pages_2m")?,
                pages_1g: count("pages_1g")?,
            })
        };
        LiveStage2 { pages: pages(), ..LiveStage2::of_slots(info.regions.clone(), info.pid) }
    }

    fn of_slots(mut slots: Vec<SlotInfo>, pid: u32) -> LiveStage2 {
        slots.sort_by_key(|slot| slot.gpa);
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        LiveStage2 {
            slots,
            pagemap: File::open(format!("/proc/{pid}/pagemap")),
            kpageflags: File::open("/proc/kpageflags").ok(),
            smaps: kernel_page_sizes(&smaps),
            levels: second_stage_levels(),
            pages: None,
        }
    }

    fn host_frame(&self, hva: u64) -> Result<u64, String> {
        let pagemap = self.pagemap.as_ref().map_err(|error| format!("pagemap: {error}"))?;
        let entry = read_entry(pagemap, hva / HOST_PAGE).map_err(|error| format!("pagemap: {error}"))?;
        match entry {
            entry if entry & SWAPPED != 0 => Err("the host has swapped this page out".into()),
            entry if entry & PRESENT == 0 => Err("the host has no page in the VMM's tables here".into()),
            entry if entry & FRAME == 0 => Err("frame numbers need CAP_SYS_ADMIN".into()),
            entry => Ok(entry & FRAME),
        }
    }

    fn page_size(&self, hva: u64, frame: Option<u64>) -> Option<u64> {
        let base =
            self.smaps.iter().find(|(start, end, _)| (*start..*end).contains(&hva)).map(|(_, _, size)| *size);
        if base.is_some_and(|size| size > HOST_PAGE) {
            return base;
        }
        let flags =
            frame.zip(self.kpageflags.as_ref()).and_then(|(frame, file)| read_entry(file, frame).ok())?;
        if flags & KPF_HUGE != 0 {
            return base;
        }
        Some(if flags & KPF_THP != 0 { 2 << 20 } else { HOST_PAGE })
    }
}

impl Stage2 for LiveStage2 {
    fn lookup(&self, gpa: u64) -> Option<Stage2Info> {
        let slot = self.slots.iter().find(|slot| gpa >= slot.gpa && gpa - slot.gpa < slot.len)?;
        let hva = slot.hva.checked_add(gpa - slot.gpa)?;
        let frame = self.host_frame(hva);
        let page_size = self.page_size(hva, frame.as_ref().ok().copied());
        let mut note = frame.as_ref().err().cloned().unwrap_or_default();
        if page_size.is_none() {
            if !note.is_empty() {
                note.push_str("; ");
            }
            note.push_str("page size: needs a frame number and /proc/kpageflags");
        }
        let backing = slot.backing.map(|backing| backing.to_string()).unwrap_or_default();
        let (slot, slot_gpa) = (slot.slot, slot.gpa);
        Some(Stage2Info { slot, slot_gpa, hva, host_frame: frame.ok(), page_size, backing, note })
    }

    fn pages(&self) -> Option<Stage2Pages> {
        self.pages
    }

    fn levels(&self) -> u32 {
        self.levels
    }
}

fn read_entry(file: &File, index: u64) -> io::Result<u64> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, index.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?)?;
    Ok(u64::from_ne_bytes(word))
}

/// Ranges of smaps with their `KernelPageSize` in bytes.
fn kernel_page_sizes(smaps: &str) -> Vec<(u64, u64, u64)> {
    let mut ranges = Vec::new();
    let mut open = None;
    for line in smaps.lines() {
        if let Some(size) = line.strip_prefix("KernelPageSize:") {
            let kib = size.trim().strip_suffix("kB").and_then(|size| size.trim().parse::<u64>().ok());
            if let (Some((start, end)), Some(kib)) = (open.take(), kib) {
                ranges.push((start, end, kib << 10));
            }
        } else if let Some((start, end)) = line.split(' ').next().and_then(|word| word.split_once('-')) {
            let hex = |text| u64::from_str_radix(text, 16).ok();
            open = hex(start).zip(hex(end)).or(open);
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000200000 rw-s 00000000 00:01 17 /memfd:guest-ram-0x0 (deleted)
Size:               2048 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
VmFlags: rd wr sh
7f4000000000-7f4040000000 rw-s 00000000 00:0f 18 /memfd:x (deleted)
KernelPageSize:     2048 kB
";

    #[test]
    fn page_sizes_are_read_by_mapping() {
        assert_eq!(
            kernel_page_sizes(SMAPS),
            [(0x7f00_0000_0000, 0x7f00_0020_0000, 4096), (0x7f40_0000_0000, 0x7f40_4000_0000, 2 << 20)]
        );
    }

    #[test]
    fn our_own_memory_has_slot_and_host_address_and_a_reason_for_what_is_missing() {
        let page = vec![1u8; 3 * 4096];
        let hva = (page.as_ptr().addr() as u64).next_multiple_of(4096);
        let slots = vec![SlotInfo { slot: 7, gpa: 0x10_0000, len: 4096, hva, offset: 0, backing: None }];
        let stage2 = LiveStage2::of_slots(slots, std::process::id());
        let info = stage2.lookup(0x10_0123).expect("in the slot");
        assert_eq!((info.slot, info.slot_gpa, info.hva), (7, 0x10_0000, hva + 0x123));
        assert!(info.host_frame.is_some() || !info.note.is_empty());
        assert!(info.page_size.is_some() || !info.note.is_empty());
        assert_eq!(stage2.lookup(0x10_1000), None);
    }
}
