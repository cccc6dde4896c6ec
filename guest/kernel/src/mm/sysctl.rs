//! Watermarks and reserves, at boot and when they are changed (Linux: the files of /proc/sys/vm and what their handlers do).
//!
//! Lock order: [`SETTINGS`], then [`COPIES`], then a zone. The lists of other CPUs are resized without any of them held.

use memvisor_abi::{MAX_NR_ZONES, TableRef, VmSysctl};
use mm_core::ZoneKind;
use mm_page_alloc::{Zone, watermark};

use crate::mm::page_alloc::{self, ZONES_MAX};
use crate::mm::{limits, phys};
use crate::sync::Lock;
use crate::{cmdline, pr_warn};

/// Settings in force, published.
static SETTINGS: Lock<VmSysctl> = Lock::new(VmSysctl::DEFAULT);

/// The formulas look at all zones at once, so they work on copies, which are too large for a kernel stack.
static COPIES: Lock<[Zone; ZONES_MAX]> = Lock::new([const { Zone::new(0, ZoneKind::Dma) }; ZONES_MAX]);

/// Largest `watermark_scale_factor`: 30 % of a zone.
const SCALE_FACTOR_MAX: u32 = 3000;
/// What a sysctl of Linux's can hold.
const INT_MAX: u64 = i32::MAX as u64;

/// A value that a setting cannot have (Linux: `EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

/// The settings.
pub fn settings() -> VmSysctl {
    *SETTINGS.lock()
}

/// The settings, for the root descriptor.
pub fn table() -> TableRef {
    TableRef {
        gpa: phys::of_image(SETTINGS.as_ptr() as u64).as_u64(),
        count: 1,
        stride: u32::try_from(size_of::<VmSysctl>()).unwrap_or(0),
    }
}

/// For seeded faults: the settings change, and nothing follows.
pub fn with_settings<R>(f: impl FnOnce(&mut VmSysctl) -> R) -> R {
    f(&mut SETTINGS.lock())
}

/// Takes the settings from the command line and sets up all zones, whose managed pages are counted (Linux:
/// `init_per_zone_wmark_min`).
pub fn init() {
    let mut settings = SETTINGS.lock();
    settings.lowmem_end_pfn = limits::lowmem_end().as_u64();
    if let Some(kbytes) = word("min_free_kbytes", 0, INT_MAX) {
        settings.user_min_free_kbytes = kbytes;
    }
    let factor =
        |name, least, most: u32| word(name, least, most.into()).and_then(|value| u32::try_from(value).ok());
    if let Some(factor) = factor("watermark_scale_factor", 1, SCALE_FACTOR_MAX) {
        settings.watermark_scale_factor = factor;
    }
    if let Some(factor) = factor("watermark_boost_factor", 0, i32::MAX as u32) {
        settings.watermark_boost_factor = factor;
    }
    match cmdline::value("lowmem_reserve_ratio", parse_ratios) {
        Some(Some(ratios)) => settings.lowmem_reserve_ratio = ratios,
        Some(None) => {
            pr_warn!("lowmem_reserve_ratio= takes up to {MAX_NR_ZONES} numbers with commas; ignored")
        }
        None => {}
    }
    with_copies(|zones| {
        watermark::setup_per_zone_lowmem_reserve(zones, settings.lowmem_reserve_ratio);
        watermark::calculate_min_free_kbytes(zones, &mut settings);
        watermark::setup_per_zone_wmarks(zones, &settings);
    });
}

/// Changes the reserve that all zones share (Linux: `min_free_kbytes_sysctl_handler`).
///
/// # Errors
/// Above `i32::MAX`.
pub fn set_min_free_kbytes(kbytes: u64) -> Result<(), OutOfRange> {
    within(kbytes <= INT_MAX)?;
    change(|settings| {
        settings.min_free_kbytes = kbytes;
        settings.user_min_free_kbytes = kbytes;
    });
    Ok(())
}

