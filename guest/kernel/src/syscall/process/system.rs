//! uname, prctl, arch_prctl (Linux: kernel/sys.c, arch/x86/kernel/process_64.c).

use core::sync::atomic::Ordering;

use guest_fs::proc::Names;
use mm_vma::Errno;

use super::super::{arguments, int};
use crate::arch::trap::TrapFrame;
use crate::mm::space;
use crate::sched;
use crate::task::{Task, current};
use crate::uaccess;
use crate::utsname::NAMES;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, ..] = arguments(frame);
    Some(match number {
        63 => uname(a),
        157 => prctl(int(a), b),
        158 => arch_prctl(int(a), b),
        _ => return None,
    })
}

/// Bytes of a field of `struct new_utsname`.
const UTS: usize = 65;

#[inline(never)]
fn uname(address: u64) -> Result<u64, Errno> {
    let Names { sysname, nodename, release, version, machine, domainname } = NAMES;
    let fields = [sysname, nodename, release, version, machine, domainname];
    let mut at = address;
    for field in fields {
        let mut bytes = [0; UTS];
        bytes.iter_mut().zip(field.bytes()).for_each(|(to, from)| *to = from);
        uaccess::write(at, &bytes)?;
        at += UTS as u64;
    }
    Ok(0)
}

fn prctl(option: u32, argument: u64) -> Result<u64, Errno> {
    const GET_DUMPABLE: u32 = 3;
    const SET_DUMPABLE: u32 = 4;
    const SET_NAME: u32 = 15;
    const GET_NAME: u32 = 16;
    const SET_CHILD_SUBREAPER: u32 = 36;
    const GET_CHILD_SUBREAPER: u32 = 37;
    let task = current().ok_or(Errno::Esrch)?;
    let subreaper = &task.process.is_subreaper;
    match option {
        GET_DUMPABLE => return Ok(1),
        SET_DUMPABLE if argument > 1 => return Err(Errno::Einval),
        SET_DUMPABLE => {}
        SET_NAME => {
            let mut name = [0; 16];
            // What is longer is cut.
            uaccess::read_text(argument, &mut name[..15])?;
            let end = name.iter().position(|&byte| byte == 0).unwrap_or(15);
            name[end..].fill(0);
            sched::set_comm(task.number(), name);
        }
        GET_NAME => uaccess::put_user(argument, sched::comm(task.number()))?,
        SET_CHILD_SUBREAPER => subreaper.store(argument != 0, Ordering::Relaxed),
        GET_CHILD_SUBREAPER => uaccess::put_user(argument, u32::from(subreaper.load(Ordering::Relaxed)))?,
        _ => return Err(Errno::Einval),
    }
    Ok(0)
}

fn arch_prctl(option: u32, address: u64) -> Result<u64, Errno> {
    const SET_GS: u32 = 0x1001;
    const SET_FS: u32 = 0x1002;
    const GET_FS: u32 = 0x1003;
    const GET_GS: u32 = 0x1004;
    let task = current().ok_or(Errno::Esrch)?;
    let checked = || if space::is_user_address(address) { Ok(address) } else { Err(Errno::Eperm) };
    match option {
        SET_FS => Task::set_fs_base(&task, checked()?),
        SET_GS => Task::set_gs_base(&task, checked()?),
        GET_FS => uaccess::put_user(address, task.fs_base())?,
        GET_GS => uaccess::put_user(address, task.gs_base())?,
        _ => return Err(Errno::Einval),
    }
    Ok(0)
}
