//! Page faults as a program meets them: what comes in, what is counted, what is refused and how that is told.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::memory::{BYTES, NONE, PRIVATE, Pages, READ, READ_EXEC, READ_WRITE, SHARED};
use crate::processes::{child, wait};
use crate::program::{Checks, EFAULT, stack_top};
use crate::signals::{ONSTACK, SEGV, SIGINFO, action};
use crate::sys::{self, Trap, call};

const PAGES: u64 = 8;
/// `si_code`: nothing is mapped; not allowed.
const MAPERR: u64 = 1;
const ACCERR: u64 = 2;
/// Words of the context: registers, the error code, the trap's number, the address.
const RSP: usize = 5 + 15;
const RIP: usize = 5 + 16;
const ERR: usize = 5 + 19;
const TRAPNO: usize = 5 + 20;
const CR2: usize = 5 + 22;
/// Bits of an error code.
const WRITE: u64 = 2;
const FETCH: u64 = 16;

static COUNT: AtomicU64 = AtomicU64::new(0);
/// Of the last fault: signal, code, address, error code, trap.
static TOLD: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
/// The page that the handler makes writable; 0 for none.
static MEND: AtomicU64 = AtomicU64::new(0);

const ALT_LEN: usize = 16 << 10;
struct Stack(UnsafeCell<[u8; ALT_LEN]>);
// SAFETY: only its address is taken; the kernel uses it for one handler at a time.
unsafe impl Sync for Stack {}
static ALT: Stack = Stack(UnsafeCell::new([0; ALT_LEN]));

/// Notes what it is told, and goes on behind the instruction, in the caller of what was called, or with the instruction once more.
extern "C" fn handler(number: u64, info: *const u64, context: *mut u64) {
    // SAFETY: the kernel's siginfo: 16 words.
    let info = unsafe { core::slice::from_raw_parts(info, 16) };
    // SAFETY: the kernel's context: 38 words.
    let context = unsafe { core::slice::from_raw_parts_mut(context, 38) };
    let told = [number, info[1] & 0xffff_ffff, info[2], context[ERR], context[TRAPNO]];
    for (to, value) in TOLD.iter().zip(told) {
        to.store(value, SeqCst);
    }
    COUNT.fetch_add(1, SeqCst);
    let mend = MEND.swap(0, SeqCst);
    if mend != 0 {
        sys::mprotect(mend, BYTES, READ_WRITE);
    } else if context[RIP] == context[CR2] {
        // SAFETY: a call put the address to return to there.
        context[RIP] = unsafe { (context[RSP] as *const u64).read() };
        context[RSP] += 8;
    } else {
        context[RIP] += 2;
    }
}

fn catch(flags: u64) {
    action(SEGV, handler as *const () as u64, flags | SIGINFO, 0);
}

/// What a trap led to: signal, `si_code`, `si_addr`; `None` if there was none.
fn trap(what: Trap) -> Option<(u64, u64, u64)> {
    COUNT.store(0, SeqCst);
    sys::trap(what);
    let told = |index: usize| TOLD[index].load(SeqCst);
    (COUNT.load(SeqCst) == 1).then(|| (told(0), told(1), told(2)))
}

fn error_code() -> u64 {
    TOLD[3].load(SeqCst)
}

/// Minor and major faults of `f` on fresh pages. What `f` itself needs comes in with a first try on others.
fn counted(prot: u64, kind: u64, f: impl Fn(&Pages)) -> [u64; 2] {
    let (first, second) = (Pages::map(PAGES, prot, kind), Pages::map(PAGES, prot, kind));
    count(&f, &first);
    let counted = count(&f, &second);
    first.unmap();
    second.unmap();
    counted
}

/// The same instructions at every call, so that the first brings in all of their pages.
#[inline(never)]
fn count(f: &dyn Fn(&Pages), pages: &Pages) -> [u64; 2] {
    let before = sys::faults();
    f(pages);
    let after = sys::faults();
    [after[0] - before[0], after[1] - before[1]]
}

