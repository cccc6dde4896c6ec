//! Calls on paths (Linux: fs/namei.c, fs/stat.c, fs/open.c, fs/readdir.c).

use guest_fs::{Device, Follow, Kind, Memory, Place, RenameFlags, SetTime};
use mm_vma::Errno;

use super::{
    AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, Target, count, done, ints, path_at, task, with_files,
};
use crate::arch::trap::TrapFrame;
use crate::fs::source::memory;
use crate::fs::{self, with_vfs};
use crate::syscall::int;
use crate::uaccess;

/// link follows a symbolic link.
const AT_SYMLINK_FOLLOW: u32 = 0x400;
/// unlinkat removes a directory.
const AT_REMOVEDIR: u32 = 0x200;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let ([a, b, c, d, e, ..], [a_fd, _, c_fd, ..]) = ints(frame);
    let cwd = AT_FDCWD;
    Some(match number {
        4 => stat((cwd, a), b, 0),
        5 => fstat(int(a), b),
        6 => stat((cwd, a), b, AT_SYMLINK_NOFOLLOW),
        21 => access((cwd, a), int(b), 0),
        76 => truncate(a, b.cast_signed()),
        78 | 217 => getdents(int(a), b, c, number == 217),
        79 => getcwd(a, b),
        80 => chdir(a),
        81 => fchdir(int(a)),
        82 => rename((cwd, a), (cwd, b), 0),
        83 => mkdir((cwd, a), int(b)),
        84 => unlink((cwd, a), AT_REMOVEDIR),
        86 => link((cwd, a), (cwd, b), 0),
        87 => unlink((cwd, a), 0),
        88 => symlink(a, (cwd, b)),
        89 => readlink((cwd, a), b, c),
        90 => chmod((cwd, a), int(b), 0),
        91 => with_files(|files| files.get(int(a))).and_then(|file| change_mode(file.place, int(b))),
        92 => chown((cwd, a), int(b), int(c), 0),
        93 => with_files(|files| files.get(int(a))).and_then(|file| change_owner(file.place, int(b), int(c))),
        94 => chown((cwd, a), int(b), int(c), AT_SYMLINK_NOFOLLOW),
        95 => Ok(u64::from(task().ok()?.files.set_umask(int(a)))),
        132 => utime(a, b, 1),
        133 => mknod((cwd, a), int(b), int(c)),
        137 => statfs(a, b),
        138 => with_files(|files| files.get(int(a))).and_then(|file| put_statfs(file.place, b)),
        161 => chroot(a),
        235 => utime(a, b, 1000),
        258 => mkdir((a_fd, b), int(c)),
        259 => mknod((a_fd, b), int(c), int(d)),
        260 => chown((a_fd, b), int(c), int(d), int(e)),
        262 => stat((a_fd, b), c, int(d)),
        263 => unlink((a_fd, b), int(c)),
        264 => rename((a_fd, b), (c_fd, d), 0),
        265 => link((a_fd, b), (c_fd, d), int(e)),
        266 => symlink(a, (crate::syscall::signed(b), c)),
        267 => readlink((a_fd, b), c, d),
        268 => chmod((a_fd, b), int(c), 0),
        269 => access((a_fd, b), int(c), 0),
        280 => utimensat((a_fd, b), c, int(d)),
        316 => rename((a_fd, b), (c_fd, d), int(e)),
        332 => statx((a_fd, b), int(c), int(d), e),
        439 => access((a_fd, b), int(c), int(d)),
        452 => chmod((a_fd, b), int(c), int(d)),
        _ => return None,
    })
}

/// What a descriptor and a path name; a descriptor alone if the path is empty and the flags allow it.
fn place(path: (i32, u64), flags: u32) -> Result<(Target, Place), Errno> {
    let follow = if flags & AT_SYMLINK_NOFOLLOW == 0 { Follow::Yes } else { Follow::No };
    let target = Target::new(path.0, path.1)?;
    if target.path.is_empty() && flags & AT_EMPTY_PATH != 0 {
        let base = target.base;
        return Ok((target, base));
    }
    let place = with_vfs(|vfs| vfs.lookup(&target.context, target.base, &target.path, follow))?;
    Ok((target, place))
}

fn stat(path: (i32, u64), address: u64, flags: u32) -> Result<u64, Errno> {
    let (_target, place) = place(path, flags)?;
    let stat = with_vfs(|vfs| vfs.stat(place))?;
    done(uaccess::write(address, &stat.to_bytes()))
}

fn fstat(fd: u32, address: u64) -> Result<u64, Errno> {
    let file = with_files(|files| files.get(fd))?;
    let stat = with_vfs(|vfs| vfs.stat(file.place))?;
    done(uaccess::write(address, &stat.to_bytes()))
}

