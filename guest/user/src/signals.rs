//! Signals: handlers, faults, masks, stacks, stopping, waiting for them.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::processes::{ANY, ECHILD, EINVAL, ESRCH, child, join, thread, wait};
use crate::program::Checks;
use crate::sys::{self, Trap, call, kill};

const EAGAIN: u64 = 11_u64.wrapping_neg();
const EINTR: u64 = 4_u64.wrapping_neg();
const ENOMEM: u64 = 12_u64.wrapping_neg();

const ILL: u64 = 4;
const TRAP: u64 = 5;
const FPE: u64 = 8;
pub const KILL: u64 = 9;
pub const USR1: u64 = 10;
pub const SEGV: u64 = 11;
const USR2: u64 = 12;
const ALRM: u64 = 14;
const TERM: u64 = 15;
const CHLD: u64 = 17;
const CONT: u64 = 18;
const STOP: u64 = 19;
const RT: u64 = 34;

pub const SIGINFO: u64 = 4;
const NOCLDWAIT: u64 = 2;
pub const ONSTACK: u64 = 0x0800_0000;
const RESTART: u64 = 0x1000_0000;
pub const NODEFER: u64 = 0x4000_0000;
const RESETHAND: u64 = 0x8000_0000;
const RESTORER: u64 = 0x0400_0000;
const DEFAULT: u64 = 0;
const IGNORE: u64 = 1;

/// `sigcontext` in the context: words of RIP, of the trap's number and of CR2.
const RIP: usize = 5 + 16;
const TRAPNO: usize = 5 + 20;
const CR2: usize = 5 + 22;

static COUNT: AtomicU64 = AtomicU64::new(0);
/// What the last handler was told: number, code, word 2 of the siginfo, trap, CR2, its stack, value.
static SEEN: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];
/// Signals in the order of their handlers, four bits... a byte each, the latest lowest.
static ORDER: AtomicU64 = AtomicU64::new(0);
/// Bytes to skip behind the instruction that trapped.
static SKIP: AtomicU64 = AtomicU64::new(0);

const ALT_LEN: usize = 16 << 10;
struct Stack(UnsafeCell<[u8; ALT_LEN]>);
// SAFETY: only its address is taken; the kernel uses it for one handler at a time.
unsafe impl Sync for Stack {}
static ALT: Stack = Stack(UnsafeCell::new([0; ALT_LEN]));

fn seen(index: usize) -> u64 {
    SEEN[index].load(SeqCst)
}

extern "C" fn handler(number: u64, info: *const u64, context: *mut u64) {
    let here = 0_u64;
    // SAFETY: the kernel's siginfo: 16 words.
    let info = unsafe { core::slice::from_raw_parts(info, 16) };
    // SAFETY: the kernel's context: 38 words.
    let context = unsafe { core::slice::from_raw_parts_mut(context, 38) };
    let told = [
        number,
        info[1] & 0xffff_ffff,
        info[2],
        context[TRAPNO],
        context[CR2],
        &raw const here as u64,
        info[3],
    ];
    for (to, value) in SEEN.iter().zip(told) {
        to.store(value, SeqCst);
    }
    context[RIP] += SKIP.load(SeqCst);
    sys::spoil_sse();
    ORDER.fetch_update(SeqCst, SeqCst, |order| Some(order << 8 | number)).ok();
    COUNT.fetch_add(1, SeqCst);
}

/// `rt_sigaction` of a whole structure; what was there comes back.
pub fn action(signal: u64, handler: u64, flags: u64, mask: u64) -> (u64, [u64; 4]) {
    let new = [handler, flags | RESTORER, sys::restorer(), mask];
    let mut old = [0_u64; 4];
    let result = call(13, [signal, new.as_ptr() as u64, old.as_mut_ptr() as u64, 8, 0, 0]);
    (result, old)
}

fn catch(signal: u64, flags: u64) {
    action(signal, handler as *const () as u64, flags | SIGINFO, 0);
}

pub fn reset(signal: u64) {
    action(signal, DEFAULT, 0, 0);
}

fn tgkill(tid: u64, signal: u64) -> u64 {
    call(234, [sys::getpid(), tid, signal, 0, 0, 0])
}

pub const fn bit(signal: u64) -> u64 {
    1 << (signal - 1)
}

