//! Behaviour of a process's signals, a scene each.

mod model;
mod stops;

use std::vec;
use std::vec::Vec;

use super::*;
use crate::Errno;
use crate::wait::Exit;

const MAIN: Tid = 10;
const OTHER: Tid = 11;
const HANDLER: u64 = 0x40_1000;

fn one() -> ThreadGroup {
    ThreadGroup::new(MAIN, 100, false).unwrap()
}

fn two() -> ThreadGroup {
    let mut group = one();
    group.add_thread(MAIN, OTHER).unwrap();
    group
}

fn handler() -> SigAction {
    SigAction { handler: Handler::At(HANDLER), ..SigAction::default() }
}

fn ignore() -> SigAction {
    SigAction { handler: Handler::Ignore, ..SigAction::default() }
}

fn kill(signal: Signal) -> SigInfo {
    SigInfo::user(signal, code::USER, 1, 0)
}

fn queued(signal: Signal, value: u32) -> SigInfo {
    SigInfo::user(signal, code::QUEUE, value, 0)
}

/// Sends to the process, and says whom that woke.
fn send(group: &mut ThreadGroup, info: SigInfo) -> Vec<(Tid, Wake)> {
    let mut woken = vec![];
    group.send(info, Target::Process, &mut |tid, wake| woken.push((tid, wake))).unwrap();
    assert_eq!(group.audit(), Ok(()));
    woken
}

fn send_to(group: &mut ThreadGroup, tid: Tid, info: SigInfo) {
    group.send(info, Target::Thread(tid), &mut |_, _| {}).unwrap();
}

fn next(group: &mut ThreadGroup, tid: Tid) -> Option<Delivery> {
    let next = group.next(tid, || false, &mut |_, _| {});
    assert_eq!(group.audit(), Ok(()));
    next
}

/// Runs handlers as they come, each to its end, and says of which signals.
fn handled(group: &mut ThreadGroup, tid: Tid) -> Vec<Signal> {
    let mut order = vec![];
    while let Some(Delivery::Handler(handled)) = next(group, tid) {
        group.handled(tid, &handled, &mut |_, _| {});
        order.push(handled.info.signal);
        group.set_blocked(tid, handled.mask, &mut |_, _| {});
    }
    order
}

fn killed(signal: Signal) -> Option<Delivery> {
    Some(Delivery::Exit(Exit::Killed { signal, dumped: false }))
}

fn catch_all(group: &mut ThreadGroup) {
    for signal in SigSet::ALL.blockable().iter() {
        group.set_sigaction(signal, handler()).unwrap();
    }
}

#[test]
fn names_are_linuxs() {
    assert_eq!(std::format!("{} {}", Signal::SEGV, Signal::MAX), "SIGSEGV SIGRTMIN+32");
    assert_eq!((Signal::new(0), Signal::new(65)), (None, None));
    let numbers = [(Signal::CHLD, libc::SIGCHLD), (Signal::SYS, libc::SIGSYS), (Signal::PWR, libc::SIGPWR)];
    assert!(numbers.iter().all(|(signal, number)| signal.number().cast_signed() == *number));
}

#[test]
fn a_signal_without_handler_ends_the_process_by_its_number() {
    let mut group = two();
    let woken = send(&mut group, kill(Signal::TERM));
    assert_eq!(woken, [(MAIN, Wake::Kill), (OTHER, Wake::Kill)]);
    assert_eq!(next(&mut group, OTHER), killed(Signal::TERM));
    assert_eq!(next(&mut group, MAIN), killed(Signal::TERM));
}

#[test]
fn a_signal_that_is_ignored_leaves_no_trace() {
    let mut group = one();
    group.set_sigaction(Signal::TERM, ignore()).unwrap();
    for signal in [Signal::TERM, Signal::CHLD, Signal::WINCH, Signal::URG] {
        assert_eq!(send(&mut group, kill(signal)), []);
    }
    assert!(!group.has_pending(MAIN));
    assert_eq!(group.all_pending(MAIN).1, SigSet::EMPTY);
}

