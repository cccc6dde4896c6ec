//! The memory map of a process, as it must read in the guest (Linux: /proc/PID/maps and smaps, fs/proc/task_mmu.c).

use std::fmt;

use memvisor_abi::{PAGE_SHIFT, vm_flags};
use serde::Serialize;

use super::Smaps;
use crate::{Guest, GuestError, MapCounts, MemorySource, MmSpace, VmaAt};

/// `inspect maps PID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapsView {
    /// Process.
    pub pid: u32,
    /// VMAs, ascending.
    pub vmas: Vec<MapsRow>,
    /// What is wrong with the lists, in words.
    pub problems: Vec<String>,
}

/// A VMA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapsRow {
    /// First address.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// First address after it.
    #[serde(serialize_with = "crate::hex")]
    pub end: u64,
    /// `r`, `w`, `x` or `-` each, and `s` of shared or `p` of private.
    pub permissions: String,
    /// Byte offset in what it maps; 0 of anonymous memory.
    #[serde(serialize_with = "crate::hex")]
    pub offset: u64,
    /// Number of the file system of the file that it maps; 0 of others.
    pub dev: u64,
    /// Number of the inode; 0 of others.
    pub ino: u64,
    /// The file's path, `[heap]`, `[stack]`, or the address of its mapping; empty for other anonymous memory.
    pub name: String,
    /// Memory policy, as numa_maps has it.
    pub policy: String,
    /// What is resident, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smaps: Option<Smaps>,
}

impl MapsView {
    /// Reads the VMAs of the process with this number; `None` if it has no published address space. `smaps` also counts what
    /// is resident, by a walk of all processes' page tables.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        pid: u32,
        smaps: bool,
    ) -> Result<Option<MapsView>, GuestError> {
        let spaces = guest.mm_spaces()?;
        let Some(space) = spaces.iter().find(|space| space.space.pid == pid) else { return Ok(None) };
        let mut problems: Vec<String> = [space.problem, space.vmas.problem, space.tree.problem]
            .into_iter()
            .flatten()
            .map(|problem| problem.to_string())
            .collect();
        let mut vmas: Vec<MapsRow> = space.vmas.items.iter().map(|at| row(guest, space, at)).collect();
        if smaps {
            let limit = guest.entry_limit();
            let mut counts = MapCounts::new(limit);
            let mut own = None;
            for other in &spaces {
                let entries = guest.user_entries(other, limit);
                if !counts.add(&entries) || !entries.complete {
                    problems
                        .push(format!("the page tables of pid {} cannot be walked whole", other.space.pid));
                }
                if other.space.mm == space.space.mm {
                    own = Some(entries);
                }
            }
            let entries = own.unwrap_or_default().entries;
            for (row, at) in vmas.iter_mut().zip(&space.vmas.items) {
                let from = entries.partition_point(|entry| entry.va < at.vma.start);
                let inside = entries.iter().skip(from).take_while(|entry| entry.va < at.vma.end);
                row.smaps = Some(Smaps::new(guest, &at.vma, inside, &counts)?);
            }
        }
        Ok(Some(MapsView { pid, vmas, problems }))
    }
}

fn row<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, space: &MmSpace, at: &VmaAt) -> MapsRow {
    let vma = &at.vma;
    let letter = |bit, letter| if vma.flags & bit != 0 { letter } else { '-' };
    let shared = if vma.flags & vm_flags::MAYSHARE != 0 { 's' } else { 'p' };
    let permissions =
        [letter(vm_flags::READ, 'r'), letter(vm_flags::WRITE, 'w'), letter(vm_flags::EXEC, 'x'), shared];
    let anonymous = vma.mapping == 0;
    let mm = &space.mm;
    // Linux: `vma_is_initial_heap`.
    let heap = anonymous && vma.start < mm.brk && vma.end > mm.start_brk;
    let is_stack = |at: &VmaAt| at.vma.flags & vm_flags::GROWSDOWN != 0 && at.vma.mapping == 0;
    let stack = space.vmas.items.iter().rev().find(|at| is_stack(at)).is_some_and(|top| top.gpa == at.gpa);
    let mapping = if anonymous { None } else { guest.mapping(vma.mapping).ok() };
    let file = mapping.filter(|mapping| mapping.ino != 0);
    let name = match (anonymous, heap, stack) {
        _ if file.is_some() => file.map_or(String::new(), |mapping| super::cache::path(&mapping)),
        (false, _, _) if vma.flags & vm_flags::PFNMAP != 0 => format!("device:{:#x}", vma.mapping),
        (false, _, _) if vma.flags & vm_flags::COUNTED != 0 => format!("sysv:{:#x}", vma.mapping),
        (false, _, _) => format!("mapping:{:#x}", vma.mapping),
        (true, true, _) => "[heap]".to_owned(),
        (true, _, true) => "[stack]".to_owned(),
        _ => String::new(),
    };
    MapsRow {
        start: vma.start,
        end: vma.end,
        permissions: permissions.iter().collect(),
        offset: if anonymous { 0 } else { vma.pgoff.wrapping_shl(PAGE_SHIFT) },
        dev: file.map_or(0, |mapping| mapping.dev),
        ino: file.map_or(0, |mapping| mapping.ino),
        name,
        policy: super::numa_maps::policy(vma),
        smaps: None,
    }
}

impl fmt::Display for MapsRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Linux: `new_decode_dev`.
        let (major, minor) = (self.dev >> 8 & 0xfff, self.dev & 0xff | self.dev >> 12 & 0xf_ff00);
        let line = format!(
            "{:08x}-{:08x} {} {:08x} {major:02x}:{minor:02x} {} ",
            self.start, self.end, self.permissions, self.offset, self.ino
        );
        if self.name.is_empty() {
            writeln!(f, "{line}")?;
        } else {
            // Linux: `seq_pad` to column 25 + 6 * sizeof(void *).
            writeln!(f, "{line:<73}{}", self.name)?;
        }
        self.smaps.as_ref().map_or(Ok(()), |smaps| write!(f, "{smaps}"))
    }
}

impl fmt::Display for MapsView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.vmas.iter().try_for_each(|row| write!(f, "{row}"))?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "! {problem}"))
    }
}
