//! Data of which every CPU has its own, in frames of its node (Linux: `alloc_percpu`).

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use mm_core::{CpuLocal, PhysAddr, PhysMem};

use crate::arch::{percpu, regs};
use crate::mm::phys::{self, DirectMap};
use crate::smp;
use crate::sync::Lock;

/// A table of one `T` a CPU. `T` must be right when all its bytes are 0.
#[derive(Debug)]
pub struct PerCpuTable<T> {
    data: [AtomicPtr<T>; MAX_CPUS],
    /// Physical addresses of the same, for outsiders.
    pub gpas: [AtomicU64; MAX_CPUS],
}

impl<T> PerCpuTable<T> {
    /// A table without data.
    pub const fn new() -> Self {
        PerCpuTable {
            data: [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS],
            gpas: [const { AtomicU64::new(0) }; MAX_CPUS],
        }
    }

    /// Gives a CPU its data, before it uses any.
    ///
    /// # Safety
    /// The caller allocated frames for a `T` at `addr`, page-aligned, and gives them up; a `T` of zeroes is one.
    pub unsafe fn install(&self, cpu: usize, addr: PhysAddr) {
        for frame in 0..size_of::<T>().div_ceil(4096) as u64 {
            DirectMap.zero_frame(addr.pfn().offset(frame));
        }
        self.gpas[cpu].store(addr.as_u64(), Ordering::Relaxed);
        self.data[cpu].store(phys::object_at(addr), Ordering::Release);
    }
}

/// What another CPU shall do with its data.
struct Work(*mut dyn FnMut());

// SAFETY: the pointer is used only while the CPU that lent it waits in `for_each`.
unsafe impl Send for Work {}

static WORK: Lock<Option<Work>> = Lock::new(None);
/// One CPU at a time lends a closure; others do meanwhile what they are asked for, with interrupts off too.
static LENDING: AtomicBool = AtomicBool::new(false);

/// Runs the lent closure here, one CPU at a time.
fn run_work() {
    let work = WORK.lock();
    if let Some(work) = &*work {
        // SAFETY: the closure lives until all CPUs answered, and the lock lets one at it at a time.
        unsafe { (*work.0)() };
    }
}

impl<T> CpuLocal<T> for PerCpuTable<T> {
    #[inline(always)]
    fn with<R>(&self, f: impl FnOnce(u32, &mut T) -> R) -> R {
        let flags = regs::irq_save();
        let cpu = percpu::cpu();
        let data = self.data[cpu as usize].load(Ordering::Relaxed);
        assert!(!data.is_null(), "CPU {cpu} uses per-CPU data before it has any");
        // SAFETY: `install` gave this CPU the data for good. Nobody else reaches it, this CPU cannot be interrupted, and the
        // trait forbids to enter the same data again.
        let result = f(cpu, unsafe { &mut *data });
        regs::irq_restore(flags);
        result
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut T)) {
        self.with(&mut f);
        let mut visit = || self.with(&mut f);
        let visit: *mut (dyn FnMut() + '_) = &raw mut visit;
        // SAFETY: only the lifetime changes, and `WORK` is emptied before the closure ends.
        let visit =
            unsafe { core::mem::transmute::<*mut (dyn FnMut() + '_), *mut (dyn FnMut() + 'static)>(visit) };
        while LENDING.swap(true, Ordering::Acquire) {
            smp::run_call();
            smp::answer_flush();
            core::hint::spin_loop();
        }
        *WORK.lock() = Some(Work(visit));
        smp::call_others(run_work);
        *WORK.lock() = None;
        LENDING.store(false, Ordering::Release);
    }
}
