//! Disks: what the machine file `disks` has, or QEMU with disks of the same names. A disk that is not there is a skip.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use mm_core::{Errno, Gfp, MaySleep, Order, PAGE_SIZE, Pfn};

use super::{Failure, Test, check};
use crate::drivers::block::{self, Direction, Disk, Segment};
use crate::mm::page_alloc;
use crate::mm::phys::{self, DirectMap};
use crate::sched::{self, WaitQueue};

pub const TESTS: [(&str, Test); 12] = [
    ("what_is_written_is_read_back_and_neighbours_stay", what_is_written_is_read_back_and_neighbours_stay),
    ("pieces_of_frames_are_joined", pieces_of_frames_are_joined),
    ("two_disks_are_two", two_disks_are_two),
    ("a_long_list_becomes_several_requests", a_long_list_becomes_several_requests),
    ("requests_in_flight_end_in_any_order", requests_in_flight_end_in_any_order),
    ("a_full_queue_lets_others_wait", a_full_queue_lets_others_wait),
    ("a_flush_succeeds_and_is_counted", a_flush_succeeds_and_is_counted),
    ("what_is_no_request_is_refused", what_is_no_request_is_refused),
    ("a_read_error_is_eio_and_harms_nobody", a_read_error_is_eio_and_harms_nobody),
    ("a_write_error_is_eio_and_changes_nothing", a_write_error_is_eio_and_changes_nothing),
    ("a_torn_write_ends_the_disk", a_torn_write_ends_the_disk),
    ("every_queue_is_whole_and_idle", every_queue_is_whole_and_idle),
];

/// The console, for whoever writes texts.
struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        crate::print!("{text}");
        Ok(())
    }
}

/// Sectors in a frame.
const FRAME: u64 = PAGE_SIZE / 512;
/// Words in a frame.
const WORDS: usize = 512;

type Outcome = Result<(), Failure>;

/// Frames that are given back at the end.
struct Frames(Vec<Pfn>);

impl Frames {
    fn new(count: usize) -> Result<Frames, Failure> {
        let mut frames = Frames(Vec::new());
        for _ in 0..count {
            let frame = page_alloc::alloc_here(Gfp::KERNEL | Gfp::ZERO, Order::ZERO, None);
            frames.0.push(frame.ok_or(Failure::Wrong("no memory"))?);
        }
        Ok(frames)
    }

    fn segments(&self) -> Vec<Segment> {
        self.0.iter().map(|frame| Segment::frame(*frame)).collect()
    }

    fn segment(&self, index: usize) -> Segment {
        Segment::frame(self.0[index])
    }

    /// Fills frame `index` with what no other `seed` has.
    fn fill(&self, index: usize, seed: u64) {
        DirectMap.fill_table(self.0[index], 0, WORDS, seed << 32, 1);
    }

    /// Whether frame `index` holds what `fill` wrote; `sparse` looks at every sector's first and last word.
    fn holds(&self, index: usize, seed: u64, sparse: bool) -> bool {
        let words = phys::words(self.0[index].phys(), WORDS as u64);
        words.iter().zip(0_u64..).all(|(word, at)| {
            let skipped = sparse && !matches!(at % 64, 0 | 63);
            skipped || word.load(Ordering::Relaxed) == (seed << 32) + at
        })
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        for frame in &self.0 {
            page_alloc::free_pages(*frame, Order::ZERO);
        }
    }
}

fn disk(name: &'static str) -> Result<Disk, Failure> {
    block::by_serial(name).ok_or(Failure::Skip("the machine has no disk of that name"))
}

fn context() -> MaySleep<'static> {
    sched::task_context()
}

fn wrong<E>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |_| Failure::Wrong(what)
}

