//! Runs a guest from its first instruction to its end.
//!
//! The thread that calls [`conduct`] is the conductor: vCPUs, the event loop and the control socket
//! tell it what happened, and it alone decides. At a checkpoint it holds the other vCPUs, audits
//! memory in place, and lets everybody go on.

mod bus;
mod irqchip;
mod outcome;
mod rest;
mod settle;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod vm;

use std::{
    borrow::Cow,
    io,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use memvisor_abi::port::Status;
use memvisor_check::{Evidence, Moment};
use memvisor_inspect::{Facts, RamRegion};
use memvisor_report::AuditReport;
use thiserror::Error;

pub use bus::{add_pci, build_bus};
pub use irqchip::Irqchip;
pub use outcome::{CheckpointRecord, End, ExitStatus, Outcome};
pub use rest::{RestError, pause_at_rest};
pub use vm::{Vm, VmState};

use crate::{
    devices::{BusError, ConsoleTarget, Effect, dma::DmaError, virtio::DiskError},
    loader::{LoadError, read_initrd, read_kernel},
    machine::{self, Backed, Boot, Machine, MachineError, Paging},
    memory::MemoryError,
    seccomp::Filters,
    vcpu::{Failure, Hold, KvmOpenError, VcpuError, VcpuEvent},
};

/// Why a guest could not be started.
#[derive(Debug, Error)]
pub enum RunError {
    /// /dev/kvm.
    #[error(transparent)]
    Open(#[from] KvmOpenError),
    /// 5 levels wanted, not to be had.
    #[error("this KVM does not run guests with 5-level paging (LA57): use --paging 4 or auto")]
    NoLa57,
    /// RAM where this host's guests can have none.
    #[error(
        "RAM of node {node} at {base:#x}..{end:#x} is past the {bits} physical address bits of this host (MAXPHYADDR); end it at {limit:#x} or below, or run it on a host with more"
    )]
    PastPhysBits {
        /// The node.
        node: u32,
        /// First byte.
        base: u64,
        /// First byte past the range.
        end: u64,
        /// Width of the host's physical addresses.
        bits: u32,
        /// First address past them.
        limit: u64,
    },
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The kernel.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A DMA engine.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Two devices at one place: a mistake in memvisor.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// KVM refused.
    #[error("{ioctl} failed")]
    Kvm {
        /// The ioctl's name.
        ioctl: &'static str,
        /// KVM's answer.
        source: io::Error,
    },
    /// The event loop.
    #[error("{0}")]
    Loop(String),
    /// The host refused something else.
    #[error("cannot {step}")]
    Host {
        /// What was tried.
        step: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

impl RunError {
    /// The exit code that tells this error.
    pub fn status(&self) -> ExitStatus {
        match self {
            RunError::Open(_) => ExitStatus::NoKvm,
            RunError::NoLa57
            | RunError::PastPhysBits { .. }
            | RunError::Machine(_)
            | RunError::Load(_)
            | RunError::Disk(_)
            | RunError::Dma(_) => ExitStatus::BadInput,
            RunError::Memory(MemoryError::HugePages { .. } | MemoryError::NoPool { .. }) => {
                ExitStatus::BadInput
            }
            _ => ExitStatus::VmmFailed,
        }
    }
}

/// When audits run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditMode {
    /// Only when the guest has ended.
    Final,
    /// At every checkpoint, and when the guest has ended.
    #[default]
    Every,
    /// Never.
    Off,
}

/// A guest to build.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Name under which it is reached.
    pub name: String,
    /// The machine as built; `levels` and `cmdline` are completed by [`Vm::build`].
    pub facts: Facts,
    /// Memory slots.
    pub slots: Vec<RamRegion>,
    /// What the host backs RAM with where the machine says so.
    pub backed: Vec<Backed>,
    /// RAM ranges that a loader may use, `(base, len)`, ascending.
    pub ram: Vec<(u64, u64)>,
    /// What firmware leaves in memory.
    pub firmware: Vec<(u64, Vec<u8>)>,
    /// Address of the RSDP.
    pub rsdp: u64,
    /// Name of the kernel for messages.
    pub kernel_name: String,
    /// The kernel.
    pub kernel: Cow<'static, [u8]>,
    /// The initial ramdisk.
    pub initrd: Option<Vec<u8>>,
    /// The command line.
    pub cmdline: String,
    /// File with names of the kernel's addresses, for messages: an ELF file or a System.map.
    pub symbols: Option<PathBuf>,
    /// Boot protocol.
    pub boot: Boot,
    /// Paging depth.
    pub paging: Paging,
    /// Interrupt controllers.
    pub irqchip: Irqchip,
    /// Where the guest's output goes.
    pub console: ConsoleTarget,
    /// When audits run.
    pub audit: AuditMode,
    /// Disks, in the order of their slots.
    pub disks: Vec<machine::Disk>,
    /// DMA engines, in the slots behind the disks.
    pub dma: Vec<machine::Dma>,
    /// Whether threads are restricted to the system calls that they need.
    pub seccomp: Filters,
}

