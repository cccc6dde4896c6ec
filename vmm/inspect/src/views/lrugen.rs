//! Generations of pages, as `inspect lru` shows them with `lru=gen`.

use std::fmt;

use memvisor_abi::{LRU_GEN_TYPE_NAMES, LRU_GEN_TYPES, LruGen, Lruvec, MAX_NR_TIERS, ZoneKind};
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource};

/// The generations of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generations {
    /// The youngest.
    pub max_seq: u64,
    /// The oldest of each type: anonymous, of files.
    pub min_seq: [u64; LRU_GEN_TYPES],
    /// The youngest first.
    pub rows: Vec<GenerationRow>,
    /// What the controller knows of each type.
    pub tiers: Vec<TierRow>,
}

/// A generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GenerationRow {
    /// Its number.
    pub seq: u64,
    /// When it was begun, in nanoseconds since boot.
    pub begun_ns: u64,
    /// How much older it is than the youngest, in nanoseconds.
    pub older_ns: u64,
    /// By type and zone, those with none left out.
    pub lists: Vec<GenerationList>,
}

/// Pages of a generation of one type and zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GenerationList {
    /// `anon` or `file`.
    pub kind: &'static str,
    /// Zone.
    pub zone: &'static str,
    /// Pages that the list counts.
    pub count: u64,
    /// Pages found by following the links.
    pub found: u64,
    /// Of those, mapped by a program.
    pub mapped: u64,
    /// By tier: how often they were used through descriptors.
    pub tiers: [u64; MAX_NR_TIERS],
    /// What is wrong with the links, if anything.
    pub problem: Option<String>,
}

/// A tier of a type, since its oldest generation is the oldest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TierRow {
    /// `anon` or `file`.
    pub kind: &'static str,
    /// Which.
    pub tier: usize,
    /// Pages that came back.
    pub refaulted: u64,
    /// Pages evicted.
    pub evicted: u64,
    /// Pages that went to the next generation instead.
    pub protected: u64,
    /// Pages that came back, older ones fading.
    pub avg_refaulted: u64,
    /// Pages evicted or protected, older ones fading.
    pub avg_total: u64,
}

impl Generations {
    /// Walks the lists of a node; `None` with the other policy.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        node: usize,
        lruvec: &Lruvec,
    ) -> Result<Option<Generations>, GuestError> {
        let lrugen = &lruvec.lrugen;
        if lrugen.enabled == 0 {
            return Ok(None);
        }
        let walks = guest.lru_gens(node, lruvec)?;
        let oldest = lrugen.min_seq.iter().copied().min().unwrap_or(0);
        // A guest may say anything.
        let oldest = oldest.max(lrugen.max_seq.saturating_sub(memvisor_abi::MAX_NR_GENS as u64 - 1));
        let youngest = lrugen.timestamps[LruGen::place(lrugen.max_seq)];
        let mut rows = Vec::new();
        for seq in (oldest..=lrugen.max_seq).rev() {
            let place = LruGen::place(seq);
            let begun_ns = lrugen.timestamps[place];
            let mut lists = Vec::new();
            for walk in walks.iter().filter(|walk| walk.place == place) {
                let is_older = lrugen.min_seq.get(walk.kind).is_some_and(|min| seq < *min);
                if is_older || walk.list.count == 0 && walk.pfns.is_empty() && walk.problem.is_none() {
                    continue;
                }
                let mut row = GenerationList {
                    kind: LRU_GEN_TYPE_NAMES.get(walk.kind).copied().unwrap_or("?"),
                    zone: ZoneKind::ALL.get(walk.zone).map_or("?", |zone| zone.name()),
                    count: walk.list.count,
                    found: walk.pfns.len() as u64,
                    mapped: 0,
                    tiers: [0; MAX_NR_TIERS],
                    problem: walk.problem.as_ref().map(ToString::to_string),
                };
                for pfn in &walk.pfns {
                    let Some(page) = guest.page(*pfn)? else { continue };
                    row.mapped += u64::from(page.mapcount >= 0);
                    let tier = memvisor_abi::PageFlags::lru_tier(page.page_flags().lru_refs());
                    row.tiers[tier] += 1;
                }
                lists.push(row);
            }
            rows.push(GenerationRow { seq, begun_ns, older_ns: youngest.saturating_sub(begun_ns), lists });
        }
        let tiers = LRU_GEN_TYPE_NAMES.iter().enumerate().flat_map(|(kind, name)| {
            (0..MAX_NR_TIERS).map(move |tier| TierRow {
                kind: name,
                tier,
                refaulted: lrugen.refaulted[kind][tier],
                evicted: lrugen.evicted[kind][tier],
                protected: lrugen.protected[kind][tier],
                avg_refaulted: lrugen.avg_refaulted[kind][tier],
                avg_total: lrugen.avg_total[kind][tier],
            })
        });
        Ok(Some(Generations {
            max_seq: lrugen.max_seq,
            min_seq: lrugen.min_seq,
            rows,
            tiers: tiers.collect(),
        }))
    }
}

impl fmt::Display for Generations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [anon, file] = self.min_seq;
        writeln!(f, "     generations: youngest {}, oldest anonymous {anon}, of files {file}", self.max_seq)?;
        for row in &self.rows {
            let (begun, older) = (row.begun_ns / 1_000_000, row.older_ns / 1_000_000);
            writeln!(f, "     {:>6}  begun at {begun} ms, {older} ms before the youngest", row.seq)?;
            for list in &row.lists {
                let [none, twice, few, many] = list.tiers;
                writeln!(
                    f,
                    "             {} {:<8} {:>8} counted {:>8} found {:>8} mapped; by tier {none} {twice} {few} {many}",
                    list.kind, list.zone, list.count, list.found, list.mapped
                )?;
                if let Some(problem) = &list.problem {
                    writeln!(f, "             {problem}")?;
                }
            }
        }
        let is_seen = |tier: &&TierRow| {
            tier.evicted + tier.protected + tier.refaulted + tier.avg_total + tier.avg_refaulted > 0
        };
        for tier in self.tiers.iter().filter(is_seen) {
            writeln!(
                f,
                "     {} tier {}: {} of {} evicted came back, {} protected; before {} of {}",
                tier.kind,
                tier.tier,
                tier.refaulted,
                tier.evicted,
                tier.protected,
                tier.avg_refaulted,
                tier.avg_total
            )?;
        }
        Ok(())
    }
}
