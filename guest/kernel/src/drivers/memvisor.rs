//! The memvisor device (guest/abi: `port`). Absent under other VMMs.

use memvisor_abi::port::{ARG_HI, ARG_LEN, ARG_LO, COMMAND, Command, ID, ID_VALUE, STATUS, Status};

use crate::arch::regs::{inl, outl};
use crate::mm::phys;
use crate::sync::Lock;

// The argument ports are one set for all CPUs.
static PORTS: Lock<()> = Lock::new(());

/// For the panic path: the holder of the lock may be dead.
pub fn break_lock() {
    PORTS.break_open();
}

/// Whether the device answers.
pub fn present() -> bool {
    inl(ID) == ID_VALUE
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of a 64-bit argument")]
fn command(command: Command, address: u64, len: u32) -> u32 {
    let _ports = PORTS.lock();
    outl(ARG_LO, address as u32);
    outl(ARG_HI, (address >> 32) as u32);
    outl(ARG_LEN, len);
    outl(COMMAND, command as u32);
    inl(STATUS)
}

fn bytes_command(what: Command, bytes: &[u8]) -> u32 {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    command(what, phys::of_image(bytes.as_ptr() as u64).as_u64(), len)
}

/// Writes bytes of the kernel image (static data or stack of the boot CPU) to the console.
pub fn write(bytes: &[u8]) {
    bytes_command(Command::Console, bytes);
}

/// Tells the VMM where the root descriptor is.
pub fn announce(root_gpa: u64) {
    if present() {
        command(Command::Announce, root_gpa, 0);
    }
}

/// Asks for an audit; `name` is NUL-terminated and in the kernel image. Returns whether it was clean.
pub fn checkpoint(number: u32, name: &core::ffi::CStr) -> bool {
    let address = phys::of_image(name.as_ptr() as u64).as_u64();
    command(Command::Checkpoint, address, number) != Status::Findings as u32
}

/// Ends the guest.
pub fn exit(code: u8) {
    if present() {
        command(Command::Exit, 0, u32::from(code));
    }
}

/// Hands a panic's report over; `text` is in the kernel image.
pub fn epitaph(text: &[u8]) {
    if present() {
        bytes_command(Command::Epitaph, text);
    }
}
