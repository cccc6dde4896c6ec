//! The page allocator's functions, called rightly and wrongly, against a set of blocks.

use std::collections::{BTreeMap, BTreeSet};

use mm_core::{
    Gfp, MaySleep, MemMap, Migratetype, Order, PAGEBLOCK_PAGES, PageFlags, PageKind, Pfn, PhysAddr, PhysMem,
};
use mm_page_alloc::{Context, FreeError, Machine, NodeMask, PageAllocator, Policy, TaskPolicy, check_gfp};

use crate::Input;
use crate::simulated::{Simulated, ZONES};

/// Operations of one input; more would only make it slow.
const OPERATIONS: usize = 500;

/// The size of CPUs' lists, then operations.
pub fn alloc_api(data: &[u8]) {
    let mut input = Input::new(data);
    let (high, batch) = (input.u8().into(), (input.u8() & 63).into());
    let mut run = Run {
        pages: PageAllocator::new(Simulated::new(high, batch)),
        live: BTreeMap::new(),
        isolated: BTreeSet::new(),
        policy: TaskPolicy::default(),
    };
    let total = run.machine().unused_pages();
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        run.step(&mut input);
        let held: u64 = run.live.values().map(|block| block.order.pages()).sum();
        assert_eq!(run.machine().unused_pages() + held, total, "pages were lost, or are had twice");
    }
    run.machine().audit();
    run.end(total);
}

/// A block that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    order: Order,
    references: i32,
    compound: bool,
}

struct Run {
    pages: PageAllocator<Simulated>,
    live: BTreeMap<u64, Block>,
    /// First frames of isolated pageblocks.
    isolated: BTreeSet<u64>,
    policy: TaskPolicy,
}

impl Run {
    fn machine(&self) -> &Simulated {
        self.pages.machine()
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 20 {
            0..=4 => self.alloc(input),
            5..=7 => {
                let Some((pfn, block)) = self.pick(input) else { return };
                self.free(pfn, block.order);
            }
            8 => {
                let pfn = frame(input);
                self.free(pfn, Order::new(input.u8() % 11).expect("there is such an order"));
            }
            9 => {
                let pfn = self.near(input);
                let head = self.compound_of(pfn).unwrap_or(pfn);
                let order = self.live.get(&head.as_u64()).filter(|block| block.compound);
                let expected = self.drop_reference(head, order.map_or(Order::ZERO, |block| block.order));
                assert_eq!(self.pages.put_page(pfn).is_ok(), expected, "put_page of {pfn}");
            }
            10 => {
                let pfn = self.near(input);
                let head = self.compound_of(pfn).unwrap_or(pfn);
                let block = self.live.get_mut(&head.as_u64());
                let expected = block.is_some();
                block.into_iter().for_each(|block| block.references += 1);
                assert_eq!(self.pages.get_page(pfn).is_ok(), expected, "get_page of {pfn}");
            }
            11 => self.split(input),
            12 => self.exact(input),
            13 => self.bulk(input),
            14 => {
                let nodes = NodeMask::of([u32::from(input.u8() & 3)]);
                let policy = match input.u8() & 3 {
                    0 => Policy::Bind(nodes),
                    1 => Policy::Interleave(nodes),
                    2 => Policy::Preferred(u32::from(input.u8() & 3)),
                    _ => Policy::Local,
                };
                // Nodes without memory are refused, and the old policy stays.
                let _ = self.policy.set(policy, NodeMask::of([0, 1]));
            }
            15 => {
                let (gfp, order) = (gfp(input), Order::new(input.u8() % 11).expect("there is such an order"));
                let got = self.pages.alloc_pages_policy(Context::ATOMIC, gfp, order, &mut self.policy);
                if let Some(pfn) = got {
                    self.take(pfn, order, gfp);
                }
            }
            16 => self.machine().run_on(input.u8().into()),
            17 if input.u8() & 1 == 0 => self.pages.drain_all_pages(),
            17 => self.pages.drain_local_pages(),
            18 => self.isolate(frame(input)),
            _ => self.machine().audit(),
        }
    }

