use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The rings as bytes.
struct Page(RefCell<Vec<u8>>);

impl Page {
    fn new() -> Page {
        Page(RefCell::new(vec![0; 4096]))
    }

    fn half(&self, at: u32) -> u16 {
        let bytes = self.0.borrow();
        u16::from_le_bytes([bytes[at as usize], bytes[at as usize + 1]])
    }

    fn set_half(&self, at: u32, value: u16) {
        self.0.borrow_mut()[at as usize..at as usize + 2].copy_from_slice(&value.to_le_bytes());
    }
}

impl RingMemory for Page {
    fn load(&self, offset: u32) -> u32 {
        assert!(offset.is_multiple_of(4));
        u32::from(self.half(offset)) | u32::from(self.half(offset + 2)) << 16
    }

    fn store(&self, offset: u32, value: u32) {
        assert!(offset.is_multiple_of(4));
        self.0.borrow_mut()[offset as usize..offset as usize + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn barrier(&self) {}
}

/// A device that follows the specification's text, byte by byte, and has no code of the driver.
struct Device {
    layout: Layout,
    seen: u16,
    used: u16,
    taken: Vec<(u16, Vec<Buffer>)>,
}

impl Device {
    fn new(layout: Layout) -> Device {
        Device { layout, seen: 0, used: 0, taken: Vec::new() }
    }

    /// Takes everything that is available.
    fn take(&mut self, page: &Page) {
        while self.seen != page.half(self.layout.avail + 2) {
            let slot = u32::from(self.seen % self.layout.size);
            let head = page.half(self.layout.avail + 4 + 2 * slot);
            let mut buffers = Vec::new();
            let mut at = head;
            loop {
                assert!(at < self.layout.size && buffers.len() < usize::from(self.layout.size));
                let desc = self.layout.desc + 16 * u32::from(at);
                let addr = u64::from(page.load(desc)) | u64::from(page.load(desc + 4)) << 32;
                let flags = page.half(desc + 12);
                buffers.push(Buffer { addr, len: page.load(desc + 8), device_writes: flags & 2 != 0 });
                if flags & 1 == 0 {
                    break;
                }
                at = page.half(desc + 14);
            }
            self.taken.push((head, buffers));
            self.seen = self.seen.wrapping_add(1);
        }
    }

    /// Answers the request at `index` of those taken.
    fn answer(&mut self, page: &Page, index: usize, len: u32) -> u16 {
        let (head, _) = self.taken.remove(index);
        let entry = self.layout.used + 4 + 8 * u32::from(self.used % self.layout.size);
        page.store(entry, head.into());
        page.store(entry + 4, len);
        self.used = self.used.wrapping_add(1);
        page.set_half(self.layout.used + 2, self.used);
        head
    }
}

fn buffer(number: u64) -> Buffer {
    Buffer { addr: number << 33 | number, len: 512, device_writes: number % 2 == 1 }
}

proptest! {
    #[test]
    fn every_request_reaches_the_device_as_it_was_made_and_comes_back_once(
        log in 1_u32..=7,
        steps in prop::collection::vec((0_u8..4, 1_usize..10, any::<prop::sample::Index>()), 1..400),
    ) {
        let layout = Layout::new(1 << log).expect("a power of two");
        let page = Page::new();
        let (mut queue, mut device) = (SplitQueue::new(layout), Device::new(layout));
        let mut flying: BTreeMap<u16, Vec<Buffer>> = BTreeMap::new();
        let mut free = usize::from(layout.size);
        let mut number = 0;
        for (what, count, index) in steps {
            match what {
                0 | 1 => {
                    let buffers: Vec<Buffer> = (0..count as u64).map(|at| buffer(number + at)).collect();
                    number += count as u64;
                    let promised = queue.next_head();
                    match queue.add(&page, buffers.iter().copied()) {
                        Ok(head) => {
                            prop_assert!(count <= free);
                            prop_assert_eq!(promised, Ok(head));
                            prop_assert!(flying.insert(head, buffers).is_none());
                            free -= count;
                            prop_assert!(queue.publish(&page));
                        }
                        Err(Full) => prop_assert!(count > free),
                    }
                }
                2 => {
                    device.take(&page);
                    for (head, buffers) in &device.taken {
                        prop_assert_eq!(flying.get(head), Some(buffers));
                    }
                    if !device.taken.is_empty() {
                        let len = u32::from(queue.nr_free());
                        let head = device.answer(&page, index.index(device.taken.len()), len);
                        prop_assert!(queue.nr_free() < layout.size);
                        prop_assert_eq!(queue.pop(&page), Ok(Some(Used { head, len })));
                        free += flying.remove(&head).map_or(0, |buffers| buffers.len());
                    }
                }
                _ => prop_assert_eq!(queue.pop(&page), Ok(None)),
            }
            prop_assert_eq!(usize::from(queue.nr_free()), free);
            prop_assert_eq!(queue.audit(), Ok(()));
        }
    }

    #[test]
    fn whatever_the_device_writes_the_lists_stay_whole(
        words in prop::collection::vec((any::<u16>(), any::<u32>()), 1..200),
        adds in prop::collection::vec(0_usize..5, 200),
    ) {
        let layout = Layout::new(16).expect("a power of two");
        let page = Page::new();
        let mut queue = SplitQueue::new(layout);
        for ((at, word), count) in words.into_iter().zip(adds) {
            let _ = queue.add(&page, (0..count as u64).map(buffer).collect::<Vec<_>>().into_iter());
            queue.publish(&page);
            // Mostly small numbers, which may be heads.
            let word = if word % 3 == 0 { word } else { word % 16 };
            let span = layout.bytes - layout.used;
            page.store(layout.used + u32::from(at) % span / 4 * 4, word);
            page.set_half(layout.used + 2, at % 20);
            let before = queue.nr_free();
            if let Ok(Some(_)) = queue.pop(&page) {
                prop_assert!(queue.nr_free() > before);
            }
            prop_assert_eq!(queue.audit(), Ok(()));
        }
    }
}

#[test]
fn an_answer_to_nothing_breaks_the_queue_for_ever() {
    let layout = Layout::new(8).expect("a power of two");
    for id in [5, 1, 8, 0x1_0000, u32::MAX] {
        let page = Page::new();
        let mut queue = SplitQueue::new(layout);
        // Descriptors 0 and 1; 1 is no head.
        assert_eq!(queue.add(&page, [buffer(1), buffer(2)].into_iter()), Ok(0));
        page.store(layout.used + 4, id);
        page.set_half(layout.used + 2, 1);
        assert_eq!(queue.pop(&page), Err(Broken));
        assert_eq!(queue.pop(&page), Err(Broken));
        assert_eq!(queue.add(&page, [buffer(1)].into_iter()), Err(Full));
    }
}

#[test]
fn a_device_that_wants_no_notification_gets_none() {
    let layout = Layout::new(8).expect("a power of two");
    let page = Page::new();
    let mut queue = SplitQueue::new(layout);
    page.set_half(layout.used, 1);
    queue.add(&page, [buffer(1)].into_iter()).expect("room");
    assert!(!queue.publish(&page));
    page.set_half(layout.used, 0);
    assert!(queue.publish(&page));
}

#[test]
fn the_parts_are_aligned_and_apart() {
    for log in 1..=7 {
        let layout = Layout::new(1 << log).expect("a power of two");
        let size = u32::from(layout.size);
        assert!(layout.avail >= layout.desc + 16 * size && layout.avail.is_multiple_of(2));
        assert!(layout.used >= layout.avail + 6 + 2 * size && layout.used.is_multiple_of(4));
        assert!(layout.bytes >= layout.used + 6 + 8 * size && layout.bytes <= 4096);
    }
}