/// Changes the distance of the watermarks (Linux: `watermark_scale_factor_sysctl_handler`).
///
/// # Errors
/// 0, and above 3000.
pub fn set_watermark_scale_factor(factor: u32) -> Result<(), OutOfRange> {
    within((1..=SCALE_FACTOR_MAX).contains(&factor))?;
    change(|settings| settings.watermark_scale_factor = factor);
    Ok(())
}

/// Changes how far fragmentation raises the boost; boosts that there are stay (Linux: `vm.watermark_boost_factor`).
///
/// # Errors
/// Above `i32::MAX`.
pub fn set_watermark_boost_factor(factor: u32) -> Result<(), OutOfRange> {
    within(u64::from(factor) <= INT_MAX)?;
    let mut settings = SETTINGS.lock();
    settings.watermark_boost_factor = factor;
    settings.changes = settings.changes.wrapping_add(1).max(1);
    for zone in page_alloc::zones() {
        zone.lock().info_mut().watermark_boost_factor = factor;
    }
    Ok(())
}

/// Changes what zones keep from those who could use higher ones, by kind; 0 for nothing (Linux:
/// `lowmem_reserve_ratio_sysctl_handler`).
pub fn set_lowmem_reserve_ratio(ratios: [u32; MAX_NR_ZONES]) {
    let mut settings = SETTINGS.lock();
    settings.lowmem_reserve_ratio = ratios;
    settings.changes = settings.changes.wrapping_add(1).max(1);
    with_copies(|zones| watermark::setup_per_zone_lowmem_reserve(zones, ratios));
}

fn within(holds: bool) -> Result<(), OutOfRange> {
    if holds { Ok(()) } else { Err(OutOfRange) }
}

/// Changes what watermarks follow from, sets them, and resizes the CPUs' lists, whose length follows from them (Linux:
/// `setup_per_zone_wmarks`).
fn change(f: impl FnOnce(&mut VmSysctl)) {
    let mut settings = SETTINGS.lock();
    f(&mut settings);
    settings.changes = settings.changes.wrapping_add(1).max(1);
    with_copies(|zones| watermark::setup_per_zone_wmarks(zones, &settings));
    drop(settings);
    page_alloc::resize_pcps();
}

/// Calls `f` with copies of all zones, and takes over what it set.
fn with_copies(f: impl FnOnce(&mut [Zone])) {
    let mut copies = COPIES.lock();
    let copies = &mut copies[..page_alloc::nr_nodes() * MAX_NR_ZONES];
    for (copy, zone) in copies.iter_mut().zip(page_alloc::zones()) {
        *copy.info_mut() = *zone.lock().info();
    }
    f(copies);
    for (copy, zone) in copies.iter().zip(page_alloc::zones()) {
        let mut zone = zone.lock();
        let (from, to) = (copy.info(), zone.info_mut());
        to.watermark = from.watermark;
        to.watermark_boost = from.watermark_boost;
        to.watermark_boost_factor = from.watermark_boost_factor;
        to.lowmem_reserve = from.lowmem_reserve;
    }
}

/// The number that a word of the command line gives, if it is within bounds; says so if it is not.
fn word(name: &str, least: u64, most: u64) -> Option<u64> {
    let number = cmdline::number(name).filter(|number| (least..=most).contains(number));
    if number.is_none() && cmdline::value(name, |_| ()).is_some() {
        pr_warn!("{name}= takes a number from {least} to {most}; ignored");
    }
    number
}

/// Numbers with commas, at most one a kind of zone; kinds that are not named keep Linux's default.
fn parse_ratios(text: &str) -> Option<[u32; MAX_NR_ZONES]> {
    let mut ratios = VmSysctl::DEFAULT.lowmem_reserve_ratio;
    for (index, number) in text.split(',').enumerate() {
        *ratios.get_mut(index)? = number.parse().ok()?;
    }
    Some(ratios)
}
