//! What a hostile guest leaves in its trace rings.

use memvisor_abi::{TRACE_RECORD_SIZE, TableRef, TraceRing};
use memvisor_inspect::testing::{Machine, SyntheticGuest};
use memvisor_inspect::trace::{EventText, Names, TraceReader};
use memvisor_inspect::{Guest, Levels};

use crate::{Input, Watched, check_error};

/// Ten times what three polls of two full rings cost.
const BUDGET: u64 = 1 << 20;
const RINGS_GPA: u64 = 0xf0_0000;
const BUFFER_GPA: u64 = 0xf0_1000;

/// Ring headers, records, and heads that move between polls; every record that comes through is put into words.
pub fn trace_rings(data: &[u8]) {
    let mut input = Input::new(data);
    let mut guest = SyntheticGuest::new(&Machine::pc(16 << 20, Levels::Four));
    guest.root.trace_rings = TableRef { gpa: RINGS_GPA, count: 2, stride: 64 };
    guest.write_root();
    for cpu in 0..2 {
        let mut ring = TraceRing {
            head: input.number(),
            buffer_gpa: BUFFER_GPA + u64::from(cpu) * 0x1000,
            capacity: 64,
            cpu,
            ..TraceRing::default()
        };
        // A ring that is refused shows less than one that is not.
        if input.u8() > 200 {
            ring.capacity = input.u32();
            ring.buffer_gpa = input.number();
        }
        guest.memory.write_value(RINGS_GPA + u64::from(cpu) * 64, &ring).expect("RAM");
    }
    let heads = [input.number(), input.number()];
    for slot in 0..128 {
        if input.is_empty() {
            break;
        }
        for word in 0..8 {
            let value = if word == 0 { input.number() } else { input.u64() };
            guest.memory.write_u64(BUFFER_GPA + slot * TRACE_RECORD_SIZE + word * 8, value).expect("RAM");
        }
    }
    let mut reader = {
        let source = Watched::new(&guest.memory, BUDGET);
        let attached = Guest::attach(&source, guest.root_gpa).expect("a healthy root");
        match TraceReader::attach(&attached) {
            Ok(reader) => reader.expect("rings are published"),
            Err(error) => return check_error(&error),
        }
    };
    let mut entries = Vec::new();
    for head in heads {
        let source = Watched::new(&guest.memory, BUDGET);
        reader.poll(&source, &mut entries).expect("RAM stays");
        guest.memory.write_u64(RINGS_GPA, head).expect("RAM");
    }
    assert!(entries.len() <= 2 * 128, "{} records of two rings of 64", entries.len());
    for entry in &entries {
        let text = EventText { entry, names: &Names::default() };
        assert!(!text.to_string().contains('\n') && text.json().is_object());
    }
}
