//! Differences that are meant. docs/linux-differences.md has the same names, with the reasons.
//!
//! A sequence is compared up to the first call of it that does what is listed here; what follows would differ for the same reason.

use crate::call::{Call, Name, PAGE};
use crate::compare::Part;
use crate::sequence::Sequence;

/// A difference that is meant.
#[derive(Clone, Copy, Debug)]
pub struct Meant {
    /// Its name in docs/linux-differences.md.
    pub name: &'static str,
    /// Whether a call of a sequence can be one that differs.
    pub may_be: fn(&Sequence, &Call) -> bool,
    /// How the guest's line ends then.
    guest_says: &'static str,
}

/// All of them.
pub const MEANT: &[Meant] = &[
    Meant {
        name: "locked-dontunmap",
        may_be: |sequence, call| {
            call.name == Name::Mremap && call.values[3].number & 4 != 0 && sequence.calls.iter().any(locks)
        },
        guest_says: "",
    },
    Meant {
        name: "absent-advice",
        may_be: |_, call| {
            call.name == Name::Madvise && matches!(call.values[2].number, 12 | 13 | 25 | 100..=103)
        },
        guest_says: " -22",
    },
    Meant { name: "merged-opens", may_be: |sequence, _| neighbours_of_two_opens(sequence), guest_says: "" },
    Meant {
        name: "no-droppable",
        may_be: |_, call| call.name == Name::Mmap && call.values[3].number & 0xf == 8,
        guest_says: " -22",
    },
    Meant {
        name: "no-huge-pages",
        may_be: |_, call| call.name == Name::Mmap && call.values[3].number & 0x4_0000 != 0,
        guest_says: " -12",
    },
];

/// Whether private mappings of the file by two descriptors are neighbours, in memory and in the file.
fn neighbours_of_two_opens(sequence: &Sequence) -> bool {
    let maps = |call: &&Call| {
        call.name == Name::Mmap && call.values[3].number & 0x2f == 2 && call.values[4].number < 2
    };
    let all: Vec<&Call> = sequence.calls.iter().filter(maps).collect();
    all.iter().any(|low| {
        let len = low.values[1].number.wrapping_add(PAGE - 1) & !(PAGE - 1);
        all.iter().any(|high| {
            let ([from, _, _, _, file, at], [to, _, _, _, other, behind]) = (low.values, high.values);
            from.hole == to.hole
                && file != other
                && from.number.wrapping_add(len) == to.number
                && at.number.wrapping_add(len) == behind.number
        })
    })
}

/// Whether a call can lock memory.
fn locks(call: &Call) -> bool {
    const LOCKED: u64 = 0x2000;
    matches!(call.name, Name::Mlock | Name::Mlock2 | Name::Mlockall)
        || call.name == Name::Mmap && call.values[3].number & LOCKED != 0
}

/// The difference that is meant by what two kernels did for a call of `sequence`.
pub fn explain(sequence: &Sequence, part: &Part) -> Option<&'static Meant> {
    let call = sequence.calls.get(part.call?)?;
    let says = part.guest.first().map_or("", String::as_str);
    MEANT.iter().find(|meant| (meant.may_be)(sequence, call) && says.ends_with(meant.guest_says))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_explained_in_the_documentation() {
        let text = include_str!("../../../docs/linux-differences.md");
        for meant in MEANT {
            assert!(text.contains(&format!("`{}`", meant.name)), "{} is not explained", meant.name);
        }
    }

    #[test]
    fn only_what_is_listed_is_excused() {
        let sequence = Sequence {
            name: "s".to_owned(),
            calls: vec!["madvise main 1p MERGEABLE".parse().unwrap(), "munmap main 1p".parse().unwrap()],
        };
        let part = |call, guest: &str| Part {
            call: Some(call),
            linux: vec![format!("{call} 0")],
            guest: vec![guest.to_owned()],
        };
        assert_eq!(explain(&sequence, &part(0, "0 -22")).map(|meant| meant.name), Some("absent-advice"));
        assert!(explain(&sequence, &part(0, "0 -12")).is_none());
        assert!(explain(&sequence, &part(1, "1 -22")).is_none());
    }
}
