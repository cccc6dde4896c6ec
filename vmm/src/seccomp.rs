//! Filters on the threads that a guest or a client of the control socket can reach (seccomp(2)).
//!
//! A thread that has started needs few system calls; [`Thread::allowed`] lists them, and
//! docs/isolation.md says what each is for. [`enter`] makes the kernel refuse the rest to the calling
//! thread, for ever. A refused call is a mistake in memvisor or an attack: the thread says which call
//! in one line and stays where it is, and the process ends with
//! [`ExitStatus::VmmFailed`](crate::run::ExitStatus::VmmFailed), its socket removed ([`watch`]).
//!
//! Invariants:
//! F1  no filtered thread opens a file for writing, makes a process or a thread, or makes memory
//!     executable;
//! F2  ioctls are those listed, so a vCPU thread cannot change the machine that it runs;
//! F3  nothing after [`enter`] loosens a filter (the kernel forbids it: filters only add up).

use std::{
    cell::Cell,
    collections::BTreeMap,
    io,
    sync::{OnceLock, atomic::AtomicU32},
    thread,
};

use rustix::thread::futex;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use thiserror::Error;
use vmm_sys_util::{eventfd::EventFd, signal::register_signal_handler};

use crate::run::ExitStatus;

/// Why a thread has no filter.
#[derive(Debug, Error)]
#[error("cannot restrict a thread's system calls ({step}: {error}): run with --no-seccomp to do without")]
pub struct SeccompError {
    step: &'static str,
    error: String,
}

/// What a system call's arguments must be.
#[derive(Clone, Copy, Debug)]
enum Only {
    /// Anything.
    Any,
    /// Argument 1 is one of these requests of ioctl(2) or fcntl(2).
    Requests(&'static [u64]),
    /// The argument of this number has none of these bits.
    Without(u8, u64),
    /// It fails with EACCES; the caller does without.
    Fails,
}

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Its name.
    pub name: &'static str,
    number: i64,
    only: Only,
}

macro_rules! allow {
    ($($number:ident $name:literal $only:expr;)*) => {
        &[$(Allowed { name: $name, number: libc::$number, only: $only },)*]
    };
}

const EXEC: u64 = libc::PROT_EXEC as u64;
const WRITE: u64 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT) as u64;

const F_GETFD: u64 = 1;
// linux/kvm.h.
const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_SET_REGS: u64 = 0x4090_ae82;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
const KVM_TRANSLATE: u64 = 0xc018_ae85;
const KVM_SIGNAL_MSI: u64 = 0x4020_aea5;
const KVM_GET_STATS_FD: u64 = 0xaece;
// asm-generic/ioctls.h.
const FIONBIO: u64 = 0x5421;
const TCSETS: u64 = 0x5402;
const TCSETS2: u64 = 0x402c_542b;

/// What every thread of this program does: memory, locks, time, signals, output, its end.
const COMMON: &[Allowed] = allow! {
    SYS_brk "brk" Only::Any;
    SYS_mmap "mmap" Only::Without(2, EXEC);
    SYS_mprotect "mprotect" Only::Without(2, EXEC);
    SYS_mremap "mremap" Only::Any;
    SYS_munmap "munmap" Only::Any;
    SYS_madvise "madvise" Only::Any;
    SYS_futex "futex" Only::Any;
    SYS_sched_yield "sched_yield" Only::Any;
    SYS_sched_getaffinity "sched_getaffinity" Only::Any;
    SYS_clock_gettime "clock_gettime" Only::Any;
    SYS_restart_syscall "restart_syscall" Only::Any;
    SYS_rt_sigreturn "rt_sigreturn" Only::Any;
    SYS_rt_sigprocmask "rt_sigprocmask" Only::Any;
    SYS_sigaltstack "sigaltstack" Only::Any;
    SYS_write "write" Only::Any;
    SYS_close "close" Only::Any;
    SYS_fcntl "fcntl" Only::Requests(&[F_GETFD]);
    SYS_getrandom "getrandom" Only::Any;
    SYS_exit "exit" Only::Any;
    SYS_exit_group "exit_group" Only::Any;
};

