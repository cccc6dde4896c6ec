//! A guest with its memory, devices and vCPUs, shared by the run loop and the control socket.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, kvm_mp_state};
use kvm_ioctls::{VcpuFd, VmFd};
use memvisor_abi::port::Status;
use memvisor_inspect::{CpuRegisters, Facts, Symbols};
use serde::{Deserialize, Serialize};

use super::bus::{add_functions, build_bus};
use super::irqchip::{Irqchip, create_irqchip};
use super::settle::{check_phys_bits, choose_levels, complete_cmdline};
use super::{AuditMode, End, RunError, RunEvent, VmConfig};
use crate::{
    devices::{Console, DeviceState, SerialPort, dma::DmaEngine, virtio::Disk},
    loader::{self, Cargo, Entry},
    machine::Paging,
    memory::{Memory, SlotInfo},
    seccomp::Filters,
    vcpu::{
        Failure, Features, Hold, HostOffer, KvmStats, SharedBus, State, Vcpu, VcpuError, build_cpuid,
        emulates_ring0, install_kick_handler, open_kvm, set_boot_registers, set_memory_type,
    },
};

/// Input kept while the serial port is busy; more is dropped.
const TYPED_MAX: usize = 4096;

/// State of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Built, not started.
    Created,
    /// vCPUs run.
    Running,
    /// A person paused it.
    Paused,
    /// It has ended; memory and registers are kept for readers (`--hold`).
    Held,
}

/// A guest.
#[derive(Debug)]
pub struct Vm {
    /// Name under which it is reached.
    pub name: String,
    /// What was built, as handed to the guest.
    pub facts: Facts,
    /// How the first vCPU begins.
    pub entry: Entry,
    /// What the guest told the memvisor device.
    pub device: Arc<DeviceState>,
    /// When audits run.
    pub audit: AuditMode,
    /// Whether its threads are restricted.
    pub seccomp: Filters,
    /// Cycles of the guest's time-stamp counter in a millisecond, where KVM knows.
    pub tsc_khz: Option<u32>,
    console: Arc<Mutex<Console>>,
    serial: Arc<Mutex<SerialPort>>,
    typed: Mutex<Vec<u8>>,
    built: Instant,
    bus: Arc<SharedBus>,
    symbols: Option<PathBuf>,
    started: AtomicBool,
    paused: AtomicBool,
    ended: AtomicBool,
    // Dropped in this order: threads, the VM, its memory (see `Memory::attach`). Interrupts of devices hold the VM and its memory.
    vcpus: Vec<Vcpu>,
    disks: Vec<Arc<Disk>>,
    dma: Vec<Arc<DmaEngine>>,
    /// Of the VM, then of each vCPU.
    stats: Vec<KvmStats>,
    _vm: Arc<VmFd>,
    memory: Arc<Memory>,
}

