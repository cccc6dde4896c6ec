//! Linux system calls and the entry point.

use core::arch::{asm, global_asm};
use core::fmt;

// The kernel enters with RSP a multiple of 16, and the number of arguments there.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rsi, rsp", "call {main}", "ud2", main = sym crate::program::main);

/// Any call.
pub fn call(number: u64, arguments: [u64; 6]) -> u64 {
    let result;
    // SAFETY: the calls of this program read its own live buffers, and change its address space only where
    // nothing is or where the caller mapped something for that.
    unsafe {
        asm!(
            "syscall",
            inout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}

/// `write(2)` to standard output; returns its result.
pub fn write(bytes: &[u8]) -> u64 {
    call(1, [1, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0])
}

/// `write(2)` of arbitrary arguments, to see how the kernel refuses them.
pub fn write_raw(fd: u64, address: u64, len: u64) -> u64 {
    call(1, [fd, address, len, 0, 0, 0])
}

/// `brk(2)`.
pub fn brk(to: u64) -> u64 {
    call(12, [to, 0, 0, 0, 0, 0])
}

/// `mmap(2)` without a file.
pub fn mmap(addr: u64, len: u64, prot: u64, flags: u64, fd: u64) -> u64 {
    call(9, [addr, len, prot, flags, fd, 0])
}

/// `mprotect(2)`.
pub fn mprotect(addr: u64, len: u64, prot: u64) -> u64 {
    call(10, [addr, len, prot, 0, 0, 0])
}

/// `munmap(2)`.
pub fn munmap(addr: u64, len: u64) -> u64 {
    call(11, [addr, len, 0, 0, 0, 0])
}

/// `mremap(2)`.
pub fn mremap(addr: u64, old_len: u64, new_len: u64, flags: u64) -> u64 {
    call(25, [addr, old_len, new_len, flags, 0, 0])
}

/// `mincore(2)`.
pub fn mincore(addr: u64, len: u64, vec: &mut [u8]) -> u64 {
    call(27, [addr, len, vec.as_mut_ptr() as u64, 0, 0, 0])
}

/// `madvise(2)`.
pub fn madvise(addr: u64, len: u64, advice: u64) -> u64 {
    call(28, [addr, len, advice, 0, 0, 0])
}

/// `mlock(2)`.
pub fn mlock(addr: u64, len: u64) -> u64 {
    call(149, [addr, len, 0, 0, 0, 0])
}

/// `munlock(2)`.
pub fn munlock(addr: u64, len: u64) -> u64 {
    call(150, [addr, len, 0, 0, 0, 0])
}

/// `pause(2)`.
pub fn pause() {
    call(34, [0; 6]);
}

/// `pipe(2)`: the end to read from and the one to write to.
pub fn pipe() -> [u64; 2] {
    let mut ends = [0_u32; 2];
    call(22, [ends.as_mut_ptr() as u64, 0, 0, 0, 0, 0]);
    ends.map(u64::from)
}

/// `read(2)` to anywhere.
pub fn read_raw(fd: u64, address: u64, len: u64) -> u64 {
    call(0, [fd, address, len, 0, 0, 0])
}

/// `close(2)`.
pub fn close(fd: u64) {
    call(3, [fd, 0, 0, 0, 0, 0]);
}

/// `kill(2)`.
pub fn kill(pid: u64, signal: u64) -> u64 {
    call(62, [pid, signal, 0, 0, 0, 0])
}

/// Minor and major faults of this process so far (`getrusage(2)`). Inlined, each call would have a place of its own on the stack, which may
/// lie in a page that faults.
#[inline(never)]
pub fn faults() -> [u64; 2] {
    let mut usage = [0_u64; 18];
    call(98, [0, usage.as_mut_ptr() as u64, 0, 0, 0, 0]);
    [usage[8], usage[9]]
}

/// `prlimit(2)` that sets a soft limit and keeps the hard one.
pub fn set_limit(resource: u64, soft: u64) -> u64 {
    let mut limit = [0_u64; 2];
    call(302, [0, resource, 0, limit.as_mut_ptr() as u64, 0, 0]);
    limit[0] = soft;
    call(302, [0, resource, limit.as_ptr() as u64, 0, 0, 0])
}

/// `prlimit(2)` that sets both limits.
pub fn set_limits(resource: u64, both: u64) -> u64 {
    let limit = [both; 2];
    call(302, [0, resource, limit.as_ptr() as u64, 0, 0, 0])
}

/// `getpid(2)`.
pub fn getpid() -> u64 {
    call(39, [0; 6])
}

/// A call that no Linux has.
pub fn nonsense() -> u64 {
    call(100_000, [0; 6])
}

/// `exit(2)`.
pub fn exit(status: u64) -> ! {
    call(60, [status, 0, 0, 0, 0, 0]);
    // `exit` does not return; ring 3 has nothing else to stop with.
    loop {
        core::hint::spin_loop();
    }
}

/// `exit_group(2)`.
pub fn exit_group(status: u64) -> ! {
    call(231, [status, 0, 0, 0, 0, 0]);
    loop {
        core::hint::spin_loop();
    }
}

/// `fork(2)`.
pub fn fork() -> u64 {
    call(57, [0; 6])
}

/// `wait4(2)`.
pub fn wait4(pid: u64, status: Option<&mut u32>, options: u64) -> u64 {
    let status = status.map_or(0, |status| core::ptr::from_mut(status) as u64);
    call(61, [pid, status, options, 0, 0, 0])
}

/// `waitid(2)`.
pub fn waitid(kind: u64, id: u64, info: &mut [u32; 32], options: u64) -> u64 {
    call(247, [kind, id, info.as_mut_ptr() as u64, options, 0, 0])
}

/// `gettid(2)`.
pub fn gettid() -> u64 {
    call(186, [0; 6])
}

/// `getppid(2)`.
pub fn getppid() -> u64 {
    call(110, [0; 6])
}

/// `setsid(2)`.
pub fn setsid() -> u64 {
    call(112, [0; 6])
}

/// `setpgid(2)`.
pub fn setpgid(pid: u64, pgid: u64) -> u64 {
    call(109, [pid, pgid, 0, 0, 0, 0])
}

/// `getpgid(2)`.
pub fn getpgid(pid: u64) -> u64 {
    call(121, [pid, 0, 0, 0, 0, 0])
}

/// `sched_yield(2)`.
pub fn sched_yield() {
    call(24, [0; 6]);
}

/// `nanosleep(2)`.
pub fn nanosleep(seconds: u64, nanoseconds: u64) {
    let time = [seconds, nanoseconds];
    call(35, [time.as_ptr() as u64, 0, 0, 0, 0, 0]);
}

/// `sched_getaffinity(2)`.
pub fn sched_getaffinity(tid: u64, mask: &mut [u64]) -> u64 {
    call(204, [tid, size_of_val(mask) as u64, mask.as_mut_ptr() as u64, 0, 0, 0])
}

/// `sched_setaffinity(2)`.
pub fn sched_setaffinity(tid: u64, mask: &[u64]) -> u64 {
    call(203, [tid, size_of_val(mask) as u64, mask.as_ptr() as u64, 0, 0, 0])
}

/// The CPU that this runs on.
pub fn getcpu() -> u64 {
    let mut cpu = 0_u32;
    call(309, [&raw mut cpu as u64, 0, 0, 0, 0, 0]);
    u64::from(cpu)
}

/// `clone(2)` with these flags and nothing else, where they are refused.
pub fn clone_raw(flags: u64) -> u64 {
    call(56, [flags, 0, 0, 0, 0, 0])
}

/// A thread that runs `f(argument)` on the stack that ends at `top`. `tid` gets its number, and 0 when it has ended; FS is its `block`.
pub fn clone_thread(top: u64, f: extern "C" fn(u64) -> !, argument: u64, tid: u64, block: u64) -> u64 {
    // VM FS FILES SIGHAND THREAD SETTLS PARENT_SETTID CHILD_CLEARTID
    const FLAGS: u64 = 0x3d_0f00 & !0x4_0000;
    let result;
    // SAFETY: the child has a stack of its own, touches nothing of this frame, and `f` does not return.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inout("rax") 56_u64 => result,
            in("rdi") FLAGS,
            in("rsi") top,
            in("rdx") tid,
            in("r10") tid,
            in("r8") block,
            in("r12") f,
            in("r13") argument,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// The word that FS points to.
pub fn thread_pointer() -> u64 {
    let pointer;
    // SAFETY: threads have a block, whose first word is its address.
    unsafe { asm!("mov {}, fs:[0]", out(reg) pointer, options(nostack, readonly)) };
    pointer
}

/// vfork; the child stores `value` and ends with `status` at once.
pub fn vfork_store(word: *mut u64, value: u64, status: u64) -> u64 {
    let result;
    // SAFETY: the child touches only registers and the word, before this goes on.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov [r12], r13",
            "mov rdi, r14",
            "mov eax, 60",
            "syscall",
            "ud2",
            "2:",
            inout("rax") 58_u64 => result,
            in("r12") word,
            in("r13") value,
            in("r14") status,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

// What a handler returns to.
global_asm!(".globl signal_return", "signal_return:", "mov eax, 15", "syscall", "ud2");

unsafe extern "C" {
    fn signal_return();
}

/// Address of what a handler returns to.
pub fn restorer() -> u64 {
    signal_return as *const () as u64
}

/// Whether an SSE register keeps a value over `tgkill` of this thread with a signal whose handler changes it.
pub fn sse_keeps_over_signal(value: u64, pid: u64, tid: u64, signal: u64) -> bool {
    let found: u64;
    // SAFETY: as for `sse_keeps`; the handler comes back with all registers.
    unsafe {
        asm!(
            "movq xmm7, {value}",
            "syscall",
            "movq {found}, xmm7",
            value = in(reg) value,
            found = lateout(reg) found,
            inout("rax") 234_u64 => _,
            in("rdi") pid,
            in("rsi") tid,
            in("rdx") signal,
            out("rcx") _,
            out("r11") _,
        );
    }
    found == value
}

/// Changes the SSE register that the others look at.
pub fn spoil_sse() {
    // SAFETY: SSE registers are not used otherwise.
    unsafe { asm!("pcmpeqd xmm7, xmm7", options(nostack, nomem)) };
}

/// An instruction that traps.
#[derive(Clone, Copy, Debug)]
pub enum Trap {
    /// Reads this address; two bytes long.
    Read(u64),
    /// Writes to this address; two bytes long.
    Write(u64),
    /// Calls what is there; the trap comes at the address itself.
    Call(u64),
    /// Divides by zero; two bytes long.
    Divide,
    /// Undefined; two bytes long.
    Undefined,
    /// A breakpoint; one byte long, and the trap comes behind it.
    Breakpoint,
}

/// Executes it. A handler goes on behind the instruction.
pub fn trap(what: Trap) {
    // SAFETY (all arms): a handler is there and changes no register but RIP.
    match what {
        // SAFETY: as above; the instruction reads to a register that is given up.
        Trap::Read(address) => unsafe { asm!("mov al, [rdi]", in("rdi") address, out("rax") _) },
        // SAFETY: as above; what is at the address is the caller's for that.
        Trap::Write(address) => unsafe { asm!("mov [rdi], al", in("rdi") address, in("rax") 0x77_u64) },
        // SAFETY: as above; what is there returns at once, or the handler does in its place.
        Trap::Call(address) => unsafe { asm!("call rdi", in("rdi") address, clobber_abi("sysv64")) },
        // SAFETY: as above.
        Trap::Divide => unsafe {
            asm!("div ecx", inout("rax") 1_u64 => _, inout("rdx") 0_u64 => _, in("rcx") 0_u64);
        },
        // SAFETY: as above.
        Trap::Undefined => unsafe { asm!("ud2") },
        // SAFETY: as above.
        Trap::Breakpoint => unsafe { asm!("int3") },
    }
}

/// Writes to an address that may not be there, by an instruction of two bytes.
pub fn store(address: u64, value: u64) {
    let value = u32::try_from(value & 0xffff_ffff).unwrap_or(0);
    // SAFETY: the address is of memory that only such stores and loads use; a handler passes over what is refused.
    unsafe { asm!("mov [rdi], eax", in("rdi") address, in("eax") value, options(nostack)) };
}

/// Reads from an address that may not be there, by an instruction of two bytes; `otherwise` where a handler passed over it.
pub fn load(address: u64, otherwise: u64) -> u64 {
    let missing = u32::try_from(otherwise & 0xffff_ffff).unwrap_or(0);
    let mut value = missing;
    // SAFETY: as for `store`.
    unsafe { asm!("mov eax, [rdi]", in("rdi") address, inout("eax") value, options(nostack, readonly)) };
    if value == missing { otherwise } else { u64::from(value) }
}

/// Uses all of the stack, and more.
pub fn overflow_stack() -> ! {
    // SAFETY: it ends the process, by design, at the first page that is not there.
    unsafe { asm!("2:", "push rax", "jmp 2b", options(noreturn)) };
}

/// Whether an SSE register keeps a value for so many turns of a loop.
pub fn sse_keeps(value: u64, turns: u64) -> bool {
    let found: u64;
    // SAFETY: SSE registers are not used otherwise: the program is compiled without them.
    unsafe {
        asm!(
            "movq xmm7, {value}",
            "2:",
            "dec {turns}",
            "jnz 2b",
            "movq {found}, xmm7",
            value = in(reg) value,
            turns = inout(reg) turns => _,
            found = out(reg) found,
            options(nostack, nomem),
        );
    }
    found == value
}

/// Standard output, unbuffered.
#[derive(Debug)]
pub struct Out;

impl fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    write(b"user: panic\n");
    exit(101)
}
