//! Numbers of processes, groups, sessions, users (Linux: kernel/sys.c, kernel/pid.c).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use mm_vma::Errno;

use super::super::{arguments, signed};
use crate::arch::trap::TrapFrame;
use crate::task::{self, Process, current};
use crate::uaccess;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, ..] = arguments(frame);
    Some(match number {
        39 => own(|process| process.pid),
        // getuid, getgid, geteuid, getegid: everybody is root.
        102 | 104 | 107 | 108 => Ok(0),
        // setuid, setgid, setreuid, setregid, setresuid, setresgid, setfsuid, setfsgid: to what they are.
        105 | 106 | 113 | 114 | 117 | 119 | 122 | 123 => become_root(number, [a, b, c]),
        109 => setpgid(signed(a), signed(b)),
        110 => own(Process::parent),
        111 => own(Process::pgid),
        112 => setsid(),
        // getgroups: none.
        115 => Ok(0),
        // setgroups
        116 => Ok(0),
        118 | 120 => root_ids([a, b, c]),
        121 => of(signed(a), Process::pgid),
        124 => of(signed(a), Process::sid),
        186 => current().map(|task| u64::from(task.tid())).ok_or(Errno::Esrch),
        218 => set_tid_address(a),
        _ => return None,
    })
}

fn own(f: impl FnOnce(&Process) -> u32) -> Result<u64, Errno> {
    Ok(u64::from(f(&current().ok_or(Errno::Esrch)?.process)))
}

/// A number of the process `pid`, 0 for the caller.
fn of(pid: i32, f: impl FnOnce(&Process) -> u32) -> Result<u64, Errno> {
    match pid {
        0 => own(f),
        _ => {
            let task = u32::try_from(pid).ok().and_then(task::find_task).ok_or(Errno::Esrch)?;
            Ok(u64::from(f(&task.process)))
        }
    }
}

/// Differs from Linux: there is one user, so that giving up its rights is refused and not done.
fn become_root(number: u64, ids: [u64; 3]) -> Result<u64, Errno> {
    const SETFSUID: u64 = 122;
    let used = match number {
        105 | 106 => 1,
        113 | 114 => 2,
        117 | 119 => 3,
        // They return the old number and no error.
        SETFSUID.. => return Ok(0),
        _ => 0,
    };
    let unchanged = u32::MAX;
    let right = |&id: &u64| super::int(id) == 0 || (used > 1 && super::int(id) == unchanged);
    if ids.iter().take(used).all(right) { Ok(0) } else { Err(Errno::Eperm) }
}

/// getresuid, getresgid.
fn root_ids(addresses: [u64; 3]) -> Result<u64, Errno> {
    for address in addresses {
        uaccess::put_user(address, 0_u32)?;
    }
    Ok(0)
}

fn setpgid(pid: i32, pgid: i32) -> Result<u64, Errno> {
    let me = current().ok_or(Errno::Esrch)?;
    let me = &me.process;
    let pid = if pid == 0 { me.pid } else { u32::try_from(pid).map_err(|_| Errno::Esrch)? };
    let pgid = if pgid == 0 { pid } else { u32::try_from(pgid).map_err(|_| Errno::Einval)? };
    task::with_relations(|processes, _| {
        let target = processes.iter().find(|process| process.pid == pid).ok_or(Errno::Esrch)?;
        if target.parent() == me.pid {
            if target.sid() != me.sid() {
                return Err(Errno::Eperm);
            }
            if target.has_execed.load(Ordering::Relaxed) {
                return Err(Errno::Eacces);
            }
        } else if target.pid != me.pid {
            return Err(Errno::Esrch);
        }
        if target.sid() == target.pid {
            return Err(Errno::Eperm);
        }
        let in_session = |process: &Arc<Process>| process.pgid() == pgid && process.sid() == me.sid();
        if pgid != pid && !processes.iter().any(in_session) {
            return Err(Errno::Eperm);
        }
        target.set_pgid(pgid);
        Ok(0)
    })
}

fn setsid() -> Result<u64, Errno> {
    let me = current().ok_or(Errno::Eperm)?;
    let me = &me.process;
    task::with_relations(|processes, _| {
        if processes.iter().any(|process| process.pgid() == me.pid) {
            return Err(Errno::Eperm);
        }
        me.set_sid(me.pid);
        me.set_pgid(me.pid);
        Ok(u64::from(me.pid))
    })
}

fn set_tid_address(address: u64) -> Result<u64, Errno> {
    let task = current().ok_or(Errno::Esrch)?;
    task.clear_child_tid.store(address, Ordering::Relaxed);
    Ok(u64::from(task.tid()))
}
