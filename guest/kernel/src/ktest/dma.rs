//! The DMA API and memvisor's engine: what the machine file `dma` has. Without an engine the tests of the API run, and those that need one
//! are skips.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use memvisor_abi::dma::{Error, Mode};
use mm_core::{Gfp, MaySleep, Order, PAGE_SIZE, Pfn, PhysAddr};
use mm_dma::{Direction, DmaDevice, DmaError, DmaMask, MappingKind, max_mapping_size};

use super::{Failure, Test, check};
use crate::drivers::dma::{self as driver, Engine, Refusal, Transfer, Way};
use crate::mm::dma::swiotlb;
use crate::mm::dma::{
    dma_alloc_coherent, dma_free_coherent, dma_map_single, dma_set_mask, dma_sync_single_for_cpu,
    dma_sync_single_for_device, dma_unmap_single, stats,
};
use crate::mm::phys::{self, DirectMap};
use crate::mm::{kmap, page_alloc};
use crate::sched::{self, clock};
use crate::{println, topology};

pub const TESTS: [(&str, Test); 14] = [
    ("coherent_memory_is_where_the_mask_reaches", coherent_memory_is_where_the_mask_reaches),
    ("masks_that_cannot_be_served_are_refused", masks_that_cannot_be_served_are_refused),
    ("a_buffer_beyond_the_mask_bounces_and_its_contents_arrive", contents_arrive),
    ("a_sync_moves_the_part_that_it_names", a_sync_moves_the_part_that_it_names),
    ("the_largest_mapping_fits_and_a_full_pool_says_so", a_full_pool_says_so),
    ("engines_are_found_with_their_masks", engines_are_found_with_their_masks),
    ("each_mode_moves_all_bytes", each_mode_moves_all_bytes),
    ("a_block_holds_the_cpu_and_a_single_transfer_moves_a_unit_a_start", a_start_moves_what_its_mode_says),
    ("bursts_and_stolen_cycles_leave_the_cpu_running", the_cpu_runs_meanwhile),
    ("every_mask_reaches_every_zone", every_mask_reaches_every_zone),
    ("memory_is_copied_to_memory", memory_is_copied_to_memory),
    ("what_the_engine_does_not_reach_is_refused", what_the_engine_does_not_reach_is_refused),
    ("wrong_setups_are_refused", wrong_setups_are_refused),
    ("no_slot_is_left_in_use", no_slot_is_left_in_use),
];

type Outcome = Result<(), Failure>;

const NO_MEMORY: Failure = Failure::Wrong("no memory");
const WORDS: u64 = PAGE_SIZE / 8;

fn context() -> MaySleep<'static> {
    sched::task_context()
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Dma,
    Dma32,
    Above,
}

impl Place {
    const ALL: [Place; 3] = [Place::Dma, Place::Dma32, Place::Above];

    const fn name(self) -> &'static str {
        match self {
            Place::Dma => "ZONE_DMA",
            Place::Dma32 => "ZONE_DMA32",
            Place::Above => "above 4 GiB",
        }
    }

    fn holds(self, addr: u64) -> bool {
        match self {
            Place::Dma => addr < 1 << 24,
            Place::Dma32 => (1 << 24..1 << 32).contains(&addr),
            Place::Above => addr >= 1 << 32,
        }
    }
}

/// A block that is given back at the end.
struct Buffer {
    pfn: Pfn,
    order: Order,
}

impl Buffer {
    /// A block at `place`; `None` if this machine has no memory there.
    fn new(place: Place, order: u8) -> Option<Buffer> {
        let order = Order::new(order)?;
        let zone = match place {
            Place::Dma => Gfp::DMA,
            Place::Dma32 => Gfp::DMA32,
            Place::Above => Gfp::empty(),
        };
        (0..u32::try_from(topology::nr_nodes()).unwrap_or(0)).find_map(|node| {
            let pfn = page_alloc::alloc_here(Gfp::KERNEL | Gfp::NOWARN | zone, order, Some(node))?;
            let buffer = Buffer { pfn, order };
            (place.holds(pfn.phys().as_u64()) && !kmap::is_highmem(pfn)).then_some(buffer)
        })
    }

