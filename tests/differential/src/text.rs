//! Calls as people write them: `mmap main+3p 4p READ|WRITE PRIVATE|ANONYMOUS|FIXED none 0`.
//!
//! A value is a sum: numbers (`100`, `0x20`, `-1`), pages (`3p`), holes (`main`, `low`, `heap`) and Linux's names without their
//! prefix, joined by `+` or `|`.

use crate::call::{Call, Hole, Name, PAGE, Parameter, Value};

type Names = &'static [(&'static str, u64)];

const PROT: Names = &[
    ("NONE", 0),
    ("READ", 1),
    ("WRITE", 2),
    ("EXEC", 4),
    ("SEM", 8),
    ("GROWSDOWN", 0x100_0000),
    ("GROWSUP", 0x200_0000),
];
const MAP_FLAGS: Names = &[
    ("SHARED_VALIDATE", 3),
    ("SHARED", 1),
    ("PRIVATE", 2),
    ("FIXED", 0x10),
    ("ANONYMOUS", 0x20),
    ("32BIT", 0x40),
    ("GROWSDOWN", 0x100),
    ("DENYWRITE", 0x800),
    ("EXECUTABLE", 0x1000),
    ("LOCKED", 0x2000),
    ("NORESERVE", 0x4000),
    ("POPULATE", 0x8000),
    ("NONBLOCK", 0x1_0000),
    ("STACK", 0x2_0000),
    ("HUGETLB", 0x4_0000),
    ("SYNC", 0x8_0000),
    ("FIXED_NOREPLACE", 0x10_0000),
];
const REMAP_FLAGS: Names = &[("MAYMOVE", 1), ("FIXED", 2), ("DONTUNMAP", 4)];
const ADVICE: Names = &[
    ("NORMAL", 0),
    ("RANDOM", 1),
    ("SEQUENTIAL", 2),
    ("WILLNEED", 3),
    ("DONTNEED", 4),
    ("FREE", 8),
    ("REMOVE", 9),
    ("DONTFORK", 10),
    ("DOFORK", 11),
    ("MERGEABLE", 12),
    ("UNMERGEABLE", 13),
    ("HUGEPAGE", 14),
    ("NOHUGEPAGE", 15),
    ("DONTDUMP", 16),
    ("DODUMP", 17),
    ("WIPEONFORK", 18),
    ("KEEPONFORK", 19),
    ("COLD", 20),
    ("PAGEOUT", 21),
    ("POPULATE_READ", 22),
    ("POPULATE_WRITE", 23),
    ("DONTNEED_LOCKED", 24),
    ("COLLAPSE", 25),
    ("HWPOISON", 100),
    ("GUARD_INSTALL", 102),
    ("GUARD_REMOVE", 103),
];
const LOCK_FLAGS: Names = &[("ONFAULT", 1)];
const LOCK_ALL: Names = &[("CURRENT", 1), ("FUTURE", 2), ("ONFAULT", 4)];
const SYNC_FLAGS: Names = &[("ASYNC", 1), ("INVALIDATE", 2), ("SYNC", 4)];
const FILES: Names = &[
    ("file", 0),
    ("file-ro", 1),
    ("file-wo", 2),
    ("pipe", 3),
    ("directory", 4),
    ("bad", 0xff),
    ("none", u64::MAX),
];
const RESOURCES: Names = &[("DATA", 2), ("STACK", 3), ("MEMLOCK", 8), ("AS", 9)];
const POLICY: Names =
    &[("DEFAULT", 0), ("PREFERRED", 1), ("BIND", 2), ("INTERLEAVE", 3), ("LOCAL", 4), ("PREFERRED_MANY", 5)];
const BIND_FLAGS: Names = &[("STRICT", 1), ("MOVE", 2), ("MOVE_ALL", 4)];
const ACCESS: Names = &[("r", 0), ("w", 1)];

const fn names(parameter: Parameter) -> Names {
    match parameter {
        Parameter::Prot => PROT,
        Parameter::MapFlags => MAP_FLAGS,
        Parameter::RemapFlags => REMAP_FLAGS,
        Parameter::Advice => ADVICE,
        Parameter::LockFlags => LOCK_FLAGS,
        Parameter::LockAll => LOCK_ALL,
        Parameter::SyncFlags => SYNC_FLAGS,
        Parameter::File => FILES,
        Parameter::Resource => RESOURCES,
        Parameter::Access => ACCESS,
        Parameter::Policy => POLICY,
        Parameter::BindFlags => BIND_FLAGS,
        Parameter::Address | Parameter::Bytes | Parameter::Count => &[],
    }
}

/// Whether a value is a set of bits, not one of a list.
const fn is_set(parameter: Parameter) -> bool {
    matches!(
        parameter,
        Parameter::Prot
            | Parameter::MapFlags
            | Parameter::RemapFlags
            | Parameter::LockFlags
            | Parameter::LockAll
            | Parameter::SyncFlags
            | Parameter::BindFlags
    )
}

