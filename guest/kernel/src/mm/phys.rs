//! Physical memory through the direct map: the one place that turns frames into pointers.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_firmware::Memory;
use mm_core::{PAGE_SIZE, Pfn, PhysAddr, PhysMem, VirtAddr};
use mm_pgtable::{TABLE_ENTRIES, layout};

use crate::mm::layout::levels;

static PAGE_OFFSET: AtomicU64 = AtomicU64::new(0);
static MAPPED_END: AtomicU64 = AtomicU64::new(0);
static IMAGE_PHYS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static __kernel_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __kernel_end: u8;
}

/// The early tables map this much at PAGE_OFFSET (boot.s).
const EARLY_END: u64 = 4 << 30;

/// Starts with the early direct map; `image` is the physical base of the kernel.
pub fn init(image: u64) {
    PAGE_OFFSET.store(layout::page_offset(levels()).as_u64(), Ordering::Relaxed);
    MAPPED_END.store(EARLY_END, Ordering::Relaxed);
    IMAGE_PHYS.store(image, Ordering::Relaxed);
}

/// Physical end of what is mapped from now on.
pub fn set_end(end: PhysAddr) {
    MAPPED_END.store(end.as_u64(), Ordering::Relaxed);
}

/// Physical end of the direct map.
pub fn end() -> PhysAddr {
    PhysAddr::new(MAPPED_END.load(Ordering::Relaxed))
}

/// The kernel image.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Physical address of the first byte.
    pub phys: u64,
    /// Virtual address of the first byte.
    pub va: u64,
    /// Bytes to the end of executable code.
    pub text: u64,
    /// Bytes to the end of read-only data.
    pub rodata: u64,
    /// Bytes in all.
    pub len: u64,
}

/// Where the kernel is.
pub fn image() -> Image {
    let va = &raw const __kernel_start as u64;
    Image {
        phys: IMAGE_PHYS.load(Ordering::Relaxed),
        va,
        text: &raw const __text_end as u64 - va,
        rodata: &raw const __rodata_end as u64 - va,
        len: &raw const __kernel_end as u64 - va,
    }
}

/// Physical address of something in the kernel image (Linux: `__pa_symbol`).
pub fn of_image(va: u64) -> PhysAddr {
    let image = image();
    PhysAddr::new(va.wrapping_sub(image.va).wrapping_add(image.phys))
}

fn pointer(addr: PhysAddr) -> *mut u8 {
    (PAGE_OFFSET.load(Ordering::Relaxed) + addr.as_u64()) as *mut u8
}

/// Panics unless `len` bytes at `addr` are inside the direct map. RAM holes inside it fault, and the
/// trap report names the address.
#[inline]
fn check(addr: PhysAddr, len: u64) {
    // No address and no length comes near the end of the numbers: addresses have 52 bits.
    if addr.as_u64().wrapping_add(len) > MAPPED_END.load(Ordering::Relaxed) || addr.as_u64() >> 52 != 0 {
        outside(addr, len);
    }
}

/// [`check`] of an aligned word: the direct map ends at a page.
#[inline]
fn check_word(addr: PhysAddr) {
    if addr.as_u64() >= MAPPED_END.load(Ordering::Relaxed) {
        outside(addr, 8);
    }
}

#[cold]
#[inline(never)]
fn outside(addr: PhysAddr, len: u64) -> ! {
    panic!("physical address {addr} (+{len:#x}) is outside the direct map")
}

/// Frames by physical address. Frames handed out as Rust objects ([`leak_array`], per-CPU areas,
/// the kernel image) are never passed in by their owners.
#[derive(Clone, Copy, Debug)]
pub struct DirectMap;

impl PhysMem for DirectMap {
    #[inline]
    fn read_u64(&self, addr: PhysAddr) -> u64 {
        check_word(addr);
        // SAFETY: inside the direct map, which is mapped before `set_end` admits it.
        unsafe { pointer(addr).cast::<u64>().read_volatile() }
    }

    #[inline]
    fn write_u64(&self, addr: PhysAddr, value: u64) {
        check_word(addr);
        // SAFETY: as above; the frame belongs to no Rust object (type documentation).
        unsafe { pointer(addr).cast::<u64>().write_volatile(value) }
    }

    fn zero_frame(&self, pfn: Pfn) {
        check(pfn.phys(), PAGE_SIZE);
        // Eight-byte string stores are several times cheaper than bytes where ring 0 is emulated.
        // SAFETY: as for `write_u64`, for the whole frame.
        unsafe {
            core::arch::asm!(
                "rep stosq",
                inout("rdi") pointer(pfn.phys()) => _,
                inout("rcx") TABLE_ENTRIES => _,
                in("rax") 0_u64,
                options(nostack, preserves_flags),
            );
        }
    }
}

