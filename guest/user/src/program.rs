//! The checks.

use core::cell::UnsafeCell;
use core::fmt::Write;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::pressure::screen::Screen;
use crate::sys::{self, Out};
use crate::{
    areas, arguments, copies, disks, eaters, failures, faults, files, futexes, mappings, moves, pressure,
    processes, promises, shapes, shared, signals, swaps, together,
};

pub const PAGE: usize = 4096;
const BSS_PAGES: usize = 16;
const HEAP_PAGES: usize = 16;
// More than a stack has from the start: it must grow.
const STACK_PAGES: usize = 48;

pub const EBADF: u64 = 9_u64.wrapping_neg();
pub const EFAULT: u64 = 14_u64.wrapping_neg();
const ENOSYS: u64 = 38_u64.wrapping_neg();

/// Zero-initialised memory that one thread takes once.
struct Area(UnsafeCell<[u8; BSS_PAGES * PAGE]>);
// SAFETY: the program has one thread.
unsafe impl Sync for Area {}
static BSS: Area = Area(UnsafeCell::new([0; BSS_PAGES * PAGE]));
static DATA: [AtomicU64; 4] = [const { AtomicU64::new(0x1122_3344_5566_7788) }; 4];
static RODATA: [u64; 4] = [0x8877_6655_4433_2211; 4];

/// What was checked so far.
pub struct Checks {
    failed: u64,
    run: u64,
}

impl Checks {
    /// None yet.
    pub const fn new() -> Checks {
        Checks { failed: 0, run: 0 }
    }

    /// How many failed, at most 100.
    pub fn failed(&self) -> u64 {
        self.failed.min(100)
    }

    /// One check.
    pub fn check(&mut self, what: &str, holds: bool) {
        self.run += 1;
        if !holds {
            self.failed += 1;
            let _ = writeln!(Out, "user: FAILED: {what}");
        }
    }

    /// Every page is zero at first touch, and keeps what is written.
    pub fn memory(&mut self, what: &str, memory: &mut [u8]) {
        for (number, page) in memory.chunks_mut(PAGE).enumerate() {
            let zero = page.iter().step_by(61).all(|&byte| byte == 0);
            self.check(what, zero);
            // Volatile in effect: the second loop reads through black_box.
            page[number] = number.to_le_bytes()[0].wrapping_add(0x5a);
        }
        for (number, page) in black_box(&*memory).chunks(PAGE).enumerate() {
            self.check(what, page[number] == number.to_le_bytes()[0].wrapping_add(0x5a));
        }
    }
}

/// Uses a few pages of stack below the caller's.
#[inline(never)]
fn deep_stack(checks: &mut Checks) {
    let mut area = [0_u8; STACK_PAGES * PAGE];
    let area = black_box(&mut area);
    for page in area.chunks_mut(PAGE) {
        page[7] = 7;
    }
    checks.check("stack keeps what is written", black_box(&*area).chunks(PAGE).all(|page| page[7] == 7));
}

/// The program pauses at its end.
const PAUSE: u64 = 1;