fn statx(path: (i32, u64), flags: u32, _mask: u32, address: u64) -> Result<u64, Errno> {
    let (_target, place) = place(path, flags)?;
    let stat = with_vfs(|vfs| vfs.stat(place))?;
    done(uaccess::write(address, &stat.to_statx()))
}

fn access(path: (i32, u64), mode: u32, flags: u32) -> Result<u64, Errno> {
    if mode & !7 != 0 {
        return Err(Errno::Einval);
    }
    let (_target, place) = place(path, flags)?;
    done(with_vfs(|vfs| vfs.access(place, mode)))
}

fn truncate(path: u64, len: i64) -> Result<u64, Errno> {
    if len < 0 {
        return Err(Errno::Einval);
    }
    let (target, place) = place((AT_FDCWD, path), 0)?;
    if !matches!(place.node, guest_fs::Node::Disk(_)) {
        return done(with_vfs(|vfs| vfs.truncate(&target.context, place, len)));
    }
    // The page of its new end is to be in the cache, which a file has once it is open.
    let file = with_vfs(|vfs| vfs.open_place(&target.context, place, guest_fs::OpenFlags::WRONLY))?;
    done(fs::OpenFile::new(file, true, true)?.truncate(len))
}

fn getdents(fd: u32, address: u64, len: u64, wide: bool) -> Result<u64, Errno> {
    if !wide {
        // The old structure: no C library of today asks for it.
        return Err(Errno::Enosys);
    }
    let file = with_files(|files| files.get(fd))?;
    match file.kind {
        Kind::Directory => {}
        Kind::Path => return Err(Errno::Ebadf),
        _ => return Err(Errno::Enotdir),
    }
    file.state.with(|state| {
        let (bytes, next) = with_vfs(|vfs| vfs.getdents(file.place, state.pos, count(len)))?;
        uaccess::write(address, &bytes)?;
        state.pos = next;
        Ok(bytes.len() as u64)
    })
}

fn getcwd(address: u64, len: u64) -> Result<u64, Errno> {
    let context = fs::context()?;
    let path = with_vfs(|vfs| vfs.getcwd(&context, count(len)))?;
    uaccess::write(address, &path)?;
    Ok(path.len() as u64)
}

/// Goes to a directory, which is held for the task.
fn go(place: Place, root: bool) -> Result<u64, Errno> {
    with_vfs(|vfs| {
        if !vfs.is_dir(place) {
            return Err(Errno::Enotdir);
        }
        vfs.hold(place);
        Ok(())
    })?;
    let (root, cwd) = if root { (Some(place), None) } else { (None, Some(place)) };
    done(with_files(|files| files.go(root, cwd)))
}

fn chdir(path: u64) -> Result<u64, Errno> {
    go(place((AT_FDCWD, path), 0)?.1, false)
}

fn fchdir(fd: u32) -> Result<u64, Errno> {
    let file = with_files(|files| files.get(fd))?;
    go(file.place, false)
}

fn chroot(path: u64) -> Result<u64, Errno> {
    go(place((AT_FDCWD, path), 0)?.1, true)
}

fn rename(from: (i32, u64), to: (i32, u64), flags: u32) -> Result<u64, Errno> {
    let (from, to) = (Target::new(from.0, from.1)?, Target::new(to.0, to.1)?);
    let flags = RenameFlags::from_bits_retain(flags);
    done(with_vfs(|vfs| vfs.rename(&from.context, from.at(), to.at(), flags)))
}

fn mkdir(path: (i32, u64), mode: u32) -> Result<u64, Errno> {
    let target = Target::new(path.0, path.1)?;
    done(with_vfs(|vfs| vfs.mkdir(&target.context, target.at(), mode)))
}

fn mknod(path: (i32, u64), mode: u32, device: u32) -> Result<u64, Errno> {
    let target = Target::new(path.0, path.1)?;
    done(with_vfs(|vfs| vfs.mknod(&target.context, target.at(), mode, Device::decode(device))))
}

fn unlink(path: (i32, u64), flags: u32) -> Result<u64, Errno> {
    let target = Target::new(path.0, path.1)?;
    match flags {
        0 => done(with_vfs(|vfs| vfs.unlink(&target.context, target.at()))),
        AT_REMOVEDIR => done(with_vfs(|vfs| vfs.rmdir(&target.context, target.at()))),
        _ => Err(Errno::Einval),
    }
}

