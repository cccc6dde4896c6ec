//! Trace rings: what the memory manager did, step by step, for readers that do not stop it.
//!
//! [`crate::Root::trace_rings`] names one [`TraceRing`] a CPU, published when the command line has
//! `trace=EVENTS`. A ring's records lie in a buffer of [`TraceRing::capacity`] slots of 64 bytes, contiguous in
//! guest-physical memory; record number `n` (from 0) lies in slot `n % capacity` and overwrites the
//! one before it. Only the ring's own CPU writes, with interrupts off:
//!
//! 1. the slot's [`TraceRecord::stamp`] becomes 0;
//! 2. the other words are written;
//! 3. the stamp becomes `n + 1`;
//! 4. [`TraceRing::head`] becomes `n + 1`.
//!
//! A reader that has seen all records below `next` reads `head`, copies the slots of
//! `max(next, head - capacity) .. head`, and reads `head` again. A copy of record `n` is whole if its stamp is
//! `n + 1` and `n + capacity > head` still holds; else it was overwritten and is lost, as are those that it
//! skipped. So what was lost is counted exactly, and the guest never waits.
//!
//! What the events are and what their arguments mean is the catalogue, [`EVENTS`].

mod catalogue;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::PFN_NONE;

/// A ring of one CPU, indexed by CPU number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TraceRing {
    /// Records written so far; never falls. Aligned to 8 bytes, written in one store.
    pub head: u64,
    /// Guest-physical address of the first slot, a multiple of 64.
    pub buffer_gpa: u64,
    /// Slots, a power of two; 0 if the CPU has no ring.
    pub capacity: u32,
    /// CPU number.
    pub cpu: u32,
    /// Steps of the call tree that are open on this CPU.
    pub depth: u32,
    /// Process or thread of the kernel that the CPU runs; 0 for the idle tasks and at boot.
    pub pid: u32,
    /// Events that are recorded: bit `n % 64` of word `n / 64` stands for event `n`. Equal in all rings.
    pub mask: [u64; MASK_WORDS],
    /// Time-stamp counter when the rings were made.
    pub start_tsc: u64,
}

/// One event, 64 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TraceRecord {
    /// The record's number plus 1; 0 while it is being written.
    pub stamp: u64,
    /// Time-stamp counter of the CPU.
    pub tsc: u64,
    /// Number of the event in [`EVENTS`].
    pub event: u16,
    /// Steps of the call tree around this one, at most 255. An exit has the depth of its enter.
    pub depth: u8,
    /// [`TraceRecord::IN_INTERRUPT`].
    pub context: u8,
    /// Process that the CPU ran, or thread of the kernel by its number; 0 for the idle tasks and at boot.
    pub pid: u32,
    /// Arguments, little-endian, each at [`EventInfo::offset`].
    pub args: [u64; ARG_WORDS],
}

/// Words of [`TraceRecord::args`].
pub const ARG_WORDS: usize = 5;
/// Words of [`TraceRing::mask`], and so the limit of event numbers divided by 64.
pub const MASK_WORDS: usize = 3;
/// Bytes of a record.
pub const TRACE_RECORD_SIZE: u64 = 64;
/// Most slots of a ring that a reader need believe in: 1 GiB.
pub const TRACE_CAPACITY_MAX: u32 = 1 << 24;

const _: () = assert!(size_of::<TraceRing>() == 64 && size_of::<TraceRecord>() == 64);

impl TraceRecord {
    /// In [`TraceRecord::context`]: inside an interrupt handler.
    pub const IN_INTERRUPT: u8 = 1;
}

/// What an event says about the call tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Something happened: a Linux tracepoint, or a step without steps of its own.
    Point,
    /// A function was entered with these arguments.
    Enter,
    /// The function of the same name returned this.
    Exit,
}

/// Families of events, by which `trace=` selects many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Pages: allocation, free, buddy, per-CPU lists, contiguous areas.
    Alloc,
    /// Caches and kmalloc.
    Slab,
    /// Compaction and migration.
    Compaction,
    /// Watermarks missed: kswapd, direct reclaim, shrinkers, OOM.
    Reclaim,
    /// vmalloc, vmap, ioremap, kmap.
    Vmalloc,
    /// Interrupts, faults and tasks, which the others happen in.
    Task,
    /// Memory of processes: faults, mappings, forks, swapping.
    Fault,
    /// Files: the page cache, writeback, disks.
    File,
    /// Marks that `explain` sets.
    Explain,
}

impl Group {
    /// All groups.
    pub const ALL: [Group; 9] = [
        Group::Alloc,
        Group::Slab,
        Group::Compaction,
        Group::Reclaim,
        Group::Vmalloc,
        Group::Task,
        Group::Fault,
        Group::File,
        Group::Explain,
    ];

