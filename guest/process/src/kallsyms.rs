//! Names of the kernel's functions (Linux: kernel/kallsyms.c), looked up in the text of /proc/kallsyms: a line `ffffffff81001230 t name` for each,
//! in ascending order of addresses.

use core::fmt;

/// An address in a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// The function's name.
    pub name: &'a str,
    /// Bytes from its begin to the address.
    pub offset: u64,
    /// Bytes to the next function.
    pub size: u64,
}

impl fmt::Display for Symbol<'_> {
    /// As `%pS` of Linux.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}/{:#x}", self.name, self.offset, self.size)
    }
}

/// The function that `address` is in, and `end` the end of the last one; `None` if it is in none, or the text is not as it should be.
pub fn lookup(text: &[u8], end: u64, address: u64) -> Option<Symbol<'_>> {
    if address >= end {
        return None;
    }
    // Both are where lines begin: all before `low` are at or below the address, all from `high` on above it.
    let (mut low, mut high) = (0, text.len());
    let mut found = None;
    while low < high {
        let middle = low + (high - low) / 2;
        let before = text.get(low..middle)?;
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(low, |at| low + at + 1);
        let (function, length) = Function::parse(text.get(start..)?)?;
        if function.start <= address {
            (found, low) = (Some(function), start + length);
        } else {
            high = start;
        }
    }
    let next = text.get(high..).and_then(Function::parse).map_or(end, |(next, _)| next.start);
    let Function { start, name } = found?;
    Some(Symbol { name, offset: address - start, size: next.saturating_sub(start) })
}

/// A line.
struct Function<'a> {
    start: u64,
    name: &'a str,
}

impl<'a> Function<'a> {
    /// The first line of a text, and its length with its end.
    fn parse(text: &'a [u8]) -> Option<(Function<'a>, usize)> {
        let length = text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| at + 1);
        let line = core::str::from_utf8(text.get(..length)?).ok()?;
        let mut words = line.split_ascii_whitespace();
        let start = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((Function { start, name: words.nth(1)? }, length))
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::*;

    const TEXT: &[u8] = b"ffffffff81000000 T startup_64\nffffffff81000040 t a::b\nffffffff81000040 t alias\n\
                          ffffffff81000100 t <c::D<K>_as_e::F>::g\n";
    const END: u64 = 0xffff_ffff_8100_0200;

    fn told(address: u64) -> Option<String> {
        lookup(TEXT, END, address).map(|symbol| symbol.to_string())
    }

    #[test]
    fn an_address_is_told_as_linux_does() {
        assert_eq!(told(0xffff_ffff_8100_0000).unwrap(), "startup_64+0x0/0x40");
        assert_eq!(told(0xffff_ffff_8100_003f).unwrap(), "startup_64+0x3f/0x40");
        assert_eq!(told(0xffff_ffff_8100_0041).unwrap(), "alias+0x1/0xc0");
        assert_eq!(told(0xffff_ffff_8100_01ff).unwrap(), "<c::D<K>_as_e::F>::g+0xff/0x100");
    }

    #[test]
    fn what_is_outside_has_no_name() {
        assert_eq!(
            (told(0xffff_ffff_80ff_ffff), told(END), told(0), told(u64::MAX)),
            (None, None, None, None)
        );
        assert_eq!(lookup(b"", END, 0xffff_ffff_8100_0000), None);
        assert_eq!(lookup(b"nonsense\nmore\n", END, 0xffff_ffff_8100_0000), None);
    }

    proptest::proptest! {
        #[test]
        fn it_finds_what_a_walk_through_all_lines_finds(
            mut starts in proptest::collection::vec(0_u64..2000, 0..40),
            names in proptest::collection::vec("[a-z:<>]{1,30}", 40),
            address in 0_u64..2100,
        ) {
            starts.sort_unstable();
            let lines: Vec<_> = starts.iter().zip(&names).collect();
            let text: String = lines.iter().map(|(start, name)| format!("{start:016x} t {name}\n")).collect();
            let wanted = lines.iter().rposition(|(start, _)| **start <= address).filter(|_| address < 2050);
            let wanted = wanted.map(|at| Symbol {
                name: lines[at].1,
                offset: address - lines[at].0,
                size: lines.get(at + 1).map_or(2050, |(next, _)| **next) - lines[at].0,
            });
            proptest::prop_assert_eq!(lookup(text.as_bytes(), 2050, address), wanted);
        }

        #[test]
        fn no_text_is_too_strange(text: Vec<u8>, address: u64) {
            let _ = lookup(&text, u64::MAX, address);
        }
    }
}
