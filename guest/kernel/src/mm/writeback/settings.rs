//! Settings of writeback (Linux: /proc/sys/vm/dirty_*).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mm_core::Errno;

/// A setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `dirty_background_ratio`: percent of the memory that could be dirty from which on the flusher writes.
    BackgroundRatio = 0,
    /// `dirty_ratio`: percent from which on those who write wait.
    Ratio = 1,
    /// `dirty_expire_centisecs`: hundredths of a second after which what is dirty is old.
    ExpireCentisecs = 2,
    /// `dirty_writeback_centisecs`: hundredths of a second between the flusher's looks; 0 for none.
    WritebackCentisecs = 3,
    /// `dirty_background_bytes`; takes the place of the ratio if it is not 0.
    BackgroundBytes = 4,
    /// `dirty_bytes`; takes the place of the ratio if it is not 0.
    Bytes = 5,
}

/// Linux's defaults.
static SETTINGS: [AtomicU64; 6] = [
    AtomicU64::new(10),
    AtomicU64::new(20),
    AtomicU64::new(3000),
    AtomicU64::new(500),
    AtomicU64::new(0),
    AtomicU64::new(0),
];

/// The setting's value.
pub fn read(setting: Setting) -> u64 {
    SETTINGS[setting as usize].load(Relaxed)
}

/// Changes a setting. Of a ratio and its bytes, the one that was set last counts.
///
/// # Errors
/// `EINVAL` for a value that it cannot have.
pub fn write(setting: Setting, value: u64) -> Result<(), Errno> {
    const INT_MAX: u64 = i32::MAX as u64;
    let (other, fits) = match setting {
        Setting::BackgroundRatio => (Some(Setting::BackgroundBytes), value <= 100),
        Setting::Ratio => (Some(Setting::Bytes), value <= 100),
        Setting::BackgroundBytes => (Some(Setting::BackgroundRatio), value >= 1),
        // Linux: `dirty_bytes_min`.
        Setting::Bytes => (Some(Setting::Ratio), value >= 2 * mm_core::PAGE_SIZE),
        Setting::ExpireCentisecs | Setting::WritebackCentisecs => (None, value <= INT_MAX),
    };
    if !fits {
        return Err(Errno::Einval);
    }
    SETTINGS[setting as usize].store(value, Relaxed);
    if let Some(other) = other {
        SETTINGS[other as usize].store(0, Relaxed);
    }
    super::wake_flusher();
    Ok(())
}
