//! The stack a program begins with (Linux: fs/exec.c, `copy_strings`; fs/binfmt_elf.c, `create_elf_tables`).
//!
//! From the top down, as Linux has it:
//!
//! ```text
//! top       eight bytes of zero
//!           the program's path                      AT_EXECFN
//!           strings of the environment
//!           strings of the arguments
//!           (a random distance, then down to 16 bytes)
//!           "x86_64"                                AT_PLATFORM
//!           16 random bytes                         AT_RANDOM
//!           (down to 16 bytes)
//!           auxiliary vector, pairs, AT_NULL last
//!           environment, pointers, a null last
//!           arguments, pointers, a null last
//! sp        number of arguments; a multiple of 16
//! ```

#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::Errno;

const PAGE: u64 = 4096;
/// A string with its end is at most this long (Linux: `MAX_ARG_STRLEN`).
pub const MAX_ARG_STRLEN: usize = 32 * 4096;
/// Strings and pointers may always have this much (Linux: `ARG_MAX`), ...
const ARG_MAX: u64 = 32 * PAGE;
/// ... and never more than this: three quarters of the usual stack (Linux: `bprm_stack_limits`).
const STRINGS_MAX: u64 = (8 << 20) / 4 * 3;
/// Most that the random distance can be (Linux: `arch_align_stack`).
pub const RANDOM_DISTANCE: u64 = 8192;
const PLATFORM: &[u8] = b"x86_64\0";
const WORD: u64 = 8;

/// What a program is told: its arguments, its environment, its path. They are collected before the old program's memory is
/// gone.
#[derive(Clone, Debug)]
pub struct Strings {
    args: Vec<u8>,
    env: Vec<u8>,
    path: Vec<u8>,
    argc: u64,
    envc: u64,
    limit: u64,
}

impl Strings {
    /// None yet. `stack_limit` is RLIMIT_STACK, of which a quarter may be used.
    pub fn new(stack_limit: u64) -> Strings {
        let limit = STRINGS_MAX.min(stack_limit / 4).max(ARG_MAX);
        Strings { args: Vec::new(), env: Vec::new(), path: Vec::new(), argc: 0, envc: 0, limit }
    }

    /// Adds an argument, without its final zero.
    ///
    /// # Errors
    /// E2BIG if it is longer than [`MAX_ARG_STRLEN`] or all together need too much; ENOMEM.
    pub fn push_arg(&mut self, text: &[u8]) -> Result<(), Errno> {
        self.room_for(text, 1)?;
        append(&mut self.args, text)?;
        self.argc += 1;
        Ok(())
    }

    /// Adds a string of the environment, without its final zero.
    ///
    /// # Errors
    /// As [`Strings::push_arg`].
    pub fn push_env(&mut self, text: &[u8]) -> Result<(), Errno> {
        self.room_for(text, 1)?;
        append(&mut self.env, text)?;
        self.envc += 1;
        Ok(())
    }

    /// Sets the program's path as execve got it, without its final zero.
    ///
    /// # Errors
    /// As [`Strings::push_arg`].
    pub fn set_path(&mut self, text: &[u8]) -> Result<(), Errno> {
        self.path.clear();
        self.room_for(text, 0)?;
        append(&mut self.path, text)
    }

    /// Puts the interpreter of a script, its option and the script's path in the place of the first argument (Linux: `load_script`).
    ///
    /// # Errors
    /// As [`Strings::push_arg`].
    pub fn interpret(
        &mut self,
        interpreter: &[u8],
        option: Option<&[u8]>,
        script: &[u8],
    ) -> Result<(), Errno> {
        let old = core::mem::take(&mut self.args);
        self.argc = 0;
        self.push_arg(interpreter)?;
        option.map_or(Ok(()), |option| self.push_arg(option))?;
        self.push_arg(script)?;
        let rest = old.strip_suffix(b"\0").unwrap_or_default().split(|&byte| byte == 0).skip(1);
        rest.into_iter().try_for_each(|arg| self.push_arg(arg))
    }