fn read_all(pages: &Pages) {
    for page in 0..pages.count {
        pages.word(page).load(SeqCst);
    }
}

fn write_all(pages: &Pages) {
    for page in 0..pages.count {
        pages.word(page).store(200, SeqCst);
    }
}

/// All of them.
pub fn run(checks: &mut Checks) {
    demand(checks);
    after_fork(checks);
    catch(0);
    rights(checks);
    outside(checks);
    mends(checks);
    action(SEGV, 0, 0, 0);
    copies(checks);
    stack(checks);
}

/// Demand zero, the zero page, and how faults are counted.
fn demand(checks: &mut Checks) {
    checks.check(
        "a read fault is a minor one, each page once",
        counted(READ_WRITE, PRIVATE, read_all) == [PAGES, 0],
    );
    checks.check("so is a write fault", counted(READ_WRITE, PRIVATE, |pages| pages.fill(5)) == [PAGES, 0]);
    let twice = counted(READ_WRITE, PRIVATE, |pages| {
        read_all(pages);
        pages.fill(5);
    });
    checks.check("the zero page gives way to one of its own", twice == [2 * PAGES, 0]);
    let once = counted(READ_WRITE, PRIVATE, |pages| {
        pages.fill(5);
        read_all(pages);
        pages.fill(6);
    });
    checks.check("what is there does not fault again", once == [PAGES, 0]);
    checks.check(
        "shared memory comes in the same",
        counted(READ_WRITE, SHARED, |pages| pages.fill(5)) == [PAGES, 0],
    );
    let again = counted(READ_WRITE, PRIVATE, |pages| {
        pages.fill(5);
        sys::madvise(pages.start, pages.count * BYTES, 4);
        pages.fill(6);
    });
    checks.check("what was given back faults again", again == [2 * PAGES, 0]);
    let fresh = Pages::map(PAGES, READ_WRITE, PRIVATE);
    let zero =
        (0..PAGES).all(|page| (0..512).step_by(37).all(|word| fresh.word_at(page, word).load(SeqCst) == 0));
    checks.check("what comes in is zero", zero);
    fresh.fill(9);
    let kept = (0..PAGES).all(|page| fresh.word_at(page, 1).load(SeqCst) == 0);
    checks.check("a write changes its word only", kept && fresh.holds(9));
    fresh.unmap();
    checks.check("there were no major faults", sys::faults()[1] == 0);
}

/// Write faults on pages that a child shares.
fn after_fork(checks: &mut Checks) {
    let (first, pages) = (Pages::map(PAGES, READ_WRITE, PRIVATE), Pages::map(PAGES, READ_WRITE, PRIVATE));
    first.fill(100);
    pages.fill(100);
    let pid = child(|| {
        let faults = |pages: &Pages| {
            [count(&read_all, pages)[0], count(&write_all, pages)[0], count(&write_all, pages)[0]]
        };
        // Brings in the stack and the instructions.
        faults(&first);
        u64::from(faults(&pages) != [0, PAGES, 0])
    });
    checks.check("a child reads without faults, and each first write is one", wait(pid, 0) == (pid, 0));
    sys::faults();
    let before = sys::faults();
    pages.fill(300);
    let mine = sys::faults()[0] - before[0];
    checks.check("the parent's first writes are faults, too", mine == PAGES && pages.holds(300));
    pages.unmap();
    first.unmap();
}

