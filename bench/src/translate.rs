//! Translation and enumeration against other walkers.

use std::hint::black_box;

use memvisor_inspect::{Levels, MappedMemory, Walker, ptdump};

use crate::{
    Options,
    image::{self, Image, Order},
    peers::{Memflow, Offset, Vmi},
    stats::{median, ratio, spread},
    table::{Score, Table, Target},
};

/// Lookups in a round of the fast walkers.
const LOOKUPS: usize = 1 << 20;
/// Lookups in a round of the slow ones.
const FEW: usize = 1 << 16;

/// Runs it.
///
/// # Errors
/// If the host does not give the memory, or two walkers disagree.
pub fn run(options: &Options) -> anyhow::Result<Score> {
    let mut table = Table::new(
        "Translation",
        &format!(
            "Million translations a second of the thread's CPU time, medians of {} interleaved rounds (range); tables and pages at \
             random frames of a memfd. The ratio is memvisor's speed divided by the peer's, pair by pair.",
            options.rounds
        ),
    );
    let sizes: &[u64] = if options.quick { &[1] } else { &[1, 16] };
    let mut enumerated = None;
    for &gib in sizes {
        let image = Image::new(gib)?;
        for order in [Order::Random, Order::Sequential] {
            lookups(options, &mut table, &image, gib, order)?;
        }
        enumerated = Some((gib, image));
    }
    if let Some((gib, image)) = enumerated {
        enumerate(options, &mut table, &image, gib)?;
    }
    Ok(table.print("translate"))
}

/// Sums up what it finds, so that answers can be compared and are not optimised away.
type Walk<'a> = Box<dyn FnMut(&[u64]) -> u64 + 'a>;

/// A walker.
struct Contender<'a> {
    name: &'static str,
    walk: Walk<'a>,
    lookups: usize,
    target: Target,
    speeds: Vec<f64>,
}

fn lookups(
    options: &Options,
    table: &mut Table,
    image: &Image,
    gib: u64,
    order: Order,
) -> anyhow::Result<()> {
    let memory = image.mapped()?;
    let bytes = image.bytes()?;
    let walker4 = Walker::new(image.root4, Levels::Four);
    let walker5 = Walker::new(image.root5, Levels::Five);
    let offset = Offset::new(image, image.root4)?;
    let mut memflow = Memflow::new(bytes, image.root4);
    let mut batched = Memflow::new(bytes, image.root4);
    let vmi = Vmi::new(bytes, image.root4, true)?;
    let vmi_bare = Vmi::new(bytes, image.root4, false)?;
    let contender =
        |name, walk, lookups, target| Contender { name, walk, lookups, target, speeds: Vec::new() };
    let tenfold = Target::AtLeast(10.0);
    let mut all: Vec<Contender<'_>> = vec![
        contender("4 levels", Box::new(|vas| ours(&walker4, &memory, vas)), LOOKUPS, Target::None),
        contender("5 levels", Box::new(|vas| ours(&walker5, &memory, vas)), LOOKUPS, Target::None),
        contender(
            "x86_64 OffsetPageTable",
            Box::new(|vas| sum(vas, |va| offset.translate(va))),
            LOOKUPS,
            Target::AtLeast(0.7),
        ),
        contender("memflow, one by one", Box::new(|vas| sum(vas, |va| memflow.translate(va))), FEW, tenfold),
        contender("memflow, 65536 a call", Box::new(|vas| batched.translate_batch(vas)), FEW, tenfold),
        contender("vmi-core, page cache", Box::new(|vas| sum(vas, |va| vmi.translate(va))), FEW, tenfold),
        contender("vmi-core, no cache", Box::new(|vas| sum(vas, |va| vmi_bare.translate(va))), FEW, tenfold),
    ];

    let addresses = image.addresses(LOOKUPS, order);
    check_agreement(&mut all, addresses.get(..1000).unwrap_or(&addresses))?;
    // The first round is a warm-up.
    for round in 0..=options.rounds {
        for contender in &mut all {
            // The slow ones go on where they stopped, so that they do not find everything cached.
            let start = (round * contender.lookups) % LOOKUPS;
            let vas = addresses.get(start..start + contender.lookups).unwrap_or(&addresses);
            let begin = cpu_seconds();
            black_box((contender.walk)(black_box(vas)));
            let seconds = cpu_seconds() - begin;
            if round > 0 {
                contender.speeds.push(vas.len() as f64 / seconds / 1e6);
            }
        }
    }

    let [four, five, peers @ ..] = all.as_slice() else { anyhow::bail!("no contenders") };
    let order = match order {
        Order::Random => "random",
        Order::Sequential => "sequential",
    };
    for peer in peers {
        table.row(
            &format!("{order}, {gib} GiB, 4 levels"),
            &spread(&four.speeds, "M/s"),
            (peer.name, &spread(&peer.speeds, "M/s")),
            (ratio(&four.speeds, &peer.speeds), "x"),
            peer.target,
        );
    }
    let peers = "none has 5 levels; memvisor with 4";
    table.row(
        &format!("{order}, {gib} GiB, 5 levels"),
        &spread(&five.speeds, "M/s"),
        (peers, &spread(&four.speeds, "M/s")),
        (ratio(&five.speeds, &four.speeds), "x"),
        Target::None,
    );
    Ok(())
}

