//! An area comes into use (Linux: `swapon`, `setup_swap_map_and_extents`, `enable_swap_info`).

use core::ops::DerefMut;

use crate::area::word;
use crate::slot;
use crate::{Cluster, HeaderError, Parsed, Swap, SwapError, SwapInfo, Word};

/// An area that is not in use yet.
#[derive(Debug)]
pub struct NewArea<C>(SwapInfo<C>);

impl<C: DerefMut<Target = [Cluster]>> NewArea<C> {
    /// An area as its header describes it. `words` and `clusters` are its tables: a word for each slot, a cluster for each
    /// [`crate::SWAPFILE_CLUSTER`] of them, nobody else's.
    ///
    /// # Errors
    /// [`SwapError::Tables`] if they are too small, [`SwapError::Header`] if no slot is good.
    pub fn new<W: Word>(header: &Parsed<'_>, words: &[W], clusters: C) -> Result<NewArea<C>, SwapError> {
        let count = usize::try_from(header.max()).map_err(|_| SwapError::Tables)?;
        let words = words.get(..count).ok_or(SwapError::Tables)?;
        for (offset, word) in words.iter().enumerate() {
            slot::init(word, offset == 0);
        }
        for page in header.bad_pages() {
            if let Some(word) = word(words, u64::from(page)) {
                slot::init(word, true);
            }
        }
        let info = SwapInfo::new(words, clusters).ok_or(SwapError::Tables)?;
        if info.pages() == 0 {
            return Err(SwapError::Header(HeaderError::Empty));
        }
        Ok(NewArea(info))
    }

    /// What the area's lock is to guard, before [`swapon`] is called.
    pub fn into_info(self) -> SwapInfo<C> {
        self.0
    }
}

/// Gives slots of an area out from now on. [`Swap`] knows it already: its words, and its [`SwapInfo`] behind the lock. `prio`
/// is what the caller of swapon(2) asked for, if anything. Returns the priority.
///
/// # Errors
/// [`SwapError::NoArea`], [`SwapError::TooMany`].
pub fn swapon<M: Swap>(m: &M, area: u32, prio: Option<u16>) -> Result<i32, SwapError> {
    let prio = m.with_list(|list| list.priority(prio));
    let pages = m.with_area(area, |info| {
        info.prio = prio;
        info.writeok = true;
        info.pages()
    });
    enable(m, area, prio, pages.ok_or(SwapError::NoArea)?)?;
    Ok(prio)
}

/// Counts an area's slots and puts it on the list.
pub(crate) fn enable<M: Swap>(m: &M, area: u32, prio: i32, pages: u64) -> Result<(), SwapError> {
    let pages = i64::try_from(pages).unwrap_or(i64::MAX);
    m.totals().add_free(pages);
    m.totals().add_total(pages);
    if m.with_list(|list| list.insert(area, prio)) {
        return Ok(());
    }
    m.totals().add_free(-pages);
    m.totals().add_total(-pages);
    m.with_area(area, |info| info.writeok = false);
    Err(SwapError::TooMany)
}
