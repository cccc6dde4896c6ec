//! fork, copy on write, wait, threads, preemption, vfork: what a program sees of processes.

use core::cell::UnsafeCell;
use core::fmt::Write;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use crate::program::Checks;
use crate::sys::{self, Out};

pub const ECHILD: u64 = 10_u64.wrapping_neg();
pub const EINVAL: u64 = 22_u64.wrapping_neg();
pub const ESRCH: u64 = 3_u64.wrapping_neg();
const NOHANG: u64 = 1;
const WNOWAIT: u64 = 0x0100_0000;
const WEXITED: u64 = 4;
/// Bytes of a thread's stack.
const STACK: usize = 16 << 10;
/// Threads that there are stacks for.
pub const MAX_THREADS: usize = 8;
/// Threads of the checks here.
const THREADS: usize = 4;

/// Memory that processes have each for themselves and threads together.
static WORD: AtomicU64 = AtomicU64::new(0);
static TURN: AtomicU64 = AtomicU64::new(0);
static SUM: AtomicU64 = AtomicU64::new(0);
/// The kernel clears a thread's word when it has ended.
static TIDS: [AtomicU32; MAX_THREADS] = [const { AtomicU32::new(0) }; MAX_THREADS];
/// What FS points to in each thread: its own address first.
static BLOCKS: [[AtomicU64; 2]; MAX_THREADS] = [const { [const { AtomicU64::new(0) }; 2] }; MAX_THREADS];

#[repr(align(16))]
struct Stacks(UnsafeCell<[[u8; STACK]; MAX_THREADS]>);
// SAFETY: only addresses are taken; each stack is one thread's.
unsafe impl Sync for Stacks {}
static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; MAX_THREADS]));

/// All of them. Nothing of a child is left afterwards.
pub fn run(checks: &mut Checks) {
    statuses(checks);
    copies(checks);
    orphans(checks);
    ids(checks);
    many(checks);
    threads(checks);
    turns(checks);
    registers(checks);
    group_exit(checks);
    hundreds(checks);
    vfork(checks);
    sleep(checks);
    affinity(checks);
}

/// Runs `f` in a child, which ends with what it returns.
pub fn child(f: impl FnOnce() -> u64) -> u64 {
    match sys::fork() {
        0 => sys::exit_group(f()),
        pid => pid,
    }
}

/// A child waits until [`go`]: its parent puts it into a group of its own, which needs no memory of both.
fn wait_for_go() {
    while sys::getpgid(0) != sys::getpid() {
        sys::nanosleep(0, 1_000_000);
    }
}

/// Lets a child go on that is in [`wait_for_go`].
fn go(pid: u64) {
    sys::setpgid(pid, pid);
}

/// wait4 for `pid`: who it was and the status.
pub fn wait(pid: u64, options: u64) -> (u64, u32) {
    let mut status = 0xdead;
    let who = sys::wait4(pid, Some(&mut status), options);
    (who, status)
}

pub const ANY: u64 = u64::MAX;

fn statuses(checks: &mut Checks) {
    checks.check("without children wait4 is ECHILD", wait(ANY, 0).0 == ECHILD);
    checks.check("bad options are EINVAL", wait(ANY, 0x100).0 == EINVAL);
    let pid = child(|| 42);
    checks.check("wait4 gives the exit code", wait(pid, 0) == (pid, 42 << 8));
    checks.check("a child is waited for once", wait(pid, 0).0 == ECHILD);
    let pid = child(|| {
        // SAFETY: it ends the child, which is the point.
        unsafe { (8 as *mut u8).write_volatile(1) };
        0
    });
    checks.check("wait4 gives the signal", wait(ANY, 0) == (pid, 11) || wait(ANY, 0) == (pid, 11 | 0x80));
    let gate = child(|| {
        // A grandchild of which nobody else hears.
        let inner = child(|| 3);
        u64::from(wait(ANY, 0) != (inner, 3 << 8))
    });
    checks.check("children have children", wait(gate, 0) == (gate, 0));
    let pid = child(|| {
        wait_for_go();
        5
    });
    checks.check("WNOHANG does not wait", wait(pid, NOHANG) == (0, 0xdead));
    checks.check("a process that is not a child is ECHILD", wait(pid + 1000, 0).0 == ECHILD);
    go(pid);
    let mut info = [0_u32; 32];
    let waited = sys::waitid(1, pid, &mut info, WEXITED | WNOWAIT);
    checks.check("waitid tells signal, code, pid and status", {
        let told = [info[0], info[2], info[4], info[6]];
        waited == 0 && u64::from(told[2]) == pid && [told[0], told[1], told[3]] == [17, 1, 5]
    });
    checks.check("WNOWAIT leaves the child", wait(pid, 0) == (pid, 5 << 8));
}

