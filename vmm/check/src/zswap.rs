//! What zswap keeps in the place of pages of swap areas.
//!
//! Y1  `zswap.entry`: an entry is of a slot in use, whose page of the swap cache, if there is one, is not on its way to the device. Its
//!     bytes are 1 to 3968, in a frame of the pool, in the half whose chunks they take up and which names the slot.
//! Y2  `zswap.pool`: every half of a frame that has chunks is an entry's, and a frame has such a half; frames are on the list by age, and on
//!     the one for what they have free if they have one user. Frames, entries, those of one word, and leaves are as many as is said, and a
//!     leaf has as many entries as is said, at least one. The pool is no larger than its limit, but for a frame that each CPU was
//!     about to fill.

use std::collections::{HashMap, HashSet};

use memvisor_abi::{PAGE_SIZE, PFN_NONE, PageFlags, ZBUD_CHUNK, ZBUD_CHUNKS, ZBUD_MAX, ZSWAP_LEAF_SLOTS};
use memvisor_inspect::{LinkProblem, ZbudFrame, ZswapEntryAt, ZswapWalk, slot_of_value};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::swap::{text, word};

pub(crate) const ENTRY: Rule = Rule {
    name: "zswap.entry",
    invariant: "what is kept of a page is its slot's, which is in use, and lies in the pool",
    reads: "Zswap, ZswapEntry, ZbudHeader, words of slots, descriptors",
    seeded: &["zswap-entry-slot", "zswap-entry-frame", "zswap-entry-length"],
    hint: "zswap store and invalidate: who freed the slot, or wrote it, without invalidating it",
};
pub(crate) const POOL: Rule = Rule {
    name: "zswap.pool",
    invariant: "the pool's frames hold what entries say, and are as many as is said",
    reads: "Zswap, ZswapEntry, ZbudHeader",
    seeded: &["zswap-stored-count", "zswap-leaf-count", "zswap-lru-lost"],
    hint: "zbud_alloc and zbud_free; a frame or an entry that was freed without the other",
};

/// Runs Y1 and Y2.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    let Some(walk) = &context.zswap else {
        for rule in [&ENTRY, &POOL] {
            ledger.skip(rule, "zswap is off");
        }
        return;
    };
    let frames: HashMap<u64, &ZbudFrame> = walk.frames.items.iter().map(|frame| (frame.pfn, frame)).collect();
    for at in &walk.entries {
        ledger.checked(&ENTRY, 1);
        if let Some(wrong) = wrong_slot(context, at).or_else(|| wrong_bytes(&frames, at)) {
            let what = finding(&ENTRY, text(at.slot), "zswap keeps its page", wrong);
            ledger.report(&ENTRY, what.frame(at.entry.gpa() / PAGE_SIZE));
        }
    }
    lists(walk, ledger);
    halves(walk, ledger);
    counts(context, walk, ledger);
}

/// Y1 of the slot.
fn wrong_slot(context: &Context<'_>, at: &ZswapEntryAt) -> Option<String> {
    let Some(word) = word(context, at.slot) else { return Some("there is no such slot".to_owned()) };
    if word.count() == 0 && word.cache().is_none() {
        return Some("nobody uses the slot".to_owned());
    }
    let page = word.cache().and_then(|pfn| context.page(pfn));
    let is_written = page.is_some_and(|page| page.page_flags().contains(PageFlags::WRITEBACK));
    is_written.then(|| "its page is on its way to the device".to_owned())
}

/// Y1 of the bytes.
fn wrong_bytes(frames: &HashMap<u64, &ZbudFrame>, at: &ZswapEntryAt) -> Option<String> {
    let entry = at.entry;
    if entry.is_same_filled() {
        return None;
    }
    let (len, gpa) = (entry.len_bytes(), entry.gpa());
    if len == 0 || len > ZBUD_MAX {
        return Some(format!("it has {len} bytes"));
    }
    let Some(frame) = frames.get(&(gpa / PAGE_SIZE)) else {
        return Some(format!("{gpa:#x} is in no frame of the pool"));
    };
    let Some([_, slot, chunks]) = used_halves(frame).find(|[place, ..]| *place == gpa) else {
        return Some(format!("{gpa:#x} is where no half begins that is in use"));
    };
    if slot_of_value(slot) != at.slot {
        return Some(format!("the half at {gpa:#x} says it is {}'s", text(slot_of_value(slot))));
    }
    (len.div_ceil(ZBUD_CHUNK) != chunks).then(|| format!("its {len} bytes are in {chunks} chunks"))
}

/// Of the halves in use of a frame: where it begins, whose it says it is, chunks.
fn used_halves(frame: &ZbudFrame) -> impl Iterator<Item = [u64; 3]> {
    let (base, header) = (frame.pfn * PAGE_SIZE, &frame.header);
    let last = base + PAGE_SIZE.saturating_sub(header.last_chunks.saturating_mul(ZBUD_CHUNK));
    let first = [base + ZBUD_CHUNK, header.first_slot, header.first_chunks];
    [first, [last, header.last_slot, header.last_chunks]].into_iter().filter(|[.., chunks]| *chunks > 0)
}

