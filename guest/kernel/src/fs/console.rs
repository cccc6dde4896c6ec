//! The terminal of the machine: COM1 behind a line discipline (Linux: drivers/tty/tty_io.c, tty_jobctrl.c, serial).
//!
//! A thread of the kernel looks at the port a hundred times a second: the split interrupt controller of some machines has no line
//! for it. It begins when the first process does that came from an initrd.

use alloc::vec::Vec;

use guest_fs::{PollFlags, Termios, Tty, TtyRead, Winsize};
use guest_process::signal::Signal;
use mm_vma::Errno;

use crate::drivers::serial;
use crate::sched::{self, WaitQueue, Woken};
use crate::sync::Lock;
use crate::task::current;
use crate::{console, signal, uaccess};

static TTY: Lock<Tty> = Lock::new(Tty::new());
static INPUT: WaitQueue = WaitQueue::new();
/// Between two looks at the port, in nanoseconds.
const PERIOD: u64 = 10_000_000;
const AT_ONCE: usize = 256;

/// Starts looking at the port.
///
/// # Errors
/// `ENOMEM`.
pub fn start() -> Result<(), Errno> {
    TTY.lock().reserve()?;
    sched::spawn_daemon("kconsole", poll_port, 0, &sched::task_context()).map_err(|_| Errno::Enomem)?;
    Ok(())
}

fn poll_port(_: u64) {
    let context = sched::task_context();
    let mut screen = Vec::new();
    loop {
        while let Some(byte) = serial::read() {
            let signal = {
                let mut tty = TTY.lock();
                let signal = tty.input(byte, &mut screen);
                signal.map(|signal| (tty.pgrp, signal.number()))
            };
            if !screen.is_empty() {
                show(&screen);
                screen.clear();
            }
            INPUT.wake_up_all();
            if let Some((pgrp, signal)) = signal.filter(|(pgrp, _)| *pgrp != 0) {
                // A group that is gone gets none.
                let _ = Signal::new(signal).map(|signal| signal::send_group(pgrp, signal));
            }
        }
        let deadline = sched::clock::now() + PERIOD;
        sched::sleep_until(&context, deadline);
    }
}

/// Bytes for the screen, at once.
fn show(bytes: &[u8]) {
    console::write_raw(bytes);
}

/// Reads into a program's memory.
///
/// # Errors
/// `EAGAIN`, `ERESTARTSYS`, `EFAULT`.
pub fn read(address: u64, len: usize, nonblocking: bool) -> Result<usize, Errno> {
    let mut buffer = [0; AT_ONCE];
    let want = len.min(AT_ONCE);
    loop {
        let got = TTY.lock().read(&mut buffer[..want]);
        match got {
            TtyRead::Bytes(got) => {
                uaccess::write(address, &buffer[..got])?;
                return Ok(got);
            }
            TtyRead::Empty if nonblocking => return Err(Errno::Eagain),
            TtyRead::Empty => {
                let woken = INPUT.wait_interruptible(&sched::task_context(), None, || {
                    TTY.lock().poll().contains(PollFlags::IN)
                });
                if woken != Woken::Event {
                    return Err(Errno::Erestartsys);
                }
            }
        }
    }
}

/// Writes from a program's memory.
///
/// # Errors
/// `EFAULT`, `ENOMEM`.
pub fn write(address: u64, len: usize) -> Result<usize, Errno> {
    let mut screen = Vec::new();
    let mut bytes = [0; AT_ONCE];
    let mut done = 0;
    while done < len {
        let piece = &mut bytes[..(len - done).min(AT_ONCE)];
        if let Err(error) = uaccess::read(address + done as u64, piece) {
            return if done > 0 { Ok(done) } else { Err(error) };
        }
        // A tab or a line's end takes more on the screen.
        screen.try_reserve(8 * piece.len()).map_err(|_| Errno::Enomem)?;
        TTY.lock().write(piece, &mut screen);
        show(&screen);
        screen.clear();
        done += piece.len();
    }
    Ok(done)
}