/// A page that both may write is copied when one does.
fn copies(checks: &mut Checks) {
    WORD.store(1, SeqCst);
    let pid = child(|| {
        let seen = WORD.load(SeqCst);
        WORD.store(2, SeqCst);
        u64::from(seen != 1 || WORD.load(SeqCst) != 2)
    });
    checks.check("a child sees what the parent wrote", wait(pid, 0) == (pid, 0));
    checks.check("a child's write does not show", WORD.load(SeqCst) == 1);
    let pid = child(|| {
        wait_for_go();
        WORD.load(SeqCst)
    });
    WORD.store(7, SeqCst);
    go(pid);
    checks.check("a parent's write does not show either", wait(pid, 0) == (pid, 1 << 8));
}

/// The grandchild of a dead child is init's, which this program is.
fn orphans(checks: &mut Checks) {
    if sys::getpid() != 1 {
        return;
    }
    let pid = child(|| {
        child(|| {
            while sys::getppid() != 1 {
                sys::sched_yield();
            }
            9
        });
        8
    });
    checks.check("the child ends", wait(pid, 0) == (pid, 8 << 8));
    let (orphan, status) = wait(ANY, 0);
    checks.check("init gets the orphan", orphan != pid && status == 9 << 8);
}

fn ids(checks: &mut Checks) {
    let me = sys::getpid();
    checks.check("the first task has the process's number", sys::gettid() == me);
    let pid = child(|| u64::from(sys::getppid() != me || sys::getpid() == me));
    checks.check("a child knows its parent", wait(pid, 0) == (pid, 0));
    let pid = child(|| {
        let me = sys::getpid();
        u64::from(sys::setsid() != me || sys::getpgid(0) != me || sys::setpgid(0, 0) != 1_u64.wrapping_neg())
    });
    checks.check("setsid makes a group", wait(pid, 0) == (pid, 0));
    checks.check("no such process", sys::getpgid(30_000) == ESRCH);
}

/// More processes one after the other and at once than a leak would survive.
fn many(checks: &mut Checks) {
    const ROUNDS: u64 = 8;
    const AT_ONCE: u64 = 8;
    for round in 0..ROUNDS {
        for number in 0..AT_ONCE {
            child(|| (round + number) & 0x7f);
        }
        let mut sum = 0;
        for _ in 0..AT_ONCE {
            let (_, status) = wait(ANY, 0);
            sum += u64::from(status >> 8);
        }
        checks.check("every child is waited for", sum == (0..AT_ONCE).map(|number| round + number).sum());
    }
}

/// Starts thread `number`, which runs `f(number)`.
pub fn thread(number: usize, f: extern "C" fn(u64) -> !) -> u64 {
    // SAFETY: an address one past the stack, which is aligned.
    let top = unsafe { STACKS.0.get().cast::<u8>().add((number + 1) * STACK) } as u64;
    let block = &BLOCKS[number];
    block[0].store(block.as_ptr() as u64, SeqCst);
    TIDS[number].store(u32::MAX, SeqCst);
    sys::clone_thread(top, f, number as u64, TIDS[number].as_ptr() as u64, block.as_ptr() as u64)
}

pub fn join(number: usize) {
    while TIDS[number].load(SeqCst) != 0 {
        sys::sched_yield();
    }
}

extern "C" fn add(number: u64) -> ! {
    // The thread's own block, through FS.
    let block = sys::thread_pointer();
    let index = BLOCKS.iter().position(|other| other.as_ptr() as u64 == block).unwrap_or(99);
    if index as u64 == number && u64::from(TIDS[index].load(SeqCst)) == sys::gettid() {
        for _ in 0..1000 {
            SUM.fetch_add(1, SeqCst);
        }
    }
    sys::exit(0)
}

fn threads(checks: &mut Checks) {
    SUM.store(0, SeqCst);
    let tids: [u64; THREADS] = core::array::from_fn(|number| thread(number, add));
    (0..THREADS).for_each(join);
    checks.check("clone returns different numbers", tids.windows(2).all(|pair| pair[0] < pair[1]));
    checks
        .check("threads share memory and have their own pointer", SUM.load(SeqCst) == 1000 * THREADS as u64);
    checks.check("a thread is nobody's child", wait(ANY, 0).0 == ECHILD);
    // Threads without the handlers of signals, handlers without the memory.
    checks.check("CLONE_THREAD needs CLONE_SIGHAND", sys::clone_raw(0x1_0000) == EINVAL);
    checks.check("CLONE_SIGHAND needs CLONE_VM", sys::clone_raw(0x800) == EINVAL);
}

const TURNS: u64 = 20;

