//! execve, and what a program finds on its stack.

use core::ffi::CStr;

use crate::processes::{child, thread, wait};
use crate::program::{Checks, EFAULT};
use crate::sys::{self, call};

const E2BIG: u64 = 7_u64.wrapping_neg();
const ENOENT: u64 = 2_u64.wrapping_neg();
const ENAMETOOLONG: u64 = 36_u64.wrapping_neg();
/// A program with this argument looks at its stack and ends.
const ASKED: &CStr = c"look";

/// The word at `index` of the stack that the program began with.
fn word(stack: *const u64, index: usize) -> u64 {
    // SAFETY: the kernel's words go on to the auxiliary vector's end.
    let at = unsafe { stack.add(index) };
    // SAFETY: as above.
    unsafe { at.read() }
}

fn text(address: u64) -> &'static CStr {
    // SAFETY: the kernel's strings end with a zero.
    unsafe { CStr::from_ptr(address as *const _) }
}

/// Whether this is the program that [`execve`] begins.
pub fn is_asked(stack: *const u64) -> bool {
    word(stack, 0) >= 2 && text(word(stack, 2)) == ASKED
}

/// Looks, and ends with the number of things that are wrong.
pub fn run(stack: *const u64) -> ! {
    let mut checks = Checks::new();
    checks.check("RSP is a multiple of 16", (stack as u64).is_multiple_of(16));
    checks.check(
        "three arguments",
        word(stack, 0) == 3 && text(word(stack, 1)) == c"me" && word(stack, 4) == 0,
    );
    checks.check("whoever began it leads the process", sys::gettid() == sys::getpid());
    checks.check("an empty one", text(word(stack, 3)) == c"");
    checks.check("an environment", text(word(stack, 5)) == c"A=b" && word(stack, 6) == 0);
    let value = |key: u64| {
        let pairs = (7..).step_by(2).map(|at| (word(stack, at), word(stack, at + 1)));
        pairs.take_while(|pair| pair.0 != 0).find(|pair| pair.0 == key).map_or(0, |pair| pair.1)
    };
    checks.check("AT_PAGESZ", value(6) == 4096);
    // This program's segments do not have its headers.
    checks.check("AT_PHDR, AT_PHENT, AT_PHNUM", value(3) == 0 && value(4) == 56 && value(5) >= 3);
    checks.check("AT_EXECFN", text(value(31)) == c"init");
    checks.check("AT_PLATFORM", text(value(15)) == c"x86_64");
    // SAFETY: AT_RANDOM is the address of 16 bytes.
    let random = unsafe { (value(25) as *const [u8; 16]).read() };
    checks.check("AT_RANDOM", random != [0; 16]);
    sys::exit(checks.failed())
}

fn exec(path: &CStr, argv: &[u64], envp: &[u64]) -> u64 {
    call(59, [path.as_ptr() as u64, argv.as_ptr() as u64, envp.as_ptr() as u64, 0, 0, 0])
}

/// Becomes this program again, which looks at its arguments and ends.
pub fn exec_self() -> u64 {
    let address = |text: &CStr| text.as_ptr() as u64;
    exec(c"init", &[address(c"me"), address(ASKED), address(c""), 0], &[address(c"A=b"), 0])
}

/// A program in a child, and the errors of the call.
pub fn execve(checks: &mut Checks) {
    let address = |text: &CStr| text.as_ptr() as u64;
    let argv = [address(c"me"), address(ASKED), address(c""), 0];
    let envp = [address(c"A=b"), 0];
    let pid = child(exec_self);
    checks.check("a new program finds its arguments", wait(pid, 0) == (pid, 0));
    extern "C" fn exec_in_thread(_: u64) -> ! {
        exec_self();
        sys::exit(91)
    }
    for leader_ends in [false, true] {
        let pid = child(|| {
            thread(0, exec_in_thread);
            if leader_ends {
                sys::exit(92);
            }
            loop {
                sys::pause();
            }
        });
        let what = if leader_ends {
            "a thread executes a program after the leader ended"
        } else {
            "a thread executes a program, and the leader ends"
        };
        checks.check(what, wait(pid, 0) == (pid, 0));
    }
    checks.check("there is no such program", exec(c"nothing", &argv, &envp) == ENOENT);
    checks.check("nor one without a name", exec(c"", &argv, &envp) == ENOENT);
    checks.check("a bad list is EFAULT", call(59, [address(c"init"), 0x1000, 0, 0, 0, 0]) == EFAULT);
    checks.check("a bad string is EFAULT", exec(c"init", &[0x1000, 0], &envp) == EFAULT);
    let start = sys::mmap(0, 256 << 10, 3, 0x22, u64::MAX);
    let len = 128 << 10;
    // SAFETY: mapped just now; the last byte stays zero.
    unsafe { core::slice::from_raw_parts_mut(start as *mut u8, len).fill(b'x') };
    checks.check("a string of 128 KiB is E2BIG", exec(c"init", &[start, 0], &envp) == E2BIG);
    // SAFETY: as above.
    let long = unsafe { CStr::from_ptr(start as *const _) };
    checks.check("a path of 128 KiB is ENAMETOOLONG", exec(long, &argv, &envp) == ENAMETOOLONG);
    sys::munmap(start, 256 << 10);
}
