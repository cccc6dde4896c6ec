//! Which program a file is: one of its own, or a script of another (Linux: fs/exec.c, `exec_binprm`; fs/binfmt_script.c).

use alloc::vec::Vec;

use guest_fs::{Follow, Place};
use guest_process::stack::Strings;
use mm_vma::Errno;

use super::{ExecFile, context, open_exec};
use crate::arch::trap::TrapFrame;
use crate::exec::{self, Source};
use crate::task::Current;

/// Bytes of a file that say what it is (Linux: `BINPRM_BUF_SIZE`).
const HEAD: usize = 256;
/// Scripts of scripts (Linux: `exec_binprm`).
const DEPTH: u32 = 5;

/// Gives the current task the program at the path that `strings` have, from `base` on; returns the registers that it begins with.
///
/// # Errors
/// Those of execve(2); the old program goes on.
pub fn run(task: &Current, base: Place, mut strings: Strings) -> Result<TrapFrame, Errno> {
    let mut file = open_exec(base, strings.path(), Follow::Yes)?;
    let mut path = copy(strings.path())?;
    let mut head = [0; HEAD];
    let mut depth = 0;
    loop {
        let len = file.read(0, &mut head);
        let Some(script) = head.get(..len).and_then(|head| head.strip_prefix(b"#!")) else { break };
        depth += 1;
        if depth > DEPTH {
            return Err(Errno::Eloop);
        }
        let (interpreter, option) = interpreter(script).ok_or(Errno::Enoexec)?;
        strings.interpret(interpreter, option, &path)?;
        path = copy(interpreter)?;
        file = open_exec(context()?.cwd, &path, Follow::Yes)?;
    }
    let frame = exec::exec(task, &file, &strings)?;
    task.files.exec(file.place(), copy(strings.args()).unwrap_or_default());
    Ok(frame)
}

fn copy(bytes: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| Errno::Enomem)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

impl Source for ExecFile {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> usize {
        ExecFile::read(self, offset, bytes)
    }

    fn map(&self) -> mm_vma::MapFile {
        ExecFile::map(self)
    }
}

/// Interpreter and its only argument, from what follows `#!` (Linux: `load_script`).
fn interpreter(script: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let end = script.iter().position(|byte| *byte == b'\n');
    let line = script.get(..end.unwrap_or(script.len()))?.trim_ascii();
    let len = line.iter().position(|byte| is_blank(byte) || *byte == 0).unwrap_or(line.len());
    // A name that goes on behind what was read is not the interpreter's.
    if len == 0 || end.is_none() && len == line.len() && script.len() >= HEAD - 2 {
        return None;
    }
    let (name, rest) = line.split_at(len);
    let rest = rest.trim_ascii();
    Some((name, (!rest.is_empty()).then_some(rest)))
}