/// Name, and what it checks.
type Mode = (&'static str, fn(&mut Checks));

/// What `user=` on the kernel's command line asks for, beside the first checks: by the number that the kernel passes.
const MODES: &[Mode] = &[
    ("none", |_| {}),
    ("pause", |_| {}),
    ("process", |checks| {
        processes::run(checks);
        arguments::execve(checks);
    }),
    ("signal", |checks| {
        signals::run(checks);
        futexes::run(checks);
    }),
    ("mmap", |checks| {
        mappings::run(checks);
        shapes::run(checks);
    }),
    ("fault", faults::run),
    ("cow", copies::run),
    ("rmap", moves::run),
    ("smp", together::run),
    ("shm", shared::run),
    ("disk", disks::run),
    ("swap", swaps::run),
    ("swap-errors", swaps::errors::run),
    ("swap-thrash", swaps::thrash::run),
    ("zswap", swaps::zswap::run),
    ("oom-basic", eaters::basic),
    ("oom-score", eaters::score),
    ("oom-nested-forks", eaters::nested_forks),
    ("oom-atomic", eaters::atomic),
    ("overcommit", promises::overcommit),
    ("min-free", promises::min_free),
    ("fork-bomb-limit", promises::fork_bomb),
    ("mmap-shared-file", files::shared_file),
    ("file-cache", files::file_cache),
    ("dirty-throttle", files::dirty_throttle),
    ("power-cut", files::power_cut),
    ("kswapd", pressure::waves::kswapd),
    ("direct-reclaim", pressure::waves::direct_reclaim),
    ("mlock-pressure", pressure::locked::run),
    ("slab-pressure", pressure::slabs::run),
    ("lazyfree", pressure::given::run),
    ("max-map-count", pressure::maps::run),
    ("failslab", failures::run),
    ("fragmentation", pressure::fragments::run),
    ("numa-pressure", pressure::nodes::run),
    ("vm-patterns", pressure::patterns::run),
    ("everything-at-once", pressure::everything::short),
    ("everything-long", pressure::everything::long),
    ("mempolicy", areas::run),
];

/// Where the stack was when the program began.
static STACK_TOP: AtomicU64 = AtomicU64::new(0);

/// Free memory in pages, as sysinfo tells it; 0 if it does not.
pub fn free_pages() -> u64 {
    let mut info = [0_u64; 14];
    if sys::call(99, [info.as_mut_ptr() as u64, 0, 0, 0, 0, 0]) == 0 { info[5] / PAGE as u64 } else { 0 }
}

/// Where the stack was when the program began: the arguments are above.
pub fn stack_top() -> u64 {
    STACK_TOP.load(Relaxed)
}

/// Where `_start` jumps.
pub extern "C" fn main(mode: u64, stack: *const u64) -> ! {
    if arguments::is_asked(stack) {
        arguments::run(stack);
    }
    STACK_TOP.store(stack as u64, Relaxed);
    if mode >= crate::walks::FIRST {
        crate::walks::run(mode);
    }
    let Some((name, run)) = usize::try_from(mode).ok().and_then(|mode| MODES.get(mode)) else {
        let _ = writeln!(Out, "user: FAILED: there is no mode {mode}");
        sys::exit(100);
    };
    let mut checks = Checks::new();
    let pid = sys::getpid();
    // SAFETY: one thread, and the only reference.
    let bss = unsafe { &mut *BSS.0.get() };
    checks.memory("bss is zero at first touch", bss);
    checks.check(
        "data comes from the file",
        DATA.iter().all(|word| word.load(Relaxed) == 0x1122_3344_5566_7788),
    );
    DATA[0].store(1, Relaxed);
    checks.check("data keeps what is written", DATA[0].load(Relaxed) == 1);
    checks.check(
        "read-only data comes from the file",
        black_box(&RODATA).iter().all(|&word| word == 0x8877_6655_4433_2211),
    );
    let start = sys::brk(0);
    let end = start + (HEAP_PAGES * PAGE) as u64;
    checks.check("brk grows the heap", sys::brk(end) == end);
    // SAFETY: `brk` just gave this range to the program, and nobody else has it. It is not used while it is gone.
    let heap = unsafe { core::slice::from_raw_parts_mut(start as *mut u8, HEAP_PAGES * PAGE) };
    checks.memory("heap is zero at first touch", heap);
    checks.check("brk shrinks the heap", sys::brk(start) == start);
    checks.check("memory below the old break is gone", sys::write_raw(1, start, 1) == EFAULT);
    checks.check("brk below the heap changes nothing", sys::brk(PAGE as u64) == start);
    checks.check("brk grows the heap again", sys::brk(end) == end);
    checks.memory("heap is zero at first touch", heap);
    deep_stack(&mut checks);
    let screen = Screen::begin(name);
    run(&mut checks);
    if let Some(screen) = screen {
        screen.end(&checks);
    }
    checks.check("write to a bad descriptor is EBADF", sys::write_raw(9, RODATA.as_ptr() as u64, 1) == EBADF);
    checks.check("write from an unmapped address is EFAULT", sys::write_raw(1, 0x1000, 1) == EFAULT);
    checks.check(
        "write from a kernel address is EFAULT",
        sys::write_raw(1, 0xffff_ffff_8100_0000, 8) == EFAULT,
    );
    checks.check("write over the end of memory is EFAULT", sys::write_raw(1, u64::MAX - 4, 8) == EFAULT);
    checks.check("an unknown call is ENOSYS", sys::nonsense() == ENOSYS);
    let _ = writeln!(
        Out,
        "user[{pid}]: touched {} pages by demand faults, {} checks, {} failed",
        BSS_PAGES + HEAP_PAGES + STACK_PAGES,
        checks.run,
        checks.failed
    );
    // The last line names what was asked for, so that whoever expects it notices a mode that was not understood.
    if checks.failed == 0 {
        let _ = writeln!(Out, "user={name}: all {} checks passed", checks.run);
    } else {
        let _ = writeln!(Out, "user={name}: {} of {} checks FAILED", checks.failed, checks.run);
    }
    if mode == PAUSE && checks.failed == 0 {
        sys::pause();
    }
    sys::exit(checks.failed())
}
