//! Message-signalled interrupts of a function: its MSI-X table and pending bits (PCI 3.0 section 6.8.2).
//!
//! S1  a message is sent only while MSI-X is enabled and neither the function nor the vector is masked;
//! S2  what could not be sent is pending, and is sent once when the masks go.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// Sends a message to the local APICs.
pub trait SignalMsi: Send + Sync {
    /// Writes `data` to `address`, as a device on the bus would.
    fn signal(&self, address: u64, data: u32);
}

impl<F: Fn(u64, u32) + Send + Sync> SignalMsi for F {
    fn signal(&self, address: u64, data: u32) {
        self(address, data);
    }
}

/// Vectors of a function: one for changes of the configuration, one for the queue.
pub const VECTORS: usize = 2;
/// Bytes of a table entry: address (8), data (4), control (4).
const ENTRY: usize = 16;
/// Bytes of the table.
pub const TABLE_BYTES: usize = VECTORS * ENTRY;
/// Vector control: masked.
const MASKED: u8 = 1;

/// The table, shared by the function's registers and the thread that works for it.
#[derive(Clone)]
pub struct Msix {
    state: Arc<Mutex<State>>,
    to: Arc<dyn SignalMsi>,
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msix").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    table: [u8; TABLE_BYTES],
    pending: [bool; VECTORS],
    enabled: bool,
    masked: bool,
}

impl State {
    fn entry(&self, vector: usize) -> Option<(u64, u32, bool)> {
        let entry: &[u8; ENTRY] = self.table.get(vector.checked_mul(ENTRY)?..)?.first_chunk()?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, control, ..] = *entry;
        let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        Some((address, u32::from_le_bytes([d0, d1, d2, d3]), control & MASKED != 0))
    }
}

impl Msix {
    /// A table with all vectors masked, as after reset.
    pub fn new(to: Arc<dyn SignalMsi>) -> Msix {
        let mut table = [0; TABLE_BYTES];
        for control in table.iter_mut().skip(12).step_by(ENTRY) {
            *control = MASKED;
        }
        let state = State { table, pending: [false; VECTORS], enabled: false, masked: false };
        Msix { state: Arc::new(Mutex::new(state)), to }
    }

    /// Sends the message of `vector`, now or when it may be sent. A vector that is not there sends nothing.
    pub fn notify(&self, vector: u16) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pending) = state.pending.get_mut(usize::from(vector)) {
            *pending = true;
            self.send(&mut state);
        }
    }

    /// Takes the bits of the message control word.
    pub fn control(&self, enabled: bool, masked: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.enabled, state.masked) = (enabled, masked);
        self.send(&mut state);
    }

    /// Fills `data` from byte `offset` of the table on; zeroes past its end.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, byte) in (offset..).zip(data) {
            *byte = state.table.get(at).copied().unwrap_or(0);
        }
    }

    /// Takes `data` at byte `offset` of the table.
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, byte) in (offset..).zip(data) {
            if let Some(slot) = state.table.get_mut(at) {
                // Of vector control only the mask bit is kept.
                *slot = match at % ENTRY {
                    12 => byte & MASKED,
                    13.. => 0,
                    _ => *byte,
                };
            }
        }
        self.send(&mut state);
    }

    /// Pending bits.
    pub fn pending(&self) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (0..).zip(state.pending).map(|(bit, pending)| u64::from(pending) << bit).sum()
    }

    fn send(&self, state: &mut State) {
        if !state.enabled || state.masked {
            return;
        }
        for vector in 0..VECTORS {
            let Some((address, data, false)) = state.entry(vector) else { continue };
            if state.pending.get_mut(vector).is_some_and(std::mem::take) {
                self.to.signal(address, data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_waits_until_nothing_masks_it_and_is_sent_once() {
        let sent: Arc<Mutex<Vec<(u64, u32)>>> = Arc::default();
        let log = sent.clone();
        let msix = Msix::new(Arc::new(move |address, data| {
            log.lock().expect("not poisoned").push((address, data));
        }));
        let count = || sent.lock().expect("not poisoned").len();
        msix.write_table(ENTRY, &0xfee0_1000_u64.to_le_bytes());
        msix.write_table(ENTRY + 8, &0x41_u32.to_le_bytes());
        msix.notify(1);
        assert_eq!((count(), msix.pending()), (0, 0b10));
        msix.control(true, true);
        msix.write_table(ENTRY + 12, &0_u32.to_le_bytes());
        assert_eq!((count(), msix.pending()), (0, 0b10), "the function is masked");
        msix.control(true, false);
        assert_eq!((count(), msix.pending()), (1, 0));
        msix.notify(1);
        msix.notify(0xffff);
        assert_eq!(*sent.lock().expect("not poisoned"), [(0xfee0_1000, 0x41); 2]);
        msix.notify(0);
        assert_eq!((count(), msix.pending()), (2, 1), "vector 0 is masked");
    }
}
