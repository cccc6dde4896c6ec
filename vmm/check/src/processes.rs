//! Address spaces of processes, read and walked once for the rules of the families vma, pte, rmap, cow, pfnmap, mm and tlb.

use std::collections::{BTreeSet, HashMap};

use memvisor_abi::{Page, PageKind, Vma, vm_flags};
use memvisor_inspect::{EntryKind, MapCounts, MmSpace, UserEntries, UserEntry, VmaAt};

use crate::context::Context;
use crate::ledger::Ledger;
use crate::{Rule, cow, mm, pfnmap, pte, rmap, swap, tlb, vma};

/// An address space with its entries.
pub(crate) struct Process {
    pub at: MmSpace,
    pub entries: UserEntries,
}

impl Process {
    pub const fn pid(&self) -> u32 {
        self.at.space.pid
    }

    /// Entries with the VMA that each lies in.
    pub fn with_vmas(&self) -> impl Iterator<Item = (&UserEntry, Option<&VmaAt>)> {
        self.entries.entries.iter().map(|entry| (entry, self.at.find(entry.va)))
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Processes {
    pub list: Vec<Process>,
    /// Entries of all address spaces by the frame that they map.
    counts: Option<MapCounts>,
    /// Frames that are mapped without being counted: the zero page, and what devices map.
    pub uncounted: BTreeSet<u64>,
    /// Descriptors of frames that are mapped.
    pages: HashMap<u64, Page>,
}

/// Families of rules on address spaces.
const FAMILIES: [&str; 8] = ["vma", "pte", "rmap", "cow", "pfnmap", "mm", "tlb", "swap"];

/// Their rules.
fn rules() -> Vec<&'static Rule> {
    let is_ours =
        |rule: &&Rule| rule.name.split_once('.').is_some_and(|(family, _)| FAMILIES.contains(&family));
    crate::RULES.iter().copied().filter(is_ours).collect()
}

impl Processes {
    /// Reads and walks all address spaces that are published with their `mm_struct`.
    pub fn load(context: &Context<'_>) -> Processes {
        let spaces = context.guest.mm_spaces().unwrap_or_default();
        let limit = context.guest.entry_limit();
        let mut counts = MapCounts::new(limit.saturating_mul(4));
        let mut processes = Processes::default();
        for at in spaces {
            let mut entries = context.guest.user_entries(&at, limit);
            entries.complete &= counts.add(&entries);
            processes.list.push(Process { at, entries });
        }
        for (pfn, _) in counts.frames() {
            if let Some(page) = context.page(pfn) {
                processes.pages.insert(pfn, page);
            }
        }
        processes.uncounted.extend(context.guest.zero_pfn());
        let devices = processes.list.iter().flat_map(Process::with_vmas);
        let devices = devices.filter(|(_, vma)| vma.is_some_and(|at| is_device(&at.vma)));
        let devices: Vec<u64> = devices.map(|(entry, _)| entry.pfn).collect();
        // A frame that somebody counts is no device's.
        let is_user = |pfn: &u64| processes.page(*pfn).is_some_and(|page| page.kind == PageKind::User as u8);
        let devices: Vec<u64> = devices.into_iter().filter(|pfn| !is_user(pfn)).collect();
        processes.uncounted.extend(devices);
        processes.counts = Some(counts);
        processes
    }

    /// Entries that map the frame.
    pub fn entries_of(&self, pfn: u64) -> u32 {
        self.counts.as_ref().map_or(0, |counts| counts.of(pfn))
    }

    /// The descriptor of a frame that an entry maps.
    pub fn page(&self, pfn: u64) -> Option<&Page> {
        self.pages.get(&pfn)
    }

    /// Frames that entries map and that are counted, ascending.
    pub fn counted(&self) -> Vec<(u64, u32)> {
        let all = self.counts.iter().flat_map(MapCounts::frames);
        let mut frames: Vec<_> = all.filter(|(pfn, _)| !self.uncounted.contains(pfn)).collect();
        frames.sort_unstable();
        frames
    }

    /// Whether the entry names a page that somebody counts.
    pub fn is_counted(&self, entry: &UserEntry) -> bool {
        let names_frame = !matches!(entry.kind, EntryKind::Unknown | EntryKind::Swap);
        names_frame && !self.uncounted.contains(&entry.pfn)
    }
}

/// Whether nobody counts what a VMA maps.
const fn is_device(vma: &Vma) -> bool {
    vma.flags & (vm_flags::PFNMAP | vm_flags::MIXEDMAP | vm_flags::IO) != 0
}

/// Runs the rules of all eight families.
pub(crate) fn run(context: &Context<'_>, processes: &Processes, ledger: &mut Ledger) {
    let rules = rules();
    if !context.needs_zones(ledger, &rules) {
        return;
    }
    if processes.list.is_empty() {
        for rule in rules {
            ledger.skip(rule, "no process is alive");
        }
        return;
    }
    for process in &processes.list {
        vma::run(context, process, ledger);
        pte::run(context, process, ledger);
    }
    rmap::run(context, processes, ledger);
    cow::run(processes, ledger);
    pfnmap::run(context, processes, ledger);
    mm::run(context, processes, ledger);
    tlb::run(context, processes, ledger);
    swap::run(context, processes, ledger);
}
