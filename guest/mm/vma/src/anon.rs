//! From an anonymous page to whoever maps it (Linux: mm/rmap.c, include/linux/rmap.h).
//!
//! A page names the [`AnonVma`] of the VMA that it was first mapped in. A fork gives the child's VMAs an `AnonVma` of
//! their own for new pages, and links them to all those of the parent, so that every VMA in which a page of an `AnonVma` can be
//! mapped is on the `AnonVma`'s list. [`AnonVmaChain`] is one link of that many-to-many relation.
//!
//! Invariants:
//! A1  a VMA that has an `anon_vma` is linked to it, and to each `AnonVma` that a page mapped in it names;
//! A2  `refcount` is 1 while the list is not empty, plus 1 for each `AnonVma` that has it as its root;
//! A3  `num_children` is the `AnonVma`s whose parent it is, itself included if it is a root, while their lists are not
//!     empty; `num_active_vmas` is the VMAs whose `anon_vma` it is.
//!
//! Differs from Linux: an `AnonVma` has a list of its links, not an interval tree by page offset: a walk costs as many
//! steps as VMAs are linked, which reuse of childless `AnonVma`s keeps to the living descendants.

use core::mem::offset_of;
use core::sync::atomic::AtomicU32;

use memvisor_abi as abi;

use crate::id::{Id, Link, fields};
use crate::{Arena, Errno, Kernel, Vma};

/// Linux: `struct anon_vma`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct AnonVma {
    root: Link<AnonVma>,
    parent: Link<AnonVma>,
    chains: Link<AnonVmaChain>,
    refcount: AtomicU32,
    num_children: AtomicU32,
    num_active_vmas: AtomicU32,
    reserved: AtomicU32,
}

const _: () = assert!(
    size_of::<AnonVma>() == size_of::<abi::AnonVma>()
        && offset_of!(AnonVma, root) == offset_of!(abi::AnonVma, root)
        && offset_of!(AnonVma, parent) == offset_of!(abi::AnonVma, parent)
        && offset_of!(AnonVma, chains) == offset_of!(abi::AnonVma, chains)
        && offset_of!(AnonVma, refcount) == offset_of!(abi::AnonVma, refcount)
        && offset_of!(AnonVma, num_children) == offset_of!(abi::AnonVma, num_children)
        && offset_of!(AnonVma, num_active_vmas) == offset_of!(abi::AnonVma, num_active_vmas)
);

impl AnonVma {
    /// The first ancestor, which every VMA that a page of this one can be mapped in is linked to.
    pub(crate) fn root(&self) -> Option<Id<AnonVma>> {
        self.root.load()
    }

    fields! {
        /// See A2.
        refcount, set_refcount, u32;
        /// See A3.
        num_children, set_num_children, u32;
        /// See A3.
        num_active_vmas, set_num_active_vmas, u32;
    }
}

/// Linux: `struct anon_vma_chain`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct AnonVmaChain {
    vma: Link<Vma>,
    anon_vma: Link<AnonVma>,
    /// Links of the same VMA.
    vma_next: Link<AnonVmaChain>,
    vma_prev: Link<AnonVmaChain>,
    /// Links of the same `AnonVma`.
    anon_next: Link<AnonVmaChain>,
    anon_prev: Link<AnonVmaChain>,
}

const _: () = assert!(
    size_of::<AnonVmaChain>() == size_of::<abi::AnonVmaChain>()
        && offset_of!(AnonVmaChain, vma) == offset_of!(abi::AnonVmaChain, vma)
        && offset_of!(AnonVmaChain, anon_vma) == offset_of!(abi::AnonVmaChain, anon_vma)
        && offset_of!(AnonVmaChain, vma_next) == offset_of!(abi::AnonVmaChain, vma_next)
        && offset_of!(AnonVmaChain, vma_prev) == offset_of!(abi::AnonVmaChain, vma_prev)
        && offset_of!(AnonVmaChain, anon_next) == offset_of!(abi::AnonVmaChain, anon_next)
        && offset_of!(AnonVmaChain, anon_prev) == offset_of!(abi::AnonVmaChain, anon_prev)
);

/// Whether the VMA is linked to exactly one `AnonVma` (Linux: `list_is_singular(&vma->anon_vma_chain)`).
pub(crate) fn is_singular(vma: &Vma) -> bool {
    vma.chain_first.load().is_some() && vma.chain_first.load() == vma.chain_last.load()
}

/// Calls `f`, which allocates, with the rmap lock, and again as long as there is no memory that can be waited for: with the lock held
/// nothing waits. What `f` did in vain it has undone.
fn rmap_lock_or_wait<K: Kernel>(k: &K, mut f: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match k.rmap_lock(&mut f) {
            Err(Errno::Enomem) if k.wait_for_memory() => {}
            done => return done,
        }
    }
}

