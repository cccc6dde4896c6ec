//! The names of this kernel's own functions, which the linker's second run put into the image (scripts/memvisor-ld).

use core::fmt;

use guest_process::kallsyms::{Symbol, lookup};

use crate::mm::phys;

unsafe extern "C" {
    static __kallsyms_start: u8;
    static __kallsyms_end: u8;
}

/// The text of /proc/kallsyms.
pub fn text() -> &'static [u8] {
    let start = &raw const __kallsyms_start;
    let len = &raw const __kallsyms_end as usize - start as usize;
    // SAFETY: kernel.ld puts both around one section of read-only data, which is mapped from the first instruction on and never changes.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// A return address, as a line of a backtrace has it.
#[derive(Clone, Copy, Debug)]
pub struct Return(pub u64);

/// An address of the kernel's code, by its function if that is known.
#[derive(Clone, Copy, Debug)]
pub struct Place(pub u64);

/// The function of `address`.
fn symbol(address: u64) -> Option<Symbol<'static>> {
    let image = phys::image();
    lookup(text(), image.va + image.text, address)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[<{:#018x}>]", self.0)?;
        symbol(self.0).map_or(Ok(()), |symbol| write!(f, " {symbol}"))
    }
}

impl fmt::Display for Return {
    /// The call may be a function's last instruction, so it is looked for before the address (Linux: `%pB`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[<{:#018x}>]", self.0)?;
        let Some(symbol) = self.0.checked_sub(1).and_then(symbol) else { return Ok(()) };
        write!(f, " {}", Symbol { offset: symbol.offset + 1, ..symbol })
    }
}
