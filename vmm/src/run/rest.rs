//! Stopping a guest where nothing is half done (`memvisor_inspect::Guest::busy`).
//!
//! All CPUs are held. Those that rest stay so, while the others run for a moment at a time until they rest, too: with a pause of all at
//! once, a guest that is in ring 0 nine tenths of its time on each of four CPUs would be met at rest once in ten thousand times. Who
//! runs may wait for a CPU that is held, for a flush of its TLB say, and tasks may rest only after a CPU ran them; so all run again
//! after a while, and the round begins anew.

use std::thread;
use std::time::{Duration, Instant};

use memvisor_inspect::{Busy, CpuRegisters, Guest, GuestError, MapError, MappedMemory};
use thiserror::Error;

use super::Vm;
use crate::vcpu::{Hold, VcpuError};

/// How long it is tried.
pub const LIMIT: Duration = Duration::from_secs(3);
/// A round, in which CPUs that rest are held.
const ROUND: Duration = Duration::from_millis(60);
/// What CPUs get to run between two looks: the shortest time, and by how much it may be longer, so that no rhythm of the guest is met
/// at the same place again and again.
const STEP: (Duration, u32) = (Duration::from_micros(40), 7);
/// What all get between two rounds.
const PAUSE: Duration = Duration::from_millis(4);

/// Why nobody can say whether a guest rests.
#[derive(Debug, Error)]
pub enum RestError {
    /// A CPU's registers.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The guest's memory.
    #[error("cannot read guest memory")]
    Memory(#[from] MapError),
    /// The guest has not said where its structures are, or is none of memvisor's.
    #[error("the guest announced no root descriptor, so nobody knows whether it rests")]
    NoRoot,
    /// What the guest says of tasks or CPUs cannot be read.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// Pauses a running guest at rest, or after [`LIMIT`] where it is. Returns who is in the middle of something: nobody, if it rests. It
/// stands still afterwards, also after an error.
///
/// # Errors
/// [`RestError`].
pub fn pause_at_rest(vm: &Vm) -> Result<Vec<Busy>, RestError> {
    vm.pause();
    let memory = vm.memory().mapped()?;
    let deadline = Instant::now() + LIMIT;
    let mut turn = 0;
    loop {
        let busy = one_round(vm, &memory, &mut turn)?;
        if busy.is_empty() || Instant::now() >= deadline {
            return Ok(busy);
        }
        // Who waits for a disk rests only after the disk has answered.
        vm.release_devices(Hold::User);
        vm.vcpus().iter().for_each(|vcpu| vcpu.release(Hold::User));
        thread::sleep(PAUSE);
        vm.vcpus().iter().for_each(|vcpu| vcpu.hold(Hold::User));
        vm.hold_devices(Hold::User);
    }
}

/// Holds CPUs one after the other as they come to rest. All are held before and after.
fn one_round(vm: &Vm, memory: &MappedMemory, turn: &mut u32) -> Result<Vec<Busy>, RestError> {
    let end = Instant::now() + ROUND;
    loop {
        let busy = look(vm, memory)?;
        let running: Vec<u32> = busy.iter().filter_map(|busy| busy.cpu).collect();
        // Tasks that let others run need CPUs, and nobody knows which.
        if running.is_empty() || Instant::now() >= end {
            return Ok(busy);
        }
        let running: Vec<_> = vm.vcpus().iter().filter(|vcpu| running.contains(&vcpu.index())).collect();
        running.iter().for_each(|vcpu| vcpu.release(Hold::User));
        *turn = turn.wrapping_add(1);
        thread::sleep(STEP.0 * (1 + *turn % STEP.1));
        running.iter().for_each(|vcpu| vcpu.hold(Hold::User));
    }
}

/// Who is in the middle of something, now that all stand still.
pub fn look(vm: &Vm, memory: &MappedMemory) -> Result<Vec<Busy>, RestError> {
    let root = vm.device.root_gpa().ok_or(RestError::NoRoot)?;
    let registers: Vec<CpuRegisters> = vm.registers()?;
    // A root that was announced is one; if the guest broke it since, nobody knows.
    let guest = Guest::attach(memory, root).map_err(|_| RestError::NoRoot)?;
    Ok(guest.busy(&registers)?)
}