fn what_is_written_is_read_back_and_neighbours_stay() -> Outcome {
    let (disk, context) = (disk("data")?, context());
    let frames = Frames::new(4)?;
    for (index, seed) in [(0, 11), (1, 12), (2, 13)] {
        frames.fill(index, seed);
    }
    // The whole, then its middle anew.
    disk.write(64, &frames.segments()[..2], &context).map_err(wrong("a write failed"))?;
    disk.write(64 + FRAME - 1, &[Segment { len: 512, ..frames.segment(2) }], &context)
        .map_err(wrong("a write failed"))?;
    for (index, sector) in [(0, 64), (1, 64 + FRAME), (3, 64 + FRAME - 1)] {
        frames.fill(index, 99);
        disk.read(sector, &[frames.segment(index)], &context).map_err(wrong("a read failed"))?;
    }
    check(frames.holds(1, 12, false), "the second frame is not what was written")?;
    let word = |frame: Pfn, at: usize| {
        phys::words(frame.phys(), WORDS as u64).get(at).map_or(0, |word| word.load(Ordering::Relaxed))
    };
    check(word(frames.0[0], 0) == 11 << 32, "the first sector changed")?;
    check(word(frames.0[0], 447) == (11 << 32) + 447, "the sector before changed")?;
    check(word(frames.0[0], 448) == 13 << 32, "the last sector is not the new one")?;
    check(word(frames.0[0], 511) == (13 << 32) + 63, "the last sector is not the new one")?;
    check(word(frames.0[3], 63) == (13 << 32) + 63, "an unaligned read begins elsewhere")?;
    check(word(frames.0[3], 64) == 12 << 32, "an unaligned read goes on elsewhere")
}

fn pieces_of_frames_are_joined() -> Outcome {
    let (disk, context) = (disk("data")?, context());
    let frames = Frames::new(3)?;
    frames.fill(0, 21);
    disk.write(128, &[frames.segment(0)], &context).map_err(wrong("a write failed"))?;
    let piece = |index: usize, offset, len| Segment { offset, len, ..frames.segment(index) };
    // Sectors 0, 1 to 4 and 5 to 7 at three places.
    let to = [piece(1, 512, 512), piece(2, 0, 2048), piece(1, 1024, 1536)];
    disk.read(128, &to, &context).map_err(wrong("a read failed"))?;
    let at = |index: usize, byte: usize| {
        let words = phys::words(frames.0[index].phys(), WORDS as u64);
        words.get(byte / 8).map_or(0, |word| word.load(Ordering::Relaxed))
    };
    check(at(1, 0) == 0 && at(1, 2560) == 0 && at(2, 2048) == 0, "bytes beside the pieces changed")?;
    check(at(1, 512) == 21 << 32, "the first piece")?;
    check(at(2, 0) == (21 << 32) + 64 && at(2, 2040) == (21 << 32) + 319, "the second piece")?;
    check(at(1, 1024) == (21 << 32) + 320 && at(1, 2552) == (21 << 32) + 511, "the third piece")
}

fn two_disks_are_two() -> Outcome {
    let (data, swap, context) = (disk("data")?, disk("swap")?, context());
    let frames = Frames::new(4)?;
    frames.fill(0, 31);
    frames.fill(1, 32);
    data.write(0, &[frames.segment(0)], &context).map_err(wrong("a write failed"))?;
    swap.write(0, &[frames.segment(1)], &context).map_err(wrong("a write failed"))?;
    data.read(0, &[frames.segment(2)], &context).map_err(wrong("a read failed"))?;
    swap.read(0, &[frames.segment(3)], &context).map_err(wrong("a read failed"))?;
    check(frames.holds(2, 31, false) && frames.holds(3, 32, false), "the disks have each other's sectors")
}

