//! What the command line says about caches.

use memvisor_abi::{CACHE_NAME_LEN, SlabKind};

use crate::SlabFlags;
use crate::cache::Name;

/// Names that `slub_debug=` may list.
const NAMES: usize = 4;

/// `slab=`, `slub_debug=` and `slab_nomerge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Who manages the caches.
    pub kind: SlabKind,
    /// CPUs, nodes and caches without a reason against it share slabs.
    pub merge: bool,
    /// Debugging flags.
    pub debug: SlabFlags,
    names: [Option<Name>; NAMES],
}

impl Options {
    /// SLUB, merging, no debugging.
    pub const DEFAULT: Options =
        Options { kind: SlabKind::Slub, merge: true, debug: SlabFlags::empty(), names: [None; NAMES] };

    /// Reads the values of `slab=` (slub, slab or slob) and `slub_debug=` (letters of F, Z, P, U, or none for all
    /// of them, or `-` for none; then names of caches after commas, the last character `*` for any end; no name for all
    /// caches). `None` if one of them is wrong.
    ///
    /// ```
    /// use mm_slab::{Options, SlabFlags};
    /// let options = Options::parse(Some("slub"), Some("FZ,kmalloc-*"), false).unwrap();
    /// assert_eq!(options.debug_of("kmalloc-64"), SlabFlags::CONSISTENCY_CHECKS | SlabFlags::RED_ZONE);
    /// assert!(options.debug_of("dentry").is_empty());
    /// assert!(Options::parse(Some("slxb"), None, false).is_none());
    /// ```
    pub fn parse(slab: Option<&str>, slub_debug: Option<&str>, nomerge: bool) -> Option<Options> {
        let mut options = Options { merge: !nomerge, ..Options::DEFAULT };
        options.kind = match slab {
            None | Some("slub") => SlabKind::Slub,
            Some("slab") => SlabKind::Slab,
            Some("slob") => SlabKind::Slob,
            Some(_) => return None,
        };
        let Some(text) = slub_debug else { return Some(options) };
        let mut parts = text.split(',');
        let letters = parts.next().unwrap_or("");
        if letters.is_empty() {
            options.debug = SlabFlags::DEBUG;
        }
        for letter in letters.bytes() {
            options.debug |= match letter.to_ascii_uppercase() {
                b'F' => SlabFlags::CONSISTENCY_CHECKS,
                b'Z' => SlabFlags::RED_ZONE,
                b'P' => SlabFlags::POISON,
                b'U' => SlabFlags::STORE_USER,
                b'-' => SlabFlags::empty(),
                _ => return None,
            };
        }
        let mut slots = options.names.iter_mut();
        for name in parts {
            *slots.next()? = Some(Name::new(name).filter(|_| name.len() < CACHE_NAME_LEN)?);
        }
        Some(options)
    }

    /// Debugging of a cache (Linux: `kmem_cache_flags`). Only SLUB has any.
    pub fn debug_of(&self, name: &str) -> SlabFlags {
        let matches = |pattern: &Name| {
            let pattern = pattern.as_str();
            pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
        };
        let listed = self.names.iter().flatten().any(matches);
        let all = self.names.iter().all(Option::is_none);
        if self.kind == SlabKind::Slub && (all || listed) { self.debug } else { SlabFlags::empty() }
    }
}
