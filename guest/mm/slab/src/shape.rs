//! How objects lie in slabs: sizes, offsets, orders (Linux: `calculate_sizes`, `calculate_order`, `calculate_slab_order`).

use memvisor_abi as abi;
use memvisor_abi::{SlabKind, Track};
use mm_core::{Order, PAGE_SIZE};

use crate::{CreateError, SlabFlags};

/// Bytes of a cache line.
const CACHE_LINE: u32 = 64;
/// Bytes of a word, the least alignment of an object.
const WORD: u32 = 8;
/// Largest order that a slab has for the sake of many objects (Linux: `slub_max_order`).
const SLUB_MAX_ORDER: u32 = 3;
/// Largest order of a SLAB slab of more than one object (Linux: `SLAB_MAX_ORDER_HI`).
const SLAB_MAX_ORDER: u32 = 1;
/// Most objects that a SLAB slab has: their numbers are `u8`.
const SLAB_MAX_OBJECTS: u32 = 255;
/// Objects whose numbers fit into `Page::private`.
const INLINE_OBJECTS: u32 = 8;

/// Alignment of objects (Linux: `calculate_alignment`).
pub(crate) fn alignment(flags: SlabFlags, align: u32, size: u32) -> u32 {
    let mut line = 0;
    if flags.contains(SlabFlags::HWCACHE_ALIGN) {
        line = CACHE_LINE;
        while size <= line / 2 && line > 1 {
            line /= 2;
        }
    }
    align.max(line).next_multiple_of(WORD)
}

/// Fills in what follows from `object_size`, `align`, `flags`, `ctor` and the allocator.
///
/// # Errors
/// [`CreateError::Size`] if no block holds an object.
pub(crate) fn calculate(cache: &mut abi::Cache, kind: SlabKind, nr_cpus: u32) -> Result<(), CreateError> {
    let wrong = CreateError::Size { size: cache.object_size };
    if cache.object_size == 0 || u64::from(cache.object_size) > PAGE_SIZE << Order::MAX.as_u8() {
        return Err(wrong);
    }
    match kind {
        SlabKind::Slub => slub(cache, nr_cpus),
        SlabKind::Slab => slab(cache, nr_cpus),
        SlabKind::Slob => slob(cache),
    }
    .ok_or(wrong)
}

/// log2 + 1 of the largest power of two in `value`; 0 for 0 (Linux: `fls`).
const fn fls(value: u32) -> u32 {
    u32::BITS - value.leading_zeros()
}

fn slab_bytes(order: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "at most 4 MiB")]
    let page = PAGE_SIZE as u32;
    page << order.min(u32::from(Order::MAX.as_u8()))
}

fn order_of(bytes: u64) -> u32 {
    Order::covering(bytes.div_ceil(PAGE_SIZE))
        .map_or(u32::from(Order::MAX.as_u8()) + 1, |order| order.as_u8().into())
}

fn slub(cache: &mut abi::Cache, nr_cpus: u32) -> Option<()> {
    let flags = SlabFlags::from_bits_retain(cache.flags);
    let red = flags.contains(SlabFlags::RED_ZONE);
    let mut size = cache.object_size.next_multiple_of(WORD);
    // A red zone needs a byte behind the object: rounding may have left some.
    if red && size == cache.object_size {
        size += WORD;
    }
    cache.inuse = size;
    // Where contents of free objects matter, the link goes behind them. Else it goes to the middle, where an
    // overrun of a neighbour reaches it last.
    let outside = flags.contains(SlabFlags::POISON) || cache.ctor != 0 || (red && cache.object_size < WORD);
    if outside {
        cache.offset = size;
        size += WORD;
    } else {
        cache.offset = cache.object_size / 2 / WORD * WORD;
    }
    if flags.contains(SlabFlags::STORE_USER) {
        cache.track = size;
        #[expect(clippy::cast_possible_truncation, reason = "160")]
        let tracks = 2 * size_of::<Track>() as u32;
        size += tracks;
    }
    if red {
        size += WORD;
        cache.red_left = WORD.next_multiple_of(cache.align);
        size += cache.red_left;
    }
    cache.size = size.checked_next_multiple_of(cache.align)?;
    cache.order = slub_order(cache.size, nr_cpus)?;
    cache.objects = slab_bytes(cache.order) / cache.size;
    cache.min_order = order_of(cache.size.into());
    cache.min_objects = slab_bytes(cache.min_order) / cache.size;
    cache.min_partial = (cache.size.ilog2() / 2).clamp(5, 10);
    cache.cpu_partial = match cache.size {
        _ if flags.intersects(SlabFlags::DEBUG) => 0,
        size if size >= slab_bytes(0) => 6,
        1024.. => 24,
        256.. => 52,
        _ => 120,
    };
    // Linux guesses that a slab is half full on average.
    cache.cpu_partial_slabs = (cache.cpu_partial * 2).div_ceil(cache.objects);
    if !flags.intersects(SlabFlags::DEBUG) {
        cache.limit = array_limit(cache.size);
        cache.batchcount = cache.limit.div_ceil(2);
    }
    Some(())
}

