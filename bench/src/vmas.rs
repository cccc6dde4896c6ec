//! The tree of VMAs (guest/mm/vma) with 10,000 of them, against the standard library's ordered map and maps of intervals of other
//! projects: lookup of an address, removal and insertion, and the search for a gap.
//!
//! Ours keeps the longest gap of every subtree up to date at each change, for the kernel's fits; the peers do not, and look from gap to gap.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use iset::IntervalMap;
use mm_vma::{Arena, GapQuery, Id, Node, Tree, Vma};
use rangemap::RangeMap;

use crate::Options;
use crate::stats::{median, ratio, short};
use crate::table::{Score, Table, Target};

const VMAS: usize = 10_000;
const PAGE: u64 = 4096;
/// Where they begin.
const BASE: u64 = 1 << 32;
/// Operations of a round, for each row.
const OPERATIONS: usize = 20_000;
/// Searches of a round for the long gap: the peers take microseconds for one.
const SEARCHES: usize = 500;

/// What a map of VMAs does.
trait Map {
    fn insert(&mut self, start: u64, end: u64, id: u64);
    fn remove(&mut self, start: u64, end: u64) -> bool;
    fn lookup(&self, addr: u64) -> Option<u64>;
    /// First address of the highest gap of `len` bytes between VMAs; `None` if the map does not know of gaps.
    fn gap(&self, len: u64) -> Option<u64>;
}

/// Nodes by number.
struct Nodes {
    nodes: Vec<Node>,
    free: RefCell<Vec<u64>>,
}

impl Arena<Node> for Nodes {
    fn at(&self, id: Id<Node>) -> &Node {
        &self.nodes[usize::try_from(id.as_u64()).expect("a number of a node") - 1]
    }

    fn alloc(&self) -> Option<Id<Node>> {
        self.free.borrow_mut().pop().and_then(Id::new)
    }

    fn free(&self, id: Id<Node>) {
        self.free.borrow_mut().push(id.as_u64());
    }
}

struct Ours {
    nodes: Nodes,
    tree: Tree,
    high: u64,
}

impl Ours {
    fn new(high: u64) -> Ours {
        let count = 4096;
        let nodes = Nodes {
            nodes: (0..count).map(|_| Node::default()).collect(),
            free: RefCell::new((1..=count).rev().collect()),
        };
        Ours { nodes, tree: Tree::default(), high }
    }
}

impl Map for Ours {
    fn insert(&mut self, start: u64, end: u64, id: u64) {
        self.tree.reserve(&self.nodes, 1).expect("nodes enough");
        self.tree.insert(&self.nodes, start, end, Id::<Vma>::new(id).expect("not 0"));
    }

    fn remove(&mut self, start: u64, _end: u64) -> bool {
        self.tree.remove(&self.nodes, start)
    }

    fn lookup(&self, addr: u64) -> Option<u64> {
        self.tree.find(&self.nodes, addr).map(Id::as_u64)
    }

    fn gap(&self, len: u64) -> Option<u64> {
        self.tree.highest_gap(&self.nodes, GapQuery { len, low: BASE, high: self.high })
    }
}

#[derive(Default)]
struct Std(BTreeMap<u64, (u64, u64)>);

impl Map for Std {
    fn insert(&mut self, start: u64, end: u64, id: u64) {
        self.0.insert(start, (end, id));
    }

    fn remove(&mut self, start: u64, _end: u64) -> bool {
        self.0.remove(&start).is_some()
    }

    fn lookup(&self, addr: u64) -> Option<u64> {
        self.0.range(..=addr).next_back().filter(|(_, (end, _))| *end > addr).map(|(_, (_, id))| *id)
    }

    fn gap(&self, len: u64) -> Option<u64> {
        let mut above = None;
        for (&start, &(end, _)) in self.0.iter().rev() {
            if above.is_some_and(|above: u64| above - end >= len) {
                return above.map(|above| above - len);
            }
            above = Some(start);
        }
        None
    }
}

#[derive(Default)]
struct Ranges(RangeMap<u64, u64>);

impl Map for Ranges {
    fn insert(&mut self, start: u64, end: u64, id: u64) {
        self.0.insert(start..end, id);
    }

    fn remove(&mut self, start: u64, end: u64) -> bool {
        self.0.remove(start..end);
        true
    }

    fn lookup(&self, addr: u64) -> Option<u64> {
        self.0.get(&addr).copied()
    }

    fn gap(&self, len: u64) -> Option<u64> {
        let mut above = None;
        for (range, _) in self.0.iter().rev() {
            if above.is_some_and(|above: u64| above - range.end >= len) {
                return above.map(|above| above - len);
            }
            above = Some(range.start);
        }
        None
    }
}

#[derive(Default)]
struct Intervals(IntervalMap<u64, u64>);

impl Map for Intervals {
    fn insert(&mut self, start: u64, end: u64, id: u64) {
        self.0.insert(start..end, id);
    }

    fn remove(&mut self, start: u64, end: u64) -> bool {
        self.0.remove(start..end).is_some()
    }

