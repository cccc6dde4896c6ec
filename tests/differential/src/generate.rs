//! Sequences from a seed: the same seed and number give the same calls.
//!
//! Calls meet on few pages, so that areas split, merge and overlap. Nothing outside the holes is touched, because both kernels need it
//! and have it elsewhere.

use crate::call::{Call, Hole, Name, PAGE, Value};
use crate::sequence::{Sequence, fork};

/// Numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn between(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start)
    }

    fn is_one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap_or(0)]
    }

    /// One of some values, by their weights.
    fn weighted<T: Copy>(&mut self, from: &[(u64, T)]) -> T {
        let sum = from.iter().map(|(weight, _)| weight).sum();
        let mut at = self.below(sum);
        for &(weight, value) in from {
            if at < weight {
                return value;
            }
            at -= weight;
        }
        unreachable!("a number below the sum of all weights")
    }
}

/// Sequence `number` of a seed, with `calls` calls.
pub fn sequence(seed: u64, number: u64, calls: usize) -> Sequence {
    with_files(seed, number, calls, true)
}

/// [`sequence`], whose calls use the file or do not.
pub fn with_files(seed: u64, number: u64, calls: usize, files: bool) -> Sequence {
    let mut random = Random(seed);
    let mixed = random.next() ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93);
    let mut maker = Maker { random: Random(mixed), locks: false, files: false, private: 0 };
    maker.locks = maker.random.is_one_in(2);
    maker.private = u64::from(maker.random.is_one_in(3));
    maker.files = !maker.random.is_one_in(3) && files;
    let calls = (0..calls).map(|at| maker.call(calls - at)).collect();
    Sequence { name: format!("random-{number}"), calls }
}

struct Maker {
    random: Random,
    /// Memory is locked; then no mapping is moved with DONTUNMAP (difference `locked-dontunmap`).
    locks: bool,
    /// The file is mapped.
    files: bool,
    /// What private mappings of it are opened by: those of two descriptors merge in the guest (difference `merged-opens`).
    private: u64,
}

/// Pages of the main hole where most calls meet.
const HOT: (u64, u64) = (290, 322);
/// Whole user space.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

impl Maker {
    fn call(&mut self, left: usize) -> Call {
        type Make = fn(&mut Maker) -> Call;
        const ALWAYS: &[(u64, Make)] = &[
            (200, Maker::mmap),
            (50, |m| m.ranged(Name::Munmap)),
            (70, Maker::mprotect),
            (60, Maker::mremap),
            (70, Maker::madvise),
            (15, Maker::brk),
            (25, Maker::mincore),
            (10, Maker::msync),
            (25, Maker::mbind),
            (60, |m| m.touch(Name::Read)),
            (110, |m| m.touch(Name::Write)),
            (12, Maker::execute),
            (20, Maker::fill),
            (4, |_| Call::new(Name::Contents, &[])),
        ];
        const LOCKS: &[(u64, Make)] = &[
            (20, |m| m.ranged(Name::Mlock)),
            (8, Maker::mlock2),
            (12, |m| m.ranged(Name::Munlock)),
            (5, Maker::mlockall),
            (5, |_| Call::new(Name::Munlockall, &[])),
        ];
        const FILES: &[(u64, Make)] = &[
            (12, |m| m.copy(Name::Pread)),
            (12, |m| m.copy(Name::Pwrite)),
            (6, |m| Call::new(Name::Truncate, &[Value::number(m.file_size())])),
        ];
        if left > 4 && self.random.is_one_in(40) {
            let child = self.random.between(1, 20.min(left as u64));
            let parent = self.random.below(10);
            return fork(child, parent);
        }
        let mut choice = ALWAYS.to_vec();
        if self.locks {
            choice.extend(LOCKS);
        }
        if self.files {
            choice.extend(FILES);
        }
        self.random.weighted(&choice)(self)
    }