impl Vm {
    /// Builds the guest up to its first instruction. vCPUs exist and are held.
    ///
    /// # Errors
    /// [`RunError`], which names what the machine or the host lacks.
    pub fn build(config: &VmConfig) -> Result<(Vm, Sender<RunEvent>, Receiver<RunEvent>), RunError> {
        let kvm = open_kvm()?;
        let offer = HostOffer::probe(&kvm, config.paging != Paging::Four)?;
        check_phys_bits(&config.facts, offer.phys_bits)?;
        let levels = choose_levels(config.paging, &offer)?;
        let cmdline = complete_cmdline(&config.cmdline, levels, &offer);
        let vm = Arc::new(kvm.create_vm().map_err(kvm_error("KVM_CREATE_VM"))?);
        let memory = Arc::new(Memory::backed(&config.slots, &config.backed)?);
        memory.attach(&vm)?;
        for (gpa, bytes) in &config.firmware {
            memory.write(*gpa, bytes)?;
        }
        let cargo = Cargo {
            kernel_name: &config.kernel_name,
            kernel: &config.kernel,
            initrd: config.initrd.as_deref(),
            cmdline: &cmdline,
            boot: config.boot,
            e820: &config.facts.e820,
            ram: &config.ram,
            rsdp: config.rsdp,
            levels,
        };
        let entry = loader::load(&memory, &cargo)?;
        loader::return_bundled_kernel();
        let full_irqchip = match config.irqchip {
            Irqchip::Auto => entry.foreign,
            Irqchip::Split => false,
            Irqchip::Full => true,
        };
        let com1_irq = create_irqchip(&vm, full_irqchip)?;

        let console = Arc::new(Mutex::new(Console::new(config.console)));
        let serial = Arc::new(Mutex::new(SerialPort::new(console.clone(), com1_irq)));
        let device = Arc::new(DeviceState::default());
        let mut bus = build_bus(&memory, &console, &serial, &device)?;
        let (disks, dma) = add_functions(&mut bus, config, &vm, &memory)?;
        let bus = Arc::new(bus);
        install_kick_handler()
            .map_err(|source| RunError::Host { step: "install the vCPU signal", source })?;
        let (sender, receiver) = mpsc::channel();
        let mut nodes: Vec<u32> = config.facts.cpus.iter().map(|cpu| cpu.node).collect();
        nodes.dedup();
        let features =
            Features { la57: levels == 5, tsc_deadline: offer.tsc_deadline, one_package: nodes.len() <= 1 };
        let count = u32::try_from(config.facts.cpus.len()).unwrap_or(u32::MAX);
        let mut vcpus = Vec::new();
        let mut stats = Vec::new();
        let mut tsc_khz = None;
        match KvmStats::open(&*vm) {
            Ok(of_vm) => stats.push(of_vm),
            Err(error) => tracing::info!("no KVM statistics: {error}"),
        }
        for (index, cpu) in (0..).zip(&config.facts.cpus) {
            let fd = vm.create_vcpu(u64::from(cpu.apic_id)).map_err(kvm_error("KVM_CREATE_VCPU"))?;
            fd.set_cpuid2(&build_cpuid(&offer.cpuid, cpu.apic_id, count, features))
                .map_err(kvm_error("KVM_SET_CPUID2"))?;
            set_up(&fd, index, &entry)?;
            tsc_khz = tsc_khz.or_else(|| fd.get_tsc_khz().ok().filter(|khz| *khz != 0));
            // Where the VM has none, neither has the vCPU.
            stats.extend(KvmStats::open(&fd));
            let events = sender.clone();
            let report = Box::new(move |event| events.send(RunEvent::Vcpu(event)).is_ok());
            vcpus.push(Vcpu::spawn(index, fd, memory.clone(), bus.clone(), config.seccomp, report)?);
        }
        let facts = Facts { levels, cmdline, ..config.facts.clone() };
        let vm = Vm {
            name: config.name.clone(),
            facts,
            entry,
            device,
            audit: config.audit,
            seccomp: config.seccomp,
            tsc_khz,
            console,
            serial,
            typed: Mutex::default(),
            built: Instant::now(),
            bus,
            symbols: config.symbols.clone(),
            started: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            vcpus,
            disks,
            dma,
            stats,
            _vm: vm,
            memory,
        };
        Ok((vm, sender, receiver))
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Memory slots.
    pub fn slots(&self) -> &[SlotInfo] {
        self.memory.slots()
    }

    /// Read-only descriptors of the slots, in slot order.
    ///
    /// # Errors
    /// As [`Memory::read_only_descriptors`].
    pub fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        self.memory.read_only_descriptors()
    }

    /// The vCPUs, by index.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// The disks, in the order of their slots.
    pub fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    /// The DMA engines, in the order of their slots, behind the disks.
    pub fn dma_engines(&self) -> &[Arc<DmaEngine>] {
        &self.dma
    }

    /// Holds what reaches guest memory by itself; returns when nothing is half done. vCPUs are held before.
    pub fn hold_devices(&self, hold: Hold) {
        self.disks.iter().for_each(|disk| disk.hold(hold as u8));
        self.dma.iter().for_each(|engine| engine.hold(hold as u8));
    }

    /// Ends a hold.
    pub fn release_devices(&self, hold: Hold) {
        self.disks.iter().for_each(|disk| disk.release(hold as u8));
        self.dma.iter().for_each(|engine| engine.release(hold as u8));
    }

    /// KVM's own counters, those of the vCPUs summed up; empty where it has none.
    pub fn kvm_stats(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for stats in &self.stats {
            match stats.read() {
                Ok(values) => {
                    values.into_iter().for_each(|(name, value)| *sums.entry(name).or_default() += value);
                }
                Err(error) => tracing::warn!("KVM statistics: {error}"),
            }
        }
        sums
    }

    /// Accesses that no device answered.
    pub fn unclaimed_accesses(&self) -> u64 {
        self.bus.pio.unclaimed() + self.bus.mmio.unclaimed()
    }

    /// The guest's console.
    pub fn console(&self) -> MutexGuard<'_, Console> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the reader of the console went away. Does not wait for one that is only slow.
    pub fn console_closed(&self) -> bool {
        self.console.try_lock().is_ok_and(|console| console.stream_closed())
    }