/// Gives a VMA an `AnonVma`, a neighbour's if they may merge one day (Linux: `__anon_vma_prepare`).
pub(crate) fn prepare<K: Kernel>(k: &K, id: Id<Vma>) -> Result<(), Errno> {
    let vma = k.at(id);
    if vma.anon_vma().is_some() {
        return Ok(());
    }
    rmap_lock_or_wait(k, || {
        if vma.anon_vma().is_some() {
            return Ok(());
        }
        let chain = Arena::<AnonVmaChain>::alloc(k).ok_or(Errno::Enomem)?;
        let anon = match find_mergeable(k, vma) {
            Some(anon) => anon,
            None => match fresh(k, None) {
                Ok(anon) => anon,
                Err(error) => {
                    k.free(chain);
                    return Err(error);
                }
            },
        };
        let at: &AnonVma = k.at(anon);
        if at.chains.load().is_none() {
            // Its own child, so that a root is never reused.
            at.set_num_children(at.num_children() + 1);
        }
        link(k, chain, id, anon);
        vma.anon_vma.store(Some(anon));
        at.set_num_active_vmas(at.num_active_vmas() + 1);
        Ok(())
    })
}

/// Linux: `find_mergeable_anon_vma`.
fn find_mergeable<K: Kernel>(k: &K, vma: &Vma) -> Option<Id<AnonVma>> {
    let above = vma.next().map(|next| k.at(next));
    let below = vma.prev().map(|prev| k.at(prev));
    above
        .and_then(|next| reusable(next, vma, next))
        .or_else(|| below.and_then(|prev| reusable(prev, prev, vma)))
}

/// Linux: `reusable_anon_vma`. `a` is below `b`.
fn reusable(old: &Vma, a: &Vma, b: &Vma) -> Option<Id<AnonVma>> {
    let compatible = a.end() == b.start()
        && a.mapping() == b.mapping()
        && a.policy() == b.policy()
        && (a.flags() ^ b.flags()).difference(crate::VmFlags::ACCESS).is_empty()
        && b.pgoff() == a.index_of(b.start());
    if compatible && is_singular(old) { old.anon_vma() } else { None }
}

/// Links `dst` to all that `src` is linked to (Linux: `anon_vma_clone`). `dst` has `src`'s `anon_vma`, or none in a
/// fork; then one without VMAs may be reused.
pub(crate) fn clone<K: Kernel>(k: &K, dst: Id<Vma>, src: Id<Vma>) -> Result<(), Errno> {
    rmap_lock_or_wait(k, || clone_locked(k, dst, src))
}

fn clone_locked<K: Kernel>(k: &K, dst: Id<Vma>, src: Id<Vma>) -> Result<(), Errno> {
    let (to, from) = (k.at(dst), k.at(src));
    let given = to.anon_vma();
    let mut next = from.chain_last.load();
    while let Some(old) = next {
        let old: &AnonVmaChain = k.at(old);
        next = old.vma_prev.load();
        let Some(anon) = old.anon_vma.load() else { continue };
        let Some(chain) = Arena::<AnonVmaChain>::alloc(k) else {
            // Nothing was counted as active yet.
            to.anon_vma.store(None);
            unlink_locked(k, dst);
            to.anon_vma.store(given);
            return Err(Errno::Enomem);
        };
        link(k, chain, dst, anon);
        let at: &AnonVma = k.at(anon);
        if to.anon_vma().is_none()
            && from.anon_vma().is_some()
            && at.num_children() < 2
            && at.num_active_vmas() == 0
        {
            to.anon_vma.store(Some(anon));
        }
    }
    if let Some(anon) = to.anon_vma() {
        let at = k.at(anon);
        at.set_num_active_vmas(at.num_active_vmas() + 1);
    }
    Ok(())
}

/// Links the child's VMA as the parent's is, and gives it an `AnonVma` for its own pages (Linux: `anon_vma_fork`).
pub(crate) fn fork<K: Kernel>(k: &K, child: Id<Vma>, parent: Id<Vma>) -> Result<(), Errno> {
    let Some(above) = k.at(parent).anon_vma() else { return Ok(()) };
    let vma = k.at(child);
    vma.anon_vma.store(None);
    rmap_lock_or_wait(k, || {
        clone_locked(k, child, parent)?;
        if vma.anon_vma().is_some() {
            return Ok(());
        }
        let made = fresh(k, Some(above)).and_then(|anon| match Arena::<AnonVmaChain>::alloc(k) {
            Some(chain) => Ok((anon, chain)),
            None => {
                put(k, anon);
                Err(Errno::Enomem)
            }
        });
        let (anon, chain) = match made {
            Ok(made) => made,
            Err(error) => {
                unlink_locked(k, child);
                return Err(error);
            }
        };
        k.at(anon).set_num_active_vmas(1);
        vma.anon_vma.store(Some(anon));
        link(k, chain, child, anon);
        let above = k.at(above);
        above.set_num_children(above.num_children() + 1);
        Ok(())
    })
}

