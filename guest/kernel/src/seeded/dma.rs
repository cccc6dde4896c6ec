//! Corruptions of bounce buffers. A machine without a pool gets that of devices of 24 bits.

use mm_core::{Gfp, Order};
use mm_dma::{Area, Direction, DmaDevice, DmaMask, Machine, MappingKind};

use crate::mm::dma::swiotlb::{self, Bounce};
use crate::mm::dma::{dma_map_single, dma_set_mask};
use crate::mm::page_alloc;
use crate::sched;

type Outcome = Result<(), &'static str>;

fn device() -> Result<DmaDevice, &'static str> {
    dma_set_mask(DmaMask::ISA, &sched::task_context()).map_err(|_| "no pool for devices of 24 bits")
}

/// Changes the first area of a pool.
fn edit(change: impl FnOnce(&mut Area<'_>)) -> Outcome {
    device()?;
    let pool = swiotlb::any_pool().ok_or("no bounce buffers")?;
    Bounce.with_area(pool, 0, change).ok_or("no area")
}

/// A mapping that nobody undoes; the number of its pool.
fn forget() -> Result<usize, &'static str> {
    let device = device()?;
    let order = Order::new(1).ok_or("no order")?;
    let pfn = page_alloc::alloc_here(Gfp::KERNEL | Gfp::DMA32, order, None).ok_or("no memory")?;
    let mapping = dma_map_single(&device, pfn.phys(), 5000, Direction::ToDevice);
    match mapping.map(|mapping| mapping.kind()) {
        Ok(MappingKind::Bounced { pool }) => Ok(pool),
        Ok(MappingKind::Direct) => Err("no memory beyond 24 bits"),
        Err(_) => Err("no slots"),
    }
}

/// A free slot that counts one too many behind it.
pub fn list() -> Outcome {
    edit(|area| area.parts_mut().0.iter_mut().skip(5).take(1).for_each(|slot| slot.list += 1))
}

/// An area that counts a slot that is free.
pub fn used() -> Outcome {
    edit(|area| area.parts_mut().1.used += 1)
}

/// A mapping of what the pool itself has.
pub fn orig() -> Outcome {
    let pool = forget()?;
    let start = Bounce.pool(pool).ok_or("no pool")?.start;
    let change = |area: &mut Area<'_>| {
        let mut at = start;
        for slot in area.parts_mut().0.iter_mut().filter(|slot| slot.alloc_size != 0) {
            slot.orig_addr = at;
            at += memvisor_abi::IO_TLB_SIZE;
        }
    };
    Bounce.with_area(pool, 0, change).ok_or("no area")
}

/// A mapping that nobody undoes.
pub fn leak() -> Outcome {
    forget().map(|_| ())
}