/// What a vCPU thread does beyond [`COMMON`].
const VCPU: &[Allowed] = allow! {
    SYS_openat "openat" Only::Fails;
    SYS_ioctl "ioctl" Only::Requests(&[
        KVM_RUN, KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_TRANSLATE, KVM_SIGNAL_MSI,
    ]);
};

/// What the event loop does beyond [`COMMON`].
const EVENT_LOOP: &[Allowed] = allow! {
    SYS_clock_nanosleep "clock_nanosleep" Only::Any;
    SYS_poll "poll" Only::Any;
    SYS_ppoll "ppoll" Only::Any;
    SYS_epoll_wait "epoll_wait" Only::Any;
    SYS_epoll_pwait "epoll_pwait" Only::Any;
    SYS_epoll_ctl "epoll_ctl" Only::Any;
    SYS_read "read" Only::Any;
    SYS_pread64 "pread64" Only::Any;
    SYS_accept4 "accept4" Only::Any;
    SYS_recvfrom "recvfrom" Only::Any;
    SYS_sendmsg "sendmsg" Only::Any;
    SYS_setsockopt "setsockopt" Only::Any;
    SYS_ioctl "ioctl" Only::Requests(&[FIONBIO, TCSETS, TCSETS2, KVM_GET_STATS_FD]);
    SYS_open "open" Only::Without(1, WRITE);
    SYS_openat "openat" Only::Without(2, WRITE);
    SYS_unlink "unlink" Only::Any;
    SYS_getpid "getpid" Only::Any;
    SYS_gettid "gettid" Only::Any;
    SYS_tgkill "tgkill" Only::Any;
};

/// What the thread of a disk does beyond [`COMMON`].
const DISK: &[Allowed] = allow! {
    SYS_openat "openat" Only::Fails;
    SYS_pread64 "pread64" Only::Any;
    SYS_pwrite64 "pwrite64" Only::Any;
    SYS_fdatasync "fdatasync" Only::Any;
    SYS_ioctl "ioctl" Only::Requests(&[KVM_SIGNAL_MSI]);
};

/// What the thread of a DMA engine does beyond [`COMMON`].
const DMA: &[Allowed] = allow! {
    SYS_openat "openat" Only::Fails;
    SYS_ioctl "ioctl" Only::Requests(&[KVM_SIGNAL_MSI]);
};

/// Which threads are restricted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filters {
    /// Those that a guest or a client reaches.
    #[default]
    On,
    /// None, to find out whether a filter is to blame.
    Off,
}

/// Kinds of threads that are restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Runs a vCPU and carries out its device accesses.
    Vcpu,
    /// Serves everything else.
    EventLoop,
    /// Carries out the requests of a disk.
    Disk,
    /// Moves what a DMA engine moves while CPUs run.
    Dma,
}

impl Thread {
    const fn name(self) -> &'static str {
        match self {
            Thread::Vcpu => "a vCPU thread",
            Thread::EventLoop => "the event loop",
            Thread::Disk => "a disk's thread",
            Thread::Dma => "a DMA engine's thread",
        }
    }

    /// What it may call, in the order of the tables.
    pub fn allowed(self) -> impl Iterator<Item = &'static Allowed> {
        COMMON.iter().chain(match self {
            Thread::Vcpu => VCPU,
            Thread::EventLoop => EVENT_LOOP,
            Thread::Disk => DISK,
            Thread::Dma => DMA,
        })
    }
}