    fn alloc(&mut self, input: &mut Input<'_>) {
        let gfp = gfp(input);
        let order = match input.u8() {
            order @ 0..16 => u32::from(order),
            order @ 16..240 => u32::from(order) % 4,
            _ => input.u32(),
        };
        let node = Some(input.u8()).filter(|node| node & 3 == 0).map(|node| u32::from(node >> 2));
        let token = MaySleep::checked_by_scheduler();
        // Nothing is ever reclaimed here: a request that must not fail would wait for ever.
        let sleeps = !gfp.contains(Gfp::NOFAIL) && input.u8() & 1 == 0;
        let context = if sleeps { Context::task(&token) } else { Context::ATOMIC };
        let got = self.pages.alloc_pages_raw(context, gfp, order, node);
        let Some(pfn) = got else { return };
        assert!(check_gfp(context, gfp).is_ok(), "{gfp:?} was not refused");
        let order = u8::try_from(order).ok().and_then(Order::new).expect("no block is larger");
        self.take(pfn, order, gfp);
        if gfp.contains(Gfp::THISNODE) {
            let node = node.unwrap_or_else(|| self.machine().local_node());
            assert_eq!(self.machine().mem.page(pfn).expect("RAM").node(), node, "{pfn} is not of this node");
        }
    }

    /// A block came: it is nobody else's and what `gfp` asks for.
    fn take(&mut self, pfn: Pfn, order: Order, gfp: Gfp) {
        let (start, end) = (pfn.as_u64(), pfn.as_u64() + order.pages());
        let before = self.live.range(..end).next_back();
        let free = before.is_none_or(|(other, block)| other + block.order.pages() <= start);
        assert!(free, "{pfn} is part of {before:x?}");
        assert_eq!(pfn.block(order), pfn, "a block of order {} is not aligned", order.as_u8());
        assert!(ZONES.iter().any(|(_, _, zone)| zone.contains(&start) && end <= zone.end), "{pfn} is no RAM");
        let page = self.machine().mem.page(pfn).expect("RAM");
        assert_eq!((page.kind(), page.order(), page.refcount()), (PageKind::Allocated, order, 1), "{pfn}");
        assert!(gfp.highest_zone().is_some_and(|highest| page.zone() <= highest), "{pfn} is above {gfp:?}");
        let first = start - start % PAGEBLOCK_PAGES;
        assert!(self.isolated.range(first..end).next().is_none(), "{pfn} is isolated");
        if gfp.contains(Gfp::ZERO) {
            for frame in [start, end - 1] {
                let word = PhysAddr::new(frame * 4096 + 4088);
                assert_eq!(self.machine().mem.read_u64(word), 0, "frame {frame:#x} is not zero");
            }
        }
        // Who has a block writes to it.
        self.machine().mem.write_u64(PhysAddr::new(end * 4096 - 8), start);
        let compound = gfp.contains(Gfp::COMP) && order > Order::ZERO;
        assert_eq!(page.has(PageFlags::HEAD), compound, "{pfn}");
        self.live.insert(start, Block { order, references: 1, compound });
    }

    fn free(&mut self, pfn: Pfn, order: Order) {
        let block = self.live.get(&pfn.as_u64()).copied();
        let expected = self.drop_reference(pfn, order);
        let freed = self.pages.free_pages(pfn, order);
        assert_eq!(
            freed.is_ok(),
            expected,
            "free of {pfn} as order {}, which is {block:?}: {freed:?}",
            order.as_u8()
        );
        if let Err(error) = freed {
            assert!(!error.to_string().is_empty());
            self.check_refusal(pfn, order, error);
        }
    }

