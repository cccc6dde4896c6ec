//! Calls on files (Linux: fs/read_write.c). There are no files yet: descriptors 1 and 2 are the console.

use mm_vma::Errno;

use super::int;
use crate::arch::trap::TrapFrame;
use crate::{print, uaccess};

/// The calls of this file.
pub fn call(number: u64, frame: &mut TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, ..] = super::arguments(frame);
    Some(match number {
        1 => write(int(a), b, c),
        _ => return None,
    })
}

fn write(fd: u32, address: u64, len: u64) -> Result<u64, Errno> {
    if fd != 1 && fd != 2 {
        return Err(Errno::Ebadf);
    }
    let mut done = 0;
    let mut chunk = [0; 128];
    while done < len {
        let part = usize::try_from(len - done).map_or(chunk.len(), |left| left.min(chunk.len()));
        let bytes = &mut chunk[..part];
        if let Err(error) = uaccess::read(address.wrapping_add(done), bytes) {
            return if done > 0 { Ok(done) } else { Err(error) };
        }
        for piece in bytes.utf8_chunks() {
            print!("{}", piece.valid());
        }
        done += part as u64;
    }
    Ok(len)
}
