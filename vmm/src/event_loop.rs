//! One thread with one event-manager loop for everything that is not a vCPU: signals, keyboard,
//! console flushing and time limit, control socket.
//!
//! The loop never waits for the guest beyond the moment that a vCPU needs to react to a signal.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering},
        mpsc::Sender,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::termios::{LocalModes, OptionalActions, Termios};
use thiserror::Error;
use vmm_sys_util::{eventfd::EventFd, signal::register_signal_handler, timerfd::TimerFd};

use crate::{
    control::{Claim, ControlServer},
    run::{ExitStatus, RunEvent, Vm},
    seccomp,
};

/// Why there is no event loop.
#[derive(Debug, Error)]
#[error("cannot {step} for the event loop: {error}")]
pub struct LoopError {
    step: &'static str,
    error: String,
}

/// What the loop serves.
#[derive(Debug)]
pub struct LoopConfig {
    /// The guest.
    pub vm: Arc<Vm>,
    /// Its name and control socket.
    pub claim: Option<Arc<Claim>>,
    /// Where requests to end go.
    pub events: Sender<RunEvent>,
    /// End the guest after this long.
    pub time_limit: Option<Duration>,
    /// Whether the keyboard is the guest's serial input, where standard input is a terminal.
    pub keyboard: bool,
}

/// The running loop. Dropping it ends its thread and gives the terminal back.
#[derive(Debug)]
pub struct EventLoop {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    _terminal: Option<RawTerminal>,
}

/// How often partial console lines are flushed.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);

impl EventLoop {
    /// Starts the loop. Only one may exist in a process, because signals are the process's.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn start(config: LoopConfig) -> Result<EventLoop, LoopError> {
        let io = |step| move |error: io::Error| LoopError { step, error: error.to_string() };
        let manager_error =
            |error: event_manager::Error| LoopError { step: "poll", error: format!("{error:?}") };
        let mut manager: EventManager<Box<dyn MutEventSubscriber + Send>> =
            EventManager::new().map_err(manager_error)?;
        let (filters, events) = (config.vm.seccomp, config.events.clone());
        let stop = Arc::new(new_eventfd().map_err(io("create an eventfd"))?);
        let running = Arc::new(AtomicBool::new(true));

        let signal_fd = catch_signals().map_err(io("catch signals"))?;
        let quit = Quit { events: config.events.clone(), claim: config.claim.clone(), asked: Arc::default() };
        manager.add_subscriber(Box::new(Signals { fd: signal_fd, quit: quit.clone() }));
        let mut timer =
            TimerFd::new().map_err(|errno| LoopError { step: "create a timer", error: errno.to_string() })?;
        timer
            .reset(FLUSH_INTERVAL, Some(FLUSH_INTERVAL))
            .map_err(|errno| LoopError { step: "arm a timer", error: errno.to_string() })?;
        manager.add_subscriber(Box::new(Clock {
            timer,
            vm: config.vm.clone(),
            deadline: config.time_limit.and_then(|limit| Instant::now().checked_add(limit)),
            limit: config.time_limit,
            events: config.events.clone(),
        }));
        let terminal = config.keyboard.then(RawTerminal::enter).flatten();
        if terminal.is_some() {
            manager.add_subscriber(Box::new(Keyboard { vm: config.vm.clone(), quit, after_ctrl_a: false }));
        }
        if let Some(claim) = config.claim {
            manager.add_subscriber(Box::new(ControlServer::new(claim, config.vm, config.events)));
        }
        manager.add_subscriber(Box::new(Stopper { fd: stop.clone(), running: running.clone() }));
        let thread = thread::Builder::new()
            .name("event-loop".into())
            .spawn(move || {
                if let Err(error) = seccomp::enter(filters, seccomp::Thread::EventLoop) {
                    // Whoever may not be restricted is not let near clients.
                    let _ = events.send(RunEvent::Quit(error.to_string()));
                    return;
                }
                while running.load(Ordering::Acquire) {
                    if let Err(error) = manager.run() {
                        tracing::error!("event loop: {error:?}");
                        return;
                    }
                }
            })
            .map_err(io("start a thread"))?;
        Ok(EventLoop { stop, thread: Some(thread), _terminal: terminal })
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        if self.stop.write(1).is_ok()
            && let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
        {
            tracing::error!("the event loop panicked: {panic:?}");
        }
    }
}

fn new_eventfd() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

fn watch(ops: &mut EventOps, what: &str, source: &impl AsRawFd) {
    if let Err(error) = ops.add(Events::new(source, EventSet::IN)) {
        tracing::warn!("{what} is not watched: {error:?}");
    }
}

// Signals

static SIGNAL_FD: OnceLock<EventFd> = OnceLock::new();
static LAST_SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Runs in signal context: an atomic store and a write(2), both allowed there.
extern "C" fn on_signal(number: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    LAST_SIGNAL.store(number, Ordering::Relaxed);
    if let Some(fd) = SIGNAL_FD.get() {
        let _ = fd.write(1);
    }
}