#[test]
fn a_handler_runs_with_its_mask_and_itself_blocked() {
    let mut group = one();
    let mask = SigSet::EMPTY.with(Signal::USR2).with(Signal::KILL);
    group.set_sigaction(Signal::USR1, SigAction { mask, ..handler() }).unwrap();
    assert_eq!(send(&mut group, kill(Signal::USR1)), [(MAIN, Wake::Signal)]);
    let Some(Delivery::Handler(handled)) = next(&mut group, MAIN) else { panic!() };
    assert_eq!((handled.info, handled.mask), (kill(Signal::USR1), SigSet::EMPTY));
    group.handled(MAIN, &handled, &mut |_, _| {});
    assert_eq!(group.blocked(MAIN), SigSet::EMPTY.with(Signal::USR1).with(Signal::USR2));
    assert_eq!(next(&mut group, MAIN), None);
}

#[test]
fn sa_nodefer_leaves_the_signal_open_and_sa_resethand_forgets_the_handler() {
    let mut group = one();
    let flags = ActionFlags::NODEFER | ActionFlags::RESETHAND;
    group.set_sigaction(Signal::USR1, SigAction { flags, ..handler() }).unwrap();
    send(&mut group, kill(Signal::USR1));
    let Some(Delivery::Handler(handled)) = next(&mut group, MAIN) else { panic!() };
    group.handled(MAIN, &handled, &mut |_, _| {});
    assert_eq!(group.blocked(MAIN), SigSet::EMPTY);
    assert_eq!(group.sigaction(Signal::USR1).handler, Handler::Default);
    assert_eq!(handled.action.handler, Handler::At(HANDLER));
}

#[test]
fn standard_signals_count_once_and_realtime_ones_each_time() {
    let mut group = one();
    catch_all(&mut group);
    for value in 0..3 {
        send(&mut group, queued(Signal::USR1, value));
        send(&mut group, queued(Signal::RTMIN, value));
    }
    assert_eq!(handled(&mut group, MAIN), [Signal::USR1, Signal::RTMIN, Signal::RTMIN, Signal::RTMIN]);
}

#[test]
fn realtime_signals_keep_their_order_and_their_values() {
    let mut group = one();
    catch_all(&mut group);
    group.set_blocked(MAIN, SigSet::ALL, &mut |_, _| {});
    (0..3).for_each(|value| drop(send(&mut group, queued(Signal::RTMIN, value))));
    let taken: Vec<u32> =
        core::iter::from_fn(|| group.take(MAIN, SigSet::ALL)).map(|info| info.pid()).collect();
    assert_eq!(taken, [0, 1, 2]);
}

#[test]
fn the_queue_of_realtime_signals_has_an_end() {
    let mut group = ThreadGroup::new(MAIN, 2, false).unwrap();
    catch_all(&mut group);
    group.set_blocked(MAIN, SigSet::ALL, &mut |_, _| {});
    (0..2).for_each(|value| drop(send(&mut group, queued(Signal::RTMIN, value))));
    assert_eq!(group.send(queued(Signal::RTMIN, 2), Target::Process, &mut |_, _| {}), Err(Errno::Eagain));
    // Standard signals of kill need no room, and a realtime one of kill goes without its record.
    assert_eq!(group.send(kill(Signal::USR1), Target::Process, &mut |_, _| {}), Ok(()));
    assert_eq!(group.send(kill(Signal::MAX), Target::Process, &mut |_, _| {}), Ok(()));
    assert_eq!(group.take(MAIN, SigSet::EMPTY.with(Signal::MAX)).unwrap().pid(), 0);
}

#[test]
fn own_faults_come_first_then_the_threads_own_then_the_lowest() {
    let mut group = one();
    catch_all(&mut group);
    let all_open = |group: &mut ThreadGroup| group.set_blocked(MAIN, SigSet::EMPTY, &mut |_, _| {});
    group.set_blocked(MAIN, SigSet::ALL, &mut |_, _| {});
    send(&mut group, kill(Signal::HUP));
    send(&mut group, kill(Signal::USR2));
    send_to(&mut group, MAIN, kill(Signal::ALRM));
    send_to(&mut group, MAIN, kill(Signal::INT));
    all_open(&mut group);
    group.force(MAIN, SigInfo::fault(Signal::SEGV, code::SEGV_MAPERR, 0), Force::Handler, &mut |_, _| {});
    let expected = [Signal::SEGV, Signal::INT, Signal::ALRM, Signal::HUP, Signal::USR2];
    assert_eq!(handled(&mut group, MAIN), expected);
}

