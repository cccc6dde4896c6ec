//! execve, execveat (Linux: fs/exec.c).

use alloc::vec::Vec;

use mm_vma::Errno;

use super::{AT_EMPTY_PATH, Target, ints, task};
use crate::arch::trap::TrapFrame;
use crate::fs::program::{self, Arguments};
use crate::syscall::int;
use crate::uaccess;

/// Longest argument (Linux: `MAX_ARG_STRLEN`).
const ARGUMENT_MAX: usize = 32 * 4096;
/// Most arguments; their sum is limited by the stack.
const ARGUMENTS_MAX: u64 = 1 << 16;

/// The calls of this file.
pub fn call(number: u64, frame: &mut TrapFrame) -> Option<Result<u64, Errno>> {
    let ([a, b, c, d, e, _], [dirfd, ..]) = ints(frame);
    Some(match number {
        59 => execve(frame, (super::AT_FDCWD, a), b, c),
        322 if int(e) & !(AT_EMPTY_PATH | super::AT_SYMLINK_NOFOLLOW) == 0 => execve(frame, (dirfd, b), c, d),
        322 => Err(Errno::Einval),
        _ => return None,
    })
}

fn execve(frame: &mut TrapFrame, path: (i32, u64), args: u64, env: u64) -> Result<u64, Errno> {
    let target = Target::new(path.0, path.1)?;
    let arguments = Arguments { args: texts(args)?, env: texts(env)? };
    *frame = program::run(&task()?, target.base, &target.path, arguments)?;
    Ok(0)
}

/// Texts that a list of pointers names.
fn texts(list: u64) -> Result<Vec<Vec<u8>>, Errno> {
    let mut texts = Vec::new();
    if list == 0 {
        return Ok(texts);
    }
    for number in 0.. {
        let address: u64 = uaccess::get_user(list + 8 * number)?;
        if address == 0 {
            break;
        }
        if number >= ARGUMENTS_MAX {
            return Err(Errno::E2big);
        }
        texts.try_reserve(1).map_err(|_| Errno::Enomem)?;
        texts.push(text(address)?);
    }
    Ok(texts)
}

fn text(address: u64) -> Result<Vec<u8>, Errno> {
    let mut size = 256;
    loop {
        let mut text = Vec::new();
        text.try_reserve_exact(size).map_err(|_| Errno::Enomem)?;
        text.resize(size, 0);
        if let Some(len) = uaccess::read_text(address, &mut text)? {
            text.truncate(len);
            text.shrink_to_fit();
            return Ok(text);
        }
        if size >= ARGUMENT_MAX {
            return Err(Errno::E2big);
        }
        size *= 8;
    }
}
