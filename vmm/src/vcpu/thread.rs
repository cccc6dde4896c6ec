//! A vCPU is a thread with a state machine.
//!
//! ```text
//! Created --start--> Running <--hold/release--> Paused
//!                       |                          |
//!                       +-------- stop ------------+--> Stopped
//! ```
//!
//! T1  only the vCPU's own thread touches its KVM file descriptor; others put requests into its
//!     mailbox, and it serves them between two KVM_RUNs or while paused;
//! T2  a thread that is `Paused` has completed its last exit, so its registers are architectural;
//! T3  a mailbox change is followed by signals until the thread has seen it, because one signal that
//!     arrives just before KVM_RUN is lost;
//! T4  a vCPU that waits for the answer to a checkpoint counts as paused: two vCPUs at checkpoints
//!     cannot wait for each other.
//!
//! Lock order: mailbox, then thread handle.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use memvisor_inspect::CpuRegisters;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::{Failure, read_registers};
use crate::{
    devices::{Bus, Effect},
    memory::Memory,
    seccomp::{self, Filters},
};

/// State of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Set up, never run.
    Created,
    /// In KVM_RUN, or about to be.
    Running,
    /// Held.
    Paused,
    /// Gone for good.
    Stopped,
}

/// Who holds a vCPU. Holds are independent: it runs when nobody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hold {
    /// It was not started yet.
    Created = 1,
    /// A person paused it.
    User = 2,
    /// A checkpoint of another vCPU.
    Checkpoint = 4,
    /// The guest has ended; memory and registers stay for readers.
    Ended = 8,
}

/// KVM's translation of a guest virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// The address asked for.
    pub va: u64,
    /// Guest-physical address; `None` if KVM says that it is not mapped.
    pub gpa: Option<u64>,
}

/// What a vCPU tells the run loop.
#[derive(Debug)]
pub enum VcpuEvent {
    /// A device access meant something for the machine. After [`Effect::Checkpoint`] the vCPU waits
    /// for [`Vcpu::answer`]; after the others it waits to be stopped.
    Effect {
        /// CPU index.
        cpu: u32,
        /// What it means.
        effect: Effect,
    },
    /// The vCPU cannot go on, and waits to be stopped.
    Failed(Box<Failure>),
}

/// Why a vCPU did not answer.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// Its thread is gone.
    #[error("cpu {0} has stopped")]
    Stopped(u32),
    /// KVM refused.
    #[error("{ioctl} failed on cpu {cpu}")]
    Ioctl {
        /// CPU index.
        cpu: u32,
        /// The ioctl's name.
        ioctl: &'static str,
        /// KVM's answer.
        source: io::Error,
    },
    /// The host gives no thread.
    #[error("cannot start the thread of cpu {cpu}")]
    Thread {
        /// CPU index.
        cpu: u32,
        /// The host's answer.
        source: io::Error,
    },
}

/// Takes an event to the run loop; `false` if that is gone.
pub type Report = Box<dyn Fn(VcpuEvent) -> bool + Send>;

/// The buses that a vCPU reaches.
#[derive(Debug, Default)]
pub struct SharedBus {
    /// Port I/O.
    pub pio: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
}

/// Exits by reason.
#[derive(Debug, Default)]
pub struct ExitCounts {
    io_in: AtomicU64,
    io_out: AtomicU64,
    mmio_read: AtomicU64,
    mmio_write: AtomicU64,
    hlt: AtomicU64,
    interrupted: AtomicU64,
    retried: AtomicU64,
    other: AtomicU64,
}