/// `rt_sigprocmask`: how is 0 to block, 1 to unblock, 2 to set. Returns what was blocked.
pub fn mask(how: u64, set: u64) -> u64 {
    let mut old = 0_u64;
    call(14, [how, &raw const set as u64, &raw mut old as u64, 8, 0, 0]);
    old
}

fn pending() -> u64 {
    let mut set = 0_u64;
    call(127, [&raw mut set as u64, 8, 0, 0, 0, 0]);
    set
}

pub fn suspend(set: u64) -> u64 {
    call(130, [&raw const set as u64, 8, 0, 0, 0, 0])
}

/// `rt_sigtimedwait` for so many nanoseconds.
fn timed_wait(set: u64, nanoseconds: u64) -> u64 {
    let time = [0, nanoseconds];
    call(128, [&raw const set as u64, 0, time.as_ptr() as u64, 8, 0, 0])
}

fn count() -> u64 {
    COUNT.swap(0, SeqCst)
}

/// All of them.
pub fn run(checks: &mut Checks) {
    handlers(checks);
    masks(checks);
    faults(checks);
    stacks(checks);
    ends(checks);
    interrupts(checks);
    stops(checks);
    children(checks);
    threads(checks);
    waits(checks);
    for signal in [USR1, USR2, RT, ALRM] {
        reset(signal);
    }
}

fn handlers(checks: &mut Checks) {
    let pid = sys::getpid();
    catch(USR1, 0);
    checks.check("kill calls the handler before it returns", kill(pid, USR1) == 0 && count() == 1);
    checks.check("a handler is told who sent", seen(0) == USR1 && seen(1) == 0 && seen(2) == pid);
    checks
        .check("tgkill says so", tgkill(sys::gettid(), USR1) == 0 && count() == 1 && seen(1) == 0xffff_fffa);
    checks.check("nothing is blocked afterwards", mask(0, 0) == 0);
    checks.check(
        "SSE registers survive a handler",
        sys::sse_keeps_over_signal(77, pid, sys::gettid(), USR1) && count() == 1,
    );
    catch(USR1, RESETHAND | NODEFER);
    kill(pid, USR1);
    let (_, old) = action(USR1, DEFAULT, 0, 0);
    checks.check("SA_RESETHAND forgets the handler", count() == 1 && old[0] == DEFAULT);
    checks.check("SIGKILL cannot be caught", action(KILL, IGNORE, 0, 0).0 == EINVAL);
    checks.check("SIGSTOP cannot be caught", action(STOP, IGNORE, 0, 0).0 == EINVAL);
    checks.check("there is no signal 65", action(65, IGNORE, 0, 0).0 == EINVAL && kill(pid, 65) == EINVAL);
    checks.check("kill of nobody is ESRCH", kill(30_000, 0) == ESRCH && kill(pid, 0) == 0);
    let (_, old) =
        (action(USR1, IGNORE, RESTART | 0x40, bit(KILL) | bit(USR2)).0, action(USR1, DEFAULT, 0, 0).1);
    checks.check("unknown flags are dropped", old[1] == RESTART | RESTORER && old[3] == bit(USR2));
}

fn masks(checks: &mut Checks) {
    let pid = sys::getpid();
    for signal in [USR1, USR2, RT] {
        catch(signal, 0);
    }
    mask(0, bit(USR1) | bit(USR2) | bit(RT) | bit(KILL));
    checks.check("SIGKILL is not blocked", mask(0, 0) == bit(USR1) | bit(USR2) | bit(RT));
    for signal in [RT, USR2, RT, USR1, USR2] {
        kill(pid, signal);
    }
    checks.check("what is blocked waits", count() == 0 && pending() == bit(USR1) | bit(USR2) | bit(RT));
    ORDER.store(0, SeqCst);
    mask(2, 0);
    // Each handler interrupts the one before at its begin, so that the last comes first: as on Linux.
    checks.check("standard signals come once, realtime ones each time", count() == 4 && pending() == 0);
    checks.check("in their order", ORDER.load(SeqCst) == RT << 24 | RT << 16 | USR2 << 8 | USR1);
    mask(0, bit(USR1));
    kill(pid, USR1);
    action(USR1, IGNORE, 0, 0);
    checks.check("ignoring forgets what waits", pending() == 0);
    catch(USR1, 0);
    kill(pid, USR1);
    checks.check("sigsuspend lets it in", suspend(0) == EINTR && count() == 1 && mask(2, 0) == bit(USR1));
    checks.check("a bad how is EINVAL", call(14, [3, &raw const SEEN as u64, 0, 8, 0, 0]) == EINVAL);
    checks.check("a set of another size is EINVAL", call(14, [0, 0, 0, 16, 0, 0]) == EINVAL);
}

