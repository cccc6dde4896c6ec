//! What this host's KVM can do, tried rather than believed.

use std::{fs, io, path::Path, sync::Arc};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuExit};
use memvisor_inspect::{CpuRegisters, RamRegion};
use thiserror::Error;

use super::{Features, build_cpuid, regs};
use crate::memory::Memory;

/// Why /dev/kvm cannot be used. One line that says how to get access.
#[derive(Debug, Error)]
pub enum KvmOpenError {
    /// No such device.
    #[error(
        "no /dev/kvm: turn on virtualization in the firmware and load the module (modprobe kvm-intel or kvm-amd); in a container pass --device /dev/kvm"
    )]
    Missing,
    /// Not permitted.
    #[error(
        "/dev/kvm is there but not permitted: join its group (sudo usermod -aG kvm $USER, then log in again)"
    )]
    NotPermitted,
    /// Another error.
    #[error("cannot open /dev/kvm")]
    Other(#[source] io::Error),
    /// A KVM from before 2007.
    #[error("/dev/kvm speaks API version {0}, 12 is needed")]
    ApiVersion(i32),
    /// A capability that memvisor needs is missing.
    #[error("this KVM lacks {0}: a newer kernel is needed (Linux 5.4 or later)")]
    Lacks(&'static str),
    /// An ioctl that must work did not.
    #[error("{ioctl} failed")]
    Ioctl {
        /// The ioctl's name.
        ioctl: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// Opens /dev/kvm and checks what memvisor cannot do without.
///
/// # Errors
/// [`KvmOpenError`].
pub fn open_kvm() -> Result<Kvm, KvmOpenError> {
    let path = Path::new("/dev/kvm");
    let kvm = Kvm::new().map_err(|errno| match io::Error::from_raw_os_error(errno.errno()) {
        _ if !path.exists() => KvmOpenError::Missing,
        error if error.kind() == io::ErrorKind::PermissionDenied => KvmOpenError::NotPermitted,
        error if error.kind() == io::ErrorKind::NotFound => KvmOpenError::Missing,
        error => KvmOpenError::Other(error),
    })?;
    let version = kvm.get_api_version();
    if version != 12 {
        return Err(KvmOpenError::ApiVersion(version));
    }
    for (cap, name) in [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::MpState, "KVM_CAP_MP_STATE"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmOpenError::Lacks(name));
        }
    }
    Ok(kvm)
}

/// What the host offers to guests.
#[derive(Clone, Debug)]
pub struct HostOffer {
    /// CPUID as KVM_GET_SUPPORTED_CPUID gives it.
    pub cpuid: CpuId,
    /// Whether KVM runs guests at 5 levels. CPUID may promise it where KVM_SET_SREGS refuses, so
    /// a throw-away vCPU is put into that mode. False if nobody wanted to know.
    pub la57: bool,
    /// Whether guests may use 1 GiB pages.
    pub pages_1g: bool,
    /// Whether KVM emulates the TSC-deadline timer.
    pub tsc_deadline: bool,
    /// Bits of the physical addresses that guests may use (MAXPHYADDR).
    pub phys_bits: u32,
}

/// Where CPUID does not tell (SDM 3A 4.1.4).
const PHYS_BITS_DEFAULT: u32 = 36;

impl HostOffer {
    /// Asks KVM. Whether 5 levels work is tried only if `want_la57`: it takes a VM of its own.
    ///
    /// # Errors
    /// If an ioctl fails that must work.
    pub fn probe(kvm: &Kvm, want_la57: bool) -> Result<HostOffer, KvmOpenError> {
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|errno| ioctl("KVM_GET_SUPPORTED_CPUID", errno))?;
        let find = |function: u32| {
            cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == 0).copied()
        };
        let says_la57 = find(7).is_some_and(|leaf| leaf.ecx & 1 << 16 != 0);
        let la57 = want_la57 && says_la57 && accepts_la57(kvm, &cpuid)?;
        if want_la57 && says_la57 && !la57 {
            tracing::info!("CPUID advertises LA57, KVM_SET_SREGS refuses it: 4 levels");
        }
        let pages_1g = find(0x8000_0001).is_some_and(|leaf| leaf.edx & 1 << 26 != 0);
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let phys_bits = find(0x8000_0008).map_or(PHYS_BITS_DEFAULT, |leaf| leaf.eax & 0xff);
        Ok(HostOffer { cpuid, la57, pages_1g, tsc_deadline, phys_bits })
    }
}