    /// A hole and a page of it.
    fn page(&mut self) -> (Hole, u64) {
        match self.random.below(24) {
            0..16 => (Hole::Main, self.random.between(HOT.0, HOT.1)),
            16..20 => (Hole::Heap, self.random.below(10)),
            20 => (Hole::Low, self.random.below(Hole::Low.pages())),
            _ => (Hole::Main, self.random.below(Hole::Main.pages())),
        }
    }

    /// An address, now and then not that of a page.
    fn place(&mut self) -> (Hole, u64) {
        let (hole, page) = self.page();
        let off = if self.random.is_one_in(30) { self.random.between(1, PAGE) } else { 0 };
        (hole, page * PAGE + off)
    }

    fn bytes(&mut self) -> u64 {
        match self.random.below(20) {
            0..16 => self.random.between(1, 10) * PAGE,
            16 | 17 => self.random.below(10 * PAGE),
            18 => self.random.between(10, 300) * PAGE,
            _ => self.random.pick(&[u64::MAX, u64::MAX - PAGE, 1 << 47, TASK_SIZE]),
        }
    }

    /// A range that ends in its hole, or one that no call takes. Some calls look at the start first: for them `wild` is false.
    fn range(&mut self, wild: bool) -> (Value, u64) {
        let (hole, offset) = self.place();
        let bytes = self.bytes();
        (Value::at(hole, offset), within(hole, offset, bytes, wild))
    }

    fn ranged(&mut self, name: Name) -> Call {
        let (address, bytes) = self.range(name == Name::Munmap);
        Call::new(name, &[address, Value::number(bytes)])
    }

    fn prot(&mut self) -> u64 {
        match self.random.below(18) {
            0..10 => 3,
            10..14 => 1,
            14 | 15 => 0,
            _ => self.random.below(8),
        }
    }

    fn mmap(&mut self) -> Call {
        const KINDS: &[(u64, u64)] = &[(12, 0x22), (4, 0x21), (1, 0x20), (1, 0x23), (1, 0x24)];
        const FILE_KINDS: &[(u64, u64)] = &[(4, 2), (4, 1), (1, 3), (1, 0)];
        const FIXED: &[(u64, u64)] = &[(6, 0x10), (4, 0), (2, 0x10_0000)];
        const MORE: &[(u64, u64)] = &[
            (16, 0),
            (1, 0x40),     // 32BIT
            (1, 0x100),    // GROWSDOWN
            (1, 0x2000),   // LOCKED
            (1, 0x4000),   // NORESERVE
            (1, 0x8000),   // POPULATE
            (1, 0x2_0000), // STACK
        ];
        const DESCRIPTORS: &[(u64, u64)] = &[(12, 0), (4, 1), (1, 2), (1, 3), (1, 0xff)];
        let is_file = self.files && self.random.is_one_in(3);
        let kind = self.random.weighted(if is_file { FILE_KINDS } else { KINDS });
        let more = self.random.weighted(MORE);
        let more = if more == 0x2000 && !self.locks { 0 } else { more };
        let flags = kind | self.random.weighted(FIXED) | more;
        let (mut address, bytes) = self.range(true);
        if self.random.is_one_in(8) && flags & 0x10_0010 == 0 {
            address = Value::number(0);
        }
        let prot = self.prot();
        let (file, offset) = if is_file {
            let offset = self.random.below(12) * PAGE + u64::from(self.random.is_one_in(30));
            match self.random.weighted(DESCRIPTORS) {
                0 | 1 if flags & 0xf == 2 => (self.private, offset),
                descriptor => (descriptor, offset),
            }
        } else {
            (u64::MAX, 0)
        };
        let numbers = [bytes, prot, flags, file, offset].map(Value::number);
        let mut values = vec![address];
        values.extend(numbers);
        Call::new(Name::Mmap, &values)
    }

    fn mprotect(&mut self) -> Call {
        let prot = match self.random.below(31) {
            0 => self.random.pick(&[0x100_0000, 0x100_0003, 0x200_0001, 0x300_0000, 16]),
            _ => self.prot(),
        };
        let (address, bytes) = self.range(false);
        Call::new(Name::Mprotect, &[address, Value::number(bytes), Value::number(prot)])
    }