/// Restricts the calling thread, which is one of this kind, for ever, unless `filters` are off.
///
/// # Errors
/// If the kernel has no seccomp filters.
pub fn enter(filters: Filters, kind: Thread) -> Result<(), SeccompError> {
    if filters == Filters::Off {
        return Ok(());
    }
    let fail = |step| move |error: io::Error| SeccompError { step, error: error.to_string() };
    register_signal_handler(libc::SIGSYS, on_refused)
        .map_err(|errno| fail("SIGSYS")(io::Error::from_raw_os_error(errno.errno())))?;
    let [allow, fails] =
        compile(kind).map_err(|error| SeccompError { step: "compile a filter", error: error.to_string() })?;
    THREAD.set(kind.name());
    // The first one lets calls pass that the second one makes fail; the stricter answer counts.
    for program in [fails, allow] {
        seccompiler::apply_filter(&program)
            .map_err(|error| SeccompError { step: "install a filter", error: error.to_string() })?;
    }
    Ok(())
}

/// The filter that refuses, and the one that makes calls fail.
fn compile(kind: Thread) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    const FAIL: SeccompAction = SeccompAction::Errno(libc::EACCES as u32);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut failing: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in kind.allowed() {
        rules.entry(call.number).or_default().extend(call.rules()?);
        if matches!(call.only, Only::Fails) {
            failing.insert(call.number, Vec::new());
        }
    }
    let arch = std::env::consts::ARCH.try_into()?;
    let allow = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, arch)?;
    let fail = SeccompFilter::new(failing, SeccompAction::Allow, FAIL, arch)?;
    Ok([allow.try_into()?, fail.try_into()?])
}

impl Allowed {
    /// Each rule allows; no rule allows everything.
    fn rules(&self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let rule = |argument, compare, value| {
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value)?;
            SeccompRule::new(vec![condition])
        };
        match self.only {
            Only::Any | Only::Fails => Ok(Vec::new()),
            Only::Requests(requests) => {
                requests.iter().map(|request| rule(1, SeccompCmpOp::Eq, *request)).collect()
            }
            Only::Without(argument, bits) => Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(bits), 0)?]),
        }
    }
}

thread_local! {
    // Read in signal context: no destructor, no lazy start.
    static THREAD: Cell<&'static str> = const { Cell::new("a thread") };
}

/// Written by a thread that was refused a call; see [`watch`].
static REFUSED: OnceLock<EventFd> = OnceLock::new();

/// Runs `clean_up` and ends the process if a thread is refused a call: that thread may hold locks,
/// and can be trusted with nothing any more. Call it before the first [`enter`].
///
/// # Errors
/// If the host gives no descriptor or no thread.
pub fn watch(clean_up: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let event = EventFd::new(libc::EFD_CLOEXEC)?;
    let waiting = event.try_clone()?;
    thread::Builder::new().name("seccomp-watch".into()).spawn(move || {
        while waiting.read().is_err() {}
        clean_up();
        std::process::exit(i32::from(ExitStatus::VmmFailed as u8));
    })?;
    // A second watch is for a second guest of this process: the first one ends both.
    let _ = REFUSED.set(event);
    Ok(())
}

/// Runs in signal context, on the thread that was refused: plain writes, and then it waits.
extern "C" fn on_refused(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// Start of `siginfo_t` for SIGSYS (asm-generic/siginfo.h).
    #[repr(C)]
    struct Refused {
        signal: [i32; 4],
        address: u64,
        number: i32,
    }
    // SAFETY: the kernel passes a valid siginfo_t, and fills this member of its union for SIGSYS.
    let number = unsafe { (*info.cast::<Refused>()).number };
    let known =
        Thread::EventLoop.allowed().chain(VCPU).chain(DISK).find(|call| call.number == i64::from(number));
    let name = known.map_or("", |call| call.name);
    let mut digits = [0; 10];
    say(&[
        b"\nmemvisor: seccomp: ",
        THREAD.get().as_bytes(),
        b" was refused system call ",
        decimal(number.unsigned_abs(), &mut digits),
        if name.is_empty() { b"" } else { b" with these arguments, " },
        name.as_bytes(),
        b": a mistake in memvisor, or an attack; --no-seccomp runs without filters\n",
    ]);
    match REFUSED.get() {
        Some(event) if event.write(1).is_ok() => loop {
            let _ = futex::wait(&AtomicU32::new(0), futex::Flags::PRIVATE, 0, None);
        },
        // SAFETY: _exit(2) has no preconditions; nothing of this process is used afterwards.
        _ => unsafe { libc::_exit(i32::from(ExitStatus::VmmFailed as u8)) },
    }
}

