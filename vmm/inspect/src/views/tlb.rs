//! What each CPU may hold translations of.

use std::fmt;

use memvisor_abi::MM_CPU_WORDS;
use serde::Serialize;

use crate::{CpuRegisters, Entry, Guest, GuestError, MemorySource};

/// `inspect tlb`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlbView {
    /// CPUs.
    pub cpus: Vec<TlbRow>,
    /// Address spaces.
    pub spaces: Vec<TlbMm>,
}

/// A CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlbRow {
    /// Number.
    pub cpu: u32,
    /// CR3, if registers are known.
    #[serde(serialize_with = "crate::hex_option")]
    pub cr3: Option<u64>,
    /// Process whose tables the register names; `None` for the kernel's own, or without registers.
    pub cr3_pid: Option<u32>,
    /// Process whose tables the guest says are loaded.
    pub says_pid: Option<u32>,
    /// Flushes that others asked it for.
    pub requested: u64,
    /// Of those, done.
    pub done: u64,
}

/// An address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlbMm {
    /// Process.
    pub pid: u32,
    /// CPUs that may hold its translations, by number.
    pub cpus: Vec<u32>,
    /// Removals whose flush is not done.
    pub flush_pending: u32,
}

impl TlbView {
    /// Joins what the guest publishes with the CPUs' registers.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        registers: &[CpuRegisters],
    ) -> Result<TlbView, GuestError> {
        let spaces = guest.mm_spaces()?;
        let pid_of_mm =
            |mm: u64| spaces.iter().find(|space| space.space.mm == mm && mm != 0).map(|s| s.space.pid);
        let rows = (0..).zip(guest.cpu_tlbs()?).map(|(cpu, tlb)| {
            let cr3 = registers.iter().find(|regs| regs.index == cpu && regs.levels().is_some());
            let cr3 = cr3.map(|regs| regs.cr3 & Entry::ADDRESS);
            let running =
                spaces.iter().find(|space| Some(space.space.pgd_pfn << memvisor_abi::PAGE_SHIFT) == cr3);
            TlbRow {
                cpu,
                cr3,
                cr3_pid: running.map(|space| space.space.pid),
                says_pid: pid_of_mm(tlb.mm),
                requested: tlb.flush_requested,
                done: tlb.flush_done,
            }
        });
        let cpus = rows.collect();
        let spaces = spaces.iter().map(|space| TlbMm {
            pid: space.space.pid,
            cpus: cpus_of(&space.mm.cpus),
            flush_pending: space.mm.tlb_flush_pending,
        });
        Ok(TlbView { cpus, spaces: spaces.collect() })
    }
}

/// Numbers of the bits that are set.
fn cpus_of(words: &[u64; MM_CPU_WORDS]) -> Vec<u32> {
    let bits = (0..).step_by(64).zip(words);
    bits.flat_map(|(base, word): (u32, &u64)| {
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| base + bit)
    })
    .collect()
}

impl fmt::Display for TlbView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |pid: Option<u32>| pid.map_or("kernel".to_owned(), |pid| format!("pid {pid}"));
        writeln!(f, "{} CPUs, {} address spaces", self.cpus.len(), self.spaces.len())?;
        for row in &self.cpus {
            let cr3 = row.cr3.map_or("?".to_owned(), |cr3| format!("{cr3:#x} ({})", text(row.cr3_pid)));
            let pending = if row.requested > row.done { ", ! not all done" } else { "" };
            writeln!(
                f,
                "  CPU {:>3}  CR3 {cr3:<24} guest says {:<10} flushes asked {} done {}{pending}",
                row.cpu,
                text(row.says_pid),
                row.requested,
                row.done
            )?;
        }
        for space in &self.spaces {
            let cpus: Vec<_> = space.cpus.iter().map(u32::to_string).collect();
            let list = if cpus.is_empty() { "none".to_owned() } else { cpus.join(",") };
            let pending = match space.flush_pending {
                0 => String::new(),
                count => format!(", ! {count} removals not flushed"),
            };
            writeln!(f, "  pid {:>5}  may be cached on CPUs {list}{pending}", space.pid)?;
        }
        Ok(())
    }
}
