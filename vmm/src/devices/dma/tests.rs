//! The engine against a simple model, and the function around it.
#![expect(clippy::cast_possible_truncation, reason = "64-bit hosts; patterns of bytes")]

use std::{
    cell::RefCell,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use memvisor_abi::dma::{
    self, BAR_BYTES, Command, Error, LENGTH_MAX, MSIX_TABLE, Mode, OWN_BYTES, Register, control, event,
    status,
};
use memvisor_inspect::{MemorySource, RamRegion};
use proptest::prelude::*;

use super::{DmaBus, DmaEngine, DmaFunction, Engine, Started};
use crate::{devices::pci::Function, devices::virtio::Msix, memory::Memory, seccomp::Filters};

/// RAM at two places, one of them next to where 24 bits end.
struct TestBus(RefCell<[Vec<u8>; 2]>);

const BASES: [u64; 2] = [0, 0xff_f000];
const SIZES: [u64; 2] = [0x4000, 0x2000];

impl TestBus {
    fn new() -> TestBus {
        let fill = |seed: u8, len: u64| (0..len).map(|at| (at % 251) as u8 ^ seed).collect();
        TestBus(RefCell::new([fill(0x35, SIZES[0]), fill(0xc8, SIZES[1])]))
    }

    fn place(&self, addr: u64, len: u64) -> Option<(usize, usize)> {
        (0..2).find_map(|region| {
            let at = addr.checked_sub(BASES[region])?;
            (at.checked_add(len)? <= SIZES[region]).then_some((region, at as usize))
        })
    }

    fn bytes(&self) -> [Vec<u8>; 2] {
        self.0.borrow().clone()
    }
}

impl DmaBus for TestBus {
    fn is_ram(&self, addr: u64, len: u64) -> bool {
        self.place(addr, len).is_some()
    }

    fn read(&self, addr: u64, bytes: &mut [u8]) -> bool {
        let Some((region, at)) = self.place(addr, bytes.len() as u64) else { return false };
        bytes.copy_from_slice(&self.0.borrow()[region][at..at + bytes.len()]);
        true
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> bool {
        let Some((region, at)) = self.place(addr, bytes.len() as u64) else { return false };
        self.0.borrow_mut()[region][at..at + bytes.len()].copy_from_slice(bytes);
        true
    }
}

#[derive(Clone, Copy, Debug)]
struct Request {
    source: u64,
    destination: u64,
    length: u64,
    unit: u64,
    burst: u64,
    control: u64,
}

fn set(engine: &mut Engine, bus: &TestBus, register: Register, value: u64) {
    engine.write(register, value, u64::MAX, bus, true);
}

fn prepare(engine: &mut Engine, bus: &TestBus, request: &Request) {
    for (register, value) in [
        (Register::Source, request.source),
        (Register::Destination, request.destination),
        (Register::Length, request.length),
        (Register::Unit, request.unit),
        (Register::Burst, request.burst),
        (Register::Control, request.control),
    ] {
        set(engine, bus, register, value);
    }
}

const TO_OWN: u64 = control::DESTINATION_IS_OWN;
const FROM_OWN: u64 = control::SOURCE_IS_OWN;

fn request(mode: Mode, sides: u64, source: u64, destination: u64, length: u64) -> Request {
    Request { source, destination, length, unit: 256, burst: 2, control: mode as u64 | sides }
}

fn start(engine: &mut Engine, bus: &TestBus, request: &Request) {
    prepare(engine, bus, request);
    set(engine, bus, Register::Command, Command::Start as u64);
}

#[test]
fn a_block_moves_at_once_and_comes_back() {
    let (mut engine, bus) = (Engine::new(32), TestBus::new());
    start(&mut engine, &bus, &request(Mode::Block, TO_OWN, 0x123, 0x1000, 1000));
    assert_eq!((engine.read(Register::Status), engine.read(Register::Progress)), (status::DONE, 1000));
    start(&mut engine, &bus, &request(Mode::Block, FROM_OWN, 0x1000, 0x2001, 1000));
    let [low, _] = bus.bytes();
    assert_eq!(low[0x123..0x123 + 1000], low[0x2001..0x2001 + 1000]);
    assert_eq!(engine.counters().bytes, 2000);
    assert_eq!(engine.counters().units, 8);
}

#[test]
fn a_single_transfer_moves_a_unit_for_each_start() {
    let (mut engine, bus) = (Engine::new(64), TestBus::new());
    set(&mut engine, &bus, Register::InterruptEnable, event::ALL);
    let request = request(Mode::Single, TO_OWN, 0, 0, 600);
    start(&mut engine, &bus, &request);
    for (progress, flags, happened) in [
        (256, status::ACTIVE, event::UNIT),
        (512, status::ACTIVE, event::UNIT),
        (600, status::DONE, event::DONE),
    ] {
        assert_eq!(engine.read(Register::Progress), progress);
        assert_eq!(engine.read(Register::Status), flags);
        assert_eq!(engine.read(Register::InterruptStatus), happened);
        assert!(engine.take_message());
        set(&mut engine, &bus, Register::InterruptStatus, happened);
        // The next one begins where the last one ended, whatever is written to the setup meanwhile.
        if progress < 600 {
            set(&mut engine, &bus, Register::Source, 0xdead_0000);
            set(&mut engine, &bus, Register::Length, 1);
            set(&mut engine, &bus, Register::Command, Command::Start as u64);
        }
    }
    assert_eq!(engine.counters().started, Started { single: 1, ..Started::default() });
}

#[test]
fn bursts_and_stolen_cycles_go_on_step_by_step() {
    for (mode, per_step) in [(Mode::Burst, 512), (Mode::CycleStealing, 256)] {
        let (mut engine, bus) = (Engine::new(32), TestBus::new());
        start(&mut engine, &bus, &request(mode, TO_OWN, 0, 0, 1100));
        assert_eq!((engine.read(Register::Progress), engine.background()), (0, Some(1)));
        let mut steps = 0;
        while engine.background().is_some() {
            engine.step(&bus);
            steps += 1;
            assert_eq!(engine.read(Register::Progress), (steps * per_step).min(1100));
        }
        assert_eq!(engine.read(Register::Status), status::DONE);
    }
}

#[test]
fn a_stop_ends_a_transfer_between_two_units() {
    let (mut engine, bus) = (Engine::new(32), TestBus::new());
    start(&mut engine, &bus, &request(Mode::CycleStealing, TO_OWN, 0, 0, 1000));
    engine.step(&bus);
    set(&mut engine, &bus, Register::Command, Command::Stop as u64);
    assert_eq!((engine.read(Register::Status), engine.read(Register::Progress)), (status::STOPPED, 256));
    engine.step(&bus);
    assert_eq!(engine.read(Register::Progress), 256);
    assert_eq!(engine.counters().stopped, 1);
}

#[test]
fn each_refusal_says_why_and_moves_nothing() {
    let block = |sides, source, destination, length| request(Mode::Block, sides, source, destination, length);
    let odd = |change: fn(&mut Request)| {
        let mut request = block(TO_OWN, 0, 0, 16);
        change(&mut request);
        request
    };
    let cases = [
        // 24 bits end inside the second region.
        (24, block(TO_OWN, 0xff_fff0, 0, 17), Error::BeyondMask, 0xff_fff0),
        (24, block(FROM_OWN, 0, 0x100_0000, 16), Error::BeyondMask, 0x100_0000),
        (32, block(TO_OWN, 0xffff_fff8, 0, 16), Error::BeyondMask, 0xffff_fff8),
        (32, block(TO_OWN, 1 << 32, 0, 16), Error::BeyondMask, 1 << 32),
        (64, block(TO_OWN, u64::MAX - 3, 0, 16), Error::BeyondMask, u64::MAX - 3),
        (64, block(TO_OWN, 1 << 32, 0, 16), Error::NoRam, 1 << 32),
        (64, block(TO_OWN, 0x3ff8, 0, 16), Error::NoRam, 0x3ff8),
        (64, block(0, 0, 0x4000, 16), Error::NoRam, 0x4000),
        (32, block(TO_OWN, 0, 0, 0), Error::Length, 0),
        (32, block(0, 0, 0x2000, LENGTH_MAX + 1), Error::Length, 0),
        (32, block(TO_OWN, 0, OWN_BYTES - 8, 16), Error::Length, OWN_BYTES - 8),
        (32, block(FROM_OWN, u64::MAX, 0, 16), Error::Length, u64::MAX),
        (32, odd(|request| request.unit = 0), Error::Setup, 0),
        (32, odd(|request| request.unit = 4097), Error::Setup, 0),
        (32, odd(|request| request.control |= 4), Error::Setup, 0),
        (32, odd(|request| request.control |= 1 << 40), Error::Setup, 0),
        (
            32,
            odd(|request| (request.control, request.burst) = (Mode::Burst as u64 | TO_OWN, 0)),
            Error::Setup,
            0,
        ),
    ];
    for (bits, request, error, address) in cases {
        let (mut engine, bus) = (Engine::new(bits), TestBus::new());
        set(&mut engine, &bus, Register::InterruptEnable, event::ERROR);
        start(&mut engine, &bus, &request);
        assert_eq!(engine.read(Register::Error), error as u64, "{request:x?}");
        assert_eq!(engine.read(Register::ErrorAddress), address, "{request:x?}");
        assert_eq!(engine.read(Register::Status), status::ERROR);
        assert!(engine.take_message() && !engine.is_active());
        assert_eq!(engine.counters().bytes, 0);
        assert_eq!(bus.bytes(), TestBus::new().bytes());
    }
    // What ends with the mask is not beyond it.
    let (mut engine, bus) = (Engine::new(24), TestBus::new());
    start(&mut engine, &bus, &block(TO_OWN, 0xff_fff0, 0, 16));
    assert_eq!(engine.read(Register::Status), status::DONE);
    // A function that may not use the bus moves nothing.
    prepare(&mut engine, &bus, &block(TO_OWN, 0, 0, 16));
    engine.write(Register::Command, Command::Start as u64, u64::MAX, &bus, false);
    assert_eq!(engine.read(Register::Error), Error::NotMaster as u64);
}

#[test]
fn a_reset_keeps_the_engines_memory_only() {
    let (mut engine, bus) = (Engine::new(32), TestBus::new());
    set(&mut engine, &bus, Register::InterruptEnable, event::ALL);
    start(&mut engine, &bus, &request(Mode::Block, TO_OWN, 0, 0, 64));
    start(&mut engine, &bus, &request(Mode::CycleStealing, TO_OWN, 0, 0, 4000));
    set(&mut engine, &bus, Register::Command, Command::Reset as u64);
    for register in Register::ALL.into_iter().skip(2) {
        assert_eq!(engine.read(register), 0, "{register:?}");
    }
    assert!(!engine.is_active());
    start(&mut engine, &bus, &request(Mode::Block, FROM_OWN, 0, 0x2000, 64));
    let [low, _] = bus.bytes();
    assert_eq!(low[..64], low[0x2000..0x2040]);
}

#[test]
fn what_happened_before_it_was_enabled_is_told_once() {
    let (mut engine, bus) = (Engine::new(32), TestBus::new());
    start(&mut engine, &bus, &request(Mode::Block, TO_OWN, 0, 0, 64));
    assert!(!engine.take_message());
    set(&mut engine, &bus, Register::InterruptEnable, event::DONE);
    assert!(engine.take_message());
    set(&mut engine, &bus, Register::InterruptEnable, event::DONE | event::ERROR);
    assert!(!engine.take_message());
}

/// A model: where a whole request ends, unit by unit on plain vectors.
fn model(memory: &mut [Vec<u8>; 2], own: &mut [u8], bits: u32, request: &Request) -> bool {
    let Request { source, destination, length, unit, burst, control } = *request;
    let Some(mode) = Mode::from_control(control) else { return false };
    if unit == 0 || unit > 4096 || length == 0 || length > LENGTH_MAX {
        return false;
    }
    if mode == Mode::Burst && (burst == 0 || burst > 64) {
        return false;
    }
    let place = |at: u64, is_own: bool| -> Option<(usize, usize)> {
        let end = at.checked_add(length)?;
        if is_own {
            return (end <= OWN_BYTES).then_some((2, at as usize));
        }
        if end - 1 > dma::last_address(bits) {
            return None;
        }
        (0..2).find_map(|region| {
            let inside = at >= BASES[region] && end <= BASES[region] + SIZES[region];
            inside.then(|| (region, (at - BASES[region]) as usize))
        })
    };
    let from = place(source, control & FROM_OWN != 0);
    let to = place(destination, control & TO_OWN != 0);
    let (Some(from), Some(to)) = (from, to) else { return false };
    for piece in (0..length as usize).step_by(unit as usize) {
        let piece = piece..(piece + unit as usize).min(length as usize);
        let at = |place: (usize, usize)| place.1 + piece.start..place.1 + piece.end;
        let bytes = if from.0 == 2 { own[at(from)].to_vec() } else { memory[from.0][at(from)].to_vec() };
        if to.0 == 2 {
            own[at(to)].copy_from_slice(&bytes);
        } else {
            memory[to.0][at(to)].copy_from_slice(&bytes);
        }
    }
    true
}

fn any_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..0x4000_u64,
        3 => 0xff_f000..0x100_1000_u64,
        1 => any::<u64>(),
        1 => prop_oneof![Just(u64::MAX), Just(1 << 32), Just(0xffff_ffff)],
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let small = prop_oneof![6 => 1..600_u64, 1 => 0..0x1_2000_u64, 1 => any::<u64>()];
    let unit = prop_oneof![6 => 1..300_u64, 1 => 0..5000_u64];
    (any_address(), any_address(), small, unit, 0..70_u64, 0..0x44_u64).prop_map(
        |(source, destination, length, unit, burst, control)| Request {
            source,
            destination,
            length,
            unit,
            burst,
            control,
        },
    )
}

proptest! {
    #[test]
    fn any_requests_do_what_the_model_does(
        bits in prop_oneof![Just(24_u32), Just(32), Just(64)],
        requests in prop::collection::vec(any_request(), 1..20),
    ) {
        let (mut engine, bus) = (Engine::new(bits), TestBus::new());
        let (mut memory, mut own) = (bus.bytes(), vec![0; OWN_BYTES as usize]);
        for request in &requests {
            start(&mut engine, &bus, request);
            let known = request.control & !control::KNOWN == 0;
            let moved = known && model(&mut memory, &mut own, bits, request);
            while engine.is_active() {
                if engine.background().is_some() {
                    engine.step(&bus);
                } else {
                    set(&mut engine, &bus, Register::Command, Command::Start as u64);
                }
            }
            let end = if moved { status::DONE } else { status::ERROR };
            prop_assert_eq!(engine.read(Register::Status), end);
            prop_assert_eq!(engine.read(Register::Error) == 0, moved);
            prop_assert_eq!(engine.read(Register::Progress), if moved { request.length } else { 0 });
        }
        prop_assert!(bus.bytes() == memory, "memory differs from the model's");
        // The engine's own memory, read back.
        let dump = request(Mode::Block, FROM_OWN, 0, 0, 0x4000);
        for part in 0..4 {
            start(&mut engine, &bus, &Request { source: part * 0x4000, ..dump });
            prop_assert!(bus.bytes()[0][..] == own[(part * 0x4000) as usize..][..0x4000]);
        }
    }

    #[test]
    fn any_accesses_are_survived(accesses in prop::collection::vec((0..0x88_u64, any::<u64>(), any::<u64>()), 0..200)) {
        let (mut engine, bus) = (Engine::new(24), TestBus::new());
        for (offset, value, mask) in accesses {
            if let Some(register) = Register::at(offset) {
                engine.write(register, value % 0x5000, mask, &bus, value & 1 << 60 == 0);
                engine.read(register);
            }
            engine.step(&bus);
        }
    }
}

/// A function with an engine whose thread works, and what it sent.
struct Machine {
    function: DmaFunction,
    engine: Arc<DmaEngine>,
    memory: Arc<Memory>,
    sent: Arc<Mutex<Vec<(u64, u32)>>>,
}

const RAM: u64 = 0x2_0000;

fn machine(bits: u32) -> Machine {
    // The second region is memory, but not RAM of a node.
    let regions = [RamRegion { gpa: 0, len: RAM }, RamRegion { gpa: 0xe_0000, len: 0x1000 }];
    let memory = Arc::new(Memory::new(&regions).expect("two memfds"));
    let sent: Arc<Mutex<Vec<(u64, u32)>>> = Arc::default();
    let log = sent.clone();
    let msix = Msix::new(Arc::new(move |address, data| {
        log.lock().expect("not poisoned").push((address, data));
    }));
    let engine = DmaEngine::start((0, bits), memory.clone(), &[(0, RAM)], msix.clone(), Filters::Off);
    let engine = Arc::new(engine.expect("a thread"));
    let function = DmaFunction::new(engine.clone(), msix, 0xc010_0000);
    Machine { function, engine, memory, sent }
}

impl Machine {
    /// What a driver does first: the function uses the bus and sends message (0xfee00000, 0x41).
    fn enable(&mut self) {
        self.function.config_write(4, &6_u16.to_le_bytes());
        let table = u64::from(MSIX_TABLE);
        self.function.bar_write(table, &0xfee0_0000_u64.to_le_bytes());
        self.function.bar_write(table + 8, &0x41_u64.to_le_bytes());
        let control = self.function.config().u16(0x42) | 1 << 15;
        self.function.config_write(0x42, &control.to_le_bytes());
    }

    fn set(&mut self, register: Register, value: u64) {
        self.function.bar_write(register as u64, &value.to_le_bytes());
    }

    fn get(&mut self, register: Register) -> u64 {
        let mut bytes = [0; 8];
        self.function.bar_read(register as u64, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn start(&mut self, mode: Mode, length: u64) {
        self.set(Register::Source, 0x1000);
        self.set(Register::Destination, 0);
        self.set(Register::Length, length);
        self.set(Register::Unit, 64);
        self.set(Register::Burst, 4);
        self.set(Register::Control, mode as u64 | TO_OWN);
        self.set(Register::Command, Command::Start as u64);
    }

    fn wait(&mut self, until: impl Fn(&mut Machine) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !until(self) {
            assert!(Instant::now() < deadline, "{:?}", self.engine.stats());
            thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn the_thread_moves_what_goes_on_and_sends_one_message() {
    let mut machine = machine(32);
    machine.enable();
    let pattern: Vec<u8> = (0..4096_u32).map(|at| (at % 253) as u8).collect();
    machine.memory.write(0x1000, &pattern).expect("RAM");
    for (number, mode) in [(1, Mode::Burst), (2, Mode::CycleStealing)] {
        machine.set(Register::InterruptEnable, event::DONE);
        machine.start(mode, 4096);
        machine.wait(|machine| machine.get(Register::Status) == status::DONE);
        machine.set(Register::InterruptStatus, event::DONE);
        assert_eq!(machine.sent.lock().expect("not poisoned").len(), number);
    }
    assert_eq!(machine.sent.lock().expect("not poisoned")[0], (0xfee0_0000, 0x41));
    machine.set(Register::Source, 0);
    machine.set(Register::Destination, 0x8000);
    machine.set(Register::Control, Mode::Block as u64 | FROM_OWN);
    machine.set(Register::Command, Command::Start as u64);
    let mut back = vec![0; 4096];
    machine.memory.read(0x8000, &mut back).expect("RAM");
    assert_eq!(back, pattern);
    assert_eq!(machine.engine.stats().counters.interrupts, 3);
}

#[test]
fn a_held_engine_moves_nothing_and_goes_on_afterwards() {
    let mut machine = machine(32);
    machine.enable();
    machine.set(Register::Pause, 200);
    machine.start(Mode::CycleStealing, 0x4000);
    machine.wait(|machine| machine.get(Register::Progress) > 0);
    machine.engine.hold(1);
    let progress = machine.get(Register::Progress);
    thread::sleep(Duration::from_millis(3));
    assert_eq!(machine.get(Register::Progress), progress);
    machine.engine.release(1);
    machine.set(Register::Pause, 0);
    machine.wait(|machine| machine.get(Register::Status) == status::DONE);
}

#[test]
fn memory_that_is_no_nodes_ram_is_refused_and_so_is_who_is_not_master() {
    let mut machine = machine(64);
    machine.start(Mode::Block, 64);
    assert_eq!(machine.get(Register::Error), Error::NotMaster as u64);
    machine.enable();
    machine.start(Mode::Block, 64);
    assert_eq!(machine.get(Register::Error), 0);
    machine.set(Register::Source, 0xe_0000);
    machine.set(Register::Command, Command::Start as u64);
    assert_eq!(machine.get(Register::Error), Error::NoRam as u64);
    assert_eq!(machine.engine.stats().counters.no_ram, 1);
}

#[test]
fn halves_of_a_register_are_written_apart_and_odd_accesses_do_nothing() {
    let mut machine = machine(64);
    machine.function.bar_write(Register::Source as u64, &0x89ab_cdef_u32.to_le_bytes());
    machine.function.bar_write(Register::Source as u64 + 4, &0x0123_4567_u32.to_le_bytes());
    assert_eq!(machine.get(Register::Source), 0x0123_4567_89ab_cdef);
    machine.function.bar_write(Register::Source as u64 + 1, &[9; 4]);
    machine.function.bar_write(Register::Source as u64, &[9; 2]);
    assert_eq!(machine.get(Register::Source), 0x0123_4567_89ab_cdef);
    let mut high = [0; 4];
    machine.function.bar_read(Register::Source as u64 + 4, &mut high);
    assert_eq!(u32::from_le_bytes(high), 0x0123_4567);
    assert_eq!(machine.get(Register::Id), u64::from_le_bytes(*b"memv-dma"));
    assert_eq!(machine.get(Register::Capabilities), 64 | 1 << 8 | OWN_BYTES << 32);
}

#[test]
fn every_offset_can_be_read_and_written() {
    let mut machine = machine(24);
    for offset in 0..u64::from(BAR_BYTES) {
        for len in [1, 2, 4, 8] {
            let mut bytes = [0; 8];
            machine.function.bar_read(offset, &mut bytes[..len]);
            machine.function.bar_write(offset, &[0xff; 8][..len]);
        }
    }
    assert!(machine.engine.is_alive());
}
