//! Whether a guest that stands still does so where nothing is half done.
//!
//! R1  a CPU rests in ring 3, and where its idle task has nothing to do (`CpuTlb::rests`) while interrupts are on: no interrupt runs, and
//!     no lock is held; and where it stands at a checkpoint or ended the guest;
//! R2  a task that is on no CPU rests if it waits for an event, is on its way to ring 3 or has not begun (`TaskInfo::rests`), and not if
//!     it let others run in the middle of something.
//!
//! If all CPUs and all tasks rest, every structure is whole: the guest takes no step that another CPU could see half of without being
//! in ring 0 on some CPU, or off it in the middle of something.

use std::fmt;

use memvisor_abi::{CpuTlb, TaskInfo, TaskState};
use serde::{Deserialize, Serialize};

use super::{Guest, GuestError};
use crate::{CpuRegisters, MemorySource};

/// Somebody who is in the middle of something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Busy {
    /// The CPU, if one is in ring 0 with it.
    pub cpu: Option<u32>,
    /// The task; 0 for idle tasks, and if the guest says nothing of its tasks.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Busy { cpu, pid, name } = self;
        match cpu {
            Some(cpu) if name.is_empty() => write!(f, "CPU {cpu} is in ring 0"),
            Some(cpu) => write!(f, "CPU {cpu} is in ring 0 with task {pid} ({name})"),
            None => write!(f, "task {pid} ({name}) lets others run in the middle of something"),
        }
    }
}

/// Whether a CPU rests, R1. One that has not begun yet does.
pub fn cpu_rests(registers: &CpuRegisters, tlb: Option<&CpuTlb>) -> bool {
    const IF: u64 = 1 << 9;
    let [cs, ..] = registers.selectors;
    registers.levels().is_none()
        || cs & 3 == 3
        || tlb.is_some_and(|tlb| tlb.rests == CpuTlb::CHECKPOINT)
        || registers.rflags & IF != 0 && tlb.is_some_and(|tlb| tlb.rests == CpuTlb::IDLE)
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Whoever keeps the guest from being at rest, CPUs first; nobody if it rests. The guest stands still, with these registers.
    ///
    /// # Errors
    /// [`GuestError`] if the tables of CPUs or tasks cannot be read.
    pub fn busy(&self, registers: &[CpuRegisters]) -> Result<Vec<Busy>, GuestError> {
        let (tasks, tlbs) = (self.tasks()?, self.cpu_tlbs()?);
        let busy = |cpu, task: Option<&TaskInfo>| Busy {
            cpu,
            pid: task.map_or(0, |task| task.pid),
            name: task.map_or(String::new(), |task| {
                let name = task.name.split(|&byte| byte == 0).next().unwrap_or_default();
                String::from_utf8_lossy(name).escape_default().to_string()
            }),
        };
        let tlb = |cpu: u32| tlbs.get(usize::try_from(cpu).unwrap_or(usize::MAX));
        let cpus = registers.iter().filter(|cpu| !cpu_rests(cpu, tlb(cpu.index)));
        let runs = |cpu: u32| {
            let on_it = |task: &&TaskInfo| task.state == TaskState::Running as u32 && task.cpu == cpu;
            tasks.iter().find(on_it)
        };
        let mut all: Vec<Busy> = cpus.map(|cpu| busy(Some(cpu.index), runs(cpu.index))).collect();
        let waits = |task: &&TaskInfo| {
            let off = [TaskState::Runnable as u32, TaskState::Sleeping as u32].contains(&task.state);
            off && task.rests == 0
        };
        all.extend(tasks.iter().filter(waits).map(|task| busy(None, Some(task))));
        Ok(all)
    }
}
