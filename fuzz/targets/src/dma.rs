//! A driver of a DMA engine that does anything.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use memvisor::{
    devices::{
        dma::{DmaEngine, DmaFunction, Started},
        pci::Function,
        virtio::Msix,
    },
    memory::Memory,
    seccomp::Filters,
};
use memvisor_abi::dma::{BAR_BYTES, Command, Mode, Register, control};
use memvisor_inspect::{MemorySource, RamRegion};

use crate::Input;

const RAM: u64 = 0x1_0000;
/// Memory that is no RAM of a node, where firmware's tables would be.
const FIRMWARE: RamRegion = RamRegion { gpa: 0xe_0000, len: 0x1000 };

/// Accesses to the registers of an engine, and transfers as an honest driver begins them, while the engine's thread works. Nothing but RAM is
/// written, whatever they are.
pub fn dma_engine(data: &[u8]) {
    let mut input = Input::new(data);
    let bits = [24, 32, 64][usize::from(input.u8() % 3)];
    let memory =
        Arc::new(Memory::new(&[RamRegion { gpa: 0, len: RAM }, FIRMWARE]).expect("two small memfds"));
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let msix = Msix::new(Arc::new(move |_: u64, _: u32| {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    let engine = DmaEngine::start((0, bits), memory.clone(), &[(0, RAM)], msix.clone(), Filters::Off);
    let engine = Arc::new(engine.expect("a thread"));
    let mut function = DmaFunction::new(engine.clone(), msix, 0xc010_0000);
    let mut wide = [0; 8];
    while !input.is_empty() {
        let op = input.u8();
        let len = 1_usize << (op >> 6);
        match op & 7 {
            0 => function.bar_read(u64::from(input.u16()) % u64::from(BAR_BYTES), &mut wide[..len]),
            1 => function.bar_write(u64::from(input.u16()) % u64::from(BAR_BYTES), input.bytes(len)),
            2 => function.config_write(usize::from(input.u8()).min(256 - len), input.bytes(len)),
            3 => function.config_read(usize::from(input.u8()).min(256 - len), &mut wide[..len]),
            4 => {
                let register = Register::ALL[usize::from(input.u8()) % Register::ALL.len()];
                function.bar_write(register as u64, input.bytes(8));
            }
            5 | 6 => transfer(&mut function, &mut input),
            _ => {
                engine.hold(1);
                engine.release(1);
            }
        }
    }
    let stop = (Command::Stop as u64).to_le_bytes();
    function.bar_write(Register::Command as u64, &stop);
    let stats = engine.stats();
    assert!(engine.is_alive() && !stats.active, "{stats:?}");
    let counters = stats.counters;
    let Started { single, block, burst, cycle_stealing } = counters.started;
    let begun = single + block + burst + cycle_stealing;
    // What a reset ends is neither done nor stopped.
    assert!(counters.done + counters.stopped <= begun && counters.units <= counters.bytes, "{stats:?}");
    // A message waits until its vector may send it, and unmasking sends at most what waits.
    assert!(sent.load(Ordering::Relaxed) <= counters.interrupts + 2 * data.len() as u64, "{stats:?}");
    let mut firmware = [0; 0x1000];
    memory.read(FIRMWARE.gpa, &mut firmware).expect("memory");
    assert!(firmware.iter().all(|byte| *byte == 0), "memory that is no RAM was written");
}

/// A transfer that mostly makes sense.
fn transfer(function: &mut DmaFunction, input: &mut Input<'_>) {
    // The function may use the bus.
    function.config_write(4, &[6, 0]);
    let choice = input.u8();
    let mode = u64::from(choice & 3);
    let sides = u64::from(choice >> 2 & 3) * control::SOURCE_IS_OWN;
    let far = if choice & 0x80 != 0 { 0xd_8000 } else { 0 };
    // Two steps of a transfer with pauses are enough of one.
    let is_slow = mode >= Mode::Burst as u64;
    let pause = if is_slow { u64::from(choice >> 4 & 1) } else { 0 };
    for (register, value) in [
        (Register::Source, u64::from(input.u16()) + far),
        (Register::Destination, u64::from(input.u16()) + far),
        (Register::Length, u64::from(input.u16())),
        (Register::Unit, u64::from(input.u8()) * 17),
        (Register::Burst, u64::from(input.u8())),
        (Register::Pause, pause),
        (Register::Control, mode | sides),
        (Register::Command, Command::Start as u64),
    ] {
        function.bar_write(register as u64, &value.to_le_bytes());
    }
}