    fn mremap(&mut self) -> Call {
        const FLAGS: &[(u64, u64)] = &[(8, 1), (3, 0), (8, 3), (3, 5), (2, 7), (1, 8)];
        let (from, to) = (self.place(), self.place());
        let (old, new) = match self.random.below(12) {
            0..6 => (self.bytes(), self.bytes()),
            6..11 => {
                let both = self.bytes();
                (both, both)
            }
            _ => (0, self.bytes()),
        };
        let mut flags = match self.random.weighted(FLAGS) {
            8 => self.random.below(9),
            flags => flags,
        };
        if self.locks {
            flags &= !4;
        }
        // The new range must fit behind both addresses, since the flags decide which of them it is.
        let new = within(to.0, to.1, within(from.0, from.1, new, true), true);
        let old = within(from.0, from.1, old, true);
        let numbers = [old, new, flags].map(Value::number);
        let [old, new, flags] = numbers;
        Call::new(Name::Mremap, &[Value::at(from.0, from.1), old, new, flags, Value::at(to.0, to.1)])
    }

    fn madvise(&mut self) -> Call {
        const ADVICE: &[(u64, u64)] = &[
            (8, 4),  // DONTNEED
            (2, 8),  // FREE
            (2, 9),  // REMOVE
            (2, 22), // POPULATE_READ
            (2, 23), // POPULATE_WRITE
            (1, 14), // HUGEPAGE
            (1, 15), // NOHUGEPAGE
            (1, 0),
            (1, 1),
            (1, 2),
            (2, 3),  // WILLNEED
            (2, 10), // DONTFORK
            (2, 11), // DOFORK
            (1, 16),
            (1, 17),
            (2, 18), // WIPEONFORK
            (1, 19),
            (1, 20), // COLD
            (1, 24), // DONTNEED_LOCKED
            (1, 5),
            (1, 99),
        ];
        let advice = self.random.weighted(ADVICE);
        let (address, bytes) = self.range(false);
        Call::new(Name::Madvise, &[address, Value::number(bytes), Value::number(advice)])
    }

    fn brk(&mut self) -> Call {
        let offset = self.random.below(20 * PAGE);
        Call::new(Name::Brk, &[Value::at(Hole::Heap, offset)])
    }

    fn mlock2(&mut self) -> Call {
        let flags = self.random.weighted(&[(6, 1), (2, 0), (1, 2)]);
        let (address, bytes) = self.range(false);
        Call::new(Name::Mlock2, &[address, Value::number(bytes), Value::number(flags)])
    }

    fn mlockall(&mut self) -> Call {
        let flags = self.random.pick(&[2, 6, 4, 0, 8, 1, 3, 5]);
        Call::new(Name::Mlockall, &[Value::number(flags)])
    }

    fn mincore(&mut self) -> Call {
        let (hole, offset) = self.place();
        let bytes = self.random.between(1, 24) * PAGE;
        let bytes = within(hole, offset, bytes, false);
        Call::new(Name::Mincore, &[Value::at(hole, offset), Value::number(bytes), Value::number(0)])
    }

    fn msync(&mut self) -> Call {
        let flags = self.random.below(9);
        let (address, bytes) = self.range(false);
        Call::new(Name::Msync, &[address, Value::number(bytes), Value::number(flags)])
    }

    /// Policies of a machine of one node; what moves pages depends on what else is in memory.
    fn mbind(&mut self) -> Call {
        let (mode, nodes) = self.random.weighted(&[
            (6, (2, 1)),
            (3, (3, 1)),
            (3, (4, 0)),
            (5, (0, 0)),
            (2, (1, 1)),
            (1, (5, 1)),
            (1, (2, 0)),
            (1, (4, 1)),
            (1, (77, 1)),
        ]);
        let flags = self.random.weighted(&[(6, 0), (2, 1), (1, 8)]);
        let (address, bytes) = self.range(false);
        let values = [bytes, mode, nodes, 65, flags].map(Value::number);
        Call::new(Name::Mbind, &[address, values[0], values[1], values[2], values[3], values[4]])
    }