fn catch_signals() -> io::Result<EventFd> {
    let fd = match SIGNAL_FD.get() {
        Some(fd) => fd.try_clone()?,
        None => {
            let fd = new_eventfd()?;
            let copy = fd.try_clone()?;
            // If another thread was faster, its descriptor is the one that the handler uses.
            SIGNAL_FD.get_or_init(|| fd);
            copy
        }
    };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        register_signal_handler(signal, on_signal)
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
    }
    Ok(fd)
}

/// How a person ends the run.
#[derive(Clone)]
struct Quit {
    events: Sender<RunEvent>,
    claim: Option<Arc<Claim>>,
    asked: Arc<AtomicBool>,
}

impl Quit {
    fn ask(&self, by: &str) {
        let gone = self.events.send(RunEvent::Quit(by.into())).is_err();
        if self.asked.swap(true, Ordering::Relaxed) || gone {
            // For the second time: whoever asks does not want to wait, neither for an audit to finish nor
            // for a terminal that takes no output.
            if let Some(claim) = &self.claim {
                claim.remove_files();
            }
            RawTerminal::leave();
            std::process::exit(i32::from(ExitStatus::Stopped as u8));
        }
    }
}

struct Signals {
    fd: EventFd,
    quit: Quit,
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.fd.read();
        let name = match LAST_SIGNAL.load(Ordering::Relaxed) {
            libc::SIGINT => "SIGINT",
            libc::SIGHUP => "SIGHUP",
            _ => "SIGTERM",
        };
        self.quit.ask(name);
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, "signals", &self.fd);
    }
}

// Time

struct Clock {
    timer: TimerFd,
    vm: Arc<Vm>,
    deadline: Option<Instant>,
    limit: Option<Duration>,
    events: Sender<RunEvent>,
}

impl MutEventSubscriber for Clock {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        if let Err(errno) = self.timer.wait() {
            tracing::warn!("timer: {errno}");
        }
        self.vm.flush_console();
        self.vm.type_bytes(&[]);
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.deadline = None;
            let seconds = self.limit.unwrap_or_default().as_secs();
            let _ = self.events.send(RunEvent::Quit(format!("the time limit of {seconds} s")));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, "the clock", &self.timer);
    }
}

// Keyboard

struct Keyboard {
    vm: Arc<Vm>,
    quit: Quit,
    after_ctrl_a: bool,
}

const CTRL_A: u8 = 1;

impl MutEventSubscriber for Keyboard {
    fn process(&mut self, _: Events, ops: &mut EventOps) {
        let mut bytes = [0; 256];
        let typed = match rustix::io::read(rustix::stdio::stdin(), &mut bytes[..]) {
            Ok(0) | Err(rustix::io::Errno::IO) => {
                // The terminal is gone; a descriptor at its end would be ready for ever.
                let _ = ops.remove(Events::empty(&rustix::stdio::stdin()));
                return;
            }
            Ok(len) => bytes.get(..len).unwrap_or(&[]),
            Err(_) => return,
        };
        let mut text = Vec::new();
        for &byte in typed {
            match (std::mem::take(&mut self.after_ctrl_a), byte) {
                (true, b'x' | b'X') => {
                    self.quit.ask("Ctrl-A x");
                }
                (true, _) | (false, 0..CTRL_A | 2..) => text.push(byte),
                (false, CTRL_A) => self.after_ctrl_a = true,
            }
        }
        self.vm.type_bytes(&text);
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, "the keyboard", &rustix::stdio::stdin());
    }
}

/// Gives the terminal back, for an end that runs no destructors.
pub fn restore_terminal() {
    RawTerminal::leave();
}

static SAVED_TERMINAL: std::sync::Mutex<Option<Termios>> = std::sync::Mutex::new(None);

/// The terminal without echo and line editing. Ctrl-C keeps its meaning.
#[derive(Debug)]
struct RawTerminal(());

impl RawTerminal {
    /// `None` if standard input is no terminal, or is another job's.
    fn enter() -> Option<RawTerminal> {
        let stdin = rustix::stdio::stdin();
        let saved = rustix::termios::tcgetattr(stdin).ok()?;
        // A background job that sets the terminal is stopped by it.
        if rustix::termios::tcgetpgrp(stdin).ok()? != rustix::process::getpgrp() {
            return None;
        }
        let mut raw = saved.clone();
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        *SAVED_TERMINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        Some(RawTerminal(()))
    }

    fn leave() {
        if let Some(saved) = SAVED_TERMINAL.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &saved);
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        RawTerminal::leave();
    }
}

// End

struct Stopper {
    fd: Arc<EventFd>,
    running: Arc<AtomicBool>,
}

impl MutEventSubscriber for Stopper {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.fd.read();
        self.running.store(false, Ordering::Release);
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, "the stop event", &*self.fd);
    }
}