    fn addr(&self) -> PhysAddr {
        self.pfn.phys()
    }

    fn len(&self) -> u64 {
        self.order.pages() * PAGE_SIZE
    }

    /// Fills it with what no other `seed` has.
    fn fill(&self, seed: u64) {
        for page in 0..self.order.pages() {
            DirectMap.fill_table(self.pfn.offset(page), 0, 512, (seed << 32) | (page * WORDS), 1);
        }
    }

    fn checksum(&self, from: u64, len: u64) -> u64 {
        checksum(PhysAddr::new(self.addr().as_u64() + from), len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        page_alloc::free_pages(self.pfn, self.order);
    }
}

/// Of whole words (FNV-1a over words).
fn checksum(addr: PhysAddr, len: u64) -> u64 {
    phys::words(addr, len / 8).iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| {
        (hash ^ word.load(Ordering::Relaxed)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Checksum of what [`Buffer::fill`] makes of `len` bytes from `from` on.
fn expected(seed: u64, from: u64, len: u64) -> u64 {
    (from / 8..(from + len) / 8).fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| {
        (hash ^ ((seed << 32) | word)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn mask(bits: u32) -> Result<DmaMask, Failure> {
    DmaMask::from_bits(bits).ok_or(Failure::Wrong("no such mask"))
}

fn device(bits: u32) -> Result<DmaDevice, Failure> {
    dma_set_mask(mask(bits)?, &context()).map_err(|_| Failure::Wrong("a mask of a common device was refused"))
}

/// Whether a mapping for the device must bounce: it does not reach the buffer, or all mappings bounce.
fn must_bounce(device: &DmaDevice, addr: PhysAddr, len: u64) -> bool {
    let force = mm_dma::Machine::pool(&swiotlb::Bounce, 0).is_some_and(|pool| pool.force != 0);
    force || !device.mask.reaches(addr, len)
}

fn coherent_memory_is_where_the_mask_reaches() -> Outcome {
    for bits in [24, 30, 32, 64] {
        let device = device(bits)?;
        for len in [1, 4096, 20_000] {
            let block = dma_alloc_coherent(&device, len, Gfp::KERNEL).map_err(|_| NO_MEMORY)?;
            let (addr, whole) = (block.addr(), block.len());
            let zero = phys::words(addr, whole / 8).iter().all(|word| word.load(Ordering::Relaxed) == 0);
            // What one side writes the other sees, with nothing in between.
            phys::words(addr, 1).iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
            dma_free_coherent(block);
            check(device.coherent_mask.reaches(addr, whole), "coherent memory beyond the mask")?;
            check(whole >= len && zero, "coherent memory is too short or not zero")?;
        }
    }
    let device = device(64)?;
    check(dma_alloc_coherent(&device, 0, Gfp::KERNEL).is_err(), "no bytes were allocated")?;
    check(dma_alloc_coherent(&device, 1 << 40, Gfp::KERNEL).is_err(), "a tebibyte was allocated")
}

fn masks_that_cannot_be_served_are_refused() -> Outcome {
    let all_reached = swiotlb::ram_end().as_u64() <= 1 << 23;
    check(dma_set_mask(mask(23)?, &context()).is_ok() == all_reached, "a mask of 23 bits")?;
    check(dma_set_mask(mask(1)?, &context()).is_err(), "a mask of one bit was accepted")?;
    check(dma_set_mask(mask(24)?, &context()).is_ok(), "a mask of 24 bits was refused")
}

fn contents_arrive() -> Outcome {
    let mut places = 0;
    for place in Place::ALL {
        let Some(buffer) = Buffer::new(place, 1) else { continue };
        places += 1;
        for bits in [24, 32, 64] {
            let device = device(bits)?;
            // Neither aligned to slots nor to pages.
            let (from, len) = (0x340, 6000);
            let addr = PhysAddr::new(buffer.addr().as_u64() + from);
            let bounces = must_bounce(&device, addr, len);
            for direction in [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional] {
                buffer.fill(7);
                let before = stats();
                let mapping = match dma_map_single(&device, addr, len, direction) {
                    Ok(mapping) => mapping,
                    Err(DmaError::Unreachable) if bounces => {
                        return Err(Failure::Wrong("no pool for a device that needs one"));
                    }
                    Err(_) => return Err(Failure::Wrong("a buffer was not mapped")),
                };
                let (at, kind) = (mapping.addr(), mapping.kind());
                let arrived = checksum(at, len);
                // The device writes all of it.
                let words = phys::words(at, len / 8);
                if direction.is_from_device() {
                    words.iter().zip(0..).for_each(|(word, at)| word.store(at ^ 0x5a5a, Ordering::Relaxed));
                }
                let written = checksum(at, len);
                dma_unmap_single(mapping);
                let after = stats();
                check(device.mask.reaches(at, len), "a mapping beyond the mask")?;
                check((kind != MappingKind::Direct) == bounces, "it bounced without need, or did not")?;
                check(after.bounced - before.bounced == u64::from(bounces), "bounces are not counted")?;
                check(arrived == expected(7, from, len), "the device does not see the contents")?;
                check(buffer.checksum(from, len) == written, "the CPU does not see the contents")?;
                check(buffer.checksum(0, from) == expected(7, 0, from), "bytes before the buffer changed")?;
                let end = from + len;
                let rest = (buffer.len() - end) & !7;
                let behind = buffer.len() - rest;
                check(
                    buffer.checksum(behind, rest) == expected(7, behind, rest),
                    "bytes behind the buffer changed",
                )?;
            }
        }
    }
    println!("# dma: {places} of 3 places have memory");
    check(places > 1, "no memory but in one place")
}

fn a_sync_moves_the_part_that_it_names() -> Outcome {
    let device = device(24)?;
    let buffer = Buffer::new(Place::Dma32, 0).ok_or(Failure::Skip("no memory between 16 MiB and 4 GiB"))?;
    buffer.fill(9);
    let mapping = dma_map_single(&device, buffer.addr(), 4096, Direction::Bidirectional)
        .map_err(|_| Failure::Wrong("a buffer was not mapped"))?;
    let slots = phys::words(mapping.addr(), WORDS);
    let mine = phys::words(buffer.addr(), WORDS);
    let word = |words: &[core::sync::atomic::AtomicU64], at: usize| {
        words.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
    };
    slots.iter().for_each(|word| word.store(77, Ordering::Relaxed));
    dma_sync_single_for_cpu(&mapping, 64, 128);
    let seen = [7, 8, 23, 24].map(|at| word(mine, at));
    mine.iter().for_each(|word| word.store(88, Ordering::Relaxed));
    dma_sync_single_for_device(&mapping, 4088, 4096);
    let given = [510, 511].map(|at| word(slots, at));
    dma_unmap_single(mapping);
    check(seen == [9 << 32 | 7, 77, 77, 9 << 32 | 24], "a sync for the CPU moved something else")?;
    check(given == [77, 88], "a sync for the device moved something else")?;
    check(word(mine, 0) == 77 && word(mine, 511) == 88, "the end of the mapping moved something else")
}

fn a_full_pool_says_so() -> Outcome {
    let device = device(24)?;
    let largest = max_mapping_size(&device);
    let buffer = Buffer::new(Place::Dma32, 7).ok_or(Failure::Skip("no memory between 16 MiB and 4 GiB"))?;
    let map = |len| dma_map_single(&device, buffer.addr(), len, Direction::ToDevice);
    check(map(largest + 1) == Err(DmaError::TooLarge), "more than a segment was mapped")?;
    check(map(0) == Err(DmaError::Empty), "no bytes were mapped")?;
    let mut held = Vec::new();
    let refused = loop {
        match map(largest) {
            Ok(mapping) => held.push(mapping),
            Err(error) => break error,
        }
    };
    let whole = swiotlb::audit();
    let count = held.len();
    held.into_iter().for_each(dma_unmap_single);
    println!("# dma: {count} mappings of {} KiB fill the pool of 24 bits", largest >> 10);
    check(refused == DmaError::Full && count > 0, "a full pool says something else")?;
    check(whole.is_ok() && swiotlb::audit().is_ok(), "the slots are not whole")?;
    let again = map(largest).map_err(|_| Failure::Wrong("a pool stays full"))?;
    dma_unmap_single(again);
    Ok(())
}

fn engine(bits: u32) -> Result<&'static Engine, Failure> {
    let found = driver::all().find(|engine| engine.bits() == bits);
    found.ok_or(Failure::Skip("the machine has no DMA engine of so many address bits"))
}

fn block(addr: PhysAddr, way: Way, len: u64) -> Transfer {
    Transfer { addr, way, len, mode: Mode::Block, unit: 4096, burst: 1, pause_us: 0 }
}

fn engines_are_found_with_their_masks() -> Outcome {
    let mut found = 0;
    for engine in driver::all() {
        found += 1;
        check(mask(engine.bits())? == engine.device().mask, "a driver's mask is not its engine's")?;
    }
    if found == 0 {
        return Err(Failure::Skip("the machine has no DMA engine"));
    }
    check(driver::all().any(|engine| engine.bits() == 24), "no engine of 24 bits")
}

fn each_mode_moves_all_bytes() -> Outcome {
    let (engine, context) = (engine(64)?, context());
    let buffer = Buffer::new(Place::Dma32, 1).ok_or(NO_MEMORY)?;
    for (seed, mode) in (20..).zip(Mode::ALL) {
        let claimed = engine.claim(&context);
        buffer.fill(seed);
        // The last unit is shorter.
        let len = 8000;
        let transfer = Transfer {
            mode,
            unit: 512,
            burst: 4,
            pause_us: 50,
            ..block(buffer.addr(), Way::ToEngine { own: 0x1234 }, len)
        };
        let (begun, interrupts) = (clock::now(), engine.interrupts());
        let there = claimed.run(&transfer);
        let us = clock::now().saturating_sub(begun) / 1000;
        let interrupts = engine.interrupts() - interrupts;
        buffer.fill(1);
        let back = claimed.run(&Transfer { way: Way::FromEngine { own: 0x1234 }, ..transfer });
        println!("# dma: {}: {len} bytes in {us} us, {interrupts} interrupts", mode.name());
        check(there.is_ok() && back.is_ok(), "a transfer was refused")?;
        check(buffer.checksum(0, len) == expected(seed, 0, len), "a transfer changed the contents")?;
        check(buffer.checksum(len, 192) == expected(1, len, 192), "a transfer wrote more than it should")?;
        let wanted = if mode == Mode::Single { 16 } else { 1 };
        check(
            interrupts == wanted,
            "not an interrupt for each unit of a single transfer, or for each other",
        )?;
    }
    Ok(())
}

fn a_start_moves_what_its_mode_says() -> Outcome {
    let (engine, context) = (engine(32)?, context());
    let buffer = Buffer::new(Place::Dma, 1).ok_or(NO_MEMORY)?;
    let claimed = engine.claim(&context);
    let transfer = block(buffer.addr(), Way::ToEngine { own: 0 }, 8192);
    claimed.begin(&transfer);
    let at_once = claimed.progress();
    claimed.wait().map_err(|_| Failure::Wrong("a block was refused"))?;
    claimed.begin(&Transfer { mode: Mode::Single, unit: 1000, ..transfer });
    let first = claimed.progress();
    claimed.wait().map_err(|_| Failure::Wrong("a single transfer was refused"))?;
    check(at_once == 8192, "the CPU went on before a block was moved")?;
    check(first == 1000 && claimed.progress() == 8192, "a single start moved another number of bytes")
}

fn the_cpu_runs_meanwhile() -> Outcome {
    let (engine, context) = (engine(32)?, context());
    let buffer = Buffer::new(Place::Dma, 4).ok_or(NO_MEMORY)?;
    for (mode, step) in [(Mode::Burst, 64 * 4), (Mode::CycleStealing, 64)] {
        let claimed = engine.claim(&context);
        // A minute and more: nobody waits for its end.
        let transfer = Transfer {
            mode,
            unit: 64,
            burst: 4,
            pause_us: 100_000,
            ..block(buffer.addr(), Way::ToEngine { own: 0 }, 1 << 16)
        };
        claimed.begin(&transfer);
        let mut seen = Vec::new();
        let mut last = 0;
        while seen.len() < 3 {
            let now = claimed.progress();
            if now != last {
                seen.push(now);
                last = now;
            }
            clock::sleep_until(&context, clock::now() + 10_000_000);
        }
        claimed.stop();
        let at_end = claimed.progress();
        println!("# dma: {}: {:?} bytes were moved while the CPU ran", mode.name(), seen);
        check(seen.iter().all(|bytes| bytes % step == 0), "a step has another size")?;
        check(at_end < transfer.len && at_end >= last, "the progress is not one")?;
        check(claimed.stopped() == Err(Refusal::Stopped), "a stop did not stop it")?;
    }
    Ok(())
}

fn every_mask_reaches_every_zone() -> Outcome {
    let context = context();
    let mut moved = 0_u64;
    for (number, engine) in driver::all().enumerate() {
        let claimed = engine.claim(&context);
        for place in Place::ALL {
            let Some(buffer) = Buffer::new(place, 1) else { continue };
            let (from, len) = (0x128, 7000);
            let addr = PhysAddr::new(buffer.addr().as_u64() + from);
            let bounces = must_bounce(engine.device(), addr, len);
            let seed = 40 + number as u64;
            buffer.fill(seed);
            let before = stats();
            let map = |direction| {
                dma_map_single(engine.device(), addr, len, direction)
                    .map_err(|_| Failure::Wrong("a buffer was not mapped"))
            };
            let mapping = map(Direction::ToDevice)?;
            let there = claimed.run(&block(mapping.addr(), Way::ToEngine { own: 0x800 }, len));
            dma_unmap_single(mapping);
            buffer.fill(2);
            let mapping = map(Direction::FromDevice)?;
            let back = claimed.run(&block(mapping.addr(), Way::FromEngine { own: 0x800 }, len));
            dma_unmap_single(mapping);
            let bounced = stats().bounced - before.bounced;
            println!(
                "# dma: {} bits, {}: {len} bytes there and back, {bounced} bounced, checksum {:#018x}",
                engine.bits(),
                place.name(),
                buffer.checksum(from, len)
            );
            moved += 2 * len;
            check(there.is_ok() && back.is_ok(), "a mapped buffer was refused")?;
            check(bounced == if bounces { 2 } else { 0 }, "it bounced without need, or did not")?;
            check(buffer.checksum(from, len) == expected(seed, from, len), "the contents did not arrive")?;
            check(buffer.checksum(0, from) == expected(2, 0, from), "bytes before the buffer changed")?;
        }
    }
    match moved {
        0 => Err(Failure::Skip("the machine has no DMA engine")),
        _ => Ok(()),
    }
}

fn memory_is_copied_to_memory() -> Outcome {
    let (engine, context) = (engine(64)?, context());
    let from = Buffer::new(Place::Dma, 3).ok_or(NO_MEMORY)?;
    let to = Buffer::new(Place::Above, 3).ok_or(Failure::Skip("no memory above 4 GiB"))?;
    from.fill(60);
    to.fill(61);
    let claimed = engine.claim(&context);
    let way = Way::ToMemory { to: to.addr() };
    let outcome = claimed.run(&block(from.addr(), way, from.len()));
    check(outcome.is_ok(), "a copy was refused")?;
    check(to.checksum(0, to.len()) == expected(60, 0, to.len()), "a copy is another")
}

/// Runs what must be refused; nothing of the buffer may change.
fn refused(engine: &Engine, transfer: &Transfer, error: Error, address: u64) -> Outcome {
    let context = context();
    let outcome = engine.claim(&context).run(transfer);
    match outcome {
        Err(Refusal::Engine(why, at)) if why == error && at == address => Ok(()),
        other => {
            println!("# dma: {transfer:x?}: {other:x?}, not {error:?} at {address:#x}");
            Err(Failure::Wrong("a transfer was not refused, or for another reason"))
        }
    }
}

fn what_the_engine_does_not_reach_is_refused() -> Outcome {
    let way = Way::FromEngine { own: 0 };
    let (isa, wide) = (engine(24)?, engine(64)?);
    let mut count = 0;
    for (engine, place) in [(isa, Place::Dma32), (isa, Place::Above), (engine(32)?, Place::Above)] {
        let Some(buffer) = Buffer::new(place, 0) else { continue };
        buffer.fill(70);
        let addr = buffer.addr();
        refused(engine, &block(addr, way, 512), Error::BeyondMask, addr.as_u64())?;
        check(buffer.checksum(0, 4096) == expected(70, 0, 4096), "a refused transfer wrote")?;
        count += 1;
    }
    // The last byte decides.
    refused(isa, &block(PhysAddr::new((1 << 24) - 8), way, 16), Error::BeyondMask, (1 << 24) - 8)?;
    refused(wide, &block(PhysAddr::new(u64::MAX - 7), way, 16), Error::BeyondMask, u64::MAX - 7)?;
    // The video hole, firmware's tables, the window of devices, and where nothing is.
    for addr in [0xa_0000, 0xe_0000, 0xfee0_0000, 1 << 50] {
        refused(wide, &block(PhysAddr::new(addr), way, 64), Error::NoRam, addr)?;
    }
    println!("# dma: {} transfers refused for their address", count + 6);
    check(count > 0, "no buffer beyond any mask")
}

fn wrong_setups_are_refused() -> Outcome {
    let engine = engine(64)?;
    let buffer = Buffer::new(Place::Dma32, 0).ok_or(NO_MEMORY)?;
    let good = block(buffer.addr(), Way::ToEngine { own: 0 }, 64);
    refused(engine, &Transfer { len: 0, ..good }, Error::Length, 0)?;
    refused(engine, &Transfer { len: (1 << 20) + 1, ..good }, Error::Length, 0)?;
    let end = Way::ToEngine { own: (64 << 10) - 32 };
    refused(engine, &Transfer { way: end, ..good }, Error::Length, (64 << 10) - 32)?;
    refused(engine, &Transfer { unit: 0, ..good }, Error::Setup, 0)?;
    refused(engine, &Transfer { unit: 4097, ..good }, Error::Setup, 0)?;
    refused(engine, &Transfer { mode: Mode::Burst, burst: 65, ..good }, Error::Setup, 0)?;
    let context = context();
    check(engine.claim(&context).run(&good).is_ok(), "a good transfer after bad ones was refused")
}

fn no_slot_is_left_in_use() -> Outcome {
    let all = stats();
    let (used, mapped) = (0..memvisor_abi::MAX_SWIOTLB_POOLS)
        .map(swiotlb::usage)
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let interrupts: u64 = driver::all().map(Engine::interrupts).sum();
    println!(
        "# dma: {} mapped where they are, {} bounced ({} bytes), {} refused, {interrupts} interrupts, {used} slots in use",
        all.direct, all.bounced, all.bytes_bounced, all.failed
    );
    check(swiotlb::audit().is_ok(), "the slots are not whole")?;
    check(used == 0, "a slot is in use although nothing is mapped")?;
    check(mapped == all.bounced, "slots were taken that nobody counted")
}