    /// A refusal names what is wrong.
    fn check_refusal(&self, pfn: Pfn, order: Order, error: FreeError) {
        let (head, block) = match self.cover(pfn) {
            Some((head, block)) if head == pfn => (true, Some(block)),
            Some((_, block)) => (false, Some(block)),
            None => (false, None),
        };
        match error {
            FreeError::NoDescriptor { .. } => assert!(self.machine().mem.page(pfn).is_none()),
            FreeError::WrongOrder { allocated, .. } => {
                assert_eq!(Some(allocated), block.filter(|_| head).map(|block| block.order));
            }
            FreeError::Tail { .. } => assert!(!head && block.is_some_and(|block| block.compound), "{pfn}"),
            FreeError::DoubleFree { .. } => {
                assert!(!head && block.is_none_or(|block| !block.compound), "{pfn}")
            }
            FreeError::Misaligned { .. } => assert_ne!(pfn.block(order), pfn),
            other => panic!("{other} for a frame that is {block:?}"),
        }
    }

    /// Drops a reference in the model; whether there was one to drop.
    fn drop_reference(&mut self, pfn: Pfn, order: Order) -> bool {
        let Some(block) = self.live.get_mut(&pfn.as_u64()).filter(|block| block.order == order) else {
            return false;
        };
        block.references -= 1;
        if block.references == 0 {
            self.live.remove(&pfn.as_u64());
        } else if !block.compound {
            // The rest of the block is free, the first frame is not.
            block.order = Order::ZERO;
        }
        true
    }

    fn split(&mut self, input: &mut Input<'_>) {
        let wrong = input.u8() & 3 == 0;
        let (pfn, order) = match self.pick(input) {
            Some((pfn, block)) if !wrong => (pfn, block.order),
            _ => (frame(input), Order::new(input.u8() % 11).expect("there is such an order")),
        };
        let block =
            self.live.get(&pfn.as_u64()).copied().filter(|block| block.order == order && !block.compound);
        assert_eq!(self.pages.split_page(pfn, order).is_ok(), block.is_some(), "split of {pfn}");
        let Some(block) = block else { return };
        for index in 0..order.pages() {
            self.live.insert(pfn.as_u64() + index, Block { order: Order::ZERO, ..block });
        }
    }

    fn exact(&mut self, input: &mut Input<'_>) {
        let (gfp, bytes) = (gfp(input), input.number());
        let Some(start) = self.pages.alloc_pages_exact(Context::ATOMIC, bytes, gfp) else { return };
        let count = bytes.div_ceil(4096);
        assert!((1..=Order::MAX.pages()).contains(&count), "{bytes} bytes are no block");
        for index in 0..count {
            self.take(start.pfn().offset(index), Order::ZERO, gfp - (Gfp::COMP | Gfp::HIGHMEM));
        }
        if input.u8() & 1 == 0 {
            assert_eq!(self.pages.free_pages_exact(start, bytes), Ok(()));
            (0..count).for_each(|index| assert!(self.live.remove(&(start.pfn().as_u64() + index)).is_some()));
        }
    }

    fn bulk(&mut self, input: &mut Input<'_>) {
        let (gfp, count) = (gfp(input), usize::from(input.u8()));
        let mut got = Vec::new();
        let done = self.pages.alloc_pages_bulk(Context::ATOMIC, gfp, None, count, |pfn| got.push(pfn));
        assert_eq!(done, got.len());
        assert!(done <= count);
        for pfn in got {
            self.take(pfn, Order::ZERO, gfp);
        }
    }

    /// Isolates the pageblock of a frame, or gives it back.
    fn isolate(&mut self, pfn: Pfn) {
        let block = pfn.as_u64() - pfn.as_u64() % PAGEBLOCK_PAGES;
        // What CPUs keep of it would still be handed out.
        self.pages.drain_all_pages();
        let machine = self.pages.machine();
        if self.isolated.remove(&block) {
            let back = |zone: &mut mm_page_alloc::Zone| {
                zone.unset_migratetype_isolate(&machine.mem, pfn, Migratetype::Movable)
            };
            assert_eq!(machine.zone_of(pfn, back), Some(true));
        } else if machine.zone_of(pfn, |zone| zone.set_migratetype_isolate(&machine.mem, pfn)) == Some(true) {
            self.isolated.insert(block);
        }
    }

