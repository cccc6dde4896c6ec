//! Stopping and continuing.

use super::*;
use crate::wait::State;

fn ask(group: &mut ThreadGroup, tid: Tid, orphaned: bool) -> Option<Delivery> {
    group.next(tid, || orphaned, &mut |_, _| {})
}

#[test]
fn a_process_stops_when_all_its_threads_have() {
    let mut group = two();
    send(&mut group, kill(Signal::TSTP));
    assert_eq!(next(&mut group, MAIN), Some(Delivery::Stop));
    assert_eq!((group.take_notice(), group.wait_state()), (None, State::Alive));
    assert!(group.has_pending(OTHER));
    assert_eq!(next(&mut group, OTHER), Some(Delivery::Stop));
    assert_eq!(group.take_notice(), Some(Notice::Stopped(Signal::TSTP)));
    assert_eq!(group.wait_state(), State::Stopped(Signal::TSTP));
    group.waited();
    assert_eq!(group.wait_state(), State::Alive);
}

#[test]
fn a_thread_that_ends_instead_counts_as_stopped() {
    let mut group = two();
    send(&mut group, kill(Signal::STOP));
    assert_eq!(next(&mut group, MAIN), Some(Delivery::Stop));
    group.remove_thread(OTHER, &mut |_, _| {});
    assert_eq!(group.take_notice(), Some(Notice::Stopped(Signal::STOP)));
}

#[test]
fn sigcont_continues_even_if_it_is_blocked_and_tells_the_parent() {
    let mut group = one();
    group.set_blocked(MAIN, SigSet::ALL, &mut |_, _| {});
    send(&mut group, kill(Signal::STOP));
    assert_eq!(next(&mut group, MAIN), Some(Delivery::Stop));
    assert!(group.take_notice().is_some() && group.is_stopped(MAIN));
    assert_eq!(send(&mut group, kill(Signal::CONT)), [(MAIN, Wake::Continue)]);
    assert_eq!((group.is_stopped(MAIN), group.wait_state()), (false, State::Continued));
    assert_eq!(next(&mut group, MAIN), Some(Delivery::Notice(Notice::Continued)));
    assert_eq!(next(&mut group, MAIN), None);
    assert_eq!(group.sigpending(MAIN), SigSet::EMPTY.with(Signal::CONT));
}

#[test]
fn sigcont_and_signals_that_stop_undo_each_other() {
    let mut group = one();
    group.set_blocked(MAIN, SigSet::ALL, &mut |_, _| {});
    send(&mut group, kill(Signal::TSTP));
    send(&mut group, kill(Signal::TTIN));
    send(&mut group, kill(Signal::CONT));
    assert_eq!(group.sigpending(MAIN), SigSet::EMPTY.with(Signal::CONT));
    send(&mut group, kill(Signal::TTOU));
    assert_eq!(group.sigpending(MAIN), SigSet::EMPTY.with(Signal::TTOU));
}

#[test]
fn sigkill_ends_what_is_stopped() {
    let mut group = two();
    send(&mut group, kill(Signal::STOP));
    next(&mut group, MAIN);
    next(&mut group, OTHER);
    assert_eq!(send(&mut group, kill(Signal::TERM)), [], "it waits until the process goes on");
    let woken = send(&mut group, kill(Signal::KILL));
    assert_eq!(woken, [(MAIN, Wake::Kill), (OTHER, Wake::Kill)]);
    assert!(!group.is_stopped(MAIN));
    assert_eq!(next(&mut group, MAIN), killed(Signal::KILL));
}

#[test]
fn what_was_sent_to_a_stopped_process_comes_when_it_goes_on() {
    let mut group = one();
    catch_all(&mut group);
    group.set_sigaction(Signal::TSTP, SigAction::default()).unwrap();
    send(&mut group, kill(Signal::TSTP));
    next(&mut group, MAIN);
    group.take_notice();
    assert_eq!(send(&mut group, kill(Signal::USR1)), []);
    send(&mut group, kill(Signal::CONT));
    assert_eq!(next(&mut group, MAIN), Some(Delivery::Notice(Notice::Continued)));
    assert_eq!(handled(&mut group, MAIN), [Signal::USR1, Signal::CONT]);
}

#[test]
fn an_orphaned_group_is_stopped_by_sigstop_only() {
    let mut group = one();
    send(&mut group, kill(Signal::TSTP));
    assert_eq!(ask(&mut group, MAIN, true), None);
    send(&mut group, kill(Signal::STOP));
    assert_eq!(ask(&mut group, MAIN, true), Some(Delivery::Stop));
}

#[test]
fn sigcont_before_the_last_thread_stopped_tells_the_stop() {
    let mut group = two();
    send(&mut group, kill(Signal::STOP));
    next(&mut group, MAIN);
    send(&mut group, kill(Signal::CONT));
    assert_eq!(next(&mut group, OTHER), Some(Delivery::Notice(Notice::Stopped(Signal::STOP))));
    assert_eq!((next(&mut group, OTHER), next(&mut group, MAIN)), (None, None));
}

#[test]
fn sa_nocldstop_wants_no_word_of_stops() {
    let mut group = one();
    assert!(group.wants_stops());
    let flags = ActionFlags::NOCLDSTOP;
    group.set_sigaction(Signal::CHLD, SigAction { flags, ..handler() }).unwrap();
    assert!(!group.wants_stops());
}
