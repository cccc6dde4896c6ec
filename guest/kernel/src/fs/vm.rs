//! /proc/sys/vm (Linux: kernel/sysctl.c, `vm_table`).

use core::fmt::{self, Write};

use guest_fs::proc::VmFile;
use guest_fs::{Errno, proc};
use memvisor_abi::VmEvent;
use mm_vmscan::Lru as _;

use super::disk_file;
use crate::mm::oom::with_state;
use crate::mm::space::Spaces;
use crate::mm::writeback::{self, Setting};
use crate::mm::{kcompactd, oom, space, swap, sysctl, vmscan};

/// What a file says.
pub fn read(file: VmFile) -> u64 {
    let settings = sysctl::settings();
    let state = with_state(|state| *state);
    match file {
        VmFile::AdminReserveKbytes => state.admin_reserve_kbytes,
        VmFile::CompactMemory => 0,
        VmFile::DirtyBackgroundBytes => writeback::setting(Setting::BackgroundBytes),
        VmFile::DirtyBackgroundRatio => writeback::setting(Setting::BackgroundRatio),
        VmFile::DirtyBytes => writeback::setting(Setting::Bytes),
        VmFile::DirtyExpireCentisecs => writeback::setting(Setting::ExpireCentisecs),
        VmFile::DirtyRatio => writeback::setting(Setting::Ratio),
        VmFile::DirtyWritebackCentisecs => writeback::setting(Setting::WritebackCentisecs),
        VmFile::DropCaches => 0,
        VmFile::MaxMapCount => space::max_map_count().into(),
        VmFile::MinFreeKbytes => settings.min_free_kbytes,
        VmFile::OomDumpTasks => state.oom_dump_tasks.into(),
        VmFile::OomKillAllocatingTask => state.oom_kill_allocating_task.into(),
        VmFile::OvercommitKbytes => state.overcommit_kbytes,
        VmFile::OvercommitMemory => state.overcommit_memory.into(),
        VmFile::OvercommitRatio => state.overcommit_ratio.into(),
        VmFile::PanicOnOom => state.panic_on_oom.into(),
        // Told as text: see `show`.
        VmFile::LowmemReserveRatio => 0,
        VmFile::PageCluster => swap::PAGE_CLUSTER.into(),
        VmFile::Swappiness => vmscan::swappiness().into(),
        VmFile::UserReserveKbytes => state.user_reserve_kbytes,
        VmFile::WatermarkBoostFactor => settings.watermark_boost_factor.into(),
        VmFile::WatermarkScaleFactor => settings.watermark_scale_factor.into(),
    }
}

/// Writes it as the file has it (Linux: `proc_dointvec_minmax`).
///
/// # Errors
/// Those of `out`.
pub fn show(file: VmFile, out: &mut dyn Write) -> fmt::Result {
    if file != VmFile::LowmemReserveRatio {
        return writeln!(out, "{}", read(file));
    }
    proc::numbers(&sysctl::settings().lowmem_reserve_ratio, out)
}

/// Changes it.
///
/// # Errors
/// `EINVAL` for a number that it cannot have.
pub fn write(file: VmFile, number: i64) -> Result<(), Errno> {
    let number = u64::try_from(number).map_err(|_| Errno::Einval)?;
    let small =
        || u32::try_from(number).ok().filter(|small| i32::try_from(*small).is_ok()).ok_or(Errno::Einval);
    let up_to = |most: u32| small()?.le(&most).then_some(small()?).ok_or(Errno::Einval);
    let out_of_range = |_: sysctl::OutOfRange| Errno::Einval;
    match file {
        VmFile::AdminReserveKbytes => with_state(|state| state.admin_reserve_kbytes = number),
        // Linux 6.1 takes 1 only (sysctl_compaction_handler).
        VmFile::CompactMemory if number == 1 => kcompactd::compact_all_nodes(),
        VmFile::CompactMemory => return Err(Errno::Einval),
        VmFile::DirtyBackgroundBytes => writeback::set_setting(Setting::BackgroundBytes, number)?,
        VmFile::DirtyBackgroundRatio => writeback::set_setting(Setting::BackgroundRatio, number)?,
        VmFile::DirtyBytes => writeback::set_setting(Setting::Bytes, number)?,
        VmFile::DirtyExpireCentisecs => writeback::set_setting(Setting::ExpireCentisecs, number)?,
        VmFile::DirtyRatio => writeback::set_setting(Setting::Ratio, number)?,
        VmFile::DirtyWritebackCentisecs => writeback::set_setting(Setting::WritebackCentisecs, number)?,
        VmFile::DropCaches if (1..=4).contains(&number) => {
            let count = |event| Spaces.count_vm_events(event, 1);
            if number & 1 != 0 {
                disk_file::drop_caches();
                count(VmEvent::DropPagecache);
            }
            if number & 2 != 0 {
                vmscan::shrinker::drop_slab();
                count(VmEvent::DropSlab);
            }
        }
        VmFile::DropCaches => return Err(Errno::Einval),
        VmFile::MaxMapCount => space::set_max_map_count(small()?),
        VmFile::MinFreeKbytes => sysctl::set_min_free_kbytes(number).map_err(out_of_range)?,
        VmFile::OomDumpTasks => {
            let value = small()?;
            with_state(|state| state.oom_dump_tasks = value);
        }
        VmFile::OomKillAllocatingTask => {
            let value = small()?;
            with_state(|state| state.oom_kill_allocating_task = value);
        }
        VmFile::OvercommitKbytes => oom::set_overcommit_kbytes(number),
        VmFile::OvercommitMemory => {
            let value = up_to(2)?;
            with_state(|state| state.overcommit_memory = value);
        }
        VmFile::OvercommitRatio => oom::set_overcommit_ratio(small()?),
        VmFile::PanicOnOom => {
            let value = up_to(2)?;
            with_state(|state| state.panic_on_oom = value);
        }
        VmFile::Swappiness => vmscan::set_swappiness(up_to(200)?),
        VmFile::LowmemReserveRatio | VmFile::PageCluster => return Err(Errno::Eacces),
        VmFile::UserReserveKbytes => with_state(|state| state.user_reserve_kbytes = number),
        VmFile::WatermarkBoostFactor => sysctl::set_watermark_boost_factor(small()?).map_err(out_of_range)?,
        VmFile::WatermarkScaleFactor => sysctl::set_watermark_scale_factor(small()?).map_err(out_of_range)?,
    }
    Ok(())
}