    /// Number of arguments.
    pub const fn argc(&self) -> u64 {
        self.argc
    }

    /// The arguments, a zero behind each (as in `/proc/PID/cmdline`).
    pub fn args(&self) -> &[u8] {
        &self.args
    }

    /// The program's path, without a final zero.
    pub fn path(&self) -> &[u8] {
        self.path.strip_suffix(b"\0").unwrap_or(&self.path)
    }

    fn bytes(&self) -> u64 {
        (self.args.len() + self.env.len() + self.path.len()) as u64
    }

    fn room_for(&self, text: &[u8], pointers: u64) -> Result<(), Errno> {
        let pointers = (self.argc + self.envc + pointers).max(1) * WORD;
        let needed = self.bytes() + text.len() as u64 + 1 + pointers;
        // A zero inside would make two strings of one.
        if text.contains(&0) {
            return Err(Errno::Einval);
        }
        if text.len() >= MAX_ARG_STRLEN || needed > self.limit { Err(Errno::E2big) } else { Ok(()) }
    }
}

fn append(to: &mut Vec<u8>, text: &[u8]) -> Result<(), Errno> {
    to.try_reserve(text.len() + 1).map_err(|_| Errno::Enomem)?;
    to.extend_from_slice(text);
    to.push(0);
    Ok(())
}

/// What the auxiliary vector says of this program and machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where the program headers are in memory, bias included (`AT_PHDR`).
    pub program_headers: u64,
    /// How many there are (`AT_PHNUM`).
    pub program_header_count: u16,
    /// First instruction of the program, bias included (`AT_ENTRY`).
    pub entry: u64,
    /// CPUID leaf 1, EDX (`AT_HWCAP`).
    pub hwcap: u64,
    /// Bit 1: FSGSBASE may be used (`AT_HWCAP2`).
    pub hwcap2: u64,
    /// Least size of a stack for signal handlers (`AT_MINSIGSTKSZ`).
    pub min_signal_stack: u64,
    /// User, effective user, group, effective group.
    pub ids: [u32; 4],
    /// Random bytes (`AT_RANDOM`).
    pub random: [u8; 16],
}

/// Where everything on a new stack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What RSP is at the program's first instruction; a multiple of 16.
    pub sp: u64,
    /// The arguments' strings (Linux: `mm->arg_start`).
    pub arg_start: u64,
    /// The environment's strings, and the end of the arguments' (Linux: `mm->env_start`, `mm->arg_end`).
    pub env_start: u64,
    /// End of the environment's strings (Linux: `mm->env_end`).
    pub env_end: u64,
    /// The auxiliary vector (Linux: what `mm->saved_auxv` is a copy of).
    pub auxv: u64,
    platform: u64,
    random: u64,
}

/// Pairs of the auxiliary vector, the last included.
const AUX_PAIRS: usize = 20;

impl Layout {
    /// Places `strings` below `top`, a multiple of 16. `distance` is random, below [`RANDOM_DISTANCE`], or 0 without
    /// randomisation.
    ///
    /// # Errors
    /// ENOMEM if there is no room below `top`.
    pub fn plan(strings: &Strings, top: u64, distance: u64) -> Result<Layout, Errno> {
        Self::checked(strings, top, distance).ok_or(Errno::Enomem)
    }

    fn checked(strings: &Strings, top: u64, distance: u64) -> Option<Layout> {
        let env_end = top.checked_sub(WORD + strings.path.len() as u64)?;
        let env_start = env_end.checked_sub(strings.env.len() as u64)?;
        // Without arguments there is one, an empty string (Linux: `do_execveat_common`).
        let arg_start = env_start.checked_sub(strings.args.len().max(1) as u64)?;
        let platform = (arg_start.checked_sub(distance)? & !15).checked_sub(PLATFORM.len() as u64)?;
        let random = platform.checked_sub(16)?;
        let pointers = 1 + (strings.argc.max(1) + 1) + (strings.envc + 1);
        let words = pointers + 2 * AUX_PAIRS as u64;
        let sp = random.checked_sub(words * WORD)? & !15;
        Some(Layout { sp, arg_start, env_start, env_end, auxv: sp + pointers * WORD, platform, random })
    }