/// What a mapping does not allow.
fn rights(checks: &mut Checks) {
    let pages = Pages::map(4, READ_WRITE, PRIVATE);
    pages.fill(7);
    let at = pages.at(1) + 40;
    checks.check("what is allowed is no fault", trap(Trap::Write(at)).is_none());
    pages.protect(READ);
    checks.check("a write to what is read-only", trap(Trap::Write(at)) == Some((SEGV, ACCERR, at)));
    checks.check("is told as a write", error_code() & WRITE != 0 && TOLD[4].load(SeqCst) == 14);
    checks.check("a read of it is none", trap(Trap::Read(at)).is_none());
    checks.check("a call of what cannot be executed", trap(Trap::Call(at)) == Some((SEGV, ACCERR, at)));
    checks.check("is told as a fetch", error_code() & FETCH != 0);
    pages.protect(NONE);
    checks.check("a read without any right", trap(Trap::Read(at)) == Some((SEGV, ACCERR, at)));
    checks.check("is told as a read", error_code() & (WRITE | FETCH) == 0);
    checks.check("so a write", trap(Trap::Write(at)) == Some((SEGV, ACCERR, at)));
    pages.protect(READ_WRITE);
    checks.check("what was refused did not happen", pages.holds(7));
    // A page that only returns.
    pages.word(2).store(0xc3, SeqCst);
    let code = pages.at(2);
    sys::mprotect(code, BYTES, READ_EXEC);
    checks.check("what may be executed is", trap(Trap::Call(code)).is_none());
    checks.check("and not written", trap(Trap::Write(code)) == Some((SEGV, ACCERR, code)));
    let untouched = Pages::map(1, READ, PRIVATE);
    checks.check(
        "a write where nothing came in yet",
        trap(Trap::Write(untouched.start)) == Some((SEGV, ACCERR, untouched.start)),
    );
    checks.check("a call there", trap(Trap::Call(untouched.start)) == Some((SEGV, ACCERR, untouched.start)));
    checks.check("both can be unmapped", pages.unmap() && untouched.unmap());
    checks.check("then nothing is mapped", trap(Trap::Read(at)) == Some((SEGV, MAPERR, at)));
    checks.check("for a call either", trap(Trap::Call(at)) == Some((SEGV, MAPERR, at)));
}

/// Addresses that are nobody's or the kernel's.
fn outside(checks: &mut Checks) {
    for (what, address) in [
        ("nothing is at 0", 0_u64),
        ("nor at the end of user space", 0x7fff_ffff_f008),
        ("the kernel's code cannot be read", 0xffff_ffff_8100_0000),
        ("nor the direct map", 0xffff_8880_0010_0000),
    ] {
        checks.check(what, trap(Trap::Read(address)) == Some((SEGV, MAPERR, address)));
        checks.check(what, trap(Trap::Write(address)) == Some((SEGV, MAPERR, address)));
    }
    // The kernel tells no address then.
    let odd = trap(Trap::Read(0x0123_4567_89ab_cdef));
    checks.check("an address that is none is a general protection fault", odd == Some((SEGV, 0x80, 0)));
}

/// A handler that gives the right lets the instruction go on.
fn mends(checks: &mut Checks) {
    let pages = Pages::map(PAGES, READ_WRITE, PRIVATE);
    pages.fill(50);
    pages.protect(READ);
    COUNT.store(0, SeqCst);
    for page in 0..PAGES {
        MEND.store(pages.at(page), SeqCst);
        pages.word(page).store(60 + page, SeqCst);
    }
    checks.check("every first write was mended", COUNT.load(SeqCst) == PAGES && pages.holds(60));
    pages.unmap();
}