#[test]
fn another_thread_takes_what_one_blocks() {
    let mut group = two();
    catch_all(&mut group);
    let usr1 = SigSet::EMPTY.with(Signal::USR1);
    group.set_blocked(MAIN, usr1, &mut |_, _| {});
    assert_eq!(send(&mut group, kill(Signal::USR1)), [(OTHER, Wake::Signal)]);
    let mut woken = vec![];
    // It changes its mind before it looked: nobody can take it now, until somebody can.
    group.set_blocked(OTHER, usr1, &mut |tid, wake| woken.push((tid, wake)));
    assert_eq!((woken, group.sigpending(OTHER)), (vec![], usr1));
    group.set_blocked(MAIN, SigSet::EMPTY, &mut |_, _| {});
    assert_eq!(handled(&mut group, MAIN), [Signal::USR1]);
}

#[test]
fn a_thread_that_was_woken_and_blocks_it_leaves_it_to_another() {
    let mut group = two();
    catch_all(&mut group);
    assert_eq!(send(&mut group, kill(Signal::USR1)), [(MAIN, Wake::Signal)]);
    let mut woken = vec![];
    let usr1 = SigSet::EMPTY.with(Signal::USR1);
    group.set_blocked(MAIN, usr1, &mut |tid, wake| woken.push((tid, wake)));
    assert_eq!((woken, group.audit()), (vec![(OTHER, Wake::Signal)], Ok(())));
    assert_eq!((next(&mut group, MAIN), handled(&mut group, OTHER)), (None, vec![Signal::USR1]));
}

#[test]
fn a_thread_that_ends_leaves_the_processs_signals_to_others() {
    let mut group = two();
    catch_all(&mut group);
    assert_eq!(send(&mut group, kill(Signal::USR1)), [(MAIN, Wake::Signal)]);
    let mut woken = vec![];
    assert!(!group.remove_thread(MAIN, &mut |tid, wake| woken.push((tid, wake))));
    assert_eq!(woken, [(OTHER, Wake::Signal)]);
    assert_eq!(handled(&mut group, OTHER), [Signal::USR1]);
    assert!(group.remove_thread(OTHER, &mut |_, _| {}));
}

#[test]
fn a_forced_signal_that_is_blocked_or_ignored_ends_the_process() {
    let fault = SigInfo::fault(Signal::SEGV, code::SEGV_ACCERR, 0x1234);
    let mut group = one();
    catch_all(&mut group);
    group.force(MAIN, fault, Force::Handler, &mut |_, _| {});
    let Some(Delivery::Handler(handled)) = next(&mut group, MAIN) else { panic!() };
    assert_eq!(handled.info.address(), 0x1234);
    group.handled(MAIN, &handled, &mut |_, _| {});
    // A second fault inside the handler.
    group.force(MAIN, fault, Force::Handler, &mut |_, _| {});
    assert_eq!(next(&mut group, MAIN), killed(Signal::SEGV));
    let mut group = one();
    group.set_sigaction(Signal::SEGV, ignore()).unwrap();
    group.force(MAIN, fault, Force::Handler, &mut |_, _| {});
    assert_eq!(next(&mut group, MAIN), killed(Signal::SEGV));
}

#[test]
fn the_first_process_ends_only_by_its_own_faults() {
    let mut group = ThreadGroup::new(1, 100, true).unwrap();
    for signal in [Signal::TERM, Signal::KILL, Signal::STOP, Signal::SEGV] {
        assert_eq!(send(&mut group, kill(signal)), []);
        assert_eq!(next(&mut group, 1), None);
    }
    group.set_sigaction(Signal::TERM, handler()).unwrap();
    send(&mut group, kill(Signal::TERM));
    assert_eq!(handled(&mut group, 1), [Signal::TERM]);
    group.force(1, SigInfo::fault(Signal::SEGV, 1, 0), Force::Handler, &mut |_, _| {});
    assert_eq!(next(&mut group, 1), killed(Signal::SEGV));
}

#[test]
fn a_child_keeps_actions_and_mask_and_has_nothing_pending() {
    let mut group = one();
    catch_all(&mut group);
    group.set_sigaction(Signal::INT, ignore()).unwrap();
    group.set_blocked(MAIN, SigSet::EMPTY.with(Signal::HUP), &mut |_, _| {});
    send(&mut group, kill(Signal::HUP));
    group.set_altstack(MAIN, AltStack { start: 0x1000, len: 0x4000, ..AltStack::default() });
    let child = group.fork(MAIN, 50, Keeps::default()).unwrap();
    assert_eq!(child.blocked(50), SigSet::EMPTY.with(Signal::HUP));
    assert_eq!((child.all_pending(50), child.has_pending(50)), ((SigSet::EMPTY, SigSet::EMPTY), false));
    assert_eq!((child.sigaction(Signal::USR1), child.altstack(50).len), (handler(), 0x4000));
    let keeps = Keeps { clear_handlers: true, shares_memory: true };
    let child = group.fork(MAIN, 51, keeps).unwrap();
    assert_eq!((child.sigaction(Signal::USR1), child.altstack(51).len), (SigAction::default(), 0));
    assert_eq!(child.sigaction(Signal::INT).handler, Handler::Ignore);
}