/// Standard error without locks or allocation.
fn say(parts: &[&[u8]]) {
    let mut line = [0; 256];
    let mut len = 0;
    for byte in parts.iter().copied().flatten() {
        if let Some(slot) = line.get_mut(len) {
            *slot = *byte;
            len += 1;
        }
    }
    let _ = rustix::io::write(rustix::stdio::stderr(), line.get(..len).unwrap_or(&[]));
}

fn decimal(number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut rest = number;
    let mut first = digits.len();
    for (at, slot) in digits.iter_mut().enumerate().rev() {
        *slot = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        (rest, first) = (rest / 10, at);
        if rest == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        process::{Command, Output},
    };

    use super::*;

    /// The test binary again, running one test alone: a filter is for ever, and a refused call is
    /// the end of its process.
    fn again(test: &str) -> Output {
        Command::new(std::env::current_exe().expect("a test binary"))
            .args([&format!("seccomp::tests::{test}"), "--exact", "--ignored", "--nocapture"])
            .output()
            .expect("it starts")
    }

    #[test]
    fn a_refused_call_is_one_line_and_a_failure() {
        let out = again("opens_for_writing_under_a_filter");
        let text = String::from_utf8_lossy(&out.stderr);
        let lines: Vec<_> = text.lines().filter(|line| line.contains("seccomp")).collect();
        assert_eq!(out.status.code(), Some(6), "{text}");
        assert_eq!(lines.len(), 1, "{text}");
        assert!(
            lines[0].contains("the event loop was refused system call 257 with these arguments, openat"),
            "{text}"
        );
        assert!(text.contains("cleaned up"), "{text}");
    }

    #[test]
    #[ignore = "run by a_refused_call_is_one_line_and_a_failure in a process of its own"]
    fn opens_for_writing_under_a_filter() {
        watch(|| eprintln!("cleaned up")).expect("a thread");
        enter(Filters::On, Thread::EventLoop).expect("seccomp");
        drop(fs::File::open("/proc/self/comm").expect("reading is allowed"));
        let _ = fs::write("/dev/null", "x");
        unreachable!("the call before never returns");
    }

    #[test]
    fn a_vcpu_thread_cannot_open_make_sockets_or_change_the_machine() {
        let out = again("makes_a_socket_under_a_filter");
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(6), "{text}");
        assert!(text.contains("a vCPU thread was refused system call 41:"), "{text}");
    }

    #[test]
    #[ignore = "run by a_vcpu_thread_cannot_open_make_sockets_or_change_the_machine in a process of its own"]
    fn makes_a_socket_under_a_filter() {
        enter(Filters::On, Thread::Vcpu).expect("seccomp");
        let _ = std::os::unix::net::UnixDatagram::unbound();
        unreachable!("the call before never returns");
    }

    #[test]
    fn the_tables_are_documented_and_name_each_call_once() {
        let documentation = include_str!("../../docs/isolation.md");
        for kind in [Thread::Vcpu, Thread::EventLoop, Thread::Disk, Thread::Dma] {
            let mut numbers: Vec<i64> = kind.allowed().map(|call| call.number).collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), count);
            for call in kind.allowed() {
                assert!(
                    documentation.contains(&format!("`{}`", call.name)),
                    "{} is not documented",
                    call.name
                );
            }
        }
    }

    #[test]
    fn numbers_are_decimal() {
        for (number, text) in [(0, "0"), (7, "7"), (257, "257"), (u32::MAX, "4294967295")] {
            assert_eq!(decimal(number, &mut [0; 10]), text.as_bytes());
        }
    }
}