/// Waits in ring 3, without a system call, until it is this thread's turn, and passes the turn on.
extern "C" fn take_turns(number: u64) -> ! {
    let mut mine = number + 1;
    while mine < TURNS * THREADS as u64 {
        while TURN.load(SeqCst) != mine {
            core::hint::spin_loop();
        }
        TURN.store(mine + 1, SeqCst);
        mine += THREADS as u64;
    }
    sys::exit(0)
}

/// A thread that never calls the kernel cannot keep the CPU.
fn turns(checks: &mut Checks) {
    TURN.store(0, SeqCst);
    for number in 0..THREADS {
        thread(number, take_turns);
    }
    TURN.store(1, SeqCst);
    (0..THREADS).for_each(join);
    checks.check("every thread had its turns", TURN.load(SeqCst) > (TURNS - 1) * THREADS as u64);
}

/// Keeps a value in an SSE register while others run.
extern "C" fn keep(number: u64) -> ! {
    if sys::sse_keeps(0x1111 * (number + 1), 3_000_000) {
        SUM.fetch_add(1, SeqCst);
    }
    sys::exit(0)
}

fn registers(checks: &mut Checks) {
    SUM.store(0, SeqCst);
    for number in 0..THREADS {
        thread(number, keep);
    }
    (0..THREADS).for_each(join);
    checks.check("SSE registers survive preemption", SUM.load(SeqCst) == THREADS as u64);
    let pid = child(|| u64::from(!sys::sse_keeps(77, 1000)));
    checks.check("and fork", wait(pid, 0) == (pid, 0));
}

extern "C" fn forever(_: u64) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

fn group_exit(checks: &mut Checks) {
    let pid = child(|| {
        for number in 0..THREADS {
            thread(number, forever);
        }
        sys::sched_yield();
        17
    });
    checks.check("exit_group ends all threads", wait(pid, 0) == (pid, 17 << 8));
    let pid = child(|| {
        thread(0, add);
        join(0);
        // Cleared once the first thread ends.
        static FIRST: AtomicU32 = AtomicU32::new(1);
        sys::call(218, [FIRST.as_ptr() as u64, 0, 0, 0, 0, 0]);
        thread(1, {
            extern "C" fn last(_: u64) -> ! {
                while FIRST.load(SeqCst) != 0 {
                    sys::sched_yield();
                }
                sys::exit(23)
            }
            last
        });
        sys::exit(1)
    });
    checks.check("a process lives as long as a thread does", wait(pid, 0) == (pid, 23 << 8));
}

/// More threads at once than a table of bytes could number.
fn hundreds(checks: &mut Checks) {
    const MANY: u64 = 300;
    extern "C" fn sleep(_: u64) -> ! {
        loop {
            sys::pause();
        }
    }
    let pid = child(|| {
        let stacks = sys::mmap(0, MANY << 12, 3, 0x22, u64::MAX);
        let begun = (1..=MANY).filter(|number| {
            let top = stacks + (number << 12);
            let tid = sys::clone_thread(top - 64, sleep, 0, top - 8, top - 64);
            tid.cast_signed() > 0
        });
        let all = begun.count() as u64 == MANY;
        sys::exit_group(u64::from(!all))
    });
    checks.check("there is room for hundreds of threads", wait(pid, 0) == (pid, 0));
}

fn vfork(checks: &mut Checks) {
    WORD.store(1, SeqCst);
    let pid = sys::vfork_store(WORD.as_ptr(), 5, 33);
    // The child ran first, in this memory.
    checks.check("vfork waits for the child, which has our memory", WORD.load(SeqCst) == 5);
    checks.check("its status is its own", wait(pid, 0) == (pid, 33 << 8));
}

fn sleep(checks: &mut Checks) {
    let mut ends = [0; 3];
    for (end, time) in ends.iter_mut().zip([40, 1, 20]) {
        *end = child(|| {
            sys::nanosleep(0, time * 1_000_000);
            0
        });
    }
    let mut woken = [0; 3].map(|_: u64| wait(ANY, 0).0);
    woken.sort_unstable();
    checks.check("who sleeps wakes up", woken == ends);
}

fn affinity(checks: &mut Checks) {
    let mut mask = [0_u64; 4];
    let len = sys::sched_getaffinity(0, &mut mask);
    let cpus = mask.iter().map(|word| word.count_ones()).sum::<u32>();
    checks.check("sched_getaffinity tells the CPUs", len == 32 && cpus >= 1);
    for cpu in 0..cpus {
        let only = [1 << cpu];
        let set = sys::sched_setaffinity(0, &only) == 0;
        checks.check("a task runs where it may", set && sys::getcpu() == u64::from(cpu));
    }
    checks.check("a task must run somewhere", sys::sched_setaffinity(0, &[0]) == EINVAL);
    sys::sched_setaffinity(0, &mask);
    let _ = writeln!(Out, "user: {cpus} CPUs");
}