/// Whether this KVM interprets the guest's ring 0 instead of running it, which limits the instructions that
/// a kernel may use. Tried: POPCNT, which no KVM emulates, in 64-bit mode. `false` also if that cannot be
/// tried.
pub fn emulates_ring0(kvm: &Kvm) -> bool {
    try_ring0(kvm).inspect_err(|error| tracing::info!("cannot try ring 0: {error}")).unwrap_or(false)
}

fn try_ring0(kvm: &Kvm) -> Result<bool, Box<dyn std::error::Error>> {
    const TABLES: u64 = 0x1000;
    const CODE: u64 = 0x4000;
    /// popcnt eax, eax ; out 0x80, al ; jmp to itself
    const PROGRAM: [u8; 8] = [0xf3, 0x0f, 0xb8, 0xc0, 0xe6, 0x80, 0xeb, 0xfe];
    const PRESENT_WRITE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const ATTEMPTS: u32 = 100;

    // Before the VM, which must go first.
    let memory = Arc::new(Memory::new(&[RamRegion { gpa: 0, len: 0x1_0000 }])?);
    let vm = kvm.create_vm()?;
    memory.attach(&vm)?;
    for (table, entry) in [(0, TABLES + 0x1000), (0x1000, TABLES + 0x2000), (0x2000, LARGE)] {
        memory.write(TABLES + table, &(entry | PRESENT_WRITE).to_le_bytes())?;
    }
    memory.write(CODE, &PROGRAM)?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut sregs = vcpu.get_sregs()?;
    regs::enter_long_mode(&mut sregs, TABLES, 4);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_bindings::kvm_regs { rip: CODE, rflags: 2, ..Default::default() })?;
    for _ in 0..ATTEMPTS {
        match vcpu.run() {
            Ok(VcpuExit::Intr) => {}
            Ok(exit) => return Ok(matches!(exit, VcpuExit::InternalError)),
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(false)
}

/// Puts a throw-away vCPU into long mode with CR4.LA57.
fn accepts_la57(kvm: &Kvm, cpuid: &CpuId) -> Result<bool, KvmOpenError> {
    let vm = kvm.create_vm().map_err(|errno| ioctl("KVM_CREATE_VM", errno))?;
    let vcpu = vm.create_vcpu(0).map_err(|errno| ioctl("KVM_CREATE_VCPU", errno))?;
    let cpuid = build_cpuid(cpuid, 0, 1, Features { la57: true, tsc_deadline: false, one_package: true });
    vcpu.set_cpuid2(&cpuid).map_err(|errno| ioctl("KVM_SET_CPUID2", errno))?;
    let mut sregs = vcpu.get_sregs().map_err(|errno| ioctl("KVM_GET_SREGS", errno))?;
    regs::enter_long_mode(&mut sregs, 0, 5);
    if vcpu.set_sregs(&sregs).is_err() {
        return Ok(false);
    }
    let back = vcpu.get_sregs().map_err(|errno| ioctl("KVM_GET_SREGS", errno))?;
    Ok(back.cr4 & CpuRegisters::CR4_LA57 != 0)
}

/// Levels of the host's second-stage tables: those of EPT, or of the host's own paging with NPT; 0 if
/// KVM shadows guest tables.
pub fn second_stage_levels() -> u32 {
    let on = |path: &str| fs::read_to_string(path).is_ok_and(|text| matches!(text.trim(), "Y" | "1"));
    let host_la57 = || {
        fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
            text.lines()
                .find(|line| line.starts_with("flags"))
                .is_some_and(|line| line.split(' ').any(|flag| flag == "la57"))
        })
    };
    if on("/sys/module/kvm_intel/parameters/ept") {
        4
    } else if on("/sys/module/kvm_amd/parameters/npt") {
        if host_la57() { 5 } else { 4 }
    } else {
        0
    }
}

fn ioctl(ioctl: &'static str, errno: kvm_ioctls::Error) -> KvmOpenError {
    KvmOpenError::Ioctl { ioctl, source: io::Error::from_raw_os_error(errno.errno()) }
}
