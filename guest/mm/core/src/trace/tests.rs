use std::{cell::RefCell, sync::atomic::AtomicU64};

use memvisor_abi::{EventInfo, MASK_WORDS, TraceRecord, select_events};

use super::*;

/// Records what it is asked to.
struct Recorder {
    mask: TraceMask,
    events: RefCell<Vec<Event>>,
}

impl Trace for Recorder {
    fn wants(&self, id: EventId) -> bool {
        self.mask.has(id)
    }

    fn is_tracing(&self) -> bool {
        self.mask.is_any()
    }

    fn record(&self, event: &Event) {
        self.events.borrow_mut().push(*event);
    }
}

fn free(order: u8) -> Event {
    Event::MmPageFree { pfn: Pfn::new(0x42), order: Order::new(order).expect("an order") }
}

#[test]
fn only_events_of_the_mask_are_recorded() {
    let recorder = Recorder { mask: TraceMask::new(), events: RefCell::default() };
    recorder.emit(free(1));
    recorder.mask.set(select_events("mm_page_free").expect("known"));
    recorder.emit(free(2));
    recorder.emit(Event::MmPageFreeBatched { pfn: Pfn::new(1) });
    assert_eq!(*recorder.events.borrow(), [free(2)]);
}

#[test]
fn arguments_arrive_as_the_catalogue_has_them() {
    let event = Event::MmPageAllocExtfrag {
        pfn: Pfn::new(0x1234),
        alloc_order: Order::covering(8).expect("order 3"),
        fallback_order: Order::covering(512).expect("order 9"),
        alloc_migratetype: 1,
        fallback_migratetype: 2,
        change_ownership: true,
    };
    let record = TraceRecord { args: event.args(), ..TraceRecord::default() };
    let info = EventInfo::of(event.id() as u16).expect("in the catalogue");
    assert!(info.values(&record).map(|(_, value)| value).eq([0x1234, 3, 9, 1, 2, 1]));
    let nothing = Event::RmqueueSmallestRet { pfn: None, found_order: None };
    let record = TraceRecord { args: nothing.args(), ..TraceRecord::default() };
    let info = EventInfo::of(nothing.id() as u16).expect("in the catalogue");
    assert!(info.values(&record).all(|(field, value)| field.kind.none() == Some(value)));
    let failed = Event::AllocContigRangeRet { ret: -16 };
    let record = TraceRecord { args: failed.args(), ..TraceRecord::default() };
    let info = EventInfo::of(failed.id() as u16).expect("in the catalogue");
    assert!(info.values(&record).eq([(info.fields[0], (-16_i64).cast_unsigned())]));
}

fn slots(count: usize) -> Vec<AtomicU64> {
    (0..count * 8).map(|_| AtomicU64::new(0)).collect()
}

fn record(words: &[AtomicU64], slot: usize) -> Vec<u64> {
    words[slot * 8..slot * 8 + 8].iter().map(|word| word.load(std::sync::atomic::Ordering::Relaxed)).collect()
}

#[test]
fn a_ring_overwrites_its_oldest_record() {
    let (ring, words) = (Ring::new(), slots(4));
    let stamp = |tsc| Stamp { tsc, in_interrupt: false };
    ring.push(&words, &free(0), stamp(1));
    assert_eq!(ring.head(), 0, "a ring that is not open drops events");
    ring.open(0, 0x1000, 4, [0; MASK_WORDS], 0);
    for tsc in 0..6 {
        ring.push(&words, &free(0), stamp(100 + tsc));
    }
    assert_eq!(ring.head(), 6);
    let stamps: Vec<_> = (0..4).map(|slot| record(&words, slot)[0]).collect();
    assert_eq!(stamps, [5, 6, 3, 4]);
    assert_eq!(record(&words, 1)[1], 105);
}
#[test]
fn an_exit_has_the_depth_of_its_enter() {
    let (ring, words) = (Ring::new(), slots(8));
    ring.open(0, 0x1000, 8, [0; MASK_WORDS], 0);
    ring.set_pid(7);
    let stamp = Stamp { tsc: 0, in_interrupt: true };
    ring.push(&words, &Event::FreePages { pfn: Pfn::new(8), order: Order::ZERO }, stamp);
    ring.push(&words, &free(0), stamp);
    ring.push(&words, &Event::FreePagesRet {}, stamp);
    ring.push(&words, &Event::FreePagesRet {}, stamp);
    ring.push(&words, &free(0), stamp);
    let whats: Vec<_> = (0..5).map(|slot| record(&words, slot)[2]).collect();
    assert_eq!(whats.iter().map(|what| what >> 16 & 0xff).collect::<Vec<_>>(), [0, 1, 0, 0, 0]);
    assert!(whats.iter().all(|what| what >> 24 & 0xff == 1 && what >> 32 == 7));
    assert_eq!(whats[0] & 0xffff, EventId::FreePages as u64);
}