#[test]
fn a_new_program_keeps_what_is_ignored_blocked_or_pending() {
    let mut group = two();
    catch_all(&mut group);
    group.set_sigaction(Signal::INT, ignore()).unwrap();
    group.set_blocked(OTHER, SigSet::EMPTY.with(Signal::HUP), &mut |_, _| {});
    send_to(&mut group, OTHER, kill(Signal::HUP));
    assert_eq!(group.begin_exec(OTHER, &mut |_, _| {}), Ok(1));
    assert_eq!(group.begin_exec(MAIN, &mut |_, _| {}), Err(Errno::Eagain));
    assert_eq!(next(&mut group, MAIN), Some(Delivery::ExitThread));
    group.remove_thread(MAIN, &mut |_, _| {});
    group.finish_exec(OTHER, MAIN);
    assert_eq!((group.others(MAIN), group.sigpending(MAIN)), (0, SigSet::EMPTY.with(Signal::HUP)));
    assert_eq!(group.sigaction(Signal::USR1), SigAction::default());
    assert_eq!(group.ignored_and_handled(), (SigSet::EMPTY.with(Signal::INT), SigSet::EMPTY));
}

#[test]
fn sigsuspend_lets_a_signal_in_and_puts_the_old_mask_into_the_frame() {
    let mut group = one();
    catch_all(&mut group);
    let usr1 = SigSet::EMPTY.with(Signal::USR1);
    group.set_blocked(MAIN, usr1, &mut |_, _| {});
    send(&mut group, kill(Signal::USR1));
    group.suspend(MAIN, SigSet::EMPTY, &mut |_, _| {});
    assert!(group.has_pending(MAIN));
    let Some(Delivery::Handler(handled)) = next(&mut group, MAIN) else { panic!() };
    assert_eq!(handled.mask, usr1);
    group.handled(MAIN, &handled, &mut |_, _| {});
    group.set_blocked(MAIN, handled.mask, &mut |_, _| {});
    assert_eq!((next(&mut group, MAIN), group.blocked(MAIN)), (None, usr1));
}

#[test]
fn sigsuspend_without_handler_gives_the_old_mask_back() {
    let mut group = one();
    let usr1 = SigSet::EMPTY.with(Signal::USR1);
    group.set_blocked(MAIN, usr1, &mut |_, _| {});
    group.suspend(MAIN, SigSet::ALL, &mut |_, _| {});
    assert_eq!(group.blocked(MAIN), SigSet::ALL.blockable());
    assert_eq!((next(&mut group, MAIN), group.blocked(MAIN)), (None, usr1));
}

#[test]
fn sigtimedwait_wakes_for_what_is_blocked_and_takes_it_without_a_handler() {
    let mut group = one();
    catch_all(&mut group);
    let usr1 = SigSet::EMPTY.with(Signal::USR1);
    group.set_blocked(MAIN, usr1, &mut |_, _| {});
    assert_eq!(send(&mut group, kill(Signal::USR1)), []);
    assert_eq!(group.take(MAIN, usr1), Some(kill(Signal::USR1)));
    group.begin_wait(MAIN, usr1);
    assert_eq!(send(&mut group, kill(Signal::USR1)), [(MAIN, Wake::Signal)]);
    group.end_wait(MAIN, &mut |_, _| {});
    assert_eq!((group.take(MAIN, usr1), group.blocked(MAIN)), (Some(kill(Signal::USR1)), usr1));
    assert!(!group.has_pending(MAIN));
}

#[test]
fn ignoring_a_signal_forgets_what_is_pending() {
    let mut group = one();
    group.set_blocked(MAIN, SigSet::ALL, &mut |_, _| {});
    send(&mut group, kill(Signal::USR1));
    group.set_sigaction(Signal::USR1, ignore()).unwrap();
    assert_eq!(group.sigpending(MAIN), SigSet::EMPTY);
    assert_eq!(group.set_sigaction(Signal::KILL, handler()), Err(Errno::Einval));
}