    /// Shows what the guest has not ended with a newline yet, unless output is stuck.
    pub fn flush_console(&self) {
        if let Ok(mut console) = self.console.try_lock() {
            console.flush_ready();
        }
    }

    /// The last output; `None` if the guest waits for the reader of its output.
    pub fn console_tail(&self) -> Option<Vec<u8>> {
        // A guest that only prints much lets go between two lines.
        for _ in 0..20 {
            if let Ok(console) = self.console.try_lock() {
                return Some(console.tail());
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Input for the guest's serial port. While the guest waits there for the reader of its output the
    /// input is kept; a later call, even with nothing, delivers it.
    pub fn type_bytes(&self, bytes: &[u8]) {
        let mut typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        let room = TYPED_MAX.saturating_sub(typed.len());
        typed.extend(bytes.iter().take(room));
        if !typed.is_empty()
            && let Ok(mut serial) = self.serial.try_lock()
        {
            serial.type_bytes(&typed);
            typed.clear();
        }
    }

    /// State now. A guest may be paused before it starts; one that has ended stays so.
    pub fn state(&self) -> VmState {
        let is = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        if is(&self.ended) {
            VmState::Held
        } else if is(&self.paused) {
            VmState::Paused
        } else if is(&self.started) {
            VmState::Running
        } else {
            VmState::Created
        }
    }

    /// Time since it was built.
    pub fn uptime(&self) -> Duration {
        self.built.elapsed()
    }

    /// Lets the vCPUs go.
    pub fn start(&self) {
        self.started.store(true, Ordering::Release);
        self.vcpus.iter().for_each(|vcpu| vcpu.release(Hold::Created));
    }

    /// Pauses the guest; returns when it stands still.
    pub fn pause(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.hold(Hold::User));
        self.hold_devices(Hold::User);
        self.paused.store(true, Ordering::Release);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::Release);
        self.release_devices(Hold::User);
        self.vcpus.iter().for_each(|vcpu| vcpu.release(Hold::User));
    }

    /// Stops the guest where it is and keeps it for readers.
    pub fn end(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.hold(Hold::Ended));
        self.hold_devices(Hold::Ended);
        self.ended.store(true, Ordering::Release);
    }

    /// Registers of all vCPUs, by index.
    ///
    /// # Errors
    /// If a vCPU has stopped.
    pub fn registers(&self) -> Result<Vec<CpuRegisters>, VcpuError> {
        self.vcpus.iter().map(Vcpu::registers).collect()
    }

    /// Whether a vCPU is in the middle of running.
    pub fn is_running(&self) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.state() == State::Running)
    }

    /// One line about what keeps a foreign kernel from running well on this host, if anything does. To
    /// find out takes as long as to start a small guest.
    pub fn host_limit(&self) -> Option<&'static str> {
        let limited = self.entry.foreign && open_kvm().is_ok_and(|kvm| emulates_ring0(&kvm));
        limited.then_some(EMULATED_RING0)
    }

    /// Adds to `failure` what is known beyond the vCPU: the symbol, and what to do.
    pub(super) fn explain(&self, failure: &mut Failure) {
        if let Some(path) = &self.symbols {
            match fs::read(path) {
                Ok(bytes) => failure.name_rip(&Symbols::parse(&bytes)),
                Err(error) => tracing::warn!("no symbols from {}: {error}", path.display()),
            }
        }
        failure.hint = self.host_limit().map(str::to_owned);
    }

    /// What a reset means: a foreign kernel ends by it, unless it has just reported its own end.
    pub(super) fn judge_reset(&self) -> End {
        const LINUX_PANIC: &str = "Kernel panic - not syncing";
        let panicked = self.console().transcript().contains(LINUX_PANIC);
        End::Reset { clean: self.entry.foreign && !panicked }
    }

    pub(super) fn set_status(&self, status: Status) {
        self.device.set_status(status);
    }
}

/// One line: why a kernel stops, and what to do.
const EMULATED_RING0: &str = "this KVM emulates ring 0, slowly and without instructions that Linux uses, so Linux does not run on it: use a host with VT-x or AMD-V, or bed nested (docs/linux-guest.md)";

fn set_up(fd: &VcpuFd, index: u32, entry: &Entry) -> Result<(), RunError> {
    set_memory_type(fd);
    if index == 0 {
        return set_boot_registers(fd, entry).map_err(|(ioctl, errno)| kvm_error(ioctl)(errno));
    }
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED })
        .map_err(kvm_error("KVM_SET_MP_STATE"))
}

pub(super) fn kvm_error(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> RunError {
    move |errno| RunError::Kvm { ioctl, source: io::Error::from_raw_os_error(errno.errno()) }
}