/// Traps that a handler survives by going on behind the instruction.
fn faults(checks: &mut Checks) {
    for signal in [SEGV, FPE, ILL, TRAP] {
        catch(signal, 0);
    }
    SKIP.store(2, SeqCst);
    sys::trap(Trap::Read(0x1234));
    let told = [0, 1, 2, 3, 4].map(seen);
    checks.check("SIGSEGV: nothing is mapped there", count() == 1 && told == [SEGV, 1, 0x1234, 14, 0x1234]);
    let area = sys::mmap(0, 4096, 0, 0x22, u64::MAX);
    sys::trap(Trap::Read(area + 5));
    checks
        .check("SIGSEGV: the mapping does not allow it", count() == 1 && seen(1) == 2 && seen(2) == area + 5);
    sys::munmap(area, 4096);
    sys::trap(Trap::Read(0xffff_8123_0000_0000));
    checks.check("SIGSEGV: the kernel's memory", count() == 1 && seen(0) == SEGV);
    sys::trap(Trap::Read(1 << 60));
    checks.check("SIGSEGV: no address at all", count() == 1 && (seen(1), seen(2)) == (0x80, 0));
    sys::trap(Trap::Divide);
    checks.check("SIGFPE", count() == 1 && (seen(0), seen(1), seen(3)) == (FPE, 1, 0));
    sys::trap(Trap::Undefined);
    checks.check("SIGILL", count() == 1 && (seen(0), seen(1), seen(3)) == (ILL, 2, 6));
    SKIP.store(0, SeqCst);
    sys::trap(Trap::Breakpoint);
    checks.check("SIGTRAP", count() == 1 && (seen(0), seen(1), seen(3)) == (TRAP, 0x80, 3));
    for signal in [SEGV, FPE, ILL, TRAP] {
        reset(signal);
    }
}

fn stacks(checks: &mut Checks) {
    let pid = sys::getpid();
    let start = ALT.0.get() as u64;
    let set = |stack: [u64; 3]| call(131, [stack.as_ptr() as u64, 0, 0, 0, 0, 0]);
    let state = || {
        let mut stack = [0_u64; 3];
        call(131, [0, stack.as_mut_ptr() as u64, 0, 0, 0, 0]);
        stack
    };
    checks.check("there is no other stack at first", state() == [0, 2, 0]);
    checks.check("a small one is ENOMEM", set([start, 0, 1000]) == ENOMEM);
    checks.check("bad flags are EINVAL", set([start, 8, ALT_LEN as u64]) == EINVAL);
    checks
        .check("sigaltstack", set([start, 0, ALT_LEN as u64]) == 0 && state() == [start, 0, ALT_LEN as u64]);
    catch(USR1, ONSTACK);
    kill(pid, USR1);
    let on = start..start + ALT_LEN as u64;
    checks.check("SA_ONSTACK runs there", count() == 1 && on.contains(&seen(5)));
    catch(USR1, 0);
    kill(pid, USR1);
    checks.check("without it a handler runs here", count() == 1 && !on.contains(&seen(5)));
    checks.check("and it can go", set([0, 2, 0]) == 0 && state() == [0, 2, 0]);
}

/// How signals end processes.
fn ends(checks: &mut Checks) {
    for signal in [TERM, KILL, USR1, 6, RT] {
        let pid = child(|| {
            reset(USR1);
            reset(RT);
            kill(sys::getpid(), signal)
        });
        checks.check(
            "a signal without handler ends",
            wait(pid, 0) == (pid, u32::try_from(signal).unwrap_or(0)),
        );
    }
    let pid = child(|| {
        catch(SEGV, 0);
        mask(0, bit(SEGV));
        sys::trap(Trap::Read(8));
        0
    });
    checks.check("a fault whose signal is blocked ends", wait(pid, 0) == (pid, 11));
    let pid = child(|| {
        catch(SEGV, 0);
        // The frame cannot be written there.
        let stack = [0x1000_u64, 0, 8192];
        call(131, [stack.as_ptr() as u64, 0, 0, 0, 0, 0]);
        catch(USR1, ONSTACK);
        kill(sys::getpid(), USR1);
        u64::from(seen(0) != SEGV)
    });
    checks.check("a frame that cannot be is SIGSEGV", wait(pid, 0) == (pid, 0));
    let pid = child(|| {
        // No frame is there.
        call(15, [0; 6]);
        0
    });
    checks.check("a return without a frame ends", wait(pid, 0).1 & 0x7f == 11 || pid == 0);
    let pid = child(|| {
        action(TERM, IGNORE, 0, 0);
        kill(sys::getpid(), TERM);
        5
    });
    checks.check("what is ignored does nothing", wait(pid, 0) == (pid, 5 << 8));
    let pid = child(|| {
        loop {
            sys::pause();
        }
    });
    checks.check("kill ends what sleeps", kill(pid, TERM) == 0 && wait(pid, 0) == (pid, 15));
    let pid = child(|| {
        loop {
            core::hint::spin_loop();
        }
    });
    checks.check("and what runs", kill(pid, KILL) == 0 && wait(pid, 0) == (pid, 9));
}

