//! CPUs as the guest sees them.

use std::fmt;

use memvisor_abi::CpuState;
use serde::Serialize;

use super::node_name;
use crate::{Facts, Guest, GuestError, MemorySource};

/// `inspect cpus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpusView {
    /// CPUs by number.
    pub cpus: Vec<CpuRow>,
    /// CPUs that the VMM built; `None` without its facts.
    pub built: Option<usize>,
}

/// A CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpuRow {
    /// Number.
    pub index: u32,
    /// Local APIC id.
    pub apic_id: u32,
    /// Node; [`memvisor_abi::NODE_NONE`] if unknown.
    pub node: u32,
    /// State in words.
    pub state: &'static str,
    /// Guest-physical base of the per-CPU area; 0 if none.
    #[serde(serialize_with = "crate::hex")]
    pub percpu_gpa: u64,
    /// Length of the per-CPU area in bytes.
    pub percpu_len: u64,
}

impl CpusView {
    /// Reads the table.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        facts: Option<&Facts>,
    ) -> Result<CpusView, GuestError> {
        let cpus = (0..)
            .zip(guest.cpus()?)
            .map(|(index, cpu)| CpuRow {
                index,
                apic_id: cpu.apic_id,
                node: cpu.node,
                state: state_name(cpu.state),
                percpu_gpa: cpu.percpu_gpa,
                percpu_len: cpu.percpu_len,
            })
            .collect();
        Ok(CpusView { cpus, built: facts.map(|facts| facts.cpus.len()) })
    }
}

const fn state_name(raw: u32) -> &'static str {
    match raw {
        _ if raw == CpuState::Present as u32 => "present",
        _ if raw == CpuState::Starting as u32 => "starting",
        _ if raw == CpuState::Online as u32 => "online",
        _ if raw == CpuState::Failed as u32 => "failed",
        _ => "undefined",
    }
}

impl fmt::Display for CpusView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let online = self.cpus.iter().filter(|cpu| cpu.state == "online").count();
        write!(f, "CPUs: {online} online of {} found by the guest", self.cpus.len())?;
        if let Some(built) = self.built {
            write!(f, ", {built} built")?;
        }
        writeln!(f, "\n cpu  apic  node  state       per-CPU area")?;
        for cpu in &self.cpus {
            let node = node_name(cpu.node);
            write!(f, "{:>4} {:>5} {node:>5}  {:<10}  ", cpu.index, cpu.apic_id, cpu.state)?;
            if cpu.percpu_gpa == 0 {
                writeln!(f, "none")?;
            } else {
                writeln!(f, "{:#x}, {} KiB", cpu.percpu_gpa, cpu.percpu_len >> 10)?;
            }
        }
        Ok(())
    }
}