/// A value as it is written.
pub fn show(value: Value, parameter: Parameter) -> String {
    if let Some(hole) = value.hole {
        return match value.number {
            0 => hole.name().to_owned(),
            number => format!("{}+{}", hole.name(), bytes(number)),
        };
    }
    let names = names(parameter);
    if is_set(parameter) {
        return show_set(value.number, names);
    }
    let name = names.iter().find(|(_, number)| *number == value.number);
    name.map_or_else(|| bytes(value.number), |(name, _)| (*name).to_owned())
}

fn show_set(number: u64, names: Names) -> String {
    if let Some((name, _)) = names.iter().find(|(_, bits)| *bits == number) {
        return (*name).to_owned();
    }
    let mut rest = number;
    let mut words = Vec::new();
    for &(name, bits) in names {
        if bits != 0 && rest & bits == bits {
            words.push(name.to_owned());
            rest &= !bits;
        }
    }
    if rest != 0 || words.is_empty() {
        words.push(if rest < 10 { rest.to_string() } else { format!("{rest:#x}") });
    }
    words.join("|")
}

fn bytes(number: u64) -> String {
    let (pages, rest) = (number / PAGE, number % PAGE);
    if number > u64::MAX - PAGE {
        return number.cast_signed().to_string();
    }
    match (pages, rest) {
        (0, 0..10) => rest.to_string(),
        (0, _) => format!("{rest:#x}"),
        (pages, 0) if pages < 1 << 16 => format!("{pages}p"),
        (pages, rest) if pages < 1 << 16 => format!("{pages}p+{rest:#x}"),
        _ => format!("{number:#x}"),
    }
}

/// Why a line is no call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The first word.
    #[error("there is no call {0:?}")]
    Name(String),
    /// The number of values.
    #[error("{name} takes {wanted} values, not {given}")]
    Count {
        /// Of what.
        name: &'static str,
        /// How many there must be.
        wanted: usize,
        /// How many there are.
        given: usize,
    },
    /// A value.
    #[error("{word:?} in {value:?} is neither a number nor a name that fits")]
    Value {
        /// The part.
        word: String,
        /// The whole.
        value: String,
    },
}

/// A call out of a line.
pub fn parse_call(line: &str) -> Result<Call, ParseError> {
    let mut words = line.split_ascii_whitespace();
    let first = words.next().unwrap_or_default();
    let name = Name::ALL.iter().find(|name| name.text() == first);
    let name = *name.ok_or_else(|| ParseError::Name(first.to_owned()))?;
    let (parameters, words): (_, Vec<&str>) = (name.parameters(), words.collect());
    if words.len() != parameters.len() {
        let wanted = parameters.len();
        return Err(ParseError::Count { name: name.text(), wanted, given: words.len() });
    }
    let values: Result<Vec<Value>, _> =
        words.iter().zip(parameters).map(|(word, &parameter)| value(word, parameter)).collect();
    Ok(Call::new(name, &values?))
}

fn value(text: &str, parameter: Parameter) -> Result<Value, ParseError> {
    let mut value = Value::default();
    for word in text.split(['+', '|']) {
        if let Some(hole) = Hole::ALL.into_iter().find(|hole| hole.name() == word) {
            value.hole = Some(hole);
            continue;
        }
        let named = names(parameter).iter().find(|(name, _)| *name == word).map(|(_, number)| *number);
        let number = named.or_else(|| number(word));
        let number =
            number.ok_or_else(|| ParseError::Value { word: word.to_owned(), value: text.to_owned() })?;
        value.number = value.number.wrapping_add(number);
    }
    Ok(value)
}

fn number(word: &str) -> Option<u64> {
    if let Some(rest) = word.strip_prefix('-') {
        return number(rest).map(u64::wrapping_neg);
    }
    if let Some(hex) = word.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    if let Some(pages) = word.strip_suffix('p') {
        return pages.parse().ok().and_then(|pages: u64| pages.checked_mul(PAGE));
    }
    word.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_with_linux_names() {
        let line = "mmap main+3p 4p READ|WRITE PRIVATE|FIXED|ANONYMOUS none 0";
        let call: Call = line.parse().unwrap();
        assert_eq!(call.wire(), "mmap m3000 4000 3 32 ffffffffffffffff 0");
        assert_eq!(call.to_string(), line);
    }

    #[test]
    fn odd_values_survive() {
        for line in [
            "munmap main+1p+0x11 -1",
            "mprotect low 0x7ffffffff000 READ|EXEC|0x80",
            "mmap 0 100p 0x10 PRIVATE|SHARED|0x400000 bad 1p",
            "madvise heap+8 0 99",
            "limit AS 16p",
        ] {
            let call: Call = line.parse().unwrap();
            let again: Call = call.to_string().parse().unwrap();
            assert_eq!(call, again, "{line} became {call}");
        }
    }

    #[test]
    fn what_is_no_call_is_refused_with_the_reason() {
        let refused = |line: &str| line.parse::<Call>().unwrap_err().to_string();
        assert!(refused("mapp main 1p").contains("mapp"));
        assert!(refused("munmap main").contains("2 values, not 1"));
        assert!(refused("munmap main 1q").contains("1q"));
        assert!(refused("mprotect main 1p PRIVATE").contains("PRIVATE"));
    }
}
