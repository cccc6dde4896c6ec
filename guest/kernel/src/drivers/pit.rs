//! The programmable interval timer (Intel 8254), for one thing: how fast other counters count.

use crate::arch::regs::{inb, outb, rdtsc};

/// Ticks of the timer in a second.
pub const TICK_RATE: u64 = 1_193_182;
/// Ticks of a measurement: 50 ms.
const TICKS: u16 = 59_659;
/// Measurements. Whatever disturbs one makes it longer, so the shortest counts.
const TRIES: usize = 3;
/// Fewer reads than these while the timer runs, and there is no timer: an open bus reads as ones at once.
const MIN_READS: u32 = 100;
/// Cycles after which a timer that does not end is none: half a second at 8 GHz.
const MAX_CYCLES: u64 = 1 << 32;

/// Data of channel 2.
const CHANNEL_2: u16 = 0x42;
/// The mode register.
const MODE: u16 = 0x43;
/// Port B of the PC: bit 0 is the gate of channel 2, bit 1 the speaker, bit 5 the channel's output.
const PORT_B: u16 = 0x61;

/// Frequency of the time-stamp counter in kHz (Linux: `pit_calibrate_tsc`); `None` on a machine without this timer.
pub fn calibrate_tsc() -> Option<u64> {
    let mut shortest = u64::MAX;
    for _ in 0..TRIES {
        shortest = shortest.min(count_down(TICKS)?);
    }
    Some(shortest * TICK_RATE / u64::from(TICKS) / 1000)
}

/// Cycles of the time-stamp counter while channel 2 counts `ticks` down; `None` on a machine without this timer.
pub fn count_down(ticks: u16) -> Option<u64> {
    outb(PORT_B, inb(PORT_B) & !0b10 | 1);
    // Channel 2, low and high byte, mode 0: the output rises at the end.
    outb(MODE, 0xb0);
    let [low, high] = ticks.to_le_bytes();
    outb(CHANNEL_2, low);
    outb(CHANNEL_2, high);
    let begin = rdtsc();
    let mut reads = 0;
    while inb(PORT_B) & 1 << 5 == 0 {
        reads += 1;
        if rdtsc() - begin > MAX_CYCLES {
            return None;
        }
    }
    (reads >= MIN_READS).then(|| rdtsc() - begin)
}
