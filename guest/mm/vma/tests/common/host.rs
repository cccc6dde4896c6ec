//! The calls on the Linux that the tests run on: in a child of its own, in which every page outside the window is
//! taken, so that the kernel has the same choices as the crate. The child allocates nothing and panics nowhere.
#![expect(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "system calls of a test on x86-64"
)]

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use super::op::{HEAP, MEMLOCK, Op, PAGE, PAGES, STACK, WINDOW, address};
use super::{Line, Outcome};

const LOWEST: u64 = 0x1_0000;
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// Below a stack; nothing is placed there anyway.
const GUARD: u64 = 256 * PAGE;
const BUFFER: usize = 64 << 20;
const TEXT: usize = 1 << 16;

/// Memory that the child leaves its results in: words, then text.
struct Buffer {
    base: *mut u8,
}

impl Buffer {
    fn new() -> Buffer {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = unsafe { libc::mmap(core::ptr::null_mut(), BUFFER, prot, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        Buffer { base: base.cast() }
    }

    /// The place of the results of call `index`: result, length of the text, text.
    fn slot(&self, index: usize) -> *mut u8 {
        assert!((index + 1) * TEXT <= BUFFER);
        unsafe { self.base.add(index * TEXT) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.base.cast(), BUFFER) };
    }
}

/// Carries the calls out; what each returned, and the window after it. `Err` if the child could not be prepared.
pub fn run(ops: &[Op]) -> Result<Vec<Outcome>, String> {
    let buffer = Buffer::new();
    let map = heap_in_window();
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = unsafe { child(&buffer, &raw const map, ops) };
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 0 {
        return Err(format!("the child ended with status {status:#x}"));
    }
    Ok((0..ops.len())
        .map(|index| {
            let slot = buffer.slot(index);
            let (result, len) = unsafe { (slot.cast::<i64>().read(), slot.cast::<usize>().add(1).read()) };
            let text = unsafe { core::slice::from_raw_parts(slot.add(16), len) };
            Outcome { result, lines: lines(core::str::from_utf8(text).expect("maps are ASCII")) }
        })
        .collect())
}

fn lines(text: &str) -> Vec<Line> {
    let window = WINDOW..WINDOW + PAGES * PAGE;
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let hex = |text| u64::from_str_radix(text, 16).ok();
            let (start, end) = (hex(start)?, hex(end)?);
            if !window.contains(&start) {
                return None;
            }
            let perms = words.next()?.to_owned();
            let offset = hex(words.next()?)?;
            let inode = words.nth(1)?.parse().ok()?;
            Some(Line { start: start - WINDOW, end: end - WINDOW, perms, offset, inode })
        })
        .collect()
}

const PR_SET_MM_MAP: c_int = 14;

/// `struct prctl_mm_map`.
#[repr(C)]
struct PrctlMmMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// This process as it is, but for its heap.
fn heap_in_window() -> PrctlMmMap {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc is mounted");
    let words: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_ascii_whitespace().collect();
    // proc(5) counts from 1, and the name is 2.
    let field = |number: usize| words[number - 3].parse().expect("a number");
    let heap = WINDOW + HEAP * PAGE;
    PrctlMmMap {
        start_code: field(26),
        end_code: field(27),
        start_data: field(45),
        end_data: field(46),
        start_brk: heap,
        brk: heap,
        start_stack: field(28),
        arg_start: field(48),
        arg_end: field(49),
        env_start: field(50),
        env_end: field(51),
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    }
}

static FAULT: AtomicI64 = AtomicI64::new(0);

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    unsafe {
        FAULT.store(i64::from(signal) * 1000 + i64::from((*info).si_code), SeqCst);
        // Both instructions that may fault have three bytes.
        let context = context.cast::<libc::ucontext_t>();
        (*context).uc_mcontext.gregs[libc::REG_RIP as usize] += 3;
    }
}

unsafe fn child(buffer: &Buffer, map: *const PrctlMmMap, ops: &[Op]) -> c_int {
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGSEGV, &raw const action, core::ptr::null_mut());
        libc::sigaction(libc::SIGBUS, &raw const action, core::ptr::null_mut());
        if libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, map, size_of::<PrctlMmMap>(), 0) != 0 {
            return 10;
        }
        let code = fill(buffer);
        if code != 0 {
            return code;
        }
        let memlock = libc::rlimit { rlim_cur: MEMLOCK, rlim_max: MEMLOCK };
        let stack = libc::rlimit { rlim_cur: STACK, rlim_max: STACK };
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const memlock) != 0
            || libc::setrlimit(libc::RLIMIT_STACK, &raw const stack) != 0
        {
            return 11;
        }
        // No privileges from here on: limits count.
        let header = [0x2008_0522_u32, 0];
        let none = [0_u32; 6];
        if libc::syscall(libc::SYS_capset, &raw const header, &raw const none) != 0 {
            return 12;
        }
        for (index, op) in ops.iter().enumerate() {
            let result = if *op == Op::Fork {
                let pid = libc::fork();
                if pid < 0 {
                    return 13;
                }
                if pid > 0 {
                    let mut status = 0;
                    libc::waitpid(pid, &raw mut status, 0);
                    return if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 14 };
                }
                0
            } else {
                call(index, *op)
            };
            let slot = buffer.slot(index);
            let len = maps(slot.add(16), TEXT - 16);
            slot.cast::<i64>().write(result);
            slot.cast::<usize>().add(1).write(len);
        }
        0
    }
}