impl ExitCounts {
    /// Names and numbers.
    pub fn list(&self) -> [(&'static str, u64); 8] {
        [
            ("io_in", &self.io_in),
            ("io_out", &self.io_out),
            ("mmio_read", &self.mmio_read),
            ("mmio_write", &self.mmio_write),
            ("hlt", &self.hlt),
            ("interrupted", &self.interrupted),
            ("retried", &self.retried),
            ("other", &self.other),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

type Reply<T> = Sender<Result<T, VcpuError>>;

enum Request {
    Registers(Reply<CpuRegisters>),
    Translate(Vec<u64>, Reply<Vec<Translation>>),
}

struct Mail {
    state: State,
    holds: u8,
    stop: bool,
    /// An effect was sent that only the run loop can end.
    waiting: bool,
    requests: VecDeque<Request>,
}

struct Mailbox {
    mail: Mutex<Mail>,
    changed: Condvar,
    exits: ExitCounts,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vCPU, from outside its thread.
pub struct Vcpu {
    index: u32,
    mailbox: Arc<Mailbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vcpu")
            .field("index", &self.index)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Time between two signals to a thread that has not reacted.
const KICK_INTERVAL: Duration = Duration::from_millis(2);
/// EFLAGS.AC: lets a supervisor read user pages under SMAP.
const EFLAGS_AC: u64 = 1 << 18;

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Makes the kick signal interrupt KVM_RUN and nothing else. Call once before any vCPU starts.
///
/// # Errors
/// If the host refuses the handler.
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
}

impl Vcpu {
    /// Starts the thread of a vCPU that is set up. It is held by [`Hold::Created`].
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn spawn(
        index: u32,
        fd: VcpuFd,
        memory: Arc<Memory>,
        bus: Arc<SharedBus>,
        filters: Filters,
        report: Report,
    ) -> Result<Vcpu, VcpuError> {
        let mailbox = Arc::new(Mailbox {
            mail: Mutex::new(Mail {
                state: State::Created,
                holds: Hold::Created as u8,
                stop: false,
                waiting: false,
                requests: VecDeque::new(),
            }),
            changed: Condvar::new(),
            exits: ExitCounts::default(),
        });
        let runner = Runner { index, fd, memory, bus, report, mailbox: mailbox.clone() };
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || runner.run(filters))
            .map_err(|source| VcpuError::Thread { cpu: index, source })?;
        Ok(Vcpu { index, mailbox, thread: Mutex::new(Some(thread)) })
    }

    /// CPU index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// State now.
    pub fn state(&self) -> State {
        self.mailbox.lock().state
    }

    /// Exits so far.
    pub fn exits(&self) -> &ExitCounts {
        &self.mailbox.exits
    }

    /// Holds the vCPU. Returns when it is held; its registers and, as far as it is concerned, memory
    /// stand still then.
    pub fn hold(&self, hold: Hold) {
        self.mailbox.lock().holds |= hold as u8;
        self.kick_until(|mail| mail.state != State::Running);
    }

    /// Ends a hold.
    pub fn release(&self, hold: Hold) {
        self.mailbox.lock().holds &= !(hold as u8);
        self.mailbox.changed.notify_all();
    }

    /// Lets a vCPU that waits after [`Effect::Checkpoint`] go on.
    pub fn answer(&self) {
        self.mailbox.lock().waiting = false;
        self.mailbox.changed.notify_all();
    }

    /// Ends the thread and waits for it.
    pub fn stop(&self) {
        self.mailbox.lock().stop = true;
        self.mailbox.changed.notify_all();
        self.kick_until(|mail| mail.state == State::Stopped);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(panic)) = thread.map(JoinHandle::join) {
            tracing::error!("thread of cpu {} panicked: {panic:?}", self.index);
        }
    }

    /// Registers, whether it runs or is held.
    ///
    /// # Errors
    /// If it has stopped, or KVM refuses.
    pub fn registers(&self) -> Result<CpuRegisters, VcpuError> {
        self.ask(Request::Registers)
    }

    /// What KVM says to each address (KVM_TRANSLATE).
    ///
    /// # Errors
    /// If it has stopped, or KVM refuses.
    pub fn translate(&self, vas: Vec<u64>) -> Result<Vec<Translation>, VcpuError> {
        self.ask(|reply| Request::Translate(vas, reply))
    }

    fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, VcpuError> {
        let (reply, answer): (_, Receiver<Result<T, VcpuError>>) = mpsc::channel();
        {
            let mut mail = self.mailbox.lock();
            if mail.state == State::Stopped {
                return Err(VcpuError::Stopped(self.index));
            }
            mail.requests.push_back(request(reply));
        }
        self.mailbox.changed.notify_all();
        self.kick_until(|mail| mail.requests.is_empty());
        answer.recv().unwrap_or(Err(VcpuError::Stopped(self.index)))
    }

    /// Signals the thread until `done` (T3).
    fn kick_until(&self, done: impl Fn(&Mail) -> bool) {
        let mut mail = self.mailbox.lock();
        while !done(&mail) && mail.state != State::Stopped {
            if mail.state == State::Running
                && let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner)
                && let Err(errno) = thread.kill(SIGRTMIN())
            {
                tracing::warn!("cannot signal cpu {}: {errno}", self.index);
            }
            mail = self
                .mailbox
                .changed
                .wait_timeout(mail, KICK_INTERVAL)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread's side.
struct Runner {
    index: u32,
    fd: VcpuFd,
    memory: Arc<Memory>,
    bus: Arc<SharedBus>,
    report: Report,
    mailbox: Arc<Mailbox>,
}

impl Runner {
    fn run(mut self, filters: Filters) {
        if let Err(error) = seccomp::enter(filters, seccomp::Thread::Vcpu) {
            let reason = error.to_string();
            let failure = Failure::describe(self.index, reason, false, &self.fd, &self.memory);
            self.report(VcpuEvent::Failed(Box::new(failure)));
        }
        while self.pass_gate() {
            self.step();
        }
        let mut mail = self.mailbox.lock();
        mail.state = State::Stopped;
        mail.requests.clear();
        drop(mail);
        self.mailbox.changed.notify_all();
    }

    /// Serves the mailbox and waits while held. `false` means stop.
    fn pass_gate(&mut self) -> bool {
        loop {
            let mailbox = self.mailbox.clone();
            let mut mail = mailbox.lock();
            if mail.stop {
                return false;
            }
            let held = mail.holds != 0 || mail.waiting;
            if !held && mail.requests.is_empty() {
                mail.state = State::Running;
                return true;
            }
            if mail.state == State::Running {
                drop(mail);
                self.complete_exit();
                mail = mailbox.lock();
            }
            if held && mail.state == State::Running {
                mail.state = State::Paused;
                mailbox.changed.notify_all();
            }
            if let Some(request) = mail.requests.pop_front() {
                drop(mail);
                self.serve(request);
                mailbox.changed.notify_all();
            } else if held {
                drop(mailbox.changed.wait(mail).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Lets KVM finish the instruction of the last exit without running another (T2).
    fn complete_exit(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // EINTR is the expected answer; anything else shows again at the next run.
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    fn serve(&self, request: Request) {
        let failed = |ioctl| {
            move |errno: kvm_ioctls::Error| VcpuError::Ioctl {
                cpu: self.index,
                ioctl,
                source: io::Error::from_raw_os_error(errno.errno()),
            }
        };
        // A caller that went away does not want the answer.
        match request {
            Request::Registers(reply) => {
                let _ = reply.send(read_registers(self.index, &self.fd).map_err(failed("KVM_GET_SREGS")));
            }
            Request::Translate(vas, reply) => {
                let translate = || -> Result<Vec<Translation>, VcpuError> {
                    // KVM_TRANSLATE is a supervisor's read: with CR4.SMAP set it finds user pages only
                    // while EFLAGS.AC is set (arch/x86/kvm/mmu.h, permission_fault).
                    let regs = self.fd.get_regs().map_err(failed("KVM_GET_REGS"))?;
                    let reading = kvm_regs { rflags: regs.rflags | EFLAGS_AC, ..regs };
                    self.fd.set_regs(&reading).map_err(failed("KVM_SET_REGS"))?;
                    let answers = vas
                        .into_iter()
                        .map(|va| {
                            let answer = self.fd.translate_gva(va).map_err(failed("KVM_TRANSLATE"))?;
                            let gpa = (answer.valid != 0).then_some(answer.physical_address);
                            Ok(Translation { va, gpa })
                        })
                        .collect();
                    self.fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
                    answers
                };
                let answers = translate();
                let _ = reply.send(answers);
            }
        }
    }

    /// One KVM_RUN and what its exit asks for.
    fn step(&mut self) {
        let exits = &self.mailbox.exits;
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let failure = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&exits.io_out);
                let effect = self.bus.pio.write(u64::from(port), data);
                return self.act(effect);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&exits.io_in);
                return self.bus.pio.read(u64::from(port), data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&exits.mmio_read);
                return self.bus.mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&exits.mmio_write);
                let effect = self.bus.mmio.write(address, data);
                return self.act(effect);
            }
            Ok(VcpuExit::Intr) => return count(&exits.interrupted),
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) | VcpuExit::SetTpr) => {
                return count(&exits.other);
            }
            // With the local APIC in the kernel a halted vCPU sleeps there; this exit is a KVM
            // without one, where nothing could wake it.
            Ok(VcpuExit::Hlt) => {
                count(&exits.hlt);
                (true, "halted, and nothing can wake it".to_owned())
            }
            Ok(VcpuExit::Shutdown) => (true, "triple fault".to_owned()),
            Ok(VcpuExit::SystemEvent(kind, _)) => (true, format!("system event {kind}")),
            Ok(VcpuExit::FailEntry(reason, cpu)) => (
                false,
                format!("the processor refuses to enter the guest (reason {reason:#x} on host cpu {cpu})"),
            ),
            Ok(VcpuExit::InternalError) => (false, String::new()),
            Ok(other) => (false, format!("exit that memvisor does not handle: {other:?}")),
            Err(errno) => match errno.errno() {
                libc::EINTR => return count(&exits.interrupted),
                // A waiting application processor got its start-up IPI.
                libc::EAGAIN => return count(&exits.retried),
                _ => (false, format!("KVM_RUN failed: {}", io::Error::from_raw_os_error(errno.errno()))),
            },
        };
        let (guest_fault, mut reason) = failure;
        if reason.is_empty() {
            reason = self.internal_error();
        }
        let failure = Failure::describe(self.index, reason, guest_fault, &self.fd, &self.memory);
        self.report(VcpuEvent::Failed(Box::new(failure)));
    }

    fn act(&mut self, effect: Option<Effect>) {
        if let Some(effect) = effect {
            self.report(VcpuEvent::Effect { cpu: self.index, effect });
        }
    }

    fn report(&mut self, event: VcpuEvent) {
        // The run loop holds this vCPU first of all: it finds it standing still already (T2, T4), and
        // neither signals it nor waits for it.
        self.complete_exit();
        {
            let mut mail = self.mailbox.lock();
            mail.waiting = true;
            mail.state = State::Paused;
        }
        self.mailbox.changed.notify_all();
        if !(self.report)(event) {
            // Nobody is left who could stop the machine but the thread itself.
            self.mailbox.lock().stop = true;
        }
    }

    fn internal_error(&mut self) -> String {
        // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member of the
        // union; all its fields are plain integers.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        Failure::suberror(suberror)
    }
}