    fn lookup(&self, addr: u64) -> Option<u64> {
        self.0.values_overlap(addr).next().copied()
    }

    fn gap(&self, _len: u64) -> Option<u64> {
        None
    }
}

/// A generator of numbers, the same every time (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % below
    }
}

/// Start and end of each VMA: 1 to 32 pages with 1 to 16 free between them, and one gap of 64 in the middle.
fn layout() -> Vec<(u64, u64)> {
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    let mut at = BASE;
    (0..VMAS)
        .map(|number| {
            let start = at + PAGE * if number == VMAS / 2 { 64 } else { 1 + numbers.next(16) };
            at = start + PAGE * (1 + numbers.next(32));
            (start, at)
        })
        .collect()
}

const ROWS: [&str; 4] = ["lookup", "remove and insert", "gap of up to 16 pages", "gap of 64 pages"];

/// Nanoseconds of each row.
fn measure(map: &mut dyn Map, vmas: &[(u64, u64)], share: usize) -> [f64; 4] {
    for (number, &(start, end)) in (1..).zip(vmas) {
        map.insert(start, end, number);
    }
    let mut numbers = Numbers(0xfeed_beef_1234_5677);
    let (operations, searches) = (OPERATIONS / share, SEARCHES / share);
    let mut times = [0.0; 4];
    let mut row = |row: usize, count: usize, f: &mut dyn FnMut()| {
        let begin = Instant::now();
        f();
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
        let each = begin.elapsed().as_nanos() as f64 / count as f64;
        times[row] = each;
    };
    let picks: Vec<(usize, u64)> = (0..operations)
        .map(|_| {
            let at = usize::try_from(numbers.next(VMAS as u64)).expect("below VMAS");
            (at, numbers.next(vmas[at].1 - vmas[at].0))
        })
        .collect();
    row(0, operations, &mut || {
        for &(at, offset) in &picks {
            let found = map.lookup(vmas[at].0 + offset);
            assert_eq!(black_box(found), Some(at as u64 + 1));
        }
    });
    row(1, operations, &mut || {
        for &(at, _) in &picks {
            let (start, end) = vmas[at];
            assert!(map.remove(start, end));
            map.insert(start, end, at as u64 + 1);
        }
    });
    let lens: Vec<u64> = (0..operations).map(|_| PAGE * (1 + numbers.next(16))).collect();
    row(2, operations, &mut || lens.iter().for_each(|&len| _ = black_box(map.gap(len))));
    row(3, searches, &mut || (0..searches).for_each(|_| _ = black_box(map.gap(64 * PAGE))));
    times
}

/// Runs the benchmark: all maps in turn, round after round.
pub fn run(options: &Options) -> anyhow::Result<Score> {
    let vmas = layout();
    let share = if options.quick { 20 } else { 1 };
    let high = vmas.last().map_or(BASE, |last| last.1);
    let names = ["memvisor", "BTreeMap", "rangemap", "iset"];
    let mut all: Vec<Vec<[f64; 4]>> = vec![Vec::new(); names.len()];
    for _ in 0..options.rounds {
        let maps: [Box<dyn Map>; 4] = [
            Box::new(Ours::new(high)),
            Box::<Std>::default(),
            Box::<Ranges>::default(),
            Box::<Intervals>::default(),
        ];
        for (mut map, rounds) in maps.into_iter().zip(&mut all) {
            rounds.push(measure(map.as_mut(), &vmas, share));
        }
    }
    let mut table = Table::new(
        "VMA tree",
        "10,000 VMAs; nanoseconds an operation, medians; their time over ours. iset has no order to look for gaps by.",
    );
    for (row, name) in ROWS.iter().enumerate() {
        let column = |map: usize| all[map].iter().map(|times| times[row]).collect::<Vec<_>>();
        let ours = column(0);
        for (map, peer) in names.iter().enumerate().skip(1) {
            if *peer == "iset" && name.starts_with("gap") {
                continue;
            }
            let theirs = column(map);
            let target = Target::AtLeast(1.0);
            let (ours_ns, theirs_ns) = (short(median(&ours)), short(median(&theirs)));
            table.row(name, &ours_ns, (peer, &theirs_ns), (ratio(&theirs, &ours), "x"), target);
        }
    }
    Ok(table.print("VMA tree"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_maps_find_the_same() {
        let vmas = layout();
        let high = vmas.last().unwrap().1;
        let mut maps: Vec<Box<dyn Map>> =
            vec![Box::new(Ours::new(high)), Box::<Std>::default(), Box::<Ranges>::default()];
        for map in &mut maps {
            for (number, &(start, end)) in (1..).zip(&vmas) {
                map.insert(start, end, number);
            }
        }
        for len in (1..=64).map(|pages| pages * PAGE) {
            let gaps: Vec<_> = maps.iter().map(|map| map.gap(len)).collect();
            assert!(gaps.iter().all(|gap| *gap == gaps[0]), "{len:#x}: {gaps:?}");
        }
        assert!(maps.iter().all(|map| map.lookup(vmas[7].0 - 1).is_none_or(|id| id == 8)));
    }
}