    /// Name in `trace=` and in views.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Alloc => "alloc",
            Group::Slab => "slab",
            Group::Compaction => "compaction",
            Group::Reclaim => "reclaim",
            Group::Vmalloc => "vmalloc",
            Group::Task => "task",
            Group::Fault => "fault",
            Group::File => "file",
            Group::Explain => "explain",
        }
    }
}

/// What an argument is, and so how wide it is and how it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// Page frame number; [`PFN_NONE`] for none.
    Pfn,
    /// Virtual address; 0 for NULL.
    Addr,
    /// Physical address; 0 for NULL.
    Phys,
    /// Number of pages.
    Pages,
    /// Number of bytes.
    Bytes,
    /// Any other number.
    Count,
    /// Small number, or a code that the event's documentation names.
    Byte,
    /// Signed number: an errno, or Linux's own coding of a result.
    Int,
    /// log2 of a block's pages; 255 for none.
    Order,
    /// `gfp_t`, Linux's bits.
    Gfp,
    /// `ALLOC_*`, the rights of an attempt: [`ALLOC_FLAG_NAMES`] by bit.
    AllocFlags,
    /// [`crate::ZoneKind`] number.
    ZoneKind,
    /// Zone: node * [`crate::MAX_NR_ZONES`] + kind, as the zone table is indexed.
    Zone,
    /// Node; [`NO_NODE`] for none.
    Node,
    /// Migratetype number.
    Migratetype,
    /// Index of a cache in [`crate::Root::caches`]; [`NO_CACHE`] for none.
    Cache,
    /// Process or task.
    Pid,
    /// 0 or 1.
    Bool,
}

/// Names of the bits of [`FieldKind::AllocFlags`], lowest first.
pub const ALLOC_FLAG_NAMES: [&str; 12] = [
    "WMARK_MIN",
    "WMARK_LOW",
    "WMARK_HIGH",
    "NO_WATERMARKS",
    "HARDER",
    "HIGH",
    "OOM",
    "CPUSET",
    "CMA",
    "NOFRAGMENT",
    "KSWAPD",
    "HIGHATOMIC",
];

/// "No node" in an argument.
pub const NO_NODE: u16 = u16::MAX;
/// "No cache" in an argument.
pub const NO_CACHE: u16 = u16::MAX;

#[expect(non_upper_case_globals, reason = "they stand beside the variants in the catalogue")]
impl FieldKind {
    /// [`FieldKind::Pfn`] in a place where none is an ordinary answer.
    pub const MaybePfn: FieldKind = FieldKind::Pfn;
    /// [`FieldKind::Order`] in a place where none is an ordinary answer.
    pub const MaybeOrder: FieldKind = FieldKind::Order;
}

impl FieldKind {
    /// Bytes in the arguments; fields are aligned to their size.
    pub const fn size(self) -> usize {
        match self {
            FieldKind::Pfn
            | FieldKind::Addr
            | FieldKind::Phys
            | FieldKind::Pages
            | FieldKind::Bytes
            | FieldKind::Count => 8,
            FieldKind::Int | FieldKind::Gfp | FieldKind::AllocFlags | FieldKind::Pid => 4,
            FieldKind::Zone | FieldKind::Node | FieldKind::Cache => 2,
            FieldKind::Byte
            | FieldKind::Order
            | FieldKind::ZoneKind
            | FieldKind::Migratetype
            | FieldKind::Bool => 1,
        }
    }

    /// The raw value that stands for "none", if there is one.
    pub const fn none(self) -> Option<u64> {
        match self {
            FieldKind::Pfn => Some(PFN_NONE),
            FieldKind::Addr | FieldKind::Phys => Some(0),
            FieldKind::Node | FieldKind::Cache => Some(NO_NODE as u64),
            FieldKind::Order => Some(u8::MAX as u64),
            _ => None,
        }
    }
}

/// An argument of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Linux's name where the event is Linux's.
    pub name: &'static str,
    /// What it is.
    pub kind: FieldKind,
}

/// An entry of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventInfo {
    /// Its number, equal to its index in [`EVENTS`].
    pub number: u16,
    /// Name: Linux's tracepoint or function. An enter and its exit share one.
    pub name: &'static str,
    /// Linux's trace system (`kmem` in `kmem:mm_page_alloc`); empty if Linux has no such tracepoint.
    pub system: &'static str,
    /// Family.
    pub group: Group,
    /// Place in the call tree.
    pub phase: Phase,
    /// Arguments in order.
    pub fields: &'static [Field],
}

/// First free byte at or after `at` for a field of `size` bytes.
const fn align(at: usize, size: usize) -> usize {
    at.next_multiple_of(size)
}

