//! Where tasks are in the kernel (bt; crash: `bt -a`, Linux: /proc/PID/stack).

use std::fmt;

use memvisor_abi::{TaskInfo, TaskState};
use serde::Serialize;

use super::stacks::name;
use crate::{CpuRegisters, Guest, GuestError, MemorySource, Place, Symbols};

/// No chain of calls is longer; a longer one is damage, or a circle.
const DEEPEST: usize = 64;
/// Where rbp is in [`CpuRegisters::gpr`].
const RBP: usize = 7;
/// The kernel's half of the address space.
const KERNEL_HALF: u64 = 1 << 63;

/// `inspect bt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BtView {
    /// Tasks in the order of the table: idle tasks first.
    pub tasks: Vec<BtRow>,
}

/// A task and the calls that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BtRow {
    /// Number; 0 for idle tasks.
    pub pid: u32,
    /// Name; of a task of the kernel in brackets.
    pub name: String,
    /// State in words.
    pub state: &'static str,
    /// CPU that it runs on or ran on last.
    pub cpu: u32,
    /// Where it is, innermost call first; empty with a note.
    pub frames: Vec<BtFrame>,
    /// Why there are no frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A place in the kernel: where a CPU is, or where a call returns to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BtFrame {
    /// Address.
    #[serde(serialize_with = "crate::hex")]
    pub address: u64,
    /// The function, and how far in it, if symbols are known.
    pub name: Option<String>,
}

impl BtView {
    /// Follows the frame pointers of all tasks, or of those with the number `pid`. Where a task is that runs is known from its CPU's
    /// registers.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        registers: &[CpuRegisters],
        symbols: &Symbols,
        pid: Option<u32>,
    ) -> Result<BtView, GuestError> {
        let tasks = guest.tasks()?;
        let wanted = tasks.iter().filter(|task| pid.is_none_or(|pid| task.pid == pid));
        Ok(BtView { tasks: wanted.map(|task| row(guest, registers, symbols, task)).collect() })
    }
}

fn row<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    registers: &[CpuRegisters],
    symbols: &Symbols,
    task: &TaskInfo,
) -> BtRow {
    let state = TaskState::from_raw(task.state);
    let at = match state {
        Some(TaskState::Running) => running(registers, task.cpu),
        Some(TaskState::Dead) => Err("it ended".to_owned()),
        _ => asleep(guest, task),
    };
    let (frames, note) = match at {
        Ok((rip, rbp)) => (frames(guest, symbols, rip, rbp), None),
        Err(note) => (Vec::new(), Some(note)),
    };
    let plain = name(task);
    BtRow {
        pid: task.pid,
        name: if task.tgid == 0 { format!("[{plain}]") } else { plain },
        state: state.map_or("undefined", TaskState::name),
        cpu: task.cpu,
        frames,
        note,
    }
}

/// RIP and RBP of whoever runs on `cpu`.
fn running(registers: &[CpuRegisters], cpu: u32) -> Result<(u64, u64), String> {
    let Some(registers) = registers.iter().find(|registers| registers.index == cpu) else {
        return Err(format!("it runs, and registers of CPU {cpu} are not known"));
    };
    if registers.rip & KERNEL_HALF == 0 {
        return Err(format!("in user space, at {:#x}", registers.rip));
    }
    Ok((registers.rip, registers.gpr[RBP]))
}

/// RIP and RBP that it goes on with.
fn asleep<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, task: &TaskInfo) -> Result<(u64, u64), String> {
    let saved = |offset| word(guest, task.rsp.wrapping_add(offset));
    let (rip, rbp) = (saved(TaskInfo::SAVED_RIP), saved(TaskInfo::SAVED_RBP));
    rip.zip(rbp).ok_or_else(|| format!("its stack pointer {:#x} leads nowhere", task.rsp))
}

/// A word of the kernel's memory.
fn word<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, va: u64) -> Option<u64> {
    if va & KERNEL_HALF == 0 || va & 7 != 0 {
        return None;
    }
    let mapped = guest.kernel_walker().lookup(guest.source(), va).ok()?;
    guest.source().read_u64(mapped.gpa).ok()
}

/// The calls of a chain of frame pointers. It leads from an interrupt's stack to the stack of whoever was interrupted, and ends where
/// the kernel was entered.
fn frames<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    symbols: &Symbols,
    rip: u64,
    mut rbp: u64,
) -> Vec<BtFrame> {
    let named = |address, of: u64| BtFrame {
        address,
        name: symbols
            .find(of)
            .map(|place| Place { offset: place.offset + (address - of), ..place }.to_string()),
    };
    let mut frames = vec![named(rip, rip)];
    while frames.len() < DEEPEST {
        let (Some(parent), Some(address)) = (word(guest, rbp), word(guest, rbp.wrapping_add(8))) else {
            break;
        };
        if address & KERNEL_HALF == 0 {
            break;
        }
        // A call that does not return may be its function's last instruction.
        frames.push(named(address, address - 1));
        rbp = parent;
    }
    frames
}

impl fmt::Display for BtView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "where {} tasks are, innermost call first", self.tasks.len())?;
        for task in &self.tasks {
            write!(f, "{:>5} {:<16} {} on CPU {}", task.pid, task.name, task.state, task.cpu)?;
            match &task.note {
                Some(note) => writeln!(f, ": {note}")?,
                None => writeln!(f)?,
            }
            for frame in &task.frames {
                let name = frame.name.as_deref().unwrap_or("");
                writeln!(f, "{}", format!("        {:016x}  {name}", frame.address).trim_end())?;
            }
        }
        Ok(())
    }
}