/// System calls that read and write memory fault as the program does, and give EFAULT where it gets a signal.
fn copies(checks: &mut Checks) {
    let [from, to] = sys::pipe();
    let pages = Pages::map(4, READ_WRITE, PRIVATE);
    checks.check("a call reads what was never touched", sys::write_raw(to, pages.at(0), 24) == 24);
    pages.word(1).store(1, SeqCst);
    checks.check("a call writes to what was never touched", sys::read_raw(from, pages.at(2), 8) == 8);
    checks.check(
        "over two pages",
        sys::read_raw(from, pages.at(2) - 8, 16) == 16 && pages.word(1).load(SeqCst) == 1,
    );
    checks.check("what it wrote is there", pages.word(2).load(SeqCst) == 0);
    pages.word(3).store(0x1234, SeqCst);
    sys::write_raw(to, pages.at(3), 8);
    let pid = child(|| {
        let read = sys::read_raw(from, pages.at(1), 8);
        u64::from(read != 8 || pages.word(1).load(SeqCst) != 0x1234)
    });
    let done = wait(pid, 0) == (pid, 0);
    checks.check("a call of a child writes to its own copy", done && pages.word(1).load(SeqCst) == 1);
    sys::write_raw(to, pages.at(3), 8);
    let clock = |address: u64| call(228, [1, address, 0, 0, 0, 0]);
    pages.protect(READ);
    checks.check(
        "read-only memory is EFAULT",
        sys::read_raw(from, pages.at(1), 8) == EFAULT && clock(pages.at(1)) == EFAULT,
    );
    checks.check("and can be read", sys::write_raw(to, pages.at(3), 8) == 8);
    pages.protect(NONE);
    checks.check("without rights it cannot", sys::write_raw(to, pages.at(3), 8) == EFAULT);
    pages.protect(READ_WRITE);
    checks.check(
        "nothing was lost",
        sys::read_raw(from, pages.at(0), 8) == 8 && pages.word(0).load(SeqCst) == 0x1234,
    );
    for address in [0, 0x1000, 0x7fff_ffff_f000, 0xffff_ffff_8100_0000, u64::MAX - 7] {
        checks.check("an address that is not the program's is EFAULT", clock(address) == EFAULT);
        checks.check("as one to read from", sys::write_raw(to, address, 8) == EFAULT);
    }
    let gone = pages.at(3);
    checks.check(
        "an unmapped page is EFAULT",
        sys::munmap(gone, BYTES) == 0 && sys::write_raw(to, gone, 8) == EFAULT,
    );
    sys::close(from);
    sys::close(to);
    sys::munmap(pages.start, 3 * BYTES);
}

/// The stack grows to its limit and no further; each in a child, whose stack is like this one.
fn stack(checks: &mut Checks) {
    const LIMIT: u64 = 512 << 10;
    let top = stack_top() & !(BYTES - 1);
    let with_limit = |f: &dyn Fn() -> u64| {
        let pid = child(|| {
            let stack = [ALT.0.get() as u64, 0, ALT_LEN as u64];
            call(131, [stack.as_ptr() as u64, 0, 0, 0, 0, 0]);
            catch(ONSTACK);
            sys::set_limit(3, LIMIT);
            f()
        });
        wait(pid, 0) == (pid, 0)
    };
    let lowest = top - LIMIT + 8 * BYTES;
    checks.check(
        "a stack grows at a touch far below it",
        with_limit(&|| {
            u64::from(trap(Trap::Write(lowest)).is_some() || trap(Trap::Read(lowest + BYTES)).is_some())
        }),
    );
    checks.check(
        "and not past its limit",
        with_limit(&|| {
            let below = top - LIMIT;
            u64::from(
                trap(Trap::Write(below)) != Some((SEGV, MAPERR, below)) || trap(Trap::Read(below)).is_none(),
            )
        }),
    );
    checks.check(
        "a call grows it, too",
        with_limit(&|| {
            u64::from(
                call(228, [1, lowest, 0, 0, 0, 0]) != 0 || call(228, [1, top - LIMIT, 0, 0, 0, 0]) != EFAULT,
            )
        }),
    );
    let pid = child(|| {
        sys::set_limit(3, LIMIT);
        sys::trap(Trap::Write(top - LIMIT));
        0
    });
    checks.check("without a handler that ends the program", wait(pid, 0).1 & 0x7f == 11);
    let pid = child(|| {
        // Without another stack there is no room for the handler.
        catch(0);
        sys::set_limit(3, LIMIT);
        sys::overflow_stack()
    });
    checks.check("endless recursion ends, even with a handler", wait(pid, 0).1 & 0x7f == 11);
}
