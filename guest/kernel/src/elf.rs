//! The ring-3 program inside the kernel image, loaded on demand.

use guest_process::stack::Strings;
use mm_core::PAGE_SIZE;
use mm_vma::{Errno, Id, Kernel, MapFile, Mapping};

use crate::exec::Source;
use crate::mm::space::{self, Spaces};

/// The program's file.
static FILE: &[u8] = include_bytes!(env!("MEMVISOR_USER_ELF"));

/// Bytes of the file.
pub const fn file_len() -> u64 {
    FILE.len() as u64
}

/// What the file holds of its page `pgoff`; `None` past its end.
pub fn file_page(pgoff: u64) -> Option<&'static [u8]> {
    let start = usize::try_from(pgoff.checked_mul(PAGE_SIZE)?).ok()?;
    let rest = FILE.get(start..).filter(|rest| !rest.is_empty())?;
    let len = usize::try_from(PAGE_SIZE).map_or(rest.len(), |page| page.min(rest.len()));
    rest.get(..len)
}

/// The file, with a reference to its mapping.
#[derive(Debug)]
pub struct Bundled(Id<Mapping>);

impl Bundled {
    /// # Errors
    /// `ENOMEM`.
    pub fn open() -> Result<Bundled, Errno> {
        space::program_mapping().map(Bundled)
    }
}

impl Source for Bundled {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> usize {
        let rest = usize::try_from(offset).ok().and_then(|at| FILE.get(at..)).unwrap_or_default();
        bytes.iter_mut().zip(rest).map(|(to, from)| *to = *from).count()
    }

    fn map(&self) -> MapFile {
        MapFile { writable: false, ..MapFile::of(self.0) }
    }
}

impl Drop for Bundled {
    fn drop(&mut self) {
        // VMAs have references of their own.
        Spaces.mapping_put(self.0);
    }
}

/// What it is told: what Linux tells the first process (init/main.c, `argv_init`, `envp_init`).
///
/// # Errors
/// `ENOMEM`.
pub fn strings(stack_limit: u64) -> Result<Strings, Errno> {
    let mut strings = Strings::new(stack_limit);
    strings.set_path(b"init")?;
    strings.push_arg(b"init")?;
    strings.push_env(b"HOME=/")?;
    strings.push_env(b"TERM=linux")?;
    Ok(strings)
}
