//! Rounds, medians and tables.

use mm_core::Page;

use super::contest::{Contestant, Size};
use super::host::Ours;
use super::mixed::Orders;
use super::peers::{Bitmap, Buddy, BuddySlab, BuddySystem, Depot, FrameAlloc, Rlsf, Summary, Talc};
use crate::Options;
use crate::stats::{median, short};
use crate::table::{Score, Table, Target};

const OURS: Contestant = Contestant::new::<Ours>("memvisor");
const PEERS: [Contestant; 8] = [
    Contestant::new::<FrameAlloc<Depot>>("frame-alloc Depot"),
    Contestant::new::<FrameAlloc<Summary>>("frame-alloc SummaryBuddy"),
    Contestant::new::<BuddySlab>("buddy-slab-allocator"),
    Contestant::new::<Buddy>("buddy-alloc (writes into frames)"),
    Contestant::new::<BuddySystem>("buddy_system_allocator"),
    Contestant::new::<Bitmap>("bitmap-allocator"),
    Contestant::new::<Talc>("talc (writes into frames)"),
    Contestant::new::<Rlsf>("rlsf (writes into frames)"),
];

/// One column: a value for each allocator and round, ours first.
struct Column {
    values: Vec<Vec<f64>>,
    /// Whether an allocator was too slow to do all of the work: then its values are not comparable.
    cut: Vec<bool>,
}

impl Column {
    /// Measures every allocator once a round, one after the other.
    fn measure(rounds: usize, one: impl Fn(&Contestant) -> f64) -> Column {
        Column::measure_if_done(rounds, |who| (one(who), false))
    }

    /// The same for work that may be cut: `one` says with the value whether it was.
    fn measure_if_done(rounds: usize, one: impl Fn(&Contestant) -> (f64, bool)) -> Column {
        let everybody = || std::iter::once(&OURS).chain(&PEERS);
        let mut values = vec![Vec::new(); 1 + PEERS.len()];
        let mut cut = vec![false; 1 + PEERS.len()];
        for _ in 0..rounds {
            for ((column, cut), contestant) in values.iter_mut().zip(&mut cut).zip(everybody()) {
                let (value, was_cut) = one(contestant);
                column.push(value);
                *cut |= was_cut;
            }
        }
        Column { values, cut }
    }

    fn ours(&self) -> f64 {
        self.values.first().map_or(0.0, |values| median(values))
    }

    /// The best peer that did all of the work, and its median. `sign` is 1 if less is better.
    fn best(&self, sign: f64) -> (&'static str, f64) {
        let peers = PEERS.iter().zip(self.values.iter().zip(&self.cut).skip(1));
        let done = peers.filter(|(_, (_, cut))| !**cut);
        let medians = done.map(|(peer, (values, _))| (peer.name, median(values)));
        medians.min_by(|a, b| (a.1 * sign).total_cmp(&(b.1 * sign))).unwrap_or(("none", 0.0))
    }

    fn row(&self, table: &mut Table, work: &str, unit: &str, sign: f64, target: Target) {
        let (name, theirs) = self.best(sign);
        let ours = self.ours();
        let cell = |value: f64| format!("{} {unit}", short(value));
        let ratio = ours / theirs.max(f64::MIN_POSITIVE);
        table.row(work, &cell(ours), (name, &cell(theirs)), (ratio, "x"), target);
    }

    /// Every allocator's median.
    fn all(&self, work: &str, unit: &str) {
        let names = std::iter::once("memvisor").chain(PEERS.iter().map(|peer| peer.name));
        let cells: Vec<String> = names
            .zip(self.values.iter().zip(&self.cut))
            .map(|(name, (values, cut))| {
                format!("{name} {}{}", short(median(values)), if *cut { " (cut)" } else { "" })
            })
            .collect();
        println!("{work}, {unit}: {}  ", cells.join(", "));
    }
}

/// The rows on pages.
pub fn run(options: &Options) -> anyhow::Result<Score> {
    // 4 GiB: a tenth of it are 205 blocks of 2 MiB.
    let size = if options.quick {
        Size { frames: 1 << 18, pairs: 100_000, bulk: 10_000, ageing: 20_000, measured: 20_000 }
    } else {
        Size { frames: 1 << 20, pairs: 2_000_000, bulk: 100_000, ageing: 1_000_000, measured: 500_000 }
    };
    let rounds = options.rounds;
    let mut table = Table::new(
        "Pages",
        "The full `alloc_pages(GFP_KERNEL, order)` and `__free_pages` of memvisor on 4 GiB, against the best of eight \
         other allocators in each row; all of them, by row, above the table.",
    );
    let no_slower = Target::AtMost(1.0);

    let pair = Column::measure(rounds, |who| (who.pair)(&size));
    pair.all("order-0 pair", "ns");
    pair.row(&mut table, "order-0 alloc and free, hot", "ns", 1.0, no_slower);

    let alloc = Column::measure(rounds, |who| (who.bulk)(&size).0);
    alloc.all("bulk alloc", "ns");
    alloc.row(&mut table, "100,000 pages allocated", "ns", 1.0, no_slower);
    let free = Column::measure(rounds, |who| (who.bulk)(&size).1);
    free.all("bulk free in random order", "ns");
    free.row(&mut table, "... freed in random order", "ns", 1.0, no_slower);

    // Aged machines differ little from round to round, and take long to build.
    let few = rounds.min(3);
    for (orders, name) in [(Orders::Geometric, "geometric"), (Orders::Uniform, "uniform")] {
        for percent in [50, 90] {
            let work = format!("orders 0 to 10, {name}, {percent} % occupied");
            let column = Column::measure_if_done(few, |who| {
                let outcome = (who.mixed)(&size, percent, orders);
                (outcome.nanoseconds, outcome.cut)
            });
            column.all(&work, "ns an operation");
            column.row(&mut table, &work, "ns", 1.0, no_slower);
        }
        let work = format!("free 2 MiB blocks, {name}, 90 %");
        let column = Column::measure_if_done(1, |who| {
            let outcome = (who.mixed)(&size, 90, orders);
            (outcome.huge_blocks, outcome.cut)
        });
        column.all(&work, "blocks");
        column.row(&mut table, &work, "", -1.0, Target::AtLeast(1.0));
    }

    let threads = Column::measure(rounds, |who| (who.threads)(&size));
    threads.all("two pinned threads", "M pairs/s");
    threads.row(&mut table, "two threads, order-0 pairs", "M/s", -1.0, Target::AtLeast(1.5));
    let (ours, single) = (threads.ours(), 1e3 / pair.ours());
    let cell = |value: f64| format!("{} M/s", short(value));
    table.row(
        "... against one thread of our own",
        &cell(ours),
        ("memvisor, one thread", &cell(single)),
        (ours / single, "x"),
        Target::AtLeast(1.9),
    );

    super::tracing::rows(&mut table, rounds, size.pairs / 40);

    let frames = if options.quick { 1 << 20 } else { 16 << 20 };
    let up = Column::measure(rounds.min(5), |who| (who.bring_up)(frames));
    up.all("bring-up of 64 GiB to the first page", "ms");
    let (name, theirs) = up.best(1.0);
    let cell = |value: f64| format!("{} ms", short(value));
    table.row(
        "64 GiB machine, to the first page",
        &cell(up.ours()),
        (name, &cell(theirs)),
        (up.ours(), " ms"),
        Target::AtMost(2.0),
    );
    let bytes = size_of::<Page>() as f64;
    table.row("bytes of struct page", &bytes, ("limit", &64), (bytes, " B"), Target::AtMost(64.0));
    println!();
    Ok(table.print("pages"))
}
