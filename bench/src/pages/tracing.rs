//! What tracepoints cost that are compiled in and off.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use memvisor_abi::EventId;
use mm_core::{Trace, TraceMask};

use super::Frames;
use super::contest::pairs;
use super::host::{Ours, Untraced, run_on};
use crate::stats::{median, short};
use crate::table::{Table, Target};

/// A machine whose events are all off, as the guest's are without `trace=`.
#[derive(Default)]
struct Off(TraceMask);

impl Trace for Off {
    #[inline(always)]
    fn wants(&self, id: EventId) -> bool {
        self.0.has(id)
    }

    #[inline(always)]
    fn is_tracing(&self) -> bool {
        self.0.is_any()
    }
}

/// Counts the questions whether an event is on.
#[derive(Default)]
struct Asked(AtomicU64);

impl Trace for Asked {
    fn wants(&self, _: EventId) -> bool {
        self.0.fetch_add(1, Relaxed);
        false
    }

    fn is_tracing(&self) -> bool {
        self.0.fetch_add(1, Relaxed);
        false
    }
}

/// Rows for an order of the CPU's lists and for one that goes to the zone.
pub fn rows(table: &mut Table, rounds: usize, count: usize) {
    run_on(0);
    let frames = 1 << 18;
    let (without, off, asked) =
        (Ours::<Untraced>::start(frames), Ours::<Off>::start(frames), Ours::<Asked>::start(frames));
    for order in [0, 5] {
        let (mut bare, mut traced) = (Vec::new(), Vec::new());
        // Differences are small: many short rounds. The first one warms up.
        for round in 0..=rounds.max(51) {
            let (a, b) = (time(&without, order, count), time(&off, order, count));
            if round > 0 {
                bare.push(a);
                traced.push(b);
            }
        }
        time(&asked, order, 1);
        let before = asked.trace().0.load(Relaxed);
        time(&asked, order, 1000);
        let events = (asked.trace().0.load(Relaxed) - before) as f64 / 1000.0;
        let (bare, traced) = (median(&bare), median(&traced));
        table.row(
            &format!("order-{order} pair, {events:.0} tests for events that are off"),
            &format!("{} ns", short(traced)),
            ("memvisor without tracepoints", &format!("{} ns", short(bare))),
            ((traced - bare) / events, " ns a test"),
            Target::None,
        );
    }
}

fn time<F: Frames>(frames: &F, order: u8, count: usize) -> f64 {
    let start = Instant::now();
    pairs(frames, order, count);
    start.elapsed().as_nanos() as f64 / count as f64
}
