//! Every access that a guest can make to devices.

use std::sync::{Arc, Mutex};

use memvisor::{
    devices::{Console, ConsoleTarget, DeviceState, Effect, SerialPort},
    machine::layout,
    memory::Memory,
    run::build_bus,
};
use memvisor_abi::port;
use memvisor_inspect::RamRegion;

use crate::Input;

/// Where accesses are likely: the devices, the borders of the address space.
const PORTS: [u16; 8] = [
    layout::COM1,
    layout::I8042_DATA,
    layout::PM1A_EVT,
    port::BASE,
    port::COMMAND,
    port::ARG_LO,
    0xcf8,
    0xfff8,
];

/// A guest's life: port and memory-mapped accesses of any width and repetition, writes to its own
/// RAM, typed keys.
pub fn device_bus(data: &[u8]) {
    let mut input = Input::new(data);
    let regions = [RamRegion { gpa: 0, len: 0x2_0000 }, RamRegion { gpa: 0x10_0000, len: 0x1_0000 }];
    let memory = Arc::new(Memory::new(&regions).expect("the host gives 192 KiB"));
    let console = Arc::new(Mutex::new(Console::new(ConsoleTarget::Null)));
    let serial = Arc::new(Mutex::new(SerialPort::new(console.clone(), None)));
    let device = Arc::new(DeviceState::default());
    let bus = build_bus(&memory, &console, &serial, &device).expect("devices do not overlap");
    let mut wide = [0; 4096];
    while !input.is_empty() {
        let op = input.u8();
        // KVM hands over at most a page of a repeated instruction.
        let len = match op >> 5 {
            0 => 1,
            1 => 2,
            2 => 4,
            3 => 8,
            other => usize::from(input.u8()) << (other - 4),
        };
        let effect = match op & 7 {
            0 => {
                bus.pio.read(port_of(&mut input), &mut wide[..len]);
                None
            }
            1 | 2 => bus.pio.write(port_of(&mut input), input.bytes(len)),
            3 => {
                bus.mmio.read(input.number(), &mut wide[..len]);
                None
            }
            4 => bus.mmio.write(input.number(), input.bytes(len)),
            5 => {
                let gpa = u64::from(input.u32() % 0x20_0000);
                let _ = memory.write(gpa, input.bytes(len));
                None
            }
            6 => {
                serial.lock().expect("not poisoned").type_bytes(input.bytes(len));
                None
            }
            _ => command(&bus.pio, &mut input),
        };
        match effect {
            Some(Effect::Checkpoint { name, .. }) => {
                assert!(name.len() <= 63 && !name.contains(char::is_control), "{name:?}");
            }
            Some(Effect::PowerOff | Effect::Reset | Effect::Exit(_)) | None => {}
        }
    }
    if let Some(root) = device.root_gpa() {
        assert!(memory.is_ram(root, 4096), "a root descriptor at {root:#x}");
    }
    assert!(device.epitaph().is_none_or(|text| text.len() <= 3 * port::CONSOLE_MAX as usize));
    let console = console.lock().expect("not poisoned");
    assert!(console.tail().len() <= memvisor::devices::RING_BYTES);
    assert!(console.transcript().len() <= 3 * (17 << 20));
}

fn port_of(input: &mut Input<'_>) -> u64 {
    let choice = input.u8();
    let near = PORTS.get(usize::from(choice & 31)).copied().unwrap_or_else(|| input.u16());
    u64::from(near) + u64::from(choice >> 5)
}

/// A whole command of the memvisor device.
fn command(pio: &memvisor::devices::Bus, input: &mut Input<'_>) -> Option<Effect> {
    let address = input.number();
    let len = input.number();
    let set = |register: u16, value: u64| pio.write(u64::from(register), &value.to_le_bytes()[..4]);
    set(port::ARG_LO, address);
    set(port::ARG_HI, address >> 32);
    set(port::ARG_LEN, len);
    set(port::COMMAND, u64::from(input.u8() % 8))
}
