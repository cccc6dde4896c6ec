use memvisor_abi::{EventId, MASK_WORDS, Root, TableRef};
use proptest::prelude::*;

use super::*;
use crate::{
    Levels, SparseMemory,
    testing::{Machine, SyntheticGuest},
};

const CAPACITY: u32 = 8;

/// A guest with one ring, written as the guest's kernel writes it.
struct Bench {
    guest: SyntheticGuest,
    ring: TraceRing,
    ring_gpa: u64,
}

impl Bench {
    fn new() -> Bench {
        let mut guest = SyntheticGuest::new(&Machine::pc(16 << 20, Levels::Four));
        // The last frames of RAM are nobody's that a reader of rings looks at.
        let (ring_gpa, buffer_gpa) = (0xf0_0000, 0xf0_1000);
        let ring = TraceRing {
            buffer_gpa,
            capacity: CAPACITY,
            mask: [u64::MAX; MASK_WORDS],
            start_tsc: 1000,
            ..TraceRing::default()
        };
        guest.root.trace_rings = TableRef { gpa: ring_gpa, count: 1, stride: 64 };
        guest.write_root();
        let mut bench = Bench { guest, ring, ring_gpa };
        bench.publish();
        bench
    }

    fn publish(&mut self) {
        self.guest.memory.write_value(self.ring_gpa, &self.ring).expect("RAM");
    }

    fn slot(&self, number: u64) -> u64 {
        self.ring.buffer_gpa + number % u64::from(CAPACITY) * TRACE_RECORD_SIZE
    }

    fn push(&mut self) {
        let number = self.ring.head;
        let record = TraceRecord {
            stamp: number + 1,
            tsc: 1000 + number,
            event: EventId::MmPageFree as u16,
            args: [number, 3, 0, 0, 0],
            ..TraceRecord::default()
        };
        self.guest.memory.write_value(self.slot(number), &record).expect("RAM");
        self.ring.head += 1;
        self.publish();
    }

    fn reader(&self) -> Result<Option<TraceReader>, GuestError> {
        TraceReader::attach(&Guest::attach(&self.guest.memory, self.guest.root_gpa).expect("a root"))
    }
}

fn poll(reader: &mut TraceReader, memory: &SparseMemory) -> Vec<u64> {
    let mut entries = Vec::new();
    reader.poll(memory, &mut entries).expect("RAM");
    assert!(entries.iter().all(|entry| entry.cycles == entry.number));
    entries.iter().map(|entry| entry.number).collect()
}

#[test]
fn a_guest_without_rings_does_not_trace() {
    let guest = SyntheticGuest::new(&Machine::pc(16 << 20, Levels::Four));
    let attached = Guest::attach(&guest.memory, guest.root_gpa).expect("a root");
    assert!(TraceReader::attach(&attached).expect("no ring is no error").is_none());
}