impl VmConfig {
    /// Everything that `machine` says, with its kernel and ramdisk read.
    ///
    /// # Errors
    /// If a file cannot be read or the machine's tables cannot be built.
    pub fn from_machine(machine: &Machine) -> Result<VmConfig, RunError> {
        let (kernel_name, kernel) = read_kernel(machine.kernel.as_deref())?;
        let initrd = machine.initrd.as_deref().map(read_initrd).transpose()?;
        let acpi = machine::acpi::build(machine)?;
        let slots = machine.slots();
        let is_ram = |slot: &&machine::Slot| matches!(slot.kind, machine::SlotKind::Ram { .. });
        Ok(VmConfig {
            name: machine.vm_name.clone(),
            facts: machine.facts(0),
            slots: slots.iter().map(|slot| RamRegion { gpa: slot.gpa, len: slot.len }).collect(),
            backed: machine.backed.clone(),
            ram: slots.iter().filter(is_ram).map(|slot| (slot.gpa, slot.len)).collect(),
            firmware: acpi.tables.into_iter().map(|table| (table.gpa, table.bytes)).collect(),
            rsdp: acpi.rsdp_gpa,
            kernel_name,
            kernel,
            initrd,
            symbols: machine.kernel.clone(),
            cmdline: machine.cmdline.clone(),
            boot: machine.boot,
            paging: machine.paging,
            irqchip: Irqchip::Auto,
            console: ConsoleTarget::Stdout,
            audit: AuditMode::Every,
            disks: machine.disks.clone(),
            dma: machine.dma.clone(),
            seccomp: Filters::On,
        })
    }
}

/// What the conductor is told.
#[derive(Debug)]
pub enum RunEvent {
    /// By a vCPU.
    Vcpu(VcpuEvent),
    /// Somebody outside wants the end; the words say who.
    Quit(String),
}

/// What to do when the guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// Return.
    Return,
    /// Keep the guest's memory and registers for readers until somebody asks to quit.
    Hold,
}

/// How often the conductor looks whether the console still has a reader.
const CONSOLE_CHECK: Duration = Duration::from_millis(200);

