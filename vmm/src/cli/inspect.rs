//! `memvisor inspect`.

mod rates;

use std::{fmt, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Args, Subcommand};
use memvisor_inspect::{
    ptdump::{PtDump, Span},
    views::{
        BtView, BuddyView, CacheFileView, CacheView, CmaView, CompactionView, CpusView, E820View, LayoutView,
        LogView, LruView, MapView, MapsView, MemblockView, NumaView, NumastatView, OomView, PageView,
        PagetypesView, PcpView, ProcView, PsView, RmapView, SlabView, StacksView, SwapView, TasksView,
        TlbView, TranslateView, VmallocView, VmstatView, ZonelistsView, ZonesView,
    },
};
use serde::Serialize;

use super::{
    disks::DisksView,
    dma::DmaView,
    map::{self, Canvas},
    out::{self, parse_address},
    source::{self, Source, SourceArgs},
};
use crate::loader::kernel_symbols;

const AFTER_HELP: &str = "\
Examples:
  memvisor inspect zones                                     the only running guest
  memvisor inspect translate 0xffff888000100000 --vm lab     all levels, and the host behind each
  memvisor inspect pagetables --va 0xffff800000000000..0xffff900000000000
  memvisor inspect page 0x1a400 --dump guest.core --json
  memvisor inspect map --svg frames.svg --vm lab
  memvisor inspect bt 2                                      the calls that task 2 is in, or waits in
  memvisor inspect maps 2 --smaps                            what a process maps, and what of it is resident
  memvisor inspect page 0x1a400 --rmap                       every entry of every process that maps the frame
  memvisor inspect pagetables --mem ram.mem --mem high.mem@0x100000000 --cr3 0x2000 --la57";

/// Arguments of `inspect`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct InspectArgs {
    #[command(subcommand)]
    view: View,
    #[command(flatten)]
    source: SourceArgs,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum View {
    /// E820 map: as built, as the guest got it, as it sanitized it
    E820,
    /// Nodes, distances and the memory of each
    Numa,
    /// CPUs: state, node and per-CPU area
    Cpus,
    /// The kernel's address-space layout
    Layout,
    /// Memory and reservations of the early allocator
    Memblock,
    /// Zones with their pages and watermarks
    Zones,
    /// Free blocks by zone and order
    Buddy,
    /// Per-CPU page lists
    Pcp,
    /// The order in which zones are tried, by node
    Zonelists,
    /// NUMA events by zone
    Numastat,
    /// Counts of pages and events, as /proc/vmstat has them
    Vmstat {
        /// What changes, by second, again and again until the guest is gone or somebody says ^C
        #[arg(long)]
        rate: bool,
        /// Seconds between looks
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = super::top::parse_interval, requires = "rate")]
        interval: Duration,
        /// End after so many
        #[arg(long, value_name = "N", requires = "rate")]
        count: Option<u64>,
    },
    /// The page cache: each file with its pages, cached, dirty, being written, mapped, and where on the LRU lists
    Cache {
        /// Only this file, by its path in the guest or by the address of its mapping, with its ranges of pages
        file: Option<String>,
    },
    /// Free blocks by type and order, and pageblocks by type.
    Pagetypes,
    /// A memory file of Linux's /proc, as it must read in this guest
    Proc {
        /// meminfo, zoneinfo, buddyinfo, pagetypeinfo, vmstat, swaps, iomem, slabinfo, vmallocinfo, or PID/maps, PID/smaps, PID/numa_maps,
        /// PID/status, PID/statm
        name: String,
    },
    /// Contiguous areas: what of them is in use
    Cma,
    /// Swap areas: slots by use, clusters, reads and writes; pages in swap by process
    Swap,
    /// Compaction: scanners, deferral, fragmentation by order, kcompactd, movable pages
    Compaction,
    /// What the kernel said, as dmesg shows it; also of a dump of a kernel that died
    #[command(visible_alias = "dmesg")]
    Log,
    /// LRU lists of each node, walked: counts, zones, what is used, dirty, next to be reclaimed
    Lru,
    /// Slab caches, as /proc/slabinfo has them
    Slab {
        /// Only this cache, with its slabs
        cache: Option<String>,
        /// Slabs by the offset of their first object (SLAB)
        #[arg(long, visible_alias = "color")]
        colour: bool,
    },
    /// Disks of a running guest: what each did, what failed
    Disks,
    /// DMA engines of a running guest, and the guest's bounce buffers
    Dma,
    /// Areas of the vmalloc range, and windows onto single frames
    Vmalloc,
    /// Kernel stacks: how deep they were used, and their guard pages
    Stacks,
    /// Tasks of the kernel
    Tasks,
    /// Where tasks are in the kernel: the calls that each is in
    Bt {
        /// Only this task
        pid: Option<u32>,
        /// Names for the kernel's addresses: an ELF file or a System.map [default: the bundled kernel, if it is the guest's]
        #[arg(long, value_name = "FILE")]
        symbols: Option<PathBuf>,
    },
    /// All frames as a picture: owner, largest free block, migratetype, node
    Map {
        /// Write all layers to an SVG file instead
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        svg: Option<PathBuf>,
        /// Layer for the terminal: owner, order, type or node
        #[arg(long, default_value = "owner", value_parser = map::parse_layer)]
        layer: usize,
    },
    /// A page frame: descriptor, owner as derived from outside, mappings
    Page {
        /// Page frame number
        #[arg(value_parser = parse_address)]
        pfn: u64,
        /// Every entry of user space that maps it instead: found by a walk of all page tables, and by the lists that the
        /// guest itself follows from the page (anon_vma or mapping); differences are named
        #[arg(long)]
        rmap: bool,
    },
    /// Tasks and processes: state, CPU, size, resident pages, page tables, faults
    Ps,
    /// Memory of a process, as the guest's /proc/PID/maps must read
    Maps {
        /// Process
        pid: u32,
        /// What of each VMA is resident, shared, dirty and referenced, counted from the page tables of all processes
        #[arg(long)]
        smaps: bool,
    },
    /// Whom the OOM killer would choose, whom it chose last, what is promised
    Oom,
    /// What each CPU may hold translations of: its CR3, what the guest believes of it, flushes that wait
    Tlb,
    /// Mapped ranges, merged by attributes, with findings
    Pagetables {
        /// Only these addresses, both ends included
        #[arg(long, value_name = "A..B", value_parser = parse_span)]
        va: Option<Span>,
        /// Tables of this process instead of a CPU's
        #[arg(long, conflicts_with_all = ["cr3", "vcpu"])]
        pid: Option<u32>,
    },
    /// The walk of a virtual address, with the host behind each table
    Translate {
        /// Virtual address
        #[arg(value_parser = parse_address)]
        va: u64,
        /// Tables of this process instead of a CPU's
        #[arg(long, conflicts_with_all = ["cr3", "vcpu"])]
        pid: Option<u32>,
    },
}

