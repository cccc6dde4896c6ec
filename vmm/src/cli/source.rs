//! Where guest memory comes from: a running guest, a dump, or memory files.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use memvisor_inspect::{
    CoreFile, CpuRegisters, Facts, Guest, Levels, MappedMemory, MemorySource, Stage2, Walker, find_root,
};

use super::{
    out::{BadInput, parse_address},
    stage2::LiveStage2,
};
use crate::{
    control::Client,
    devices::{dma::DmaStats, virtio::DiskStats},
    run::VmState,
};

/// Arguments that choose a source.
#[derive(Clone, Debug, Args)]
pub(super) struct SourceArgs {
    /// A running guest [default: the only one]
    #[arg(long, value_name = "NAME", global = true, conflicts_with_all = ["dump", "mem"])]
    vm: Option<String>,
    /// A dump that `memvisor dump` wrote
    #[arg(long, value_name = "FILE", global = true, conflicts_with = "mem")]
    dump: Option<PathBuf>,
    /// Another VMM's memory file and the guest-physical address of its first byte; may be repeated
    #[arg(long, value_name = "FILE[@GPA]", global = true)]
    mem: Vec<String>,
    /// Top-level page table, instead of a CPU's CR3
    #[arg(long, value_name = "ADDRESS", global = true, value_parser = parse_address)]
    cr3: Option<u64>,
    /// --cr3 names a 5-level table
    #[arg(long, global = true, requires = "cr3")]
    la57: bool,
    /// CPU whose page tables are used
    #[arg(long, value_name = "N", global = true, default_value_t = 0)]
    vcpu: u32,
}

/// A source with all that is known about its guest.
#[derive(Debug)]
pub(super) struct Source {
    memory: Memory,
    pub registers: Vec<CpuRegisters>,
    pub facts: Option<Facts>,
    stage2: Option<LiveStage2>,
    client: Option<Client>,
    /// Announced or noted root descriptor.
    pub root_gpa: Option<u64>,
    cr3: Option<(u64, Levels)>,
    vcpu: u32,
}

#[derive(Debug)]
enum Memory {
    Mapped(MappedMemory),
    Core(Box<CoreFile>),
}

impl SourceArgs {
    /// Whether a source was asked for, rather than the only guest that runs.
    pub(super) fn is_chosen(&self) -> bool {
        self.vm.is_some() || self.dump.is_some() || !self.mem.is_empty()
    }

    pub(super) fn open(&self) -> anyhow::Result<Source> {
        let depth = if self.la57 { 5 } else { 4 };
        let cr3 = self.cr3.zip(Levels::new(depth));
        let vcpu = self.vcpu;
        if let Some(path) = &self.dump {
            let core = CoreFile::open(path)?;
            return Ok(Source {
                registers: core.registers().to_vec(),
                facts: Some(core.facts().clone()),
                root_gpa: core.root_gpa(),
                memory: Memory::Core(Box::new(core)),
                stage2: None,
                client: None,
                cr3,
                vcpu,
            });
        }
        if !self.mem.is_empty() {
            let files = self.mem.iter().map(|text| parse_mem(text)).collect::<Result<Vec<_>, _>>()?;
            let memory = MappedMemory::from_mem_files(&files)?;
            return Ok(Source {
                root_gpa: find_root(&memory),
                memory: Memory::Mapped(memory),
                registers: Vec::new(),
                facts: None,
                stage2: None,
                client: None,
                cr3,
                vcpu,
            });
        }
        let client = Client::find(self.vm.as_deref())?;
        let info = client.info()?;
        Ok(Source {
            memory: Memory::Mapped(client.map_memory()?),
            registers: client.registers()?,
            facts: Some(client.facts()?),
            stage2: Some(LiveStage2::new(&info)),
            root_gpa: info.root_gpa,
            client: Some(client),
            cr3,
            vcpu,
        })
    }
}

/// `FILE` or `FILE@GPA`.
fn parse_mem(text: &str) -> Result<(PathBuf, u64), BadInput> {
    match text.rsplit_once('@') {
        Some((file, gpa)) if !file.is_empty() => Ok((
            PathBuf::from(file),
            parse_address(gpa).map_err(|error| BadInput(format!("--mem {text}: {error}")))?,
        )),
        _ => Ok((PathBuf::from(text), 0)),
    }
}

/// Nobody has that number.
pub(super) fn no_process(pid: u32) -> String {
    format!("no process {pid} has an address space: `memvisor inspect ps` lists those that have")
}

/// Nobody has that number.
pub(super) fn no_task(pid: Option<u32>) -> String {
    pid.map_or("the guest has no tasks yet".to_owned(), |pid| {
        format!("no task {pid}: `memvisor inspect ps` lists those that there are")
    })
}

impl Source {
    pub(super) fn memory(&self) -> &dyn MemorySource {
        match &self.memory {
            Memory::Mapped(memory) => memory,
            Memory::Core(core) => &**core,
        }
    }