/// What a run has come to, for whoever watches.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A checkpoint is done; its vCPU goes on.
    Checkpoint(&'a CheckpointRecord),
    /// The guest has ended and its final audit is done. A hold may follow.
    End(&'a Outcome),
}

/// Starts the guest and runs it to its end.
pub fn conduct(
    vm: &Vm,
    events: &Receiver<RunEvent>,
    at_end: AtEnd,
    mut watch: impl FnMut(Progress<'_>),
) -> Outcome {
    let started = Instant::now();
    let mut checkpoints = Vec::new();
    vm.start();
    let end = loop {
        let event = match events.recv_timeout(CONSOLE_CHECK) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) if vm.console_closed() => {
                break End::Stopped { by: "the reader of its console, which went away,".into() };
            }
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break End::Stopped { by: "memvisor".into() },
        };
        match event {
            RunEvent::Quit(by) => break End::Stopped { by },
            RunEvent::Vcpu(VcpuEvent::Failed(mut failure)) => {
                vm.explain(&mut failure);
                break End::Failed { failure };
            }
            RunEvent::Vcpu(VcpuEvent::Effect { cpu, effect }) => match effect {
                Effect::PowerOff => break End::PowerOff,
                Effect::Reset => break vm.judge_reset(),
                Effect::Exit(code) => break End::exit(code),
                Effect::Checkpoint { number, name } => {
                    let record = run_checkpoint(vm, cpu, number, name, &mut watch);
                    checkpoints.push(record);
                }
            },
        }
    };
    vm.end();
    vm.console().flush_line();
    // A foreign kernel publishes nothing to audit it by; one that does is audited.
    let publishes = !vm.entry.foreign || vm.device.root_gpa().is_some();
    if end.is_clean() && publishes && vm.audit != AuditMode::Off {
        checkpoints.push(record(None, "end".into(), None, audit(vm)));
    }
    let outcome = Outcome { end, epitaph: vm.device.epitaph(), checkpoints, duration: started.elapsed() };
    watch(Progress::End(&outcome));
    if at_end == AtEnd::Hold && !matches!(outcome.end, End::Stopped { .. }) {
        wait_for_quit(events);
    }
    outcome
}

fn wait_for_quit(events: &Receiver<RunEvent>) {
    while let Ok(event) = events.recv() {
        if let RunEvent::Quit(by) = event {
            tracing::info!("hold ended by {by}");
            return;
        }
    }
}

fn run_checkpoint(
    vm: &Vm,
    cpu: u32,
    number: u32,
    name: String,
    watch: &mut impl FnMut(Progress<'_>),
) -> CheckpointRecord {
    // The vCPU that asked waits for its answer anyway.
    let others = || vm.vcpus().iter().filter(|vcpu| vcpu.index() != cpu);
    others().for_each(|vcpu| vcpu.hold(Hold::Checkpoint));
    vm.hold_devices(Hold::Checkpoint);
    let result = match vm.audit {
        AuditMode::Every => audit(vm),
        AuditMode::Final => Err("audits run at the end only (--audit final)".into()),
        AuditMode::Off => Err("audits are off (--audit off)".into()),
    };
    let found = result.as_ref().is_ok_and(|report| !report.is_clean());
    vm.set_status(if found { Status::Findings } else { Status::Ok });
    let record = record(Some(number), name, Some(cpu), result);
    vm.console().flush_line();
    watch(Progress::Checkpoint(&record));
    vm.release_devices(Hold::Checkpoint);
    others().for_each(|vcpu| vcpu.release(Hold::Checkpoint));
    if let Some(vcpu) = vm.vcpus().iter().find(|vcpu| vcpu.index() == cpu) {
        vcpu.answer();
    }
    record
}

fn record(
    number: Option<u32>,
    name: String,
    cpu: Option<u32>,
    result: Result<AuditReport, String>,
) -> CheckpointRecord {
    let (audit, no_audit) = match result {
        Ok(report) => (Some(report), None),
        Err(reason) => (None, Some(reason)),
    };
    CheckpointRecord { number, name, cpu, audit, no_audit }
}

/// Audits the guest where it stands. All vCPUs are held.
fn audit(vm: &Vm) -> Result<AuditReport, String> {
    let Some(root_gpa) = vm.device.root_gpa() else {
        return Err("the guest announced no root descriptor, so there is nothing to audit it by".into());
    };
    let registers = vm.registers().map_err(|error| error.to_string())?;
    let memory = vm.memory().mapped().map_err(|error| error.to_string())?;
    let report = memvisor_check::audit(&Evidence {
        source: &memory,
        root_gpa: Some(root_gpa),
        facts: Some(&vm.facts),
        registers: &registers,
        moment: Moment::Chosen,
    });
    return_free_memory();
    Ok(report)
}

/// Gives what an audit took back to the host: it took some bytes for every frame of the guest.
fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time; it touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The failure behind an end, for messages.
pub fn failure(end: &End) -> Option<&Failure> {
    match end {
        End::Failed { failure } => Some(failure),
        _ => None,
    }
}