fn a_long_list_becomes_several_requests() -> Outcome {
    let (disk, context) = (disk("swap")?, context());
    let count = usize::from(disk.geometry.max_segments) + 3;
    let frames = Frames::new(count)?;
    (0..count).for_each(|index| frames.fill(index, 40 + index as u64));
    let [before, ..] = disk.stats().of(Direction::Write);
    disk.write(0, &frames.segments(), &context).map_err(wrong("a write failed"))?;
    let [after, ..] = disk.stats().of(Direction::Write);
    check(after == before + 2, "it was not two requests")?;
    (0..count).for_each(|index| frames.fill(index, 1));
    disk.read(0, &frames.segments(), &context).map_err(wrong("a read failed"))?;
    check(
        (0..count).all(|index| frames.holds(index, 40 + index as u64, true)),
        "a frame is not what was written",
    )
}

fn requests_in_flight_end_in_any_order() -> Outcome {
    let (disk, context) = (disk("data")?, context());
    let depth = usize::from(disk.driver().depth()).min(32);
    let frames = Frames::new(depth)?;
    let mut tickets = Vec::new();
    for index in 0..depth {
        frames.fill(index, 200 + index as u64);
        let sector = 256 + index as u64 * FRAME;
        let ticket = disk.begin_write(sector, &[frames.segment(index)], &context);
        tickets.push(ticket.map_err(wrong("a write was not begun"))?);
    }
    // Waited for in reverse.
    while let Some(ticket) = tickets.pop() {
        disk.wait(ticket, &context).map_err(wrong("a write failed"))?;
    }
    for index in 0..depth {
        frames.fill(index, 1);
        let sector = 256 + index as u64 * FRAME;
        let ticket = disk.begin_read(sector, &[frames.segment(index)], &context);
        tickets.push(ticket.map_err(wrong("a read was not begun"))?);
    }
    for ticket in tickets {
        disk.wait(ticket, &context).map_err(wrong("a read failed"))?;
    }
    check(
        (0..depth).all(|index| frames.holds(index, 200 + index as u64, true)),
        "a frame is not what was written",
    )
}

static DONE: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static WAITERS: WaitQueue = WaitQueue::new();

/// Reads once, and waits for room for that.
fn read_once(_: u64) {
    let ended = disk("slow").and_then(|disk| {
        let frames = Frames::new(1)?;
        disk.read(0, &[frames.segment(0)], &context()).map_err(wrong("a read failed"))
    });
    if ended.is_err() {
        FAILED.fetch_add(1, Ordering::Relaxed);
    }
    DONE.fetch_add(1, Ordering::Release);
    WAITERS.wake_up_all();
}

fn a_full_queue_lets_others_wait() -> Outcome {
    const OTHERS: u32 = 3;
    let (disk, context) = (disk("slow")?, context());
    let depth = usize::from(disk.driver().depth());
    let frames = Frames::new(1)?;
    let mut tickets = Vec::new();
    for _ in 0..depth {
        let ticket = disk.begin_read(0, &[frames.segment(0)], &context);
        tickets.push(ticket.map_err(wrong("a read was not begun"))?);
    }
    for _ in 0..OTHERS {
        sched::spawn_daemon("disk-reader", read_once, 0, &context).map_err(wrong("no thread"))?;
    }
    for ticket in tickets {
        disk.wait(ticket, &context).map_err(wrong("a read failed"))?;
    }
    WAITERS.wait_event(&context, || DONE.load(Ordering::Acquire) == OTHERS);
    check(FAILED.load(Ordering::Relaxed) == 0, "a read that waited for room failed")
}

fn a_flush_succeeds_and_is_counted() -> Outcome {
    let (disk, context) = (disk("data")?, context());
    check(disk.geometry.has_flush, "the disk has no flush")?;
    let [before, ..] = disk.stats().of(Direction::Flush);
    disk.flush(&context).map_err(wrong("a flush failed"))?;
    check(disk.stats().of(Direction::Flush)[0] == before + 1, "a flush was not counted")
}

