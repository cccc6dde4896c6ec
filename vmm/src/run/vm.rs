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

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MP_STATE_UNINITIALIZED, KVM_PIT_SPEAKER_DUMMY,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_mp_state,
    kvm_msi, kvm_pit_config,
};
use kvm_ioctls::{VcpuFd, VmFd};
use memvisor_abi::port::{self, Status};
use memvisor_inspect::{CpuRegisters, FactNodeMemory, Facts};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{AuditMode, End, RunError, RunEvent, VmConfig};
use crate::{
    devices::{
        AcpiPm, BusError, COM1_IRQ, Cmos, Console, DeviceState, I8042, MemvisorDevice, SerialPort,
        pci::{Function, PciPorts, PciRoot, PciWindow},
        virtio::{BAR_BYTES, Disk, Msix, SignalMsi, VirtioPci},
    },
    loader::{self, Cargo, Entry},
    machine::{Paging, layout},
    memory::{Memory, SlotInfo},
    seccomp::Filters,
    vcpu::{
        Failure, Features, Hold, HostOffer, KvmStats, SharedBus, State, Symbols, Vcpu, VcpuError,
        build_cpuid, emulates_ring0, install_kick_handler, open_kvm, set_boot_registers, set_memory_type,
    },
};

/// Interrupt controllers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// Split for our own kernel, full for a foreign one.
    #[default]
    Auto,
    /// Local APICs in KVM, nothing else: faster to make, and all that our own guest uses.
    Split,
    /// PIC, I/O APIC and PIT in KVM too.
    Full,
}

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
    // Dropped in this order: threads, the VM, its memory (see `Memory::attach`). Interrupts of disks hold the VM and its memory.
    vcpus: Vec<Vcpu>,
    disks: Vec<Arc<Disk>>,
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
        let disks = add_disks(&mut bus, config, &vm, &memory)?;
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
        self.disks.iter().for_each(|disk| disk.hold(Hold::User as u8));
        self.paused.store(true, Ordering::Release);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::Release);
        self.disks.iter().for_each(|disk| disk.release(Hold::User as u8));
        self.vcpus.iter().for_each(|vcpu| vcpu.release(Hold::User));
    }

    /// Stops the guest where it is and keeps it for readers.
    pub fn end(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.hold(Hold::Ended));
        self.disks.iter().for_each(|disk| disk.hold(Hold::Ended as u8));
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

/// Refuses RAM that KVM could give no slot, or that guests could not address.
fn check_phys_bits(facts: &Facts, bits: u32) -> Result<(), RunError> {
    let limit = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
    let past = |memory: &&FactNodeMemory| memory.base.saturating_add(memory.len) > limit;
    facts.node_memory.iter().find(past).map_or(Ok(()), |memory| {
        let end = memory.base.saturating_add(memory.len);
        Err(RunError::PastPhysBits { node: memory.node, base: memory.base, end, bits, limit })
    })
}

fn choose_levels(paging: Paging, offer: &HostOffer) -> Result<u32, RunError> {
    match (paging, offer.la57) {
        (Paging::Five, false) => Err(RunError::NoLa57),
        (Paging::Five | Paging::Auto, true) => Ok(5),
        (Paging::Four, _) | (Paging::Auto, false) => Ok(4),
    }
}

/// What the guest cannot learn from CPUID on every host is told on the command line.
fn complete_cmdline(cmdline: &str, levels: u32, offer: &HostOffer) -> String {
    let mut words: Vec<&str> = cmdline.split_whitespace().collect();
    for (word, wanted) in [("no5lvl", levels == 4), ("nogbpages", !offer.pages_1g)] {
        if wanted && !words.contains(&word) {
            words.push(word);
        }
    }
    words.join(" ")
}

/// Makes the interrupt controller; the line of COM1 if there is one that takes it.
fn create_irqchip(vm: &VmFd, full: bool) -> Result<Option<EventFd>, RunError> {
    // Intel processors without unrestricted guests need both; others ignore them.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
    let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
    vm.set_tss_address(tss).map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
    let line = match full {
        false => {
            let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
            cap.args[0] = 24;
            vm.enable_cap(&cap).map_err(kvm_error("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
            None
        }
        true => {
            vm.create_irq_chip().map_err(kvm_error("KVM_CREATE_IRQCHIP"))?;
            vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })
                .map_err(kvm_error("KVM_CREATE_PIT2"))?;
            let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(|source| RunError::Host { step: "create an eventfd", source })?;
            vm.register_irqfd(&line, COM1_IRQ).map_err(kvm_error("KVM_IRQFD"))?;
            Some(line)
        }
    };
    // APIC ids above 254 need it; older KVMs that lack it have machines with fewer CPUs.
    let mut x2apic = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
    x2apic.args[0] = u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
    if let Err(errno) = vm.enable_cap(&x2apic) {
        tracing::info!("KVM_CAP_X2APIC_API: {errno}");
    }
    Ok(line)
}