    /// Everything is given back: the zones are whole again.
    fn end(mut self, total: u64) {
        for block in std::mem::take(&mut self.isolated) {
            self.isolated.insert(block);
            self.isolate(Pfn::new(block));
        }
        while let Some((&pfn, &block)) = self.live.first_key_value() {
            self.free(Pfn::new(pfn), block.order);
        }
        self.pages.drain_all_pages();
        let machine = self.machine();
        assert_eq!((machine.unused_pages(), machine.kept_pages()), (total, 0));
        machine.audit();
        let apart = |pfn: u64| {
            let block = machine.mem.pageblock(Pfn::new(pfn)).expect("RAM");
            matches!(block.migratetype(), Migratetype::HighAtomic | Migratetype::Isolate | Migratetype::Cma)
        };
        let starts = || {
            ZONES.into_iter().flat_map(|(_, _, zone)| zone.filter(|pfn| pfn.is_multiple_of(PAGEBLOCK_PAGES)))
        };
        if !starts().any(apart) {
            assert_eq!(machine.largest_blocks(), total / Order::MAX.pages(), "free memory is in pieces");
        }
    }

    /// A block that was handed out.
    fn pick(&self, input: &mut Input<'_>) -> Option<(Pfn, Block)> {
        let index = usize::from(input.u16()) % self.live.len().max(1);
        self.live.iter().nth(index).map(|(pfn, block)| (Pfn::new(*pfn), *block))
    }

    /// A frame, more often than not one that somebody has.
    fn near(&self, input: &mut Input<'_>) -> Pfn {
        match (input.u8(), self.pick(input)) {
            (choice @ 0..192, Some((pfn, block))) => pfn.offset(u64::from(choice) % block.order.pages()),
            _ => frame(input),
        }
    }

    /// The block that a frame is part of.
    fn cover(&self, pfn: Pfn) -> Option<(Pfn, Block)> {
        let (&head, &block) = self.live.range(..=pfn.as_u64()).next_back()?;
        (pfn.as_u64() < head + block.order.pages()).then_some((Pfn::new(head), block))
    }

    /// The head of the compound page that a frame is part of.
    fn compound_of(&self, pfn: Pfn) -> Option<Pfn> {
        self.cover(pfn).filter(|(_, block)| block.compound).map(|(head, _)| head)
    }
}

/// Flags: those in use, or any bits.
fn gfp(input: &mut Input<'_>) -> Gfp {
    const USUAL: [Gfp; 12] = [
        Gfp::KERNEL,
        Gfp::ATOMIC,
        Gfp::NOWAIT,
        Gfp::HIGHUSER_MOVABLE,
        Gfp::DMA32,
        Gfp::NOWAIT.union(Gfp::COMP),
        Gfp::NOWAIT.union(Gfp::ZERO),
        Gfp::NOWAIT.union(Gfp::MOVABLE).union(Gfp::HIGHMEM),
        Gfp::NOWAIT.union(Gfp::RECLAIMABLE),
        Gfp::NOWAIT.union(Gfp::THISNODE),
        Gfp::ATOMIC.union(Gfp::MEMALLOC),
        Gfp::empty(),
    ];
    let form = input.u8();
    match USUAL.get(usize::from(form >> 4)) {
        Some(gfp) => *gfp,
        None => Gfp::from_bits_retain(input.u32() & if form & 1 == 0 { 0x7f_ffff } else { u32::MAX }),
    }
}

/// A frame in or near RAM, or any.
fn frame(input: &mut Input<'_>) -> Pfn {
    match input.u8() {
        0..240 => Pfn::new(0x3f0 + u64::from(input.u16()) % 0x2820),
        _ => Pfn::new(input.number()),
    }
}