/// A child that sends SIGUSR1 to its parent again and again.
fn shooter(parent: u64) -> u64 {
    child(|| {
        loop {
            sys::nanosleep(0, 10_000_000);
            kill(parent, USR1);
        }
    })
}

/// Ends a child, whose last signals may still interrupt the wait for it.
fn end(pid: u64) {
    kill(pid, KILL);
    while wait(pid, 0).0 == EINTR {}
    count();
}

/// Calls that signals interrupt.
fn interrupts(checks: &mut Checks) {
    let me = sys::getpid();
    let sleeper = || {
        child(|| {
            loop {
                sys::pause();
            }
        })
    };
    catch(USR1, 0);
    let pid = shooter(me);
    let (time, mut rest) = ([100_u64, 0], [0_u64; 2]);
    let result = call(35, [time.as_ptr() as u64, rest.as_mut_ptr() as u64, 0, 0, 0, 0]);
    let told = (1..100).contains(&rest[0]);
    checks.check("nanosleep is interrupted and tells the rest", result == EINTR && told && count() > 0);
    let long = sleeper();
    checks.check("wait4 is interrupted", wait(long, 0).0 == EINTR && count() > 0);
    end(pid);
    catch(USR1, RESTART);
    let pid = child(|| {
        for _ in 0..5 {
            sys::nanosleep(0, 10_000_000);
            kill(me, USR1);
        }
        kill(long, TERM)
    });
    checks.check("SA_RESTART: wait4 goes on", wait(long, 0) == (long, 15) && count() > 0);
    wait(pid, 0);
    count();
    // Without a handler a sleep goes on to its end.
    action(CONT, DEFAULT, 0, 0);
    let pid = child(|| {
        let before = crate::futexes::clock(1);
        sys::nanosleep(0, 100_000_000);
        u64::from(crate::futexes::clock(1) - before < 100_000_000)
    });
    for signal in [STOP, CONT, STOP, CONT] {
        kill(pid, signal);
    }
    checks.check("nanosleep goes on where it was stopped", wait(pid, 0) == (pid, 0));
    // alarm's signal interrupts sigsuspend, and a timer comes again and again.
    catch(ALRM, 0);
    let value = [0_u64, 20_000, 0, 20_000];
    call(38, [0, value.as_ptr() as u64, 0, 0, 0, 0]);
    while COUNT.load(SeqCst) < 3 {
        suspend(0);
    }
    let (none, mut old) = ([0_u64; 4], [0_u64; 4]);
    call(38, [0, none.as_ptr() as u64, old.as_mut_ptr() as u64, 0, 0, 0]);
    checks.check(
        "setitimer fires and tells",
        count() >= 3 && old[1] == 20_000 && old[3] <= 20_000 && old[2] == 0,
    );
    // Its signal may be on its way from another CPU while it is set to nothing; afterwards none comes.
    let late = (0..8).filter(|_| {
        let value = [0_u64, 20_000, 0, 20_000];
        call(38, [0, value.as_ptr() as u64, 0, 0, 0, 0]);
        while COUNT.load(SeqCst) < 2 {
            core::hint::spin_loop();
        }
        call(38, [0, none.as_ptr() as u64, 0, 0, 0, 0]);
        count();
        sys::nanosleep(0, 2_000_000);
        count() > 0
    });
    checks.check("a timer that is off does not fire", late.count() == 0);
    checks.check("alarm tells what was left", call(37, [100, 0, 0, 0, 0, 0]) == 0 && call(37, [0; 6]) == 100);
}