#[test]
fn records_are_read_once_and_in_order() {
    let mut bench = Bench::new();
    let mut reader = bench.reader().expect("rings").expect("published");
    assert!(poll(&mut reader, &bench.guest.memory).is_empty());
    (0..3).for_each(|_| bench.push());
    assert_eq!(poll(&mut reader, &bench.guest.memory), [0, 1, 2]);
    // Around the end of the buffer.
    (0..7).for_each(|_| bench.push());
    assert_eq!(poll(&mut reader, &bench.guest.memory), [3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(reader.counts().next().map(|count| (count.read, count.lost)), Some((10, 0)));
}

#[test]
fn what_was_overwritten_is_counted_as_lost() {
    let mut bench = Bench::new();
    let mut reader = bench.reader().expect("rings").expect("published");
    (0..21).for_each(|_| bench.push());
    // The oldest slot is the one that the writer works on next: it cannot be told from one half overwritten.
    assert_eq!(poll(&mut reader, &bench.guest.memory), (14..21).collect::<Vec<_>>());
    assert_eq!(reader.counts().next().map(|count| (count.read, count.lost)), Some((7, 14)));
}

#[test]
fn a_wrong_stamp_is_damage_and_a_falling_head_a_reset() {
    let mut bench = Bench::new();
    let mut reader = bench.reader().expect("rings").expect("published");
    (0..3).for_each(|_| bench.push());
    let gpa = bench.slot(1);
    bench.guest.memory.write_u64(gpa, 77).expect("RAM");
    assert_eq!(poll(&mut reader, &bench.guest.memory), [0, 2]);
    bench.ring.head = 1;
    bench.publish();
    assert!(poll(&mut reader, &bench.guest.memory).is_empty());
    bench.push();
    assert_eq!(poll(&mut reader, &bench.guest.memory), [1]);
    let count = reader.counts().next().expect("one ring");
    assert_eq!((count.read, count.lost, count.damaged, count.resets), (3, 0, 1, 1));
}

#[test]
fn rings_that_cannot_be_are_refused() {
    type Damage = fn(&mut TraceRing);
    let cases: [(Damage, &str); 4] = [
        (|ring| ring.capacity = 12, "capacity"),
        (|ring| ring.capacity = 1 << 25, "capacity"),
        (|ring| ring.buffer_gpa = 0xff_ffc0, "buffer_gpa"),
        (|ring| ring.buffer_gpa += 8, "buffer_gpa"),
    ];
    for (damage, field) in cases {
        let mut bench = Bench::new();
        damage(&mut bench.ring);
        bench.publish();
        let error = bench.reader().expect_err(field).to_string();
        assert!(error.contains(field), "{error}");
    }
    let mut bench = Bench::new();
    bench.ring.capacity = 0;
    bench.publish();
    assert_eq!(bench.reader().expect("no ring").expect("published").counts().count(), 0);
    assert_ne!(bench.guest.root_field(std::mem::offset_of!(Root, trace_rings)), 0);
}

fn entry(event: EventId, depth: u8, args: [u64; 5]) -> TraceEntry {
    let record = TraceRecord { event: event as u16, depth, args, ..TraceRecord::default() };
    TraceEntry { cpu: 1, number: 0, cycles: 2_500_000, record }
}

#[test]
fn lines_look_as_perf_script_writes_them() {
    let names = Names {
        caches: vec!["kmalloc-8".into(), "task_struct".into()],
        tsc_khz: Some(2_500_000),
        ..Names::default()
    };
    let line = |entry: TraceEntry| EventText { entry: &entry, names: &names }.to_string();
    assert_eq!(
        line(entry(EventId::AllocPages, 0, [0x0000_0002_0000_0dc0 | 1 << 48, 0, 0, 0, 0])),
        "  kernel [001] . 0.001000000: alloc_pages(gfp=GFP_KERNEL|__GFP_ZERO order=2 node=1) {"
    );
    assert_eq!(
        line(entry(EventId::MmPageAlloc, 2, [0x1a40, 0xcc0_0000_0102, 0, 0, 0])),
        "  kernel [001] . 0.001000000:     kmem:mm_page_alloc: pfn=0x1a40 order=2 migratetype=Movable \
         gfp_flags=GFP_KERNEL"
    );
    assert_eq!(
        line(entry(EventId::AllocPagesRet, 0, [u64::MAX, 0, 0, 0, 0])),
        "  kernel [001] . 0.001000000: } alloc_pages = pfn=NULL"
    );
    let mut unknown = entry(EventId::AllocPages, 0, [1, 2, 3, 4, 5]);
    unknown.record.event = 999;
    assert_eq!(line(unknown), "  kernel [001] . 0.001000000: unknown event 999: [1, 2, 3, 4, 5]");
}

#[test]
fn json_has_numbers_and_names() {
    let names = Names { caches: vec!["a".into(), "task_struct".into()], tsc_khz: None, ..Names::default() };
    let entry = entry(EventId::KmemCacheFree, 1, [0x1f9_8040, 1, 0, 0, 0]);
    let json = EventText { entry: &entry, names: &names }.json();
    assert_eq!(json["args"]["cache"], "task_struct");
    assert_eq!(json["args"]["ptr"], "0x1f98040");
    assert_eq!(json["time_ns"], serde_json::Value::Null);
    assert_eq!((json["event"].as_str(), json["phase"].as_str()), (Some("kmem_cache_free"), Some("point")));
}

proptest! {
    #[test]
    fn any_bytes_in_a_ring_are_bounded_work_and_give_text(
        head in any::<u64>(), later in any::<u64>(), noise in prop::collection::vec(any::<u64>(), 64),
    ) {
        let mut bench = Bench::new();
        for (index, word) in (0..).zip(noise) {
            bench.guest.memory.write_u64(bench.ring.buffer_gpa + index * 8, word).expect("RAM");
        }
        bench.ring.head = head;
        bench.publish();
        let mut reader = bench.reader().expect("rings").expect("published");
        let mut entries = Vec::new();
        for head in [head, later, head.wrapping_add(3)] {
            bench.ring.head = head;
            bench.publish();
            reader.poll(&bench.guest.memory, &mut entries).expect("RAM");
        }
        prop_assert!(entries.len() <= 3 * CAPACITY as usize);
        for entry in &entries {
            let text = EventText { entry, names: &Names::default() };
            prop_assert!(!text.to_string().is_empty() && text.json().is_object());
        }
    }
}
