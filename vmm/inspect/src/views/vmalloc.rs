//! Areas of the vmalloc range (Linux: /proc/vmallocinfo).

use std::fmt;

use memvisor_abi::{KmapKind, PAGE_SIZE, VmArea, VmFlags, VmState};
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource};

/// `inspect vmalloc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VmallocView {
    /// Areas in use and lazy ones, ascending.
    pub areas: Vec<VmAreaRow>,
    /// Free areas.
    pub free_areas: u64,
    /// Bytes of the longest free area.
    pub largest_free: u64,
    /// Windows onto single frames.
    pub windows: Vec<KmapRow>,
}

/// An area.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VmAreaRow {
    /// First address.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// One past the last address, guard page included.
    #[serde(serialize_with = "crate::hex")]
    pub end: u64,
    /// Mapped pages.
    pub pages: u64,
    /// "busy" or "lazy".
    pub state: &'static str,
    /// Linux's words for what it is.
    pub flags: Vec<&'static str>,
    /// Physical address of a device, else 0.
    #[serde(serialize_with = "crate::hex")]
    pub phys: u64,
    /// Place in the source that made it.
    pub caller: String,
    /// The same with as much of the path as the guest keeps.
    #[serde(skip)]
    pub place: String,
}

/// A window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KmapRow {
    /// "pkmap", "kmap_local" or "fixmap".
    pub kind: &'static str,
    /// CPU of a kmap_local window.
    pub cpu: Option<u32>,
    /// Address of slot 0.
    #[serde(serialize_with = "crate::hex")]
    pub va: u64,
    /// Slots.
    pub slots: usize,
    /// Slots with a mapping.
    pub mapped: usize,
    /// Slots with a user.
    pub used: usize,
}

impl VmallocView {
    /// Reads the areas and the windows.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<VmallocView, GuestError> {
        let all = guest.vm_areas()?;
        let free = |area: &&VmArea| area.state == VmState::Free as u32;
        let areas = all.iter().map(|at| &at.area);
        let windows = guest.kmap_windows()?.into_iter().map(|window| {
            let kind = KmapKind::from_raw(window.window.kind);
            let least = if kind == Some(KmapKind::Pkmap) { 2 } else { 1 };
            KmapRow {
                kind: kind.map_or("undefined", KmapKind::name),
                cpu: (window.window.cpu != u32::MAX).then_some(window.window.cpu),
                va: window.window.va,
                slots: window.slots.len(),
                mapped: window.slots.iter().filter(|slot| slot.count > 0).count(),
                used: window.slots.iter().filter(|slot| slot.count >= least).count(),
            }
        });
        Ok(VmallocView {
            areas: areas.clone().filter(|area| !free(area)).map(VmAreaRow::new).collect(),
            free_areas: areas.clone().filter(free).count() as u64,
            largest_free: areas
                .filter(free)
                .map(|area| area.end.saturating_sub(area.start))
                .max()
                .unwrap_or(0),
            windows: windows.collect(),
        })
    }
}

impl VmAreaRow {
    fn new(area: &VmArea) -> VmAreaRow {
        const WORDS: [(VmFlags, &str); 7] = [
            (VmFlags::IOREMAP, "ioremap"),
            (VmFlags::ALLOC, "vmalloc"),
            (VmFlags::MAP, "vmap"),
            (VmFlags::USERMAP, "user"),
            (VmFlags::NO_GUARD, "no-guard"),
            (VmFlags::KERNEL_STACK, "stack"),
            (VmFlags::PKMAP, "pkmap"),
        ];
        let flags = VmFlags::from_bits_retain(area.flags);
        let file: Vec<u8> = area.caller_file.iter().copied().take_while(|&byte| byte != 0).collect();
        let file = String::from_utf8_lossy(&file).into_owned();
        let place = format!("{file}:{}", area.caller_line);
        let file = file.rsplit_once("src/").map_or(file.as_str(), |(_, tail)| tail);
        VmAreaRow {
            start: area.start,
            end: area.end,
            pages: area.nr_pages,
            state: VmState::from_raw(area.state).map_or("undefined", VmState::name),
            flags: WORDS.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, word)| *word).collect(),
            phys: area.phys,
            caller: format!("{file}:{}", area.caller_line),
            place,
        }
    }
}

impl fmt::Display for VmallocView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let busy = self.areas.iter().filter(|area| area.state == "busy").count();
        let lazy: u64 = self
            .areas
            .iter()
            .filter(|area| area.state == "lazy")
            .map(|area| area.end.saturating_sub(area.start) / PAGE_SIZE)
            .fold(0, u64::saturating_add);
        writeln!(
            f,
            "vmalloc: {busy} areas in use, {lazy} pages lazy, {} free areas, the longest {} MiB",
            self.free_areas,
            self.largest_free >> 20
        )?;
        for area in &self.areas {
            write!(f, "{:#018x}-{:#018x} {:>10}", area.start, area.end, area.end.saturating_sub(area.start))?;
            if area.state != "busy" {
                writeln!(f, " {}", area.state)?;
                continue;
            }
            write!(f, " {} pages={}", area.caller, area.pages)?;
            if area.phys != 0 {
                write!(f, " phys={:#x}", area.phys)?;
            }
            writeln!(f, " {}", area.flags.join(" "))?;
        }
        for window in &self.windows {
            write!(f, "{:#018x} {}", window.va, window.kind)?;
            if let Some(cpu) = window.cpu {
                write!(f, " of CPU {cpu}")?;
            }
            writeln!(f, ": {} slots, {} mapped, {} used", window.slots, window.mapped, window.used)?;
        }
        Ok(())
    }
}