/// `A..B`, both included.
fn parse_span(text: &str) -> Result<Span, String> {
    let (start, last) = text.split_once("..").ok_or_else(|| format!("{text:?} is not A..B"))?;
    let start = if start.is_empty() { 0 } else { parse_address(start)? };
    let last = if last.is_empty() { u64::MAX } else { parse_address(last)? };
    if start > last {
        return Err(format!("{text:?}: the first address is above the last"));
    }
    Ok(Span { start, last })
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let mut source = args.source.open()?;
    let source = &mut source;
    let json = args.json;
    match &args.view {
        View::E820 => show(source, json, |s| match (s.root(), &s.facts) {
            (None, Some(facts)) => Ok(E820View::from_facts(facts)),
            _ => Ok(E820View::new(&s.guest()?, s.facts.as_ref())?),
        })?,
        View::Numa => show(source, json, |s| match (s.root(), &s.facts) {
            (None, Some(facts)) => Ok(NumaView::from_facts(facts)),
            _ => Ok(NumaView::new(&s.guest()?, s.facts.as_ref())?),
        })?,
        View::Cpus => show(source, json, |s| Ok(CpusView::new(&s.guest()?, s.facts.as_ref())?))?,
        View::Layout => show(source, json, |s| Ok(LayoutView::new(&s.guest()?)?))?,
        View::Memblock => show(source, json, |s| Ok(MemblockView::new(&s.guest()?)?))?,
        View::Zones => show(source, json, |s| Ok(ZonesView::new(&s.guest()?)?))?,
        View::Pagetypes => show(source, json, |s| Ok(PagetypesView::new(&s.guest()?)?))?,
        View::Swap => show(source, json, |s| Ok(SwapView::new(&s.guest()?)?))?,
        View::Cma => show(source, json, |s| Ok(CmaView::new(&s.guest()?)?))?,
        View::Buddy => show(source, json, |s| Ok(BuddyView::new(&s.guest()?)?))?,
        View::Compaction => show(source, json, |s| Ok(CompactionView::new(&s.guest()?)?))?,
        View::Log => show(source, json, |s| LogView::new(&s.guest()?)?.context("the guest keeps no log"))?,
        View::Lru => show(source, json, |s| Ok(LruView::new(&s.guest()?)?))?,
        View::Pcp => show(source, json, |s| Ok(PcpView::new(&s.guest()?)?))?,
        View::Zonelists => show(source, json, |s| Ok(ZonelistsView::new(&s.guest()?)?))?,
        View::Numastat => show(source, json, |s| Ok(NumastatView::new(&s.guest()?)?))?,
        View::Vmstat { rate: true, interval, count } => rates::run(source, json, *interval, *count)?,
        View::Vmstat { .. } => show(source, json, |s| Ok(VmstatView::new(&s.guest()?)?))?,
        View::Cache { file: None } => show(source, json, |s| Ok(CacheView::new(&s.guest()?)?))?,
        View::Cache { file: Some(file) } => show(source, json, |s| {
            CacheFileView::new(&s.guest()?, file)?.with_context(|| {
                format!("no file {file:?} has pages in memory; `inspect cache` lists those that have")
            })
        })?,
        View::Proc { name } => show(source, json, |s| {
            ProcView::new(&s.guest()?, name)?.with_context(|| {
                format!("{name:?} cannot be told from outside, or its process does not exist")
            })
        })?,
        View::Slab { cache, colour } => {
            show(source, json, |s| Ok(SlabView::new(&s.guest()?, cache.as_deref(), *colour)?))?
        }
        View::Dma => show(source, json, DmaView::of)?,
        View::Disks => show(source, json, |s| Ok(DisksView::new(s.disks()?)))?,
        View::Oom => show(source, json, |s| Ok(OomView::new(&s.guest()?)?))?,
        View::Vmalloc => show(source, json, |s| Ok(VmallocView::new(&s.guest()?)?))?,
        View::Stacks => show(source, json, |s| Ok(StacksView::new(&s.guest()?)?))?,
        View::Tasks => show(source, json, |s| Ok(TasksView::new(&s.guest()?)?))?,
        View::Bt { pid, symbols } => show(source, json, |s| {
            let guest = s.guest()?;
            let view = BtView::new(&guest, &s.registers, &kernel_symbols(&guest, symbols.as_deref())?, *pid)?;
            anyhow::ensure!(!view.tasks.is_empty(), source::no_task(*pid));
            Ok(view)
        })?,
        View::Map { svg, layer } => {
            let canvas = if svg.is_some() { Canvas::Svg } else { Canvas::terminal() };
            let view = source.read(|s| Ok(MapView::new(&s.guest()?, canvas.cells())?))?;
            if json {
                out::json(&view)?;
            } else {
                map::show(&view, canvas, *layer, svg.as_deref())?;
            }
        }
        View::Ps => show(source, json, |s| Ok(PsView::new(&s.guest()?)?))?,
        View::Maps { pid, smaps } => show(source, json, |s| {
            MapsView::new(&s.guest()?, *pid, *smaps)?.with_context(|| source::no_process(*pid))
        })?,
        View::Tlb => show(source, json, |s| Ok(TlbView::new(&s.guest()?, &s.registers)?))?,
        View::Page { pfn, rmap: true } => show(source, json, |s| Ok(RmapView::new(&s.guest()?, *pfn)?))?,
        View::Page { pfn, rmap: false } => show(source, json, |s| Ok(PageView::new(&s.guest()?, *pfn)?))?,
        View::Pagetables { va, pid } => show(source, json, |s| {
            // Where the layout is not published, ranges have no names; they are as right.
            let layout = s.guest().and_then(|guest| Ok(guest.layout()?)).unwrap_or_default();
            Ok(PtDump::new(&s.walker_of(*pid)?, s.memory(), va.unwrap_or(Span::ALL), &layout))
        })?,
        View::Translate { va, pid } => show(source, json, |s| {
            Ok(TranslateView::new(s.walker_of(*pid)?.translate(s.memory(), *va), s.stage2()))
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show<T: fmt::Display + Serialize>(
    source: &mut Source,
    json: bool,
    view: impl Fn(&Source) -> anyhow::Result<T>,
) -> anyhow::Result<()> {
    Ok(out::show(&source.read(view)?, json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_include_both_ends_and_may_be_open() {
        assert_eq!(parse_span("0x1000..0x1fff").expect("both"), Span { start: 0x1000, last: 0x1fff });
        assert_eq!(parse_span("..").expect("all"), Span::ALL);
        assert!(parse_span("5").is_err());
        assert!(parse_span("0x2000..0x1000").is_err());
    }
}
