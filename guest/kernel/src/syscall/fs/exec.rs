//! execve, execveat (Linux: fs/exec.c).

use mm_vma::Errno;

use super::{AT_EMPTY_PATH, Target, ints, task};
use crate::arch::trap::TrapFrame;
use crate::elf::Bundled;
use crate::exec;
use crate::fs::program;
use crate::syscall::int;

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

fn execve(frame: &mut TrapFrame, path: (i32, u64), argv: u64, envp: u64) -> Result<u64, Errno> {
    let target = Target::new(path.0, path.1)?;
    let task = task()?;
    let strings = exec::read_strings(&task.limits(), path.1, argv, envp)?;
    *frame = match program::run(&task, target.base, strings) {
        // A machine without an initramfs has one program all the same.
        Err(Errno::Enoent) if target.path == b"init" => {
            let strings = exec::read_strings(&task.limits(), path.1, argv, envp)?;
            exec::exec(&task, &Bundled::open()?, &strings)?
        }
        outcome => outcome?,
    };
    Ok(0)
}