fn stops(checks: &mut Checks) {
    const UNTRACED: u64 = 2;
    const CONTINUED: u64 = 8;
    let pid = child(|| {
        loop {
            sys::sched_yield();
        }
    });
    checks.check("SIGSTOP stops", kill(pid, STOP) == 0 && wait(pid, UNTRACED) == (pid, 0x137f));
    checks.check("which is told once", wait(pid, UNTRACED | 1) == (0, 0xdead));
    checks.check("SIGTERM waits", kill(pid, USR2) == 0 && wait(pid, UNTRACED | 1).0 == 0);
    checks.check("SIGKILL does not", kill(pid, KILL) == 0 && wait(pid, 0) == (pid, 9));
    let pid = child(|| {
        loop {
            sys::pause();
        }
    });
    kill(pid, STOP);
    wait(pid, UNTRACED);
    checks.check("SIGCONT continues", kill(pid, CONT) == 0 && wait(pid, CONTINUED) == (pid, 0xffff));
    checks.check("and it can be ended", kill(pid, TERM) == 0 && wait(pid, 0) == (pid, 15));
}

fn children(checks: &mut Checks) {
    catch(CHLD, 0);
    // Blocked but while this sleeps: it may come between the look and the sleep.
    let before = mask(0, bit(CHLD));
    let pid = child(|| 3);
    while COUNT.load(SeqCst) == 0 {
        suspend(before);
    }
    mask(2, before);
    checks.check("SIGCHLD tells who and how", count() == 1 && (seen(1), seen(2), seen(6)) == (1, pid, 3));
    checks.check("and it is still there", wait(pid, 0) == (pid, 3 << 8));
    action(CHLD, DEFAULT, NOCLDWAIT, 0);
    child(|| 3);
    checks.check("SA_NOCLDWAIT leaves nothing", wait(ANY, 0).0 == ECHILD);
    action(CHLD, IGNORE, 0, 0);
    child(|| 3);
    checks.check("nor does ignoring", wait(ANY, 0).0 == ECHILD);
    reset(CHLD);
}

/// Tells which thread it is, then waits for a signal.
extern "C" fn wait_for_signal(number: u64) -> ! {
    SEEN[6].store(100 + number, SeqCst);
    while COUNT.load(SeqCst) == 0 {
        sys::sched_yield();
    }
    sys::exit(0)
}

extern "C" fn spin(_: u64) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

fn threads(checks: &mut Checks) {
    catch(USR1, 0);
    SEEN[6].store(0, SeqCst);
    let before = mask(0, bit(USR1));
    let blocked = thread(0, wait_for_signal);
    while SEEN[6].load(SeqCst) != 100 {
        sys::sched_yield();
    }
    checks.check("tgkill to a thread that blocks it", tgkill(blocked, USR1) == 0 && COUNT.load(SeqCst) == 0);
    checks.check("is pending there, not here", pending() == 0);
    mask(2, before);
    kill(sys::getpid(), USR1);
    checks.check("kill finds a thread that does not", count() == 1 || COUNT.load(SeqCst) == 0);
    COUNT.store(1, SeqCst);
    join(0);
    count();
    // Its word is cleared a little before it is gone.
    let gone = (0..1000).any(|_| {
        sys::nanosleep(0, 1_000_000);
        tgkill(blocked, 0) == ESRCH
    });
    checks.check("a thread that is gone is ESRCH", gone);
    let pid = child(|| {
        thread(0, spin);
        thread(1, spin);
        kill(sys::getpid(), TERM);
        0
    });
    checks.check("a signal ends all threads", wait(pid, 0) == (pid, 15));
}

fn waits(checks: &mut Checks) {
    let me = sys::getpid();
    let before = mask(0, bit(USR2));
    catch(USR2, 0);
    checks.check("sigtimedwait does not wait for ever", timed_wait(bit(USR2), 20_000_000) == EAGAIN);
    kill(me, USR2);
    checks.check("it takes what waits", timed_wait(bit(USR2), 0) == USR2 && count() == 0);
    let pid = child(|| {
        sys::nanosleep(0, 20_000_000);
        kill(me, USR2)
    });
    checks.check("and what comes", timed_wait(bit(USR2), 900_000_000) == USR2 && count() == 0);
    wait(pid, 0);
    mask(2, before);
}