fn what_is_no_request_is_refused() -> Outcome {
    let (disk, context) = (disk("data")?, context());
    let frames = Frames::new(1)?;
    let whole = frames.segment(0);
    let read = |sector, segment| disk.read(sector, &[segment], &context);
    check(read(disk.capacity() - 7, whole) == Err(Errno::Eio), "a read past the end")?;
    check(read(u64::MAX, whole) == Err(Errno::Eio), "a read that wraps")?;
    check(read(0, Segment { len: 100, ..whole }) == Err(Errno::Einval), "a part of a sector")?;
    check(read(0, Segment { offset: 512, ..whole }) == Err(Errno::Einval), "past the frame's end")?;
    check(read(disk.capacity() - FRAME, whole) == Ok(()), "the last sectors")?;
    let read_only = self::disk("ro")?;
    check(read_only.geometry.read_only, "the disk says that it can be written")?;
    check(read_only.write(0, &[whole], &context) == Err(Errno::Erofs), "a write to a read-only disk")?;
    check(read_only.read(0, &[whole], &context) == Ok(()), "a read of a read-only disk")
}

fn a_read_error_is_eio_and_harms_nobody() -> Outcome {
    let (flaky, data, context) = (disk("flaky")?, disk("data")?, context());
    let frames = Frames::new(2)?;
    let (bad, good) = (frames.segment(0), frames.segment(1));
    // Sector 64 cannot be read. Others are asked for at the same time.
    let ticket = data.begin_read(0, &[good], &context).map_err(wrong("a read was not begun"))?;
    let failed = flaky.read(64, &[bad], &context);
    data.wait(ticket, &context).map_err(wrong("the other disk was harmed"))?;
    check(failed == Err(Errno::Eio), "the error did not come")?;
    check(flaky.read(60, &[bad], &context) == Err(Errno::Eio), "a read across the bad sector")?;
    check(flaky.read(56, &[bad], &context) == Ok(()), "the sectors before")?;
    check(flaky.read(65, &[bad], &context) == Ok(()), "the sectors after")
}

fn a_write_error_is_eio_and_changes_nothing() -> Outcome {
    let (flaky, context) = (disk("flaky")?, context());
    let frames = Frames::new(2)?;
    frames.fill(0, 51);
    flaky.write(128 - FRAME, &[frames.segment(0)], &context).map_err(wrong("a write failed"))?;
    // Sector 128 cannot be written.
    check(flaky.write(124, &[frames.segment(0)], &context) == Err(Errno::Eio), "the error did not come")?;
    flaky.read(128 - FRAME, &[frames.segment(1)], &context).map_err(wrong("a read failed"))?;
    check(frames.holds(1, 51, false), "the write that failed left something")
}

fn a_torn_write_ends_the_disk() -> Outcome {
    let (torn, data, context) = (disk("torn")?, disk("data")?, context());
    let frames = Frames::new(1)?;
    let whole = [frames.segment(0)];
    check(torn.write(0, &whole, &context) == Ok(()), "the first write")?;
    check(torn.write(8, &whole, &context) == Ok(()), "the second write")?;
    check(torn.write(0, &whole, &context) == Err(Errno::Eio), "the third write is torn")?;
    check(torn.read(0, &whole, &context) == Err(Errno::Eio), "a disk without power answers")?;
    check(torn.flush(&context) == Err(Errno::Eio), "a disk without power flushes")?;
    check(data.read(0, &whole, &context) == Ok(()), "another disk was harmed")
}

fn every_queue_is_whole_and_idle() -> Outcome {
    if block::all().count() == 0 {
        return Err(Failure::Skip("the machine has no disks"));
    }
    for disk in block::all() {
        disk.driver().audit().map_err(Failure::Wrong)?;
        check(disk.stats().in_flight() == 0, "a request is still in flight")?;
        check(disk.driver().interrupts() > 0, "no interrupt came")?;
    }
    crate::println!("# /proc/partitions and /proc/diskstats:");
    let mut console = Console;
    block::write_partitions(&mut console).map_err(wrong("no text"))?;
    block::write_diskstats(&mut console).map_err(wrong("no text"))
}