/// Y2: links.
fn lists(walk: &ZswapWalk, ledger: &mut Ledger) {
    let broken = |problem: &Option<LinkProblem>, what: &'static str| {
        let problem = problem.as_ref()?;
        Some(finding(&POOL, what, "it is whole", problem.to_string()))
    };
    let mut wrong = Vec::new();
    wrong.extend(broken(&walk.problem, "the leaves of zswap"));
    wrong.extend(broken(&walk.frames.problem, "the list of zbud frames by age"));
    let last = walk.frames.items.last().map_or(PFN_NONE, |frame| frame.pfn);
    ledger.expect_eq(&POOL, "the oldest zbud frame", walk.state.pool.lru_last, last);
    let mut listed = HashSet::new();
    for (free, list) in (0..).zip(&walk.unbuddied) {
        wrong.extend(broken(&list.problem, "a list of zbud frames with room"));
        for frame in &list.items {
            listed.insert(frame.pfn);
            if room(frame) != Some(free) {
                let what = format!("zbud frame {:#x}", frame.pfn);
                let claim = format!("it has one user and {free} free chunks");
                wrong.push(finding(&POOL, what, claim, format!("{:?}", frame.header)).frame(frame.pfn));
            }
        }
    }
    for frame in walk.frames.items.iter().filter(|frame| room(frame).is_some()) {
        if !listed.contains(&frame.pfn) {
            let what = format!("zbud frame {:#x}", frame.pfn);
            wrong.push(finding(&POOL, what, "it is full", "one half is free").frame(frame.pfn));
        }
    }
    wrong.into_iter().for_each(|what| ledger.report(&POOL, what));
}

/// Free chunks of a frame with one user.
fn room(frame: &ZbudFrame) -> Option<u64> {
    let (first, last) = (frame.header.first_chunks, frame.header.last_chunks);
    ZBUD_CHUNKS.checked_sub(first.checked_add(last)?).filter(|_| (first == 0) != (last == 0))
}

/// Y2: what is in frames is an entry's.
fn halves(walk: &ZswapWalk, ledger: &mut Ledger) {
    let packed = walk.entries.iter().filter(|at| !at.entry.is_same_filled());
    let named: HashSet<u64> = packed.map(|at| at.entry.gpa()).collect();
    for frame in &walk.frames.items {
        ledger.checked(&POOL, 1);
        let what = || format!("zbud frame {:#x}", frame.pfn);
        let chunks = frame.header.first_chunks.saturating_add(frame.header.last_chunks);
        if chunks == 0 || chunks > ZBUD_CHUNKS {
            let outside = format!("{chunks} chunks of it are in use");
            ledger.report(&POOL, finding(&POOL, what(), "it is the pool's", outside).frame(frame.pfn));
        }
        for [place, slot, _] in used_halves(frame).filter(|[place, ..]| !named.contains(place)) {
            let claim = format!("{} is at {place:#x}", text(slot_of_value(slot)));
            ledger.report(&POOL, finding(&POOL, what(), claim, "no entry says so").frame(frame.pfn));
        }
    }
}

/// Y2: numbers.
fn counts(context: &Context<'_>, walk: &ZswapWalk, ledger: &mut Ledger) {
    let state = &walk.state;
    let same = walk.entries.iter().filter(|at| at.entry.is_same_filled()).count();
    for (what, says, found) in [
        ("frames of the pool of zswap", state.pool.pages, walk.frames.items.len()),
        ("entries of zswap", state.stored_pages, walk.entries.len()),
        ("entries of zswap of one word", state.same_filled_pages, same),
        ("leaves of zswap", state.leaf_pages, walk.leaves.len()),
    ] {
        ledger.expect_eq(&POOL, what, says, found as u64);
    }
    let mut by_leaf: HashMap<(u32, u64), u64> = HashMap::new();
    for (area, slot) in walk.entries.iter().map(|at| at.slot) {
        *by_leaf.entry((area, slot - slot % ZSWAP_LEAF_SLOTS)).or_default() += 1;
    }
    for leaf in &walk.leaves {
        let found = by_leaf.get(&leaf.first).copied().unwrap_or(0);
        ledger.expect_eq(
            &POOL,
            format_args!("entries in the leaf of {}", text(leaf.first)),
            leaf.used,
            found,
        );
        if found == 0 {
            let what = finding(&POOL, format!("leaf {:#x}", leaf.pfn), "it has entries", "it has none");
            ledger.report(&POOL, what.frame(leaf.pfn));
        }
    }
    let limit = state.totalram_pages.saturating_mul(state.max_pool_percent.into()) / 100;
    if state.pool.pages > limit.saturating_add(context.cpus.len() as u64) {
        let claim = format!("it has {} frames", state.pool.pages);
        let outside = format!("its limit is {limit}");
        ledger.report(&POOL, finding(&POOL, "the pool of zswap", claim, outside));
    }
}