impl EventInfo {
    /// The event of a number.
    pub fn of(number: u16) -> Option<&'static EventInfo> {
        EVENTS.get(usize::from(number))
    }

    /// Byte at which the argument `index` starts; the end of the arguments for an index past the last.
    pub const fn offset(&self, index: usize) -> usize {
        let mut at = 0;
        let mut field = 0;
        while field < self.fields.len() {
            let size = self.fields[field].kind.size();
            at = align(at, size);
            if field == index {
                return at;
            }
            at += size;
            field += 1;
        }
        at
    }

    /// Whether Linux has this tracepoint.
    pub const fn is_linux(&self) -> bool {
        !self.system.is_empty()
    }

    /// The raw arguments with their fields, in order. [`FieldKind::Int`] is sign-extended.
    pub fn values<'r>(&'static self, record: &'r TraceRecord) -> impl Iterator<Item = (Field, u64)> + 'r {
        let mut at = 0;
        self.fields.iter().map(move |field| {
            let size = field.kind.size();
            at = align(at, size);
            let word = record.args.get(at / 8).copied().unwrap_or(0);
            let value = word >> (at % 8 * 8) & (u64::MAX >> (64 - size * 8));
            at += size;
            (*field, if field.kind == FieldKind::Int { sign_extend(value) } else { value })
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the lower half is the signed number"
)]
const fn sign_extend(value: u64) -> u64 {
    value as u32 as i32 as i64 as u64
}

macro_rules! define_catalogue {
    ($(
        $(#[$doc:meta])*
        $number:literal $id:ident $name:literal $system:literal $group:ident $phase:ident
        { $($field:ident: $kind:ident),* }
    )*) => {
        /// Numbers of the events.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum EventId {
            $($(#[$doc])* $id = $number,)*
        }

        /// All events by number.
        pub const EVENTS: &[EventInfo] = &[$(
            EventInfo {
                number: $number,
                name: $name,
                system: $system,
                group: Group::$group,
                phase: Phase::$phase,
                fields: &[$(Field { name: stringify!($field), kind: FieldKind::$kind }),*],
            },
        )*];
    };
}
crate::for_each_event!(define_catalogue);

// Numbers are indices, arguments fit, and an exit follows its enter.
const _: () = {
    assert!(EVENTS.len() <= MASK_WORDS * 64);
    let mut index = 0;
    while index < EVENTS.len() {
        let event = &EVENTS[index];
        assert!(event.number as usize == index);
        assert!(event.offset(event.fields.len()) <= ARG_WORDS * 8);
        assert!(
            matches!(event.phase, Phase::Exit)
                == (index > 0 && matches!(EVENTS[index - 1].phase, Phase::Enter))
        );
        index += 1;
    }
};

/// The events that `patterns` select, as [`TraceRing::mask`] has them: words separated by commas, each a group,
/// `all`, a name, or a name with `*` for any text and `?` for any character; `SYSTEM:NAME` as perf writes it; a
/// leading `!` takes away instead. `Err` is the first word that selects nothing.
///
/// ```
/// use memvisor_abi::{EventId, select_events};
/// let mask = select_events("mm_page_*,!mm_page_free").expect("known events");
/// let has = |id: EventId| mask[id as usize / 64] >> (id as usize % 64) & 1 == 1;
/// assert!(has(EventId::MmPageAlloc) && !has(EventId::MmPageFree) && !has(EventId::Kmalloc));
/// assert_eq!(select_events("alloc,nonsense"), Err("nonsense"));
/// ```
pub fn select_events(patterns: &str) -> Result<[u64; MASK_WORDS], &str> {
    let mut mask = [0; MASK_WORDS];
    for word in patterns.split(',').filter(|word| !word.is_empty()) {
        let pattern = word.strip_prefix('!');
        let mut found = false;
        for event in EVENTS.iter().filter(|event| event.matches(pattern.unwrap_or(word))) {
            found = true;
            let bit = 1 << (event.number % 64);
            let slot = &mut mask[usize::from(event.number / 64)];
            *slot = if pattern.is_some() { *slot & !bit } else { *slot | bit };
        }
        if !found {
            return Err(word);
        }
    }
    Ok(mask)
}

impl EventInfo {
    /// Whether one word of [`select_events`], without `!`, selects this event.
    fn matches(&self, pattern: &str) -> bool {
        let name = match pattern.split_once(':') {
            Some((system, name)) => {
                if !matches_glob(system.as_bytes(), self.system.as_bytes()) || !self.is_linux() {
                    return false;
                }
                name
            }
            None => pattern,
        };
        pattern == "all"
            || pattern == self.group.name()
            || matches_glob(name.as_bytes(), self.name.as_bytes())
    }
}

/// Whether `text` is what `glob` describes. Linear in the text times the stars.
fn matches_glob(glob: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last star was, and how much of the text it has swallowed.
    let mut star = None;
    while from < text.len() {
        match glob.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((place, swallowed)) => {
                    star = Some((place, swallowed + 1));
                    at = place + 1;
                    from = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    glob[at..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests;