    /// Words are at multiples of 8, so that none is cut when memory is run.
    fn touch(&mut self, name: Name) -> Call {
        let (hole, page) = self.page();
        let off = if self.random.is_one_in(8) { self.random.below(PAGE / 8) * 8 } else { 0 };
        Call::new(name, &[Value::at(hole, page * PAGE + off)])
    }

    fn execute(&mut self) -> Call {
        let (hole, page) = self.page();
        Call::new(Name::Execute, &[Value::at(hole, page * PAGE)])
    }

    fn fill(&mut self) -> Call {
        let (hole, page) = self.page();
        let count = self.random.between(1, 12).min(hole.pages() - page);
        Call::new(Name::Fill, &[Value::at(hole, page * PAGE), Value::number(count)])
    }

    /// Memory may be a mapping of the file that it is copied from or to. Then what is read must not be what is written a few bytes further,
    /// because how processors copy that is their own affair.
    fn copy(&mut self, name: Name) -> Call {
        let (hole, page) = self.page();
        let offset = page * PAGE + self.random.below(PAGE / 8) * 8;
        let at = self.random.below(13 * PAGE / 8) * 8;
        let apart = offset.abs_diff(at) % PAGE;
        let (at, bytes) = match self.random.below(2) {
            0 => (at / PAGE * PAGE + offset % PAGE, self.random.below(3 * PAGE) & !7),
            _ => (at, apart.min(PAGE - apart)),
        };
        let bytes = within(hole, offset, bytes, false);
        Call::new(name, &[Value::at(hole, offset), Value::number(bytes), Value::number(at)])
    }

    fn file_size(&mut self) -> u64 {
        self.random.below(14) * PAGE + self.random.pick(&[0, 0, 8, 2048])
    }
}

/// Bytes from an offset of a hole, cut to its end. With `wild` what is longer than user space stays as it is, because the call
/// refuses it at once; without, only what is more than half of all addresses.
fn within(hole: Hole, offset: u64, bytes: u64, wild: bool) -> u64 {
    let refused = if wild { TASK_SIZE } else { u64::MAX / 2 };
    let end = hole.pages() * PAGE;
    if bytes >= refused { bytes } else { bytes.min(end.saturating_sub(offset)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Parameter;

    #[test]
    fn a_seed_gives_the_same_calls_again_and_another_seed_others() {
        assert_eq!(sequence(1, 5, 100), sequence(1, 5, 100));
        assert_ne!(sequence(1, 5, 100).calls, sequence(2, 5, 100).calls);
        assert_ne!(sequence(1, 5, 100).calls, sequence(1, 6, 100).calls);
    }

    #[test]
    fn no_range_leaves_its_hole_unless_it_is_refused_for_its_length() {
        for number in 0..300 {
            for call in sequence(7, number, 100).calls {
                let parameters = call.name.parameters();
                let Some(at) = parameters.iter().position(|&p| p == Parameter::Bytes) else { continue };
                let (address, bytes) = (call.values[0], call.values[at].number);
                let Some(hole) = address.hole else { continue };
                let end = address.number.saturating_add(bytes);
                assert!(end <= hole.pages() * PAGE || bytes >= TASK_SIZE, "{call}");
            }
        }
    }

    #[test]
    fn every_call_of_the_random_kind_occurs() {
        let rare = [Name::Faults, Name::Smaps, Name::Limit, Name::AreaPolicy];
        for &name in Name::ALL.iter().filter(|name| !rare.contains(name)) {
            let occurs = (0..100).any(|n| sequence(3, n, 100).calls.iter().any(|call| call.name == name));
            assert!(occurs, "{}", name.text());
        }
    }

    #[test]
    fn locked_memory_is_never_moved_without_unmapping() {
        for number in 0..300 {
            let calls = sequence(11, number, 100).calls;
            let locks =
                calls.iter().any(|call| matches!(call.name, Name::Mlock | Name::Mlock2 | Name::Mlockall));
            let moves = calls.iter().any(|call| call.name == Name::Mremap && call.values[3].number & 4 != 0);
            assert!(!(locks && moves), "sequence {number}");
        }
    }
}