/// The order that wastes little and gives every CPU enough objects (Linux: `calculate_order`).
fn slub_order(size: u32, nr_cpus: u32) -> Option<u32> {
    let max_objects = slab_bytes(SLUB_MAX_ORDER) / size;
    let mut min_objects = (4 * (fls(nr_cpus) + 1)).min(max_objects);
    while min_objects > 1 {
        for fraction in [16, 8, 4] {
            if let Some(order) = slub_order_within(size, min_objects, SLUB_MAX_ORDER, fraction) {
                return Some(order);
            }
        }
        min_objects -= 1;
    }
    slub_order_within(size, 1, SLUB_MAX_ORDER, 1)
        .or_else(|| slub_order_within(size, 1, Order::MAX.as_u8().into(), 1))
}

/// The smallest order up to `max` that wastes at most one part in `fraction` (Linux: `calc_slab_order`).
fn slub_order_within(size: u32, min_objects: u32, max: u32, fraction: u32) -> Option<u32> {
    let first = order_of(u64::from(min_objects) * u64::from(size));
    (first..=max).find(|order| slab_bytes(*order) % size <= slab_bytes(*order) / fraction)
}

/// Objects that an array of a CPU holds (Linux: `enable_cpucache`).
fn array_limit(size: u32) -> u32 {
    match size {
        131_073.. => 1,
        4097.. => 8,
        1025.. => 24,
        257.. => 54,
        _ => 120,
    }
}

fn slab(cache: &mut abi::Cache, nr_cpus: u32) -> Option<()> {
    // 16 bytes at least: a page then has no more objects than a `u8` can number (Linux: `SLAB_OBJ_MIN_SIZE`).
    cache.size = cache.object_size.checked_next_multiple_of(cache.align)?.max(2 * WORD);
    cache.inuse = cache.size;
    let last = u32::from(Order::MAX.as_u8());
    for order in order_of(cache.size.into())..=last {
        let (objects, array) = slab_objects(cache.size, order)?;
        let left = slab_bytes(order) - objects * cache.size - array;
        (cache.order, cache.objects, cache.index_array) = (order, objects, array);
        cache.colour_off = CACHE_LINE.max(cache.align);
        cache.colour = left / cache.colour_off;
        // Acceptable waste is an eighth; large orders are hard to get.
        if order >= SLAB_MAX_ORDER || left * 8 <= slab_bytes(order) {
            break;
        }
    }
    cache.min_order = cache.order;
    cache.min_objects = cache.objects;
    cache.limit = array_limit(cache.size);
    cache.batchcount = cache.limit.div_ceil(2);
    // CPUs share what they freed if there are several of them and objects are not too large.
    cache.shared = if nr_cpus > 1 && u64::from(cache.size) <= PAGE_SIZE { 8 } else { 0 };
    Some(())
}

/// Objects of a SLAB slab, and bytes of the index array at its end (Linux: `cache_estimate`).
///
/// Differs from Linux: the array of a slab of few objects is in the descriptor, where Linux allocates it
/// from another cache.
fn slab_objects(size: u32, order: u32) -> Option<(u32, u32)> {
    let bytes = slab_bytes(order);
    let plain = bytes.checked_div(size)?;
    if plain <= INLINE_OBJECTS {
        return (plain > 0).then_some((plain, 0));
    }
    let objects = (bytes / (size + 1)).min(SLAB_MAX_OBJECTS);
    let fits = |objects: u32| objects * size + objects.next_multiple_of(WORD) <= bytes;
    let objects = (1..=objects).rev().find(|objects| fits(*objects))?;
    Some((objects, objects.next_multiple_of(WORD)))
}

fn slob(cache: &mut abi::Cache) -> Option<()> {
    cache.size = cache.object_size.checked_next_multiple_of(WORD)?;
    cache.inuse = cache.size;
    cache.order = order_of(cache.size.into());
    cache.min_order = cache.order;
    cache.objects = slab_bytes(cache.order) / cache.size;
    cache.min_objects = cache.objects;
    Some(())
}