fn link(from: (i32, u64), to: (i32, u64), flags: u32) -> Result<u64, Errno> {
    if flags & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::Einval);
    }
    let (from, to) = (Target::new(from.0, from.1)?, Target::new(to.0, to.1)?);
    if from.path.is_empty() && flags & AT_EMPTY_PATH != 0 {
        return done(with_vfs(|vfs| vfs.link_place(&to.context, from.base, to.at())));
    }
    let follow = if flags & AT_SYMLINK_FOLLOW == 0 { Follow::No } else { Follow::Yes };
    done(with_vfs(|vfs| vfs.link(&to.context, from.at(), follow, to.at())))
}

fn symlink(target: u64, path: (i32, u64)) -> Result<u64, Errno> {
    let text = path_at(target)?;
    let path = Target::new(path.0, path.1)?;
    done(with_vfs(|vfs| vfs.symlink(&path.context, &text, path.at())))
}

fn readlink(path: (i32, u64), address: u64, len: u64) -> Result<u64, Errno> {
    if int(len).cast_signed() <= 0 {
        return Err(Errno::Einval);
    }
    let (target, place) = place(path, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    let text = with_vfs(|vfs| vfs.read_link(&target.context, place))?;
    let part = text.get(..text.len().min(count(len))).unwrap_or(&text);
    uaccess::write(address, part)?;
    Ok(part.len() as u64)
}

fn change_mode(place: Place, mode: u32) -> Result<u64, Errno> {
    let context = fs::context()?;
    done(with_vfs(|vfs| vfs.chmod(&context, place, mode)))
}

fn chmod(path: (i32, u64), mode: u32, flags: u32) -> Result<u64, Errno> {
    let (_target, place) = place(path, flags)?;
    change_mode(place, mode)
}

fn change_owner(place: Place, uid: u32, gid: u32) -> Result<u64, Errno> {
    let context = fs::context()?;
    let id = |id: u32| (id != u32::MAX).then_some(id);
    done(with_vfs(|vfs| vfs.chown(&context, place, id(uid), id(gid))))
}

fn chown(path: (i32, u64), uid: u32, gid: u32, flags: u32) -> Result<u64, Errno> {
    let (_target, place) = place(path, flags)?;
    change_owner(place, uid, gid)
}

fn set_times(target: &Target, place: Place, times: [SetTime; 2]) -> Result<u64, Errno> {
    done(with_vfs(|vfs| vfs.set_times(&target.context, place, times[0], times[1])))
}

fn utimensat(path: (i32, u64), address: u64, flags: u32) -> Result<u64, Errno> {
    let times = if address == 0 {
        [SetTime::Now; 2]
    } else {
        let [a, b, c, d] = uaccess::get_user::<[i64; 4]>(address)?;
        let time = |sec, nsec| SetTime::from_raw(sec, nsec);
        [time(a, b)?, time(c, d)?]
    };
    if path.1 == 0 {
        // The descriptor itself: futimens.
        let file = with_files(|files| files.get(path.0.cast_unsigned()))?;
        let context = fs::context()?;
        return done(with_vfs(|vfs| vfs.set_times(&context, file.place, times[0], times[1])));
    }
    let (target, place) = place(path, flags)?;
    set_times(&target, place, times)
}

/// utime (seconds) and utimes (with microseconds); `unit` is 1 or 1000 nanoseconds of the parts.
fn utime(path: u64, address: u64, unit: i64) -> Result<u64, Errno> {
    let (target, place) = place((AT_FDCWD, path), 0)?;
    let time = |sec, nsec| SetTime::from_raw(sec, nsec);
    let times = match (address, unit) {
        (0, _) => [SetTime::Now; 2],
        (_, 1) => {
            let [atime, mtime] = uaccess::get_user::<[i64; 2]>(address)?;
            [time(atime, 0)?, time(mtime, 0)?]
        }
        _ => {
            let [a, b, c, d] = uaccess::get_user::<[i64; 4]>(address)?;
            if !(0..1_000_000).contains(&b) || !(0..1_000_000).contains(&d) {
                return Err(Errno::Einval);
            }
            [time(a, b * unit)?, time(c, d * unit)?]
        }
    };
    set_times(&target, place, times)
}

fn put_statfs(place: Place, address: u64) -> Result<u64, Errno> {
    let memory = memory();
    let pages = Memory { total: memory.total / 4, free: memory.free / 4 };
    let statfs = with_vfs(|vfs| vfs.statfs(place, pages))?;
    done(uaccess::write(address, &statfs.to_bytes()))
}

fn statfs(path: u64, address: u64) -> Result<u64, Errno> {
    let (_target, place) = place((AT_FDCWD, path), 0)?;
    put_statfs(place, address)
}