/// The buses with every device of a machine.
///
/// # Errors
/// [`BusError`]: two devices at one place, a mistake in memvisor.
pub fn build_bus(
    memory: &Arc<Memory>,
    console: &Arc<Mutex<Console>>,
    serial: &Arc<Mutex<SerialPort>>,
    device: &Arc<DeviceState>,
) -> Result<SharedBus, BusError> {
    let mut bus = SharedBus::default();
    bus.pio.insert("com1", layout::COM1.into(), layout::COM1_LEN.into(), serial.clone())?;
    let i8042_len = u64::from(layout::I8042_COMMAND - layout::I8042_DATA) + 1;
    bus.pio.insert("i8042", layout::I8042_DATA.into(), i8042_len, Arc::new(Mutex::new(I8042::default())))?;
    bus.pio.insert(
        "acpi-pm",
        layout::PM1A_EVT.into(),
        AcpiPm::LEN,
        Arc::new(Mutex::new(AcpiPm::default())),
    )?;
    bus.pio.insert("cmos", layout::CMOS_INDEX.into(), Cmos::LEN, Arc::new(Mutex::new(Cmos::default())))?;
    let memvisor = MemvisorDevice::new(memory.clone(), console.clone(), device.clone());
    bus.pio.insert("memvisor", port::BASE.into(), port::LEN.into(), Arc::new(Mutex::new(memvisor)))?;
    Ok(bus)
}

/// Sends messages through KVM. Holds the memory of the VM that it holds.
struct KvmMsi {
    vm: Arc<VmFd>,
    _memory: Arc<Memory>,
}

impl SignalMsi for KvmMsi {
    fn signal(&self, address: u64, data: u32) {
        let (address_lo, address_hi) = halves(address);
        let msi = kvm_msi { address_lo, address_hi, data, ..kvm_msi::default() };
        // KVM says 0 to a message that no local APIC takes, as a bus would.
        if let Err(errno) = self.vm.signal_msi(msi) {
            tracing::warn!("KVM_SIGNAL_MSI({address:#x}, {data:#x}): {errno}");
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of 64 bits")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// Opens the disks and puts them on a PCI bus, which is there only if they are.
fn add_disks(
    bus: &mut SharedBus,
    config: &VmConfig,
    vm: &Arc<VmFd>,
    memory: &Arc<Memory>,
) -> Result<Vec<Arc<Disk>>, RunError> {
    let to: Arc<dyn SignalMsi> = Arc::new(KvmMsi { vm: vm.clone(), _memory: memory.clone() });
    let mut disks = Vec::new();
    let mut functions: Vec<Box<dyn Function>> = Vec::new();
    for (spec, base) in config.disks.iter().zip((layout::DISK_BARS..).step_by(BAR_BYTES as usize)) {
        let msix = Msix::new(to.clone());
        let disk = Arc::new(Disk::start(spec, memory.clone(), msix.clone(), config.seccomp)?);
        functions.push(Box::new(VirtioPci::new(disk.clone(), memory.clone(), msix, base)));
        disks.push(disk);
    }
    add_pci(bus, functions)?;
    Ok(disks)
}

/// Puts `functions` on a PCI bus, unless there are none.
///
/// # Errors
/// [`BusError`]: another device is there.
pub fn add_pci(bus: &mut SharedBus, functions: Vec<Box<dyn Function>>) -> Result<(), BusError> {
    if functions.is_empty() {
        return Ok(());
    }
    let root = Arc::new(Mutex::new(PciRoot::new(functions)));
    let (base, len) = (layout::PCI_WINDOW, layout::PCI_WINDOW_END - layout::PCI_WINDOW);
    bus.pio.insert("pci", PciPorts::BASE, PciPorts::LEN, Arc::new(Mutex::new(PciPorts(root.clone()))))?;
    bus.mmio.insert("pci-window", base, len, Arc::new(Mutex::new(PciWindow { root, base })))
}

fn set_up(fd: &VcpuFd, index: u32, entry: &Entry) -> Result<(), RunError> {
    set_memory_type(fd);
    if index == 0 {
        return set_boot_registers(fd, entry).map_err(|(ioctl, errno)| kvm_error(ioctl)(errno));
    }
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED })
        .map_err(kvm_error("KVM_SET_MP_STATE"))
}

fn kvm_error(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> RunError {
    move |errno| RunError::Kvm { ioctl, source: io::Error::from_raw_os_error(errno.errno()) }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::CpuId;

    use super::*;

    fn offer(la57: bool, pages_1g: bool) -> HostOffer {
        let cpuid = CpuId::new(1).expect("one entry");
        HostOffer { cpuid, la57, pages_1g, tsc_deadline: true, phys_bits: 46 }
    }

    #[test]
    fn five_levels_are_refused_where_kvm_refuses_and_auto_takes_what_there_is() {
        assert!(matches!(choose_levels(Paging::Five, &offer(false, true)), Err(RunError::NoLa57)));
        assert_eq!(choose_levels(Paging::Auto, &offer(false, true)).expect("4"), 4);
        assert_eq!(choose_levels(Paging::Auto, &offer(true, true)).expect("5"), 5);
        assert_eq!(choose_levels(Paging::Four, &offer(true, true)).expect("4"), 4);
    }

    #[test]
    fn the_command_line_says_what_cpuid_may_not() {
        assert_eq!(complete_cmdline("a  b", 4, &offer(true, false)), "a b no5lvl nogbpages");
        assert_eq!(complete_cmdline("no5lvl", 4, &offer(false, true)), "no5lvl");
        assert_eq!(complete_cmdline("", 5, &offer(true, true)), "");
    }
}