/// Reads /proc/self/maps.
unsafe fn maps(to: *mut u8, room: usize) -> usize {
    unsafe {
        let fd = libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY);
        let mut len = 0;
        loop {
            let got = libc::read(fd, to.add(len).cast(), room - len);
            if got <= 0 {
                break;
            }
            len += got as usize;
        }
        libc::close(fd);
        len
    }
}

/// Maps everything outside the window that is free.
unsafe fn fill(buffer: &Buffer) -> c_int {
    unsafe {
        let fd = libc::memfd_create(c"filler".as_ptr(), 0);
        let text = buffer.slot(0);
        let len = maps(text, BUFFER);
        let text = core::slice::from_raw_parts(text, len);
        let (mut at, mut line_start) = (LOWEST, 0);
        let window = (WINDOW, WINDOW + PAGES * PAGE);
        let fill = |from: u64, to: u64| {
            if from >= to {
                return 0;
            }
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
            let got = libc::mmap(from as *mut c_void, (to - from) as usize, libc::PROT_NONE, flags, fd, 0);
            if got as u64 == from { 0 } else { 20 }
        };
        for i in 0..len {
            if text[i] != b'\n' {
                continue;
            }
            let line = &text[line_start..i];
            line_start = i + 1;
            let (mut start, mut end, mut dash) = (0_u64, 0_u64, false);
            for &c in line {
                let digit = match c {
                    b'0'..=b'9' => c - b'0',
                    b'a'..=b'f' => c - b'a' + 10,
                    b'-' => {
                        dash = true;
                        continue;
                    }
                    _ => break,
                };
                let number = if dash { &mut end } else { &mut start };
                *number = *number << 4 | u64::from(digit);
            }
            if start >= TASK_SIZE {
                break;
            }
            if start < window.1 && end > window.0 {
                return 21;
            }
            let gap = if line.ends_with(b"[stack]") { GUARD } else { 0 };
            if at < window.0 && start > window.0 {
                if fill(at, window.0) != 0 || fill(window.1, start - gap) != 0 {
                    return 22;
                }
            } else if fill(at, start.saturating_sub(gap)) != 0 {
                return 23;
            }
            at = end;
        }
        fill(at, TASK_SIZE)
    }
}

unsafe fn call(index: usize, op: Op) -> i64 {
    unsafe {
        let mut residency = [0_u8; 64];
        let result = match op {
            Op::Mmap { addr, len, prot, flags } => {
                libc::syscall(libc::SYS_mmap, address(addr), len, prot, flags, -1_i64, 0_i64)
            }
            Op::Munmap { addr, len } => libc::syscall(libc::SYS_munmap, address(addr), len),
            Op::Mprotect { addr, len, prot } => libc::syscall(libc::SYS_mprotect, address(addr), len, prot),
            Op::Brk { bytes } => libc::syscall(libc::SYS_brk, WINDOW + HEAP * PAGE + bytes),
            Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
                libc::syscall(libc::SYS_mremap, address(addr), old_len, new_len, flags, address(new_addr))
            }
            Op::Madvise { addr, len, advice } => libc::syscall(libc::SYS_madvise, address(addr), len, advice),
            Op::Mlock { addr, len, flags: 0 } => libc::syscall(libc::SYS_mlock, address(addr), len),
            Op::Mlock { addr, len, flags } => libc::syscall(libc::SYS_mlock2, address(addr), len, flags),
            Op::Munlock { addr, len } => libc::syscall(libc::SYS_munlock, address(addr), len),
            Op::Mlockall { flags } => libc::syscall(libc::SYS_mlockall, flags),
            Op::Munlockall => libc::syscall(libc::SYS_munlockall),
            Op::Mincore { addr, pages } => {
                let result =
                    libc::syscall(libc::SYS_mincore, address(addr), pages * PAGE, &raw mut residency);
                if result == 0 {
                    let bits = residency.iter().enumerate();
                    return bits.fold(0, |all, (page, byte)| all | i64::from(byte & 1) << page);
                }
                result
            }
            Op::Msync { addr, len, flags } => libc::syscall(libc::SYS_msync, address(addr), len, flags),
            Op::Mbind { addr, len, mode, nodes, flags } => {
                libc::syscall(libc::SYS_mbind, address(addr), len, mode, &raw const nodes, 65, flags)
            }
            Op::Read { addr } => return touch(address(addr), None),
            Op::Write { addr } => return touch(address(addr), Some(index as u64)),
            Op::Fork => return -1,
        };
        if result == -1 { -i64::from(*libc::__errno_location()) } else { result }
    }
}

/// Reads or writes a word; minus the signal and its code if it faults.
unsafe fn touch(addr: u64, write: Option<u64>) -> i64 {
    FAULT.store(0, SeqCst);
    let mut word = write.unwrap_or(0);
    unsafe {
        match write {
            Some(_) => core::arch::asm!("mov [rdi], rax", in("rdi") addr, in("rax") word),
            None => core::arch::asm!("mov rax, [rdi]", in("rdi") addr, inout("rax") word),
        }
    }
    match FAULT.load(SeqCst) {
        0 if write.is_some() => 0,
        0 => word.cast_signed(),
        fault => -fault,
    }
}
