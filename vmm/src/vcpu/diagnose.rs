//! What is said when a vCPU cannot go on: registers, the instruction, and how its address is mapped.

use std::fmt;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
};
use kvm_ioctls::VcpuFd;
use memvisor_inspect::{CpuRegisters, MemorySource, Symbols, Translation, Walker, views::TranslateView};
use serde::Serialize;

use super::read_registers;
use crate::memory::Memory;

/// Why a vCPU stopped for good.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// CPU index.
    pub cpu: u32,
    /// What happened.
    pub reason: String,
    /// Whether the guest did it (triple fault), rather than this KVM's limits.
    pub guest_fault: bool,
    /// Registers, where KVM gave them.
    pub registers: Option<CpuRegisters>,
    /// Physical address of the instruction; `None` if its address is not mapped.
    pub rip_gpa: Option<u64>,
    /// Bytes at RIP.
    pub instruction: Vec<u8>,
    /// The symbol that RIP is in, if symbols are known.
    pub symbol: Option<String>,
    /// Our own walk of RIP; `None` without paging.
    pub walk: Option<Translation>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Linux: `__START_KERNEL_map`, where an unmoved kernel maps physical address 0.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// Longest x86 instruction, bytes.
const INSTRUCTION_MAX: u64 = 15;

impl Failure {
    /// Describes the vCPU as it is now.
    pub(super) fn describe(
        cpu: u32,
        reason: String,
        guest_fault: bool,
        vcpu: &VcpuFd,
        memory: &Memory,
    ) -> Failure {
        let registers = read_registers(cpu, vcpu).ok();
        let rip = registers.as_ref().map(|registers| registers.rip);
        let translate =
            |va: u64| vcpu.translate_gva(va).ok().filter(|t| t.valid != 0).map(|t| t.physical_address);
        let rip_gpa = rip.and_then(translate);
        let mut instruction = Vec::new();
        for step in 0..INSTRUCTION_MAX {
            let byte = rip.and_then(|rip| rip.checked_add(step)).and_then(translate).and_then(|gpa| {
                let mut byte = [0];
                memory.read(gpa, &mut byte).ok().map(|()| byte[0])
            });
            match byte {
                Some(byte) => instruction.push(byte),
                None => break,
            }
        }
        let walk = registers
            .as_ref()
            .and_then(|registers| Some(Walker::from_registers(registers)?.translate(memory, registers.rip)));
        let (symbol, hint) = (None, None);
        Failure { cpu, reason, guest_fault, registers, rip_gpa, instruction, symbol, walk, hint }
    }

    /// Names RIP by `symbols`. Code that runs where it was loaded, before the kernel maps itself, is
    /// looked for at the address that it will have.
    pub fn name_rip(&mut self, symbols: &Symbols) {
        let rip = self.registers.as_ref().map(|registers| registers.rip);
        let later = self.rip_gpa.and_then(|gpa| START_KERNEL_MAP.checked_add(gpa));
        self.symbol = [rip, later].into_iter().flatten().find_map(|va| Some(symbols.find(va)?.to_string()));
    }

    /// The words for a KVM_INTERNAL_ERROR_* number.
    pub(super) fn suberror(number: u32) -> String {
        match number {
            KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate an instruction".into(),
            KVM_INTERNAL_ERROR_SIMUL_EX => "KVM met an exception while it delivered another".into(),
            KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM cannot deliver an event".into(),
            other => format!("KVM internal error {other}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu {}: {}", self.cpu, self.reason)?;
        let Some(r) = &self.registers else { return write!(f, " (registers cannot be read)") };
        write!(f, "\n  rip {:#018x}", r.rip)?;
        match self.rip_gpa {
            Some(gpa) => write!(f, " -> guest-physical {gpa:#x}, instruction bytes")?,
            None => write!(f, " is not mapped")?,
        }
        for byte in &self.instruction {
            write!(f, " {byte:02x}")?;
        }
        if let Some(symbol) = &self.symbol {
            write!(f, "\n  in {symbol}")?;
        }
        const NAMES: [&str; 16] = [
            "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
            "r14", "r15",
        ];
        for (number, (name, value)) in NAMES.iter().zip(r.gpr).enumerate() {
            let lead = if number.is_multiple_of(4) { "\n " } else { "" };
            write!(f, "{lead} {name:>3} {value:016x}")?;
        }
        write!(
            f,
            "\n  cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            r.cr0, r.cr2, r.cr3, r.cr4, r.efer
        )?;
        write!(f, " rflags {:#x} cs {:#x} ss {:#x}", r.rflags, r.selectors[0], r.selectors[5])?;
        if let Some(walk) = &self.walk {
            write!(f, "\n{}", TranslateView::new(walk.clone(), None).to_string().trim_end())?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nmemvisor: {hint}"),
            None => Ok(()),
        }
    }
}