/// Takes a VMA off all lists and frees what nobody needs any more (Linux: `unlink_anon_vmas`).
pub(crate) fn unlink<K: Kernel>(k: &K, id: Id<Vma>) {
    if k.at(id).chain_first.load().is_some() {
        k.rmap_lock(|| unlink_locked(k, id));
    }
}

fn unlink_locked<K: Kernel>(k: &K, id: Id<Vma>) {
    let vma = k.at(id);
    if let Some(own) = vma.anon_vma() {
        let own = k.at(own);
        own.set_num_active_vmas(own.num_active_vmas() - 1);
        vma.anon_vma.store(None);
    }
    // Lists first: an `AnonVma` outlives those it is the parent of.
    let mut next = vma.chain_first.load();
    while let Some(chain) = next {
        let at = k.at(chain);
        next = at.vma_next.load();
        let Some(anon) = at.anon_vma.load() else { continue };
        remove_from_anon(k, chain);
        let anon = k.at(anon);
        if anon.chains.load().is_none()
            && let Some(parent) = anon.parent.load()
        {
            let parent = k.at(parent);
            parent.set_num_children(parent.num_children() - 1);
        }
    }
    let mut next = vma.chain_first.load();
    vma.chain_first.store(None);
    vma.chain_last.store(None);
    while let Some(chain) = next {
        let at = k.at(chain);
        next = at.vma_next.load();
        if let Some(anon) = at.anon_vma.load()
            && k.at(anon).chains.load().is_none()
        {
            put(k, anon);
        }
        k.free(chain);
    }
}

/// Calls `f` for every VMA that a page of `anon` may be mapped in, until it returns false. The rmap lock is held.
pub(crate) fn for_each_vma<K: Kernel>(k: &K, anon: Id<AnonVma>, mut f: impl FnMut(Id<Vma>) -> bool) {
    let mut next = k.at(anon).chains.load();
    while let Some(chain) = next {
        let at = k.at(chain);
        next = at.anon_next.load();
        if let Some(vma) = at.vma.load()
            && !f(vma)
        {
            return;
        }
    }
}

/// Whether `anon` is among those that the VMA is linked to (A1).
pub fn is_linked<K: Kernel>(k: &K, vma: &Vma, anon: Id<AnonVma>) -> bool {
    let mut next = vma.chain_first.load();
    while let Some(chain) = next {
        let at = k.at(chain);
        if at.anon_vma.load() == Some(anon) {
            return true;
        }
        next = at.vma_next.load();
    }
    false
}

/// A new `AnonVma`: a root, or a child of `parent` with its own list still empty.
fn fresh<K: Kernel>(k: &K, parent: Option<Id<AnonVma>>) -> Result<Id<AnonVma>, Errno> {
    let id = Arena::<AnonVma>::alloc(k).ok_or(Errno::Enomem)?;
    let at = k.at(id);
    at.set_refcount(1);
    at.set_num_children(0);
    at.set_num_active_vmas(0);
    at.chains.store(None);
    at.parent.store(Some(parent.unwrap_or(id)));
    let root = parent.and_then(|parent| k.at(parent).root.load()).unwrap_or(id);
    at.root.store(Some(root));
    if root != id {
        let root = k.at(root);
        root.set_refcount(root.refcount() + 1);
    }
    Ok(id)
}

/// Linux: `put_anon_vma`.
fn put<K: Kernel>(k: &K, id: Id<AnonVma>) {
    let at = k.at(id);
    at.set_refcount(at.refcount() - 1);
    if at.refcount() == 0 {
        let root = at.root.load();
        k.free(id);
        if let Some(root) = root
            && root != id
        {
            put(k, root);
        }
    }
}

/// Linux: `anon_vma_chain_link`.
fn link<K: Kernel>(k: &K, chain: Id<AnonVmaChain>, vma: Id<Vma>, anon: Id<AnonVma>) {
    let (at, of, list) = (k.at(chain), k.at(vma), k.at(anon));
    at.vma.store(Some(vma));
    at.anon_vma.store(Some(anon));
    let first = of.chain_first.load();
    at.vma_next.store(first);
    at.vma_prev.store(None);
    match first {
        Some(first) => k.at(first).vma_prev.store(Some(chain)),
        None => of.chain_last.store(Some(chain)),
    }
    of.chain_first.store(Some(chain));
    let first = list.chains.load();
    at.anon_next.store(first);
    at.anon_prev.store(None);
    if let Some(first) = first {
        k.at(first).anon_prev.store(Some(chain));
    }
    list.chains.store(Some(chain));
}

fn remove_from_anon<K: Kernel>(k: &K, chain: Id<AnonVmaChain>) {
    let at = k.at(chain);
    let (next, prev) = (at.anon_next.load(), at.anon_prev.load());
    if let Some(next) = next {
        k.at(next).anon_prev.store(prev);
    }
    match (prev, at.anon_vma.load()) {
        (Some(prev), _) => k.at(prev).anon_next.store(next),
        (None, Some(anon)) => k.at(anon).chains.store(next),
        (None, None) => {}
    }
}