#[test]
fn the_end_of_a_child_is_told_as_the_parent_wants() {
    let mut group = one();
    let end = |group: &ThreadGroup| group.end_of_child(Some(Signal::CHLD));
    assert_eq!(end(&group), EndOfChild { reap: false, signal: Some(Signal::CHLD) });
    let flags = ActionFlags::NOCLDWAIT;
    group.set_sigaction(Signal::CHLD, SigAction { flags, ..handler() }).unwrap();
    assert_eq!(end(&group), EndOfChild { reap: true, signal: Some(Signal::CHLD) });
    group.set_sigaction(Signal::CHLD, ignore()).unwrap();
    assert_eq!(end(&group), EndOfChild { reap: true, signal: None });
    assert_eq!(
        group.end_of_child(Some(Signal::USR1)),
        EndOfChild { reap: false, signal: Some(Signal::USR1) }
    );
    assert_eq!(group.end_of_child(None), EndOfChild { reap: true, signal: None });
}

#[test]
fn interrupted_calls_begin_again_as_their_code_and_the_handler_say() {
    let restart = SigAction { flags: ActionFlags::RESTART, ..handler() };
    let of = |errno| [None, Some(&handler()), Some(&restart)].map(|action| Restart::of(errno, action));
    use Restart::{Again, Block, Interrupted, No};
    assert_eq!(of(Errno::Erestartsys), [Again, Interrupted, Again]);
    assert_eq!(of(Errno::Erestartnointr), [Again, Again, Again]);
    assert_eq!(of(Errno::Erestartnohand), [Again, Interrupted, Interrupted]);
    assert_eq!(of(Errno::ErestartRestartblock), [Block, Interrupted, Interrupted]);
    assert_eq!(of(Errno::Eintr), [No, No, No]);
}

#[test]
fn the_alternate_stack_follows_sigaltstack() {
    let stack = |start: u64, flags: u32, len: u64| {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        bytes[16..].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    let (disable, autodisarm) = (libc::SS_DISABLE.cast_unsigned(), 1 << 31);
    let mut alt = AltStack::default();
    assert_eq!(alt.to_bytes(0), stack(0, disable, 0));
    assert_eq!(alt.set(&stack(0x1000, 0, 2047), 0), Err(Errno::Enomem));
    assert_eq!(alt.set(&stack(0x1000, 4, 4096), 0), Err(Errno::Einval));
    assert_eq!(alt.set(&stack(0x1000, 0, 4096), 0), Ok(()));
    assert_eq!(alt.to_bytes(0x2000), stack(0x1000, 1, 4096));
    assert_eq!(alt.to_bytes(0x1000), stack(0x1000, 0, 4096));
    assert_eq!(alt.set(&stack(0, disable, 0), 0x1800), Err(Errno::Eperm));
    assert_eq!(alt.set(&stack(5, disable | autodisarm, 9), 0), Ok(()));
    assert_eq!(alt.to_bytes(0), stack(0, disable | autodisarm, 0));
}

#[test]
fn info_has_the_layout_of_libc() {
    let info = SigInfo::child(libc::CLD_EXITED, 5, 6, 7, [8, 9]);
    let bytes = info.to_bytes();
    assert_eq!(size_of::<libc::siginfo_t>(), SigInfo::LEN);
    assert_eq!(bytes[..4], libc::SIGCHLD.to_le_bytes());
    assert_eq!(SigInfo::from_user(Signal::CHLD, &bytes), Ok(info));
    let mut bytes = bytes;
    bytes[100] = 1;
    assert_eq!(SigInfo::from_user(Signal::CHLD, &bytes), Err(Errno::E2big));
}

#[test]
fn actions_are_read_and_written_as_the_kernel_has_them() {
    let bytes: [u8; 32] = core::array::from_fn(|index| match index {
        0 => 9,
        8 => 4 | 0x40,
        9 => 0x04,
        11 => 0x14,
        16 => 7,
        24..32 => 0xff,
        _ => 0,
    });
    let action = SigAction::from_bytes(&bytes);
    assert_eq!((action.handler, action.restorer), (Handler::At(9), 7));
    assert_eq!(action.flags, ActionFlags::SIGINFO | ActionFlags::RESTORER | ActionFlags::RESTART);
    assert_eq!(action.mask, SigSet::ALL.blockable());
    assert_eq!(SigAction::from_bytes(&action.to_bytes()), action);
}
