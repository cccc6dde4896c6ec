//! What files of /proc say.

use core::ffi::CStr;

use crate::shared::{close, is_error, open};
use crate::sys::call;

/// Calls `f` with the first bytes of a file; none if it cannot be opened.
fn with_file<R>(path: &CStr, f: impl FnOnce(&[u8]) -> R) -> R {
    let fd = open(path, 0);
    let mut buffer = [0; 8192];
    let mut len = 0;
    while let Some(room) = buffer.get_mut(len..).filter(|room| !room.is_empty()) {
        let got = call(0, [fd, room.as_mut_ptr() as u64, room.len() as u64, 0, 0, 0]);
        if got == 0 || is_error(got) {
            break;
        }
        len += usize::try_from(got).unwrap_or(0);
    }
    close(fd);
    f(buffer.get(..len).unwrap_or_default())
}

/// Whether a file has the text in its first bytes.
pub fn file_has(path: &CStr, text: &[u8]) -> bool {
    with_file(path, |bytes| bytes.windows(text.len()).any(|window| window == text))
}

/// The number behind `name` at the begin of a line; `None` without such a line.
pub fn find_number(path: &CStr, name: &[u8]) -> Option<u64> {
    with_file(path, |bytes| {
        let rest = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
        let digits =
            rest.iter().skip_while(|byte| !byte.is_ascii_digit()).take_while(|byte| byte.is_ascii_digit());
        Some(digits.fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
    })
}

/// [`find_number`], or 0.
pub fn number(path: &CStr, name: &[u8]) -> u64 {
    find_number(path, name).unwrap_or(0)
}
