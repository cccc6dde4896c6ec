//! Random bytes for programs (Linux: drivers/char/random.c).
//!
//! The key grows out of what differs from boot to boot and from request to request: the time of day and the time-stamp counter.
//!
//! Differs from Linux: there is no other source, so that nothing here keeps a secret from somebody who watches the machine: RDRAND is not
//! among the instructions that every bed runs in ring 0.

use core::sync::atomic::{AtomicBool, Ordering};

use guest_process::chacha::Generator;

use crate::arch::regs;
use crate::drivers::rtc;
use crate::sync::Lock;

static GENERATOR: Lock<Generator> = Lock::new(Generator::new());
static SEEDED: AtomicBool = AtomicBool::new(false);
/// Samples of the counter at the first request, with reads of a device in between whose time varies.
const SAMPLES: usize = 16;

fn mix(word: u64, number: u32) {
    #[expect(clippy::cast_possible_truncation, reason = "both halves")]
    let (low, high) = (word as u32, (word >> 32) as u32);
    GENERATOR.lock().mix([low, high, number]);
}

/// Fills `bytes`.
pub fn fill(bytes: &mut [u8]) {
    if !SEEDED.swap(true, Ordering::AcqRel) {
        mix(rtc::read_time().unwrap_or(0), 0);
        for _ in 0..SAMPLES {
            // Any port will do: the answer takes as long as it takes.
            regs::inb(0x61);
            mix(regs::rdtsc(), 1);
        }
    }
    mix(regs::rdtsc(), 2);
    for piece in bytes.chunks_mut(32) {
        let random = GENERATOR.lock().bytes();
        piece.copy_from_slice(&random[..piece.len()]);
    }
}