fn ours(walker: &Walker, memory: &MappedMemory, vas: &[u64]) -> u64 {
    sum(vas, |va| walker.lookup(memory, va).ok().map(|mapped| mapped.gpa))
}

#[inline(always)]
fn sum(vas: &[u64], mut translate: impl FnMut(u64) -> Option<u64>) -> u64 {
    vas.iter().fold(0, |sum: u64, &va| sum.wrapping_add(translate(va).unwrap_or(1)))
}

fn check_agreement(all: &mut [Contender<'_>], vas: &[u64]) -> anyhow::Result<()> {
    let answers: Vec<_> = all.iter_mut().map(|contender| (contender.name, (contender.walk)(vas))).collect();
    anyhow::ensure!(
        answers.windows(2).all(|pair| pair[0].1 == pair[1].1),
        "the walkers do not find the same pages: {answers:x?}"
    );
    Ok(())
}

fn enumerate(options: &Options, table: &mut Table, image: &Image, gib: u64) -> anyhow::Result<()> {
    let memory = image.mapped()?;
    let bytes = image.bytes()?;
    let walkers = [Walker::new(image.root4, Levels::Four), Walker::new(image.root5, Levels::Five)];
    let mut memflow = Memflow::new(bytes, image.root4);
    let end = image::BASE + image.pages * 4096;
    let mut speeds: [Vec<f64>; 4] = Default::default();
    for round in 0..=options.rounds {
        let mut timed = |slot: usize, work: &mut dyn FnMut() -> (u64, u64)| -> anyhow::Result<(u64, u64)> {
            let begin = cpu_seconds();
            let found = black_box(work());
            let seconds = cpu_seconds() - begin;
            anyhow::ensure!(found.0 == image.pages, "{} pages found, {} are mapped", found.0, image.pages);
            if round > 0
                && let Some(speeds) = speeds.get_mut(slot)
            {
                speeds.push(found.0 as f64 / seconds / 1e6);
            }
            Ok(found)
        };
        let plain = timed(0, &mut || nested_loop(bytes, image.root4))?;
        for (slot, walker) in (1..).zip(&walkers) {
            let ours = timed(slot, &mut || leaves(walker, &memory))?;
            anyhow::ensure!(ours == plain, "the nested loop finds other pages");
        }
        // Two seconds a round: three rounds tell enough.
        if round < 4 {
            timed(3, &mut || memflow.enumerate(image::BASE, end))?;
        }
    }
    let [plain, four, five, flow] = &speeds;
    for (levels, ours) in [(4, four), (5, five)] {
        let work = format!("all pages of {gib} GiB, {levels} levels");
        // Either bound will do: show the one that is met, the absolute one first.
        let absolute = median(ours);
        if absolute >= 300.0 {
            table.row(
                &work,
                &spread(ours, "M pages/s"),
                ("the bound itself", &"300 M pages/s"),
                (absolute, " M pages/s"),
                Target::AtLeast(300.0),
            );
            table.row(
                &work,
                &spread(ours, "M pages/s"),
                ("plain nested loop, 4 levels", &spread(plain, "M pages/s")),
                (ratio(ours, plain), "x"),
                Target::None,
            );
        } else {
            table.row(
                &work,
                &spread(ours, "M pages/s"),
                ("plain nested loop, 4 levels", &spread(plain, "M pages/s")),
                (ratio(ours, plain), "x"),
                Target::AtLeast(0.5),
            );
        }
    }
    table.row(
        &format!("all pages of {gib} GiB, 4 levels"),
        &spread(four, "M pages/s"),
        ("memflow", &spread(flow, "M pages/s")),
        (median(four) / median(flow), "x"),
        Target::None,
    );
    Ok(())
}

fn leaves(walker: &Walker, memory: &MappedMemory) -> (u64, u64) {
    let (mut pages, mut sum) = (0, 0u64);
    ptdump::for_each_leaf(walker, memory, |leaf| {
        pages += leaf.size.bytes() / 4096;
        sum = sum.wrapping_add(leaf.gpa ^ leaf.va);
    });
    (pages, sum)
}

/// What a person would write who trusts the guest: four loops over the mapping.
fn nested_loop(image: &[u8], root: u64) -> (u64, u64) {
    let entries = |gpa: u64| {
        let at = gpa as usize;
        let (table, _) = image[at..at + 4096].as_chunks::<8>();
        table.iter().map(|word| u64::from_le_bytes(*word)).zip(0u64..).filter(|(entry, _)| entry & 1 != 0)
    };
    let (mut pages, mut sum) = (0, 0u64);
    for (pgd, i) in entries(root) {
        for (pud, j) in entries(image::target(pgd)) {
            for (pmd, k) in entries(image::target(pud)) {
                for (pte, l) in entries(image::target(pmd)) {
                    let va = i << 39 | j << 30 | k << 21 | l << 12;
                    let va = ((va << 16).cast_signed() >> 16).cast_unsigned();
                    pages += 1;
                    sum = sum.wrapping_add(image::target(pte) ^ va);
                }
            }
        }
    }
    (pages, sum)
}

/// CPU time of this thread: on a machine that others use too, what they take is not counted. Their share
/// of the caches still is.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