impl DirectMap {
    /// Writes `value`, `value + step`, `value + 2 * step` and so on to `count` words of the page table in
    /// `frame`, from word `first` on. One check for all of them: the direct map of much RAM has many
    /// entries.
    pub fn fill_table(&self, frame: Pfn, first: usize, count: usize, value: u64, step: u64) {
        assert!(first + count <= TABLE_ENTRIES, "a page table has {TABLE_ENTRIES} entries");
        check(frame.phys(), PAGE_SIZE);
        let table = pointer(frame.phys()).cast::<u64>();
        let mut value = value;
        for index in first..first + count {
            // SAFETY: inside one mapped frame, by the check above.
            let entry = unsafe { table.add(index) };
            // SAFETY: the frame belongs to no Rust object (type documentation).
            unsafe { entry.write_volatile(value) };
            value = value.wrapping_add(step);
        }
    }
}

impl DirectMap {
    /// The first of the words `from..to` of a frame that is not zero; `to` if all are.
    pub fn skip_zero_words(&self, frame: Pfn, from: usize, to: usize) -> usize {
        assert!(to <= TABLE_ENTRIES, "a page table has {TABLE_ENTRIES} entries");
        check(frame.phys(), PAGE_SIZE);
        let table = pointer(frame.phys()).cast::<u64>();
        let mut index = from;
        while index < to {
            // SAFETY: inside one mapped frame, by the checks above.
            let entry = unsafe { table.add(index) };
            // SAFETY: as above; the frame belongs to no Rust object (type documentation).
            if unsafe { entry.read_volatile() } != 0 {
                return index;
            }
            index += 1;
        }
        to
    }

