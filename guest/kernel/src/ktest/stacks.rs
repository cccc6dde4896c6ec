//! Threads, wait queues and their stacks.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::THREAD_SIZE;
use mm_core::PAGE_SIZE;

use super::{Failure, Test, check};
use crate::arch::percpu;
use crate::arch::regs;
use crate::arch::trap::{self, Probe, VECTOR_PAGE_FAULT, probe};
use crate::mm::layout::{percpu_area, vmalloc_contains};
use crate::mm::vmalloc;
use crate::sched::{self, Thread, WaitQueue};
use crate::smp;

type Outcome = Result<(), Failure>;

pub const TESTS: [(&str, Test); 11] = [
    ("a_thread_runs_on_its_own_guarded_stack", a_thread_runs_on_its_own_guarded_stack),
    ("threads_take_turns", threads_take_turns),
    ("a_wait_queue_wakes_its_waiters", a_wait_queue_wakes_its_waiters),
    ("a_clock_that_is_ahead_loses_no_sleeper", a_clock_that_is_ahead_loses_no_sleeper),
    ("threads_run_on_every_cpu", threads_run_on_every_cpu),
    ("joined_threads_give_their_stacks_back", joined_threads_give_their_stacks_back),
    ("interrupts_use_the_interrupt_stack", interrupts_use_the_interrupt_stack),
    (
        "interrupts_that_come_while_they_are_off_are_ignored",
        interrupts_that_come_while_they_are_off_are_ignored,
    ),
    ("an_interrupt_before_hlt_ends_the_wait", an_interrupt_before_hlt_ends_the_wait),
    ("only_task_context_may_sleep", only_task_context_may_sleep),
    ("sleepers_stay_for_the_audit", sleepers_stay_for_the_audit),
];

static WORD: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

fn spawn(name: &str, entry: fn(u64), argument: u64) -> Result<Thread, Failure> {
    sched::spawn(name, entry, argument, &sched::task_context()).map_err(|_| Failure::Wrong("no thread"))
}

fn faults(va: u64) -> bool {
    probe(Probe::Read(va)) == Err(VECTOR_PAGE_FAULT)
}

fn a_thread_runs_on_its_own_guarded_stack() -> Outcome {
    fn body(_: u64) {
        WORD.store(regs::rsp(), Ordering::Release);
        let base = regs::rsp() & !(THREAD_SIZE - 1);
        let guarded = faults(base - 8) && !faults(base) && faults(base + THREAD_SIZE);
        COUNT.store(u64::from(guarded), Ordering::Release);
    }
    let context = sched::task_context();
    let thread = spawn("stack", body, 0)?;
    let stack = thread.stack().as_u64();
    thread.join(&context);
    let rsp = WORD.load(Ordering::Acquire);
    check(vmalloc_contains(rsp) && (stack..stack + THREAD_SIZE).contains(&rsp), "the thread ran elsewhere")?;
    check(COUNT.load(Ordering::Acquire) == 1, "a page next to the stack is mapped")?;
    vmalloc::vm().purge();
    check(faults(stack), "the stack outlived its thread")
}

fn threads_take_turns() -> Outcome {
    /// Each adds its digit, then lets the other go.
    fn body(digit: u64) {
        let context = sched::task_context();
        for _ in 0..3 {
            WORD.fetch_add(digit, Ordering::AcqRel);
            sched::yield_now(&context);
        }
        COUNT.fetch_add(1, Ordering::AcqRel);
    }
    let context = sched::task_context();
    WORD.store(0, Ordering::Release);
    COUNT.store(0, Ordering::Release);
    let threads = [spawn("turn-1", body, 1)?, spawn("turn-2", body, 100)?, spawn("turn-3", body, 10_000)?];
    for thread in threads {
        thread.join(&context);
    }
    check(WORD.load(Ordering::Acquire) == 30_303, "a turn was lost")?;
    check(COUNT.load(Ordering::Acquire) == 3, "a thread did not end")
}

static GATE: WaitQueue = WaitQueue::new();

fn a_wait_queue_wakes_its_waiters() -> Outcome {
    fn body(_: u64) {
        GATE.wait_event(&sched::task_context(), || WORD.load(Ordering::Acquire) != 0);
        COUNT.fetch_add(1, Ordering::AcqRel);
    }
    let context = sched::task_context();
    WORD.store(0, Ordering::Release);
    COUNT.store(0, Ordering::Release);
    let threads = [spawn("wait-1", body, 0)?, spawn("wait-2", body, 0)?];
    for _ in 0..20 {
        sched::yield_now(&context);
    }
    check(COUNT.load(Ordering::Acquire) == 0, "a waiter went on without its event")?;
    WORD.store(1, Ordering::Release);
    GATE.wake_up_all();
    for thread in threads {
        thread.join(&context);
    }
    check(COUNT.load(Ordering::Acquire) == 2, "a waiter was not woken")
}

/// If one is lost, this hangs.
fn a_clock_that_is_ahead_loses_no_sleeper() -> Outcome {
    const LONG: u64 = 100_000_000;
    fn body(deadline: u64) {
        WORD.store(1, Ordering::Release);
        sched::sleep_until(&sched::task_context(), deadline);
        COUNT.store(sched::clock::now(), Ordering::Release);
    }
    let context = sched::task_context();
    WORD.store(0, Ordering::Release);
    let deadline = sched::clock::now() + LONG;
    let thread = spawn("sleeper", body, deadline)?;
    while WORD.load(Ordering::Acquire) == 0 {
        sched::yield_now(&context);
    }
    for _ in 0..20 {
        for cpu in 0..smp::nr_online() {
            sched::timer::wake_due(cpu, deadline + 1);
        }
        sched::yield_now(&context);
    }
    thread.join(&context);
    check(COUNT.load(Ordering::Acquire) >= deadline, "a sleeper came back too early")
}

