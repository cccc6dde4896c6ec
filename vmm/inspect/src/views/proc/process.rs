//! Files of a process: maps, smaps, numa_maps, status, statm.

use std::fmt::Write;

use memvisor_abi::{PAGE_SIZE, Page, TaskState};

use crate::views::stacks::name;
use crate::views::{MapsView, NumaMapsView, Smaps};
use crate::{EntryKind, Guest, GuestError, MemorySource, MmSpace};

const KIB: u64 = PAGE_SIZE / 1024;

/// Writes a file; false if there is no such process or file.
///
/// # Errors
/// [`GuestError`].
pub(super) fn write<S: MemorySource + ?Sized>(
    text: &mut String,
    guest: &Guest<'_, S>,
    pid: u32,
    file: &str,
) -> Result<bool, GuestError> {
    match file {
        "maps" | "smaps" => {
            let Some(view) = MapsView::new(guest, pid, file == "smaps")? else { return Ok(false) };
            view.vmas.iter().for_each(|row| _ = write!(text, "{row}"));
            Ok(true)
        }
        "numa_maps" => {
            let Some(view) = NumaMapsView::new(guest, pid)? else { return Ok(false) };
            view.vmas.iter().for_each(|row| _ = write!(text, "{row}"));
            Ok(true)
        }
        "smaps_rollup" => {
            let Some(view) = MapsView::new(guest, pid, true)? else { return Ok(false) };
            rollup(text, &view);
            Ok(true)
        }
        "status" | "statm" => {
            let spaces = guest.mm_spaces()?;
            let Some(space) = spaces.iter().find(|space| space.space.pid == pid) else { return Ok(false) };
            let memory = Memory::of(guest, space)?;
            if file == "statm" {
                memory.statm(text);
            } else {
                status(text, guest, pid, &memory)?;
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Without what each kind of mapping has of `Pss`.
fn rollup(text: &mut String, view: &MapsView) {
    let Some((first, last)) = view.vmas.first().zip(view.vmas.last()) else { return };
    let _ = writeln!(
        text,
        "{:<72} [rollup]",
        format!("{:08x}-{:08x} ---p 00000000 00:00 0", first.start, last.end)
    );
    let sum =
        |of: fn(&Smaps) -> u64| view.vmas.iter().filter_map(|row| row.smaps.as_ref()).map(of).sum::<u64>();
    let lines = [
        ("Rss", sum(|smaps| smaps.rss)),
        ("Shared_Clean", sum(|smaps| smaps.shared_clean)),
        ("Shared_Dirty", sum(|smaps| smaps.shared_dirty)),
        ("Private_Clean", sum(|smaps| smaps.private_clean)),
        ("Private_Dirty", sum(|smaps| smaps.private_dirty)),
        ("Referenced", sum(|smaps| smaps.referenced)),
        ("Anonymous", sum(|smaps| smaps.anonymous)),
        ("Swap", sum(|smaps| smaps.swap)),
    ];
    for (name, kib) in lines {
        let _ = writeln!(text, "{:<16}{kib:>8} kB", format!("{name}:"));
    }
}

/// What an address space has, in pages; resident ones are found in its page tables.
struct Memory {
    total: u64,
    peak: u64,
    locked: u64,
    anon: u64,
    file: u64,
    hwm: u64,
    data: u64,
    stack: u64,
    code: u64,
    lib: u64,
    tables: u64,
    swap: u64,
}

impl Memory {
    fn of<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, space: &MmSpace) -> Result<Memory, GuestError> {
        let mm = &space.mm;
        let (mut anon, mut file, mut swap) = (0_u64, 0_u64, 0_u64);
        let zero = guest.zero_pfn();
        for entry in guest.user_entries(space, guest.entry_limit()).entries {
            match entry.kind {
                EntryKind::Swap => swap += 1,
                EntryKind::Unknown => {}
                _ if Some(entry.pfn) == zero => {}
                _ => {
                    let page = guest.page(entry.pfn)?.unwrap_or_default();
                    let kind = if page.mapping & Page::MAPPING_ANON != 0 { &mut anon } else { &mut file };
                    *kind = kind.saturating_add(entry.frames);
                }
            }
        }
        let code = mm.end_code.div_ceil(PAGE_SIZE).saturating_sub(mm.start_code / PAGE_SIZE);
        Ok(Memory {
            total: mm.total_vm,
            peak: mm.hiwater_vm.max(mm.total_vm),
            locked: mm.locked_vm,
            anon,
            file,
            hwm: mm.hiwater_rss.max(anon.saturating_add(file)),
            data: mm.data_vm,
            stack: mm.stack_vm,
            code,
            lib: mm.exec_vm.saturating_sub(code),
            tables: mm.table_pages.saturating_sub(1),
            swap,
        })
    }

    fn statm(&self, text: &mut String) {
        let (rss, data) = (self.anon.saturating_add(self.file), self.data.saturating_add(self.stack));
        let _ = writeln!(text, "{} {rss} {} {} 0 {data} 0", self.total, self.file, self.code);
    }
}

/// Lines that are derived from outside.
fn status<S: MemorySource + ?Sized>(
    text: &mut String,
    guest: &Guest<'_, S>,
    pid: u32,
    memory: &Memory,
) -> Result<(), GuestError> {
    let tasks = guest.tasks()?;
    let threads: Vec<_> = tasks.iter().filter(|task| task.tgid == pid).collect();
    let leader = threads.iter().find(|task| task.pid == pid).or(threads.first());
    if let Some(task) = leader {
        let state = match TaskState::from_raw(task.state) {
            Some(TaskState::Running | TaskState::Runnable) => "R (running)",
            Some(TaskState::Sleeping) => "S (sleeping)",
            _ => "Z (zombie)",
        };
        let _ = writeln!(text, "Name:\t{}\nState:\t{state}", name(task));
        let _ = writeln!(text, "Tgid:\t{pid}\nPid:\t{pid}\nPPid:\t{}", task.ppid);
    }
    let lines = [
        ("VmPeak", memory.peak),
        ("VmSize", memory.total),
        ("VmLck", memory.locked),
        ("VmPin", 0),
        ("VmHWM", memory.hwm),
        ("VmRSS", memory.anon.saturating_add(memory.file)),
        ("RssAnon", memory.anon),
        ("RssFile", memory.file),
        ("RssShmem", 0),
        ("VmData", memory.data),
        ("VmStk", memory.stack),
        ("VmExe", memory.code),
        ("VmLib", memory.lib),
        ("VmPTE", memory.tables),
        ("VmSwap", memory.swap),
    ];
    for (name, pages) in lines {
        let _ = writeln!(text, "{name}:\t{:>8} kB", pages.saturating_mul(KIB));
    }
    let _ = writeln!(text, "Threads:\t{}", threads.len());
    Ok(())
}
