//! The kernel's log: published whole, then damaged.

use std::mem::offset_of;

use memvisor_abi::*;
use memvisor_inspect::SparseMemory;
use zerocopy::IntoBytes;

use super::guest::*;

const BUFFER: u64 = 0x26f0 << 12;
const LEN: u64 = 4096;
/// Where the oldest record begins; the third one goes on at the buffer's start.
const TAIL: u64 = 3 * LEN - 72;

/// A log of four records, which has lost five.
pub(super) fn publish(memory: &mut SparseMemory) -> TableRef {
    let mut state = LogState {
        buffer_gpa: BUFFER,
        len: LEN,
        tail: TAIL,
        head: TAIL,
        first_seq: 5,
        next_seq: 5,
        clear_seq: 0,
    };
    for text in ["a", "bc", "across the end", ""] {
        let text_len = u16::try_from(text.len()).unwrap();
        let header = LogHeader { seq: state.next_seq, text_len, level: 6, ..LogHeader::default() };
        for (place, byte) in (state.head..).zip(header.as_bytes().iter().chain(text.as_bytes())) {
            memory.write(BUFFER + place % LEN, &[*byte]).unwrap();
        }
        state.head += header.record_len();
        state.next_seq += 1;
    }
    memory.write_value(BUFFER + LEN, &KernelLog { version: 0, state }).unwrap();
    TableRef { gpa: BUFFER + LEN, count: 1, stride: u32::try_from(size_of::<KernelLog>()).unwrap() }
}

fn word(field: usize) -> u64 {
    BUFFER + LEN + (offset_of!(KernelLog, state) + field) as u64
}

#[test]
fn log_records_names_what_does_not_fit() {
    for (gpa, value, what) in [
        (BUFFER + TAIL % LEN, 9, "number 9, it should have 5"),
        (BUFFER + TAIL % LEN + 16, 0x6_0000_ffff, "65535 bytes of text"),
        (word(offset_of!(LogState, next_seq)), 11, "the next one is to have 11"),
        (word(offset_of!(LogState, head)), TAIL + 8192, "cannot be in a buffer of 4096 bytes"),
        (word(offset_of!(LogState, len)), 4095, "not a power of two"),
        (word(offset_of!(LogState, buffer_gpa)), 1 << 40, "not in RAM"),
    ] {
        let mut guest = healthy();
        guest.memory.write_u64(gpa, value).unwrap();
        let finding = only(&guest, "log.records");
        assert!(finding.outside_says.contains(what), "{finding}");
    }
}

#[test]
fn log_records_waits_for_who_writes() {
    let mut guest = healthy();
    guest.memory.write_u64(word(offset_of!(LogState, next_seq)), 11).unwrap();
    guest.memory.write_u64(BUFFER + LEN, 7).unwrap();
    assert_eq!(guest.audit().findings, []);
}
