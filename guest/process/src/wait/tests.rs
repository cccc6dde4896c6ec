use proptest::prelude::*;

use super::*;

const NOHANG: u32 = 1;

fn child(pid: u32, state: State) -> Child {
    Child { pid, group: 7, uid: 0, exit_signal: Some(Signal::CHLD), own: true, state }
}

fn ended(code: u8) -> State {
    State::Ended(Exit::Code(code))
}

#[test]
fn status_words_are_what_c_macros_expect() {
    let words = |exit: Exit| i32::try_from(exit.status()).unwrap();
    for code in 0..=255_u8 {
        let status = words(Exit::Code(code));
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == i32::from(code));
        assert_eq!(Exit::from_status(Exit::Code(code).status()), Exit::Code(code));
    }
    for signal in (1..=64).filter_map(Signal::new) {
        for dumped in [false, true] {
            let status = words(Exit::Killed { signal, dumped });
            assert!(
                libc::WIFSIGNALED(status) && !libc::WIFEXITED(status) && libc::WCOREDUMP(status) == dumped
            );
            assert_eq!(libc::WTERMSIG(status).cast_unsigned(), signal.number());
            let exit = Exit::Killed { signal, dumped };
            assert_eq!(Exit::from_status(exit.status()), exit);
        }
        let status = i32::try_from(Event::Stopped(signal).status()).unwrap();
        assert!(libc::WIFSTOPPED(status) && libc::WSTOPSIG(status).cast_unsigned() == signal.number());
    }
    assert!(libc::WIFCONTINUED(i32::try_from(Event::Continued.status()).unwrap()));
}

#[test]
fn wait4_names_children_by_its_first_argument() {
    let which = |pid| Wait::wait4(pid, 0, 7).map(|wait| wait.which);
    assert_eq!(which(-1), Ok(Which::Any));
    assert_eq!(which(0), Ok(Which::Group(7)));
    assert_eq!(which(-9), Ok(Which::Group(9)));
    assert_eq!(which(9), Ok(Which::Pid(9)));
    assert_eq!(which(i32::MIN), Err(Errno::Esrch));
}

#[test]
fn options_that_a_call_does_not_know_are_einval() {
    assert_eq!(Wait::wait4(-1, libc::WEXITED.cast_unsigned(), 7), Err(Errno::Einval));
    assert_eq!(Wait::wait4(-1, libc::WNOWAIT.cast_unsigned(), 7), Err(Errno::Einval));
    assert_eq!(Wait::waitid(0, 0, 0x40, 7), Err(Errno::Einval));
    assert_eq!(Wait::waitid(0, 0, NOHANG, 7), Err(Errno::Einval), "no event");
    assert_eq!(Wait::waitid(1, 0, 4, 7), Err(Errno::Einval), "no process is number 0");
    assert_eq!(Wait::waitid(4, 1, 4, 7), Err(Errno::Einval), "no such kind");
    assert_eq!(Wait::waitid(3, 5, 4, 7), Err(Errno::Ebadf));
}

#[test]
fn who_is_named_is_found() {
    let look = |pid, child: Child| Wait::wait4(pid, 0, 7).unwrap().look(&child);
    let found = Look::Now(Event::Ended(Exit::Code(3)));
    assert_eq!(look(5, child(5, ended(3))), found);
    assert_eq!(look(6, child(5, ended(3))), Look::Other);
    assert_eq!(look(0, child(5, ended(3))), found);
    assert_eq!(look(-8, child(5, ended(3))), Look::Other);
    assert_eq!(look(-1, child(5, State::Alive)), Look::Later);
    assert_eq!(look(-1, child(5, State::Leaderless)), Look::Later);
}

#[test]
fn children_of_another_kind_are_seen_by_wall_and_wclone_only() {
    let cloned = Child { exit_signal: None, ..child(5, ended(0)) };
    let look = |options, child| Wait::wait4(-1, options, 7).unwrap().look(&child);
    assert_eq!(look(0, cloned), Look::Other);
    assert_ne!(look(libc::__WALL.cast_unsigned(), cloned), Look::Other);
    assert_ne!(look(libc::__WCLONE.cast_unsigned(), cloned), Look::Other);
    assert_eq!(look(libc::__WCLONE.cast_unsigned(), child(5, ended(0))), Look::Other);
    let of_another = Child { own: false, ..child(5, ended(0)) };
    assert_ne!(look(0, of_another), Look::Other);
    assert_eq!(look(libc::__WNOTHREAD.cast_unsigned(), of_another), Look::Other);
}

#[test]
fn stops_are_told_to_those_who_ask() {
    let stopped = child(5, State::Stopped(Signal::TSTP));
    let look = |options, child| Wait::wait4(-1, options, 7).unwrap().look(&child);
    assert_eq!(look(0, stopped), Look::Later);
    assert_eq!(look(2, stopped), Look::Now(Event::Stopped(Signal::TSTP)));
    assert_eq!(look(8, child(5, State::Continued)), Look::Now(Event::Continued));
}

#[test]
fn who_does_not_wait_for_the_end_is_told_nothing_of_a_dead_child() {
    let wait = Wait::waitid(0, 0, Options::STOPPED.bits(), 7).unwrap();
    assert_eq!(wait.look(&child(5, ended(0))), Look::Other);
}

#[test]
fn nothing_to_tell_is_echild_zero_or_sleep() {
    let wait = |options| Wait::wait4(-1, options, 7).unwrap();
    assert_eq!(wait(NOHANG).nothing(false), Err(Nothing::NoChild));
    assert_eq!(wait(NOHANG).nothing(true), Err(Nothing::NotYet));
    assert_eq!(wait(0).nothing(true), Ok(()));
}

#[test]
fn waitid_tells_how() {
    let info = |event: Event| event.info(5, 1000, [1, 2]);
    let ended = info(Event::Ended(Exit::Code(3)));
    assert_eq!((ended.code, ended.pid(), ended.uid(), ended.status()), (libc::CLD_EXITED, 5, 1000, 3));
    let killed = info(Event::Ended(Exit::Killed { signal: Signal::TERM, dumped: false }));
    assert_eq!((killed.code, killed.status()), (libc::CLD_KILLED, 15));
    let dumped = info(Event::Ended(Exit::Killed { signal: Signal::SEGV, dumped: true }));
    assert_eq!(dumped.code, libc::CLD_DUMPED);
    assert_eq!(info(Event::Stopped(Signal::STOP)).code, libc::CLD_STOPPED);
    assert_eq!((info(Event::Continued).code, info(Event::Continued).status()), (libc::CLD_CONTINUED, 18));
}

proptest! {
    #[test]
    fn arguments_never_break_a_wait(pid in any::<i32>(), kind in -1..6_i32, options in any::<u32>(), group in any::<u32>()) {
        let known = 0xe100_000f;
        for wait in [Wait::wait4(pid, options, group), Wait::waitid(kind, pid, options, group)] {
            prop_assert!(options & !known == 0 || wait.is_err());
        }
    }
}
