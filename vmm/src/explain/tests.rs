use memvisor_abi::{TRACE_RECORD_SIZE, TableRef, TraceRecord, TraceRing};
use memvisor_inspect::{
    Levels,
    testing::{Machine, SyntheticGuest},
};

use super::*;

/// Writes a ring with these records into a guest.
fn guest_with(records: &[TraceRecord]) -> SyntheticGuest {
    let mut guest = SyntheticGuest::new(&Machine::pc(64 << 20, Levels::Four));
    let (ring_gpa, buffer_gpa) = (0x380_0000, 0x380_1000);
    for (number, record) in (0..).zip(records) {
        let record = TraceRecord { stamp: number + 1, ..*record };
        guest.memory.write_value(buffer_gpa + number * TRACE_RECORD_SIZE, &record).expect("RAM");
    }
    let head = records.len() as u64;
    let ring = TraceRing { head, buffer_gpa, capacity: 64, ..TraceRing::default() };
    guest.memory.write_value(ring_gpa, &ring).expect("RAM");
    guest.root.trace_rings = TableRef { gpa: ring_gpa, count: 1, stride: 64 };
    guest.write_root();
    guest
}

#[test]
fn a_part_has_the_steps_between_its_checkpoints_and_what_they_changed() {
    let record = |event: EventId, depth, args| TraceRecord {
        event: event as u16,
        depth,
        args,
        ..TraceRecord::default()
    };
    let steps = [
        record(EventId::ExplainMark, 0, [1, 0, 0, 0, 0]),
        record(EventId::FreePages, 0, [0x40, 3, 0, 0, 0]),
        record(EventId::BuddyMerge, 1, [0x40, 0x48, 3, 0, 0]),
        record(EventId::FreePagesRet, 0, [0; 5]),
    ];
    let mut collector = Collector::default();
    let names = Names::default();
    let mut guest = guest_with(&[]);
    let mut at = |guest: &SyntheticGuest, name: &str| {
        let reader = Guest::attach(&guest.memory, guest.root_gpa).expect("a root");
        collector.checkpoint(name, &reader, &names).expect("readable");
    };
    at(&guest, "exited");
    at(&guest, "before: free");
    let free = guest_with(&steps);
    guest.memory = free.memory;
    guest.edit_zone(1, |zone| zone.free_pages += 8);
    at(&guest, "after: something else");
    at(&guest, "after: free");
    assert_eq!(collector.parts.len(), 1);
    let explanation =
        Explanation { name: "x".into(), about: "a test".into(), parts: std::mem::take(&mut collector.parts) };
    let text = explanation.to_string();
    let wanted = "
1. free

  __free_pages(pfn=0x40 order=3) {
        # The block of 8 frames at 0x40 is given back.
      buddy_merge: pfn=0x40 buddy=0x48 order=3
        # The buddy at frame 0x48 is free and of order 3 too: together they are one block of the next order.
  } __free_pages
    # It is free.

  Seen from outside, before and after:
    node 0 zone DMA32: free pages ";
    assert!(text.contains(wanted), "{text}");
    assert!(text.trim_end().ends_with("+8"), "{text}");
}

#[test]
fn names_are_found() {
    assert!(find("buddy-split").is_some() && find("nonsense").is_none());
    for walk in WALKS {
        memvisor_abi::select_events(walk.events).expect(walk.name);
    }
}