    /// Copies words to the same places of another frame.
    pub fn copy_words(&self, from: Pfn, to: Pfn, words: core::ops::Range<usize>) {
        assert!(words.end <= TABLE_ENTRIES, "a page table has {TABLE_ENTRIES} entries");
        check(from.phys(), PAGE_SIZE);
        check(to.phys(), PAGE_SIZE);
        let offset = 8 * words.start as u64;
        // SAFETY: inside two mapped frames, by the checks above, which belong to no Rust object (type documentation).
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rsi") pointer(PhysAddr::new(from.phys().as_u64() + offset)) => _,
                inout("rdi") pointer(PhysAddr::new(to.phys().as_u64() + offset)) => _,
                inout("rcx") words.len() => _,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Reads a word through a mapping that the caller made outside the direct map.
pub fn read_mapped(va: VirtAddr) -> u64 {
    // SAFETY: a missing mapping faults and ends the kernel with a report; any value is a u64.
    unsafe { (va.as_u64() as *const u64).read_volatile() }
}

/// Writes back the word at a place outside the direct map: for tests that it faults.
pub fn write_mapped(va: VirtAddr) {
    let word = va.as_u64() as *mut u64;
    // SAFETY: as for `read_mapped`.
    let value = unsafe { word.read_volatile() };
    // SAFETY: memory keeps its contents.
    unsafe { word.write_volatile(value) }
}

/// Writes a word through a mapping that the caller made outside the direct map.
pub fn store_mapped(va: VirtAddr, value: u64) {
    // SAFETY: as for `read_mapped`; such mappings belong to no Rust object.
    unsafe { (va.as_u64() as *mut u64).write_volatile(value) }
}

/// Fills a page that the caller mapped outside the direct map with zeroes.
pub fn zero_mapped(va: VirtAddr) {
    // SAFETY: as for `store_mapped`, for one page.
    unsafe {
        core::arch::asm!(
            "rep stosq",
            inout("rdi") va.as_u64() => _,
            inout("rcx") TABLE_ENTRIES => _,
            in("rax") 0_u64,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies all of a frame to another.
pub fn copy_frame(to: Pfn, from: Pfn) {
    check(to.phys(), PAGE_SIZE);
    check(from.phys(), PAGE_SIZE);
    if to == from {
        return;
    }
    // SAFETY: two different mapped frames that belong to no Rust object (`DirectMap`).
    unsafe {
        core::arch::asm!(
            "rep movsq",
            inout("rdi") pointer(to.phys()) => _,
            inout("rsi") pointer(from.phys()) => _,
            inout("rcx") TABLE_ENTRIES => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies a page to another; the caller mapped both outside the direct map.
pub fn copy_mapped(to: VirtAddr, from: VirtAddr) {
    // SAFETY: as for `store_mapped`, for two pages; they are the same or do not overlap.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            inout("rdi") to.as_u64() => _,
            inout("rsi") from.as_u64() => _,
            inout("rcx") TABLE_ENTRIES => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies from ordinary memory into a frame.
pub fn copy_to_frame(pfn: Pfn, offset: u64, bytes: &[u8]) {
    assert!(offset + bytes.len() as u64 <= PAGE_SIZE, "copy crosses a frame");
    check(pfn.phys(), PAGE_SIZE);
    let target = pointer(PhysAddr::new(pfn.phys().as_u64() + offset));
    // SAFETY: inside one mapped frame that belongs to no Rust object; `bytes` is ordinary memory.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) }
}

/// Copies from a frame into ordinary memory.
pub fn copy_from_frame(pfn: Pfn, offset: u64, bytes: &mut [u8]) {
    assert!(offset + bytes.len() as u64 <= PAGE_SIZE, "copy crosses a frame");
    check(pfn.phys(), PAGE_SIZE);
    let source = pointer(PhysAddr::new(pfn.phys().as_u64() + offset));
    // SAFETY: as for `copy_to_frame`.
    unsafe { core::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) }
}

/// Copies from ordinary memory into a page that the caller mapped outside the direct map.
pub fn copy_to_mapped(va: VirtAddr, offset: u64, bytes: &[u8]) {
    assert!(offset + bytes.len() as u64 <= PAGE_SIZE, "copy crosses a page");
    let target = (va.as_u64() + offset) as *mut u8;
    // SAFETY: inside one page, which belongs to no Rust object (`store_mapped`); a missing mapping faults and ends the kernel.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) }
}

/// Copies from a page that the caller mapped outside the direct map into ordinary memory.
pub fn copy_from_mapped(va: VirtAddr, offset: u64, bytes: &mut [u8]) {
    assert!(offset + bytes.len() as u64 <= PAGE_SIZE, "copy crosses a page");
    let source = (va.as_u64() + offset) as *const u8;
    // SAFETY: as for `copy_to_mapped`.
    unsafe { core::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) }
}

/// Words of frames that belong to no Rust object, as atomics: for rings that others read while they are written.
pub fn words(addr: PhysAddr, count: u64) -> &'static [AtomicU64] {
    assert!(addr.is_aligned(8), "words at {addr}, which is not a multiple of 8");
    check(addr, count * 8);
    let len = usize::try_from(count).unwrap_or(0);
    // SAFETY: inside the direct map, which is never unmapped, and aligned; the frames belong to no Rust object
    // (`DirectMap`), and any bits are a word.
    unsafe { core::slice::from_raw_parts(pointer(addr).cast::<AtomicU64>(), len) }
}

/// [`words`] of 32 bits: for what a device reads and writes.
pub fn half_words(addr: PhysAddr, count: u64) -> &'static [AtomicU32] {
    assert!(addr.is_aligned(4), "words at {addr}, which is not a multiple of 4");
    check(addr, count * 4);
    let len = usize::try_from(count).unwrap_or(0);
    // SAFETY: as for `words`.
    unsafe { core::slice::from_raw_parts(pointer(addr).cast::<AtomicU32>(), len) }
}

/// Bytes of frames that were reserved at boot for what the loader left there; `None` beyond the direct map.
///
/// # Safety
/// The frames stay reserved, and nobody writes them.
pub unsafe fn reserved_bytes(addr: PhysAddr, len: u64) -> Option<&'static [u8]> {
    let is_mapped = addr.as_u64().checked_add(len).is_some_and(|last| last <= end().as_u64());
    let len = usize::try_from(len).ok().filter(|_| is_mapped)?;
    // SAFETY: inside the direct map, which is never unmapped; nobody writes them (the caller).
    Some(unsafe { core::slice::from_raw_parts(pointer(addr), len) })
}

/// Where the kernel sees a physical address, for frames that their owner turns into an object.
pub fn object_at<T>(addr: PhysAddr) -> *mut T {
    check(addr, size_of::<T>() as u64);
    pointer(addr).cast()
}

/// Turns freshly allocated frames into an array that lives for ever.
///
/// # Safety
/// The caller allocated `count` * `size_of::<T>()` bytes at `addr`, page-aligned, and gives them up.
pub unsafe fn leak_array<T: Copy>(addr: PhysAddr, count: usize, value: T) -> &'static mut [T] {
    check(addr, (count * size_of::<T>()) as u64);
    let first = pointer(addr).cast::<T>();
    for index in 0..count {
        // SAFETY: inside the allocation.
        let slot = unsafe { first.add(index) };
        // SAFETY: as above, aligned because the allocation is page-aligned.
        unsafe { slot.write(value) };
    }
    // SAFETY: initialised above, and nobody else refers to it.
    unsafe { core::slice::from_raw_parts_mut(first, count) }
}

impl Memory for DirectMap {
    fn read<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        addr.checked_add(N as u64).filter(|&last| last <= end().as_u64())?;
        // SAFETY: inside the direct map; an array of bytes has no alignment.
        Some(unsafe { pointer(PhysAddr::new(addr)).cast::<[u8; N]>().read_volatile() })
    }
}

/// Replaces the word at `addr` if it is `old`, in one locked instruction; else returns what it is.
pub fn compare_exchange(addr: PhysAddr, old: u64, new: u64) -> Result<(), u64> {
    check_word(addr);
    // SAFETY: inside the direct map and aligned like every table entry; the frame belongs to no
    // Rust object (`DirectMap`).
    let word = unsafe { AtomicU64::from_ptr(pointer(addr).cast()) };
    word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
}

/// [`compare_exchange`] of a word in a mapping that its owner keeps.
pub fn compare_exchange_mapped(va: VirtAddr, old: u64, new: u64) -> Result<(), u64> {
    assert!(va.as_u64().is_multiple_of(8), "a word at {va}, which is not a multiple of 8");
    // SAFETY: the caller mapped it; a frame belongs to no Rust object.
    let word = unsafe { AtomicU64::from_ptr(va.as_u64() as *mut u64) };
    word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
}
