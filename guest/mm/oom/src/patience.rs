//! How long a victim is waited for whose memory cannot be taken (Linux: `oom_reap_task`).

/// Attempts that may pass without anything coming back (Linux: `MAX_OOM_REAP_RETRIES`).
const ATTEMPTS: u32 = 10;

/// What the attempts on one victim came to.
///
/// Whoever takes the victim's memory apart already may take long: it is not given up as long as that goes on. Linux's reaper joins in
/// (`exit_mmap` has mmap_lock for reading); here the last user has the address space alone.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Attempts since the victim last gave something back.
    attempts: u32,
    /// Pages that it had left then.
    left: u64,
}

impl Patience {
    /// Nothing was tried yet.
    pub const NEW: Patience = Patience { attempts: 0, left: u64::MAX };

    /// After an attempt that took nothing from a victim with `left` resident pages: `None` if the victim is to be given up.
    pub fn after_failure(self, left: u64) -> Option<Patience> {
        if left < self.left {
            return Some(Patience { attempts: 0, left });
        }
        let attempts = self.attempts + 1;
        (attempts < ATTEMPTS).then_some(Patience { attempts, ..self })
    }
}