    /// Bytes from `sp` to `top`: so much of the stack must be there.
    pub const fn len_below(&self, top: u64) -> u64 {
        top - self.sp
    }

    /// Writes all of it by `write(address, bytes)`, which need not be called in any order of addresses.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn write<E>(
        &self,
        strings: &Strings,
        facts: &Facts,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let args: &[u8] = if strings.argc == 0 { b"\0" } else { &strings.args };
        write(self.arg_start, args)?;
        write(self.env_start, &strings.env)?;
        write(self.env_end, &strings.path)?;
        write(self.env_end + strings.path.len() as u64, &[0; 8])?;
        write(self.platform, PLATFORM)?;
        write(self.random, &facts.random)?;
        let mut words = Words { at: self.sp, len: 0, buffer: [0; 256], write };
        words.push(strings.argc.max(1))?;
        words.pointers(self.arg_start, args)?;
        words.pointers(self.env_start, &strings.env)?;
        for (key, value) in self.auxv_pairs(facts) {
            words.push(key)?;
            words.push(value)?;
        }
        words.flush()
    }

    /// In Linux's order, so that a program which prints it prints the same.
    fn auxv_pairs(&self, facts: &Facts) -> [(u64, u64); AUX_PAIRS] {
        const PROGRAM_HEADER_LEN: u64 = 56;
        const TICKS_A_SECOND: u64 = 100;
        let [uid, euid, gid, egid] = facts.ids.map(u64::from);
        [
            (51, facts.min_signal_stack),                // AT_MINSIGSTKSZ
            (16, facts.hwcap),                           // AT_HWCAP
            (6, PAGE),                                   // AT_PAGESZ
            (17, TICKS_A_SECOND),                        // AT_CLKTCK
            (3, facts.program_headers),                  // AT_PHDR
            (4, PROGRAM_HEADER_LEN),                     // AT_PHENT
            (5, u64::from(facts.program_header_count)),  // AT_PHNUM
            (7, 0),                                      // AT_BASE: no interpreter
            (8, 0),                                      // AT_FLAGS
            (9, facts.entry),                            // AT_ENTRY
            (11, uid),                                   // AT_UID
            (12, euid),                                  // AT_EUID
            (13, gid),                                   // AT_GID
            (14, egid),                                  // AT_EGID
            (23, u64::from(uid != euid || gid != egid)), // AT_SECURE
            (25, self.random),                           // AT_RANDOM
            (26, facts.hwcap2),                          // AT_HWCAP2
            (31, self.env_end),                          // AT_EXECFN
            (15, self.platform),                         // AT_PLATFORM
            (0, 0),                                      // AT_NULL
        ]
    }
}

/// Collects words, so that user memory is written in few pieces.
struct Words<W> {
    at: u64,
    len: usize,
    buffer: [u8; 256],
    write: W,
}

impl<E, W: FnMut(u64, &[u8]) -> Result<(), E>> Words<W> {
    fn push(&mut self, word: u64) -> Result<(), E> {
        if self.len == self.buffer.len() {
            self.flush()?;
        }
        if let Some(to) = self.buffer.get_mut(self.len..self.len + 8) {
            to.copy_from_slice(&word.to_le_bytes());
            self.len += 8;
        }
        Ok(())
    }

    /// A pointer to every string of `strings`, which are at `at`, and a null.
    fn pointers(&mut self, at: u64, strings: &[u8]) -> Result<(), E> {
        let mut start = at;
        for text in strings.split_inclusive(|&byte| byte == 0) {
            self.push(start)?;
            start += text.len() as u64;
        }
        self.push(0)
    }

    fn flush(&mut self) -> Result<(), E> {
        (self.write)(self.at, &self.buffer[..self.len])?;
        self.at += self.len as u64;
        self.len = 0;
        Ok(())
    }
}