fn threads_run_on_every_cpu() -> Outcome {
    fn body(_: u64) {
        WORD.fetch_or(1 << percpu::cpu(), Ordering::AcqRel);
    }
    let context = sched::task_context();
    let cpus = smp::nr_online().min(64);
    WORD.store(0, Ordering::Release);
    for cpu in 0..cpus {
        let thread =
            sched::spawn_on(cpu, "everywhere", body, 0, &context).map_err(|_| Failure::Wrong("no thread"))?;
        thread.join(&context);
    }
    check(WORD.load(Ordering::Acquire).count_ones() == cpus, "a CPU did not run its thread")
}

fn joined_threads_give_their_stacks_back() -> Outcome {
    fn body(_: u64) {}
    let context = sched::task_context();
    let live = sched::nr_live();
    let busy = vmalloc::AREAS.lock().nr_busy();
    for _ in 0..10 {
        spawn("short", body, 0)?.join(&context);
    }
    check(sched::nr_live() == live, "threads are left over")?;
    check(vmalloc::AREAS.lock().nr_busy() == busy, "stacks are left over")
}

fn interrupts_use_the_interrupt_stack() -> Outcome {
    fn stack(cpu: u32, first: u64, end: u64) -> core::ops::Range<u64> {
        let area = percpu_area(cpu).as_u64();
        area + first * PAGE_SIZE..area + end * PAGE_SIZE
    }
    fn handler() {
        let (rsp, cpu) = (regs::rsp(), percpu::cpu());
        // A CPU that was about to halt runs the call in its idle loop.
        let own = stack(cpu, 20, 24).contains(&rsp) || stack(cpu, 3, 7).contains(&rsp);
        COUNT.fetch_add(u64::from(own), Ordering::AcqRel);
    }
    if smp::nr_online() < 2 {
        return Err(Failure::Skip("one CPU sends itself no calls"));
    }
    COUNT.store(0, Ordering::Release);
    smp::call_others(handler);
    let others = u64::from(smp::nr_online() - 1);
    check(COUNT.load(Ordering::Acquire) == others, "a handler ran on a foreign stack")?;
    check(
        (0..smp::nr_online()).all(|cpu| faults(stack(cpu, 20, 24).start - 8)),
        "the page below an interrupt stack is mapped",
    )
}

fn interrupts_that_come_while_they_are_off_are_ignored() -> Outcome {
    let counts = || {
        percpu::current()
            .map(|percpu| (percpu.interrupts.load(Ordering::Relaxed), percpu.masked.load(Ordering::Relaxed)))
    };
    let before = counts();
    trap::raise(trap::VECTOR_RESCHEDULE);
    let taken = counts();
    let flags = regs::irq_save();
    trap::raise(trap::VECTOR_RESCHEDULE);
    let ignored = counts();
    regs::irq_restore(flags);
    let grew = |from: Option<(u64, u64)>, to: Option<(u64, u64)>| {
        from.zip(to).map(|(from, to)| (to.0 > from.0, to.1 - from.1))
    };
    check(grew(before, taken) == Some((true, 0)), "an interrupt was not taken")?;
    check(grew(taken, ignored) == Some((false, 1)), "a handler ran with interrupts off")
}

/// If it does not, another interrupt does, or this hangs.
fn an_interrupt_before_hlt_ends_the_wait() -> Outcome {
    let taken = || percpu::current().map(|percpu| percpu.interrupts.load(Ordering::Relaxed));
    let mut alone = false;
    // The timer may come beside it now and then.
    for _ in 0..10 {
        let before = taken();
        trap::raise_before_halt(trap::VECTOR_RESCHEDULE);
        let off = !regs::irqs_enabled();
        alone |= taken() == before.map(|before| before + 1);
        regs::irq_restore(regs::RFLAGS_IF);
        check(off, "the wait did not end")?;
    }
    check(alone, "it took a second interrupt to end the wait")
}

fn only_task_context_may_sleep() -> Outcome {
    fn handler() {
        COUNT.store(u64::from(sched::might_sleep().is_some()), Ordering::Release);
    }
    check(sched::might_sleep().is_some(), "a task may not sleep")?;
    let flags = regs::irq_save();
    let off = sched::might_sleep().is_some();
    regs::irq_restore(flags);
    check(!off, "sleeping is allowed with interrupts off")?;
    COUNT.store(0, Ordering::Release);
    smp::call_others(handler);
    check(COUNT.load(Ordering::Acquire) == 0, "sleeping is allowed in a call from another CPU")
}

/// Threads that never wake, so that the audits have stacks to look at.
fn sleepers_stay_for_the_audit() -> Outcome {
    static NEVER: WaitQueue = WaitQueue::new();
    fn body(_: u64) {
        COUNT.fetch_add(1, Ordering::AcqRel);
        NEVER.wait_event(&sched::task_context(), || false);
    }
    COUNT.store(0, Ordering::Release);
    let _sleepers = [spawn("sleeper-1", body, 0)?, spawn("sleeper-2", body, 0)?];
    let context = sched::task_context();
    GATE.wait_event(&context, || COUNT.load(Ordering::Acquire) == 2);
    Ok(())
}