/// What poll reports.
pub fn poll() -> PollFlags {
    TTY.lock().poll()
}

/// Woken when [`poll`] may say something else.
pub fn queue() -> &'static WaitQueue {
    &INPUT
}

/// ioctl of the terminal.
///
/// # Errors
/// `ENOTTY` for an unknown request; those of the requests.
pub fn ioctl(request: u32, argument: u64) -> Result<u64, Errno> {
    const TCGETS: u32 = 0x5401;
    const TCSETS: u32 = 0x5402;
    const TCSETSF: u32 = 0x5404;
    const TCSBRK: u32 = 0x5409;
    const TCFLSH: u32 = 0x540b;
    const TIOCSCTTY: u32 = 0x540e;
    const TIOCGPGRP: u32 = 0x540f;
    const TIOCSPGRP: u32 = 0x5410;
    const TIOCGWINSZ: u32 = 0x5413;
    const TIOCSWINSZ: u32 = 0x5414;
    const FIONREAD: u32 = 0x541b;
    const TIOCNOTTY: u32 = 0x5422;
    const TIOCGSID: u32 = 0x5429;
    let process = || current().ok_or(Errno::Enotty);
    match request {
        TCGETS => {
            let bytes = TTY.lock().termios().to_bytes();
            uaccess::write(argument, &bytes)?;
        }
        TCSETS..=TCSETSF => {
            let mut bytes = [0; 36];
            uaccess::read(argument, &mut bytes)?;
            let mut tty = TTY.lock();
            if request == TCSETSF {
                tty.flush_input();
            }
            tty.set_termios(Termios::from_bytes(&bytes));
        }
        TCSBRK => {}
        TCFLSH => TTY.lock().flush_input(),
        TIOCGWINSZ => {
            let bytes = TTY.lock().winsize().to_bytes();
            uaccess::write(argument, &bytes)?;
        }
        TIOCSWINSZ => {
            let mut bytes = [0; 8];
            uaccess::read(argument, &mut bytes)?;
            TTY.lock().set_winsize(Winsize::from_bytes(bytes));
        }
        TIOCGPGRP => {
            let pgrp = TTY.lock().pgrp;
            uaccess::put_user(argument, pgrp)?;
        }
        TIOCSPGRP => {
            let pgrp: u32 = uaccess::get_user(argument)?;
            let session = process()?.process.sid();
            let mut tty = TTY.lock();
            if tty.session != session {
                return Err(Errno::Enotty);
            }
            tty.pgrp = pgrp;
        }
        TIOCSCTTY => {
            let task = process()?;
            let mut tty = TTY.lock();
            if task.process.sid() != task.process.pid
                || tty.session != 0 && tty.session != task.process.sid() && argument != 1
            {
                return Err(Errno::Eperm);
            }
            (tty.session, tty.pgrp) = (task.process.sid(), task.process.pgid());
        }
        TIOCNOTTY => TTY.lock().session = 0,
        TIOCGSID => {
            let session = TTY.lock().session;
            uaccess::put_user(argument, session)?;
        }
        FIONREAD => {
            let len = u32::try_from(TTY.lock().len()).unwrap_or(u32::MAX);
            uaccess::put_user(argument, len)?;
        }
        _ => return Err(Errno::Enotty),
    }
    Ok(0)
}

/// Session and foreground group of the terminal.
pub fn control() -> (u32, u32) {
    let tty = TTY.lock();
    (tty.session, tty.pgrp)
}

/// A session leader opened the terminal and has none yet: it becomes its controlling one (Linux: `tty_open_proc_set_tty`).
pub fn opened(noctty: bool) {
    let Some(task) = current() else { return };
    let process = &task.process;
    let mut tty = TTY.lock();
    if !noctty && process.sid() == process.pid && tty.session == 0 {
        (tty.session, tty.pgrp) = (process.sid(), process.pgid());
    }
}