    pub(super) fn stage2(&self) -> Option<&dyn Stage2> {
        self.stage2.as_ref().map(|stage2| stage2 as &dyn Stage2)
    }

    /// Where the guest's root descriptor is; a foreign kernel has none.
    pub(super) fn root(&self) -> Option<u64> {
        self.root_gpa.or_else(|| find_root(self.memory()))
    }

    /// The guest's name; empty without a running guest.
    pub(super) fn name(&self) -> String {
        self.client.as_ref().map_or_else(String::new, |client| client.name().to_owned())
    }

    /// Whether it was a running guest, and is none any more.
    pub(super) fn is_gone(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.info().is_err())
    }

    /// The disks, as its VMM sees them.
    pub(super) fn disks(&self) -> anyhow::Result<Vec<DiskStats>> {
        let client = self.client.as_ref().context(
            "disks are the VMM's: only a running guest has them, a dump or a memory file does not",
        )?;
        Ok(client.stats()?.disks)
    }

    /// The DMA engines, as the VMM of a running guest sees them, and the number of disks in the slots before them; a dump or a memory
    /// file has none.
    pub(super) fn dma(&self) -> anyhow::Result<Option<(Vec<DmaStats>, usize)>> {
        let Some(client) = &self.client else { return Ok(None) };
        let stats = client.stats()?;
        Ok(Some((stats.dma, stats.disks.len())))
    }

    /// The guest's own account of itself.
    pub(super) fn guest(&self) -> anyhow::Result<Guest<'_, dyn MemorySource + '_>> {
        let root = self.root().context(
            "this guest publishes no root descriptor: only the page-table views (pagetables, translate) and, with the VMM's facts, e820 and numa can be shown",
        )?;
        Ok(Guest::attach(self.memory(), root)?)
    }

    /// A walker of the tables of a process, or of those that were asked for.
    pub(super) fn walker_of(&self, pid: Option<u32>) -> anyhow::Result<Walker> {
        let Some(pid) = pid else { return self.walker() };
        let guest = self.guest()?;
        let space = guest.address_spaces()?.into_iter().find(|space| space.pid == pid);
        Ok(guest.space_walker(space.with_context(|| no_process(pid))?.pgd_pfn))
    }

    /// A walker of the page tables that were asked for.
    pub(super) fn walker(&self) -> anyhow::Result<Walker> {
        let walker = if let Some((cr3, levels)) = self.cr3 {
            Walker::new(cr3, levels)
        } else if self.registers.is_empty() {
            return Err(BadInput(
                "a memory file has no registers: say --cr3 ADDRESS (and --la57 for 5 levels)".into(),
            )
            .into());
        } else {
            let Some(cpu) = self.registers.iter().find(|cpu| cpu.index == self.vcpu) else {
                let count = self.registers.len();
                return Err(BadInput(format!("no cpu {}: the guest has {count}", self.vcpu)).into());
            };
            Walker::from_registers(cpu).with_context(|| {
                format!("cpu {} is not in long mode with paging: it has no page tables", self.vcpu)
            })?
        };
        Ok(match self.root_gpa.and_then(|root| Guest::attach(self.memory(), root).ok()) {
            Some(guest) => walker.with_phys_bits(guest.root().phys_bits),
            None => walker,
        })
    }

    /// Reads something that a running guest may change meanwhile, with the guest standing still where nothing is half done. Where
    /// that could not be had, a line says who was in the middle of something.
    pub(super) fn read<T>(&mut self, read: impl Fn(&Source) -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.paused(|source| {
            let result = read(source);
            if let Some(reason) = source.between() {
                eprintln!("memvisor: what follows may be half of a change: {reason}");
            }
            result
        })
    }

    /// Who keeps the guest from being at rest; `None` if it rests, or if nobody can say.
    fn between(&self) -> Option<String> {
        let guest = Guest::attach(self.memory(), self.root()?).ok()?;
        let busy = guest.busy(&self.registers).ok().filter(|busy| !busy.is_empty())?;
        Some(busy.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    }

    /// Reads something with the guest standing still, where nothing is half done if that can be had.
    pub(super) fn paused<T>(&mut self, read: impl Fn(&Source) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let Some(client) = self.client.clone() else { return read(self) };
        let running = client.info()?.state == VmState::Running;
        if running {
            client.rest()?;
        }
        let result = client.registers().map_err(anyhow::Error::from).and_then(|registers| {
            self.registers = registers;
            // The guest may have announced itself only now.
            self.root_gpa = client.info()?.root_gpa;
            read(self)
        });
        if running {
            client.resume()?;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_files_have_an_optional_address() {
        assert_eq!(parse_mem("a/b.mem").expect("plain"), ("a/b.mem".into(), 0));
        assert_eq!(parse_mem("b.mem@0x1_0000_0000").expect("hex"), ("b.mem".into(), 1 << 32));
        assert!(parse_mem("b.mem@high").expect_err("word").to_string().contains("high"));
    }
}
