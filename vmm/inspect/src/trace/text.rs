//! Records in words.

use std::{collections::BTreeMap, fmt};

use memvisor_abi::{EventId, Field, FieldKind, MAX_NR_ZONES, Phase, ZoneKind};
use serde_json::{Map, Value, json};

use super::{TraceEntry, names};
use crate::{Guest, MemorySource, cache_name};

/// Names that only the guest knows.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Caches by index.
    pub caches: Vec<String>,
    /// Threads of the kernel by number.
    pub threads: BTreeMap<u32, String>,
    /// Cycles of the time-stamp counter in a millisecond; `None` if nobody knows.
    pub tsc_khz: Option<u32>,
}

impl Names {
    /// Reads the names of the guest's caches and of its kernel's threads; what cannot be read stays as it was.
    pub fn refresh<S: MemorySource + ?Sized>(&mut self, guest: &Guest<'_, S>) {
        let tasks = guest.tasks().unwrap_or_default();
        for task in tasks.iter().filter(|task| task.pid != 0 && task.mm == 0 && task.tgid == 0) {
            let name = task.name.split(|byte| *byte == 0).next().unwrap_or_default();
            self.threads.insert(task.pid, String::from_utf8_lossy(name).into_owned());
        }
        if let Ok(caches) = guest.caches()
            && !caches.is_empty()
        {
            self.caches.resize(caches.len(), String::new());
            for (old, cache) in self.caches.iter_mut().zip(&caches) {
                let name = cache_name(cache);
                // A cache that is gone keeps its name: records speak of what was.
                if !name.is_empty() {
                    *old = name;
                }
            }
        }
    }

    /// Who a number in a record is: a process, a thread of the kernel, or the kernel itself.
    pub fn task(&self, pid: u32) -> String {
        match self.threads.get(&pid) {
            _ if pid == 0 => "kernel".to_owned(),
            Some(name) => format!("{name}-{pid}"),
            None => format!("task-{pid}"),
        }
    }

    /// Time since tracing began: seconds, or cycles where nobody knows how long they are.
    pub fn time(&self, cycles: u64) -> String {
        match self.nanoseconds(cycles) {
            Some(ns) => format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000),
            None => format!("{cycles} cycles"),
        }
    }

    /// Nanoseconds since tracing began.
    pub fn nanoseconds(&self, cycles: u64) -> Option<u64> {
        let khz = self.tsc_khz.filter(|khz| *khz != 0)?;
        u64::try_from(u128::from(cycles) * 1_000_000 / u128::from(khz)).ok()
    }

    /// A field's value as a person reads it.
    pub fn value(&self, event: u16, field: Field, raw: u64) -> String {
        let low = u32::try_from(raw & u64::from(u32::MAX)).unwrap_or(0);
        let byte = u8::try_from(raw & 0xff).unwrap_or(0);
        if field.kind.none() == Some(raw) {
            return match field.kind {
                FieldKind::Pfn | FieldKind::Addr | FieldKind::Phys => "NULL".to_owned(),
                _ => "none".to_owned(),
            };
        }
        match field.kind {
            FieldKind::Pfn | FieldKind::Addr | FieldKind::Phys => format!("{raw:#x}"),
            FieldKind::Pages | FieldKind::Bytes | FieldKind::Count if raw == u64::MAX => "all".to_owned(),
            FieldKind::Pages | FieldKind::Bytes | FieldKind::Count | FieldKind::Pid => raw.to_string(),
            FieldKind::Order | FieldKind::Node => raw.to_string(),
            FieldKind::Byte => match meaning(event, field.name, byte) {
                Some(word) => word.to_owned(),
                None => raw.to_string(),
            },
            FieldKind::Int => raw.cast_signed().to_string(),
            FieldKind::Gfp => names::gfp(low),
            FieldKind::AllocFlags => names::alloc_flags(low),
            FieldKind::ZoneKind => zone_kind(raw),
            FieldKind::Zone => {
                let zones = MAX_NR_ZONES as u64;
                format!("{}:{}", raw / zones, zone_kind(raw % zones))
            }
            FieldKind::Migratetype => names::migratetype(byte).map_or_else(|| raw.to_string(), str::to_owned),
            FieldKind::Cache => match usize::try_from(raw).ok().and_then(|index| self.caches.get(index)) {
                Some(name) if !name.is_empty() => name.clone(),
                _ => format!("cache#{raw}"),
            },
            FieldKind::Bool => if raw == 0 { "no" } else { "yes" }.to_owned(),
        }
    }
}

fn zone_kind(raw: u64) -> String {
    let kind = u32::try_from(raw).ok().and_then(ZoneKind::from_raw);
    kind.map_or_else(|| format!("zone#{raw}"), |kind| kind.name().to_owned())
}

/// What a code stands for; the catalogue documents them.
fn meaning(event: u16, field: &str, raw: u8) -> Option<&'static str> {
    let is = |id: EventId| event == id as u16;
    let word = |words: &[&'static str]| words.get(usize::from(raw)).copied().filter(|word| !word.is_empty());
    if is(EventId::ZoneSkipped) {
        return word(&["", "not allowed", "would fragment", "node full", "reclaim did not help"]);
    }
    if is(EventId::SlabFreeSlowRet) {
        return word(&["stays", "cpu partial", "node partial", "freed"]);
    }
    if is(EventId::SlabError) {
        return word(&[
            "",
            "double free",
            "use after free",
            "overflow",
            "underflow",
            "wrong cache",
            "invalid pointer",
            "objects left",
        ]);
    }
    if is(EventId::AllocPagesRetry) {
        return word(&[
            "",
            "reclaim may help",
            "compaction may help",
            "the OOM killer helped",
            "must not fail",
        ]);
    }
    if is(EventId::HandleMmFaultRet) {
        return word(&[
            "",
            "minor fault",
            "major fault",
            "nothing to do",
            "on the move",
            "SEGV_MAPERR",
            "SEGV_ACCERR",
            "BUS_ADRERR",
            "no memory",
        ]);
    }
    if is(EventId::MmVmscanLruIsolate) {
        return word(&["inactive anon", "active anon", "inactive file", "active file", "unevictable"]);
    }
    if is(EventId::MmVmscanThrottled) {
        return word(&[
            "writes must end",
            "others have too many pages",
            "nothing could be freed",
            "devices are busy",
        ]);
    }
    if is(EventId::BlockRqIssue) {
        return word(&["vda", "vdb", "vdc", "vdd"]);
    }
    if is(EventId::Ioremap) {
        return word(&["WB", "WC", "UC-", "UC", "WT", "WP"]);
    }
    if is(EventId::BuddyBusy) {
        return memvisor_abi::PageKind::from_raw(raw).map(memvisor_abi::PageKind::name);
    }
    let is_result = is(EventId::MmCompactionEnd)
        || is(EventId::MmCompactionSuitable)
        || is(EventId::MmCompactionFinished)
        || is(EventId::DirectCompactRet)
        || is(EventId::CompactRetry) && field == "result";
    if is_result { names::compact_result(raw) } else { None }
}

/// A record as one line, or as a JSON object.
#[derive(Clone, Copy, Debug)]
pub struct EventText<'a> {
    /// The record.
    pub entry: &'a TraceEntry,
    /// Names for it.
    pub names: &'a Names,
}

impl EventText<'_> {
    /// The arguments, `name=value` each.
    pub fn arguments(&self) -> String {
        let record = &self.entry.record;
        let Some(info) = self.entry.info() else { return format!("{:x?}", record.args) };
        let words: Vec<String> = info
            .values(record)
            .map(|(field, raw)| format!("{}={}", field.name, self.names.value(record.event, field, raw)))
            .collect();
        words.join(" ")
    }

    /// The event as the line of a call tree has it: `name(arguments) {`, `} = result`, or `name: arguments`.
    pub fn step(&self) -> String {
        let arguments = self.arguments();
        let Some(info) = self.entry.info() else {
            return format!("unknown event {}: {arguments}", self.entry.record.event);
        };
        match info.phase {
            Phase::Enter => format!("{}({arguments}) {{", info.name),
            Phase::Exit if arguments.is_empty() => format!("}} {}", info.name),
            Phase::Exit => format!("}} {} = {arguments}", info.name),
            Phase::Point if info.is_linux() => format!("{}:{}: {arguments}", info.system, info.name),
            Phase::Point => format!("{}: {arguments}", info.name),
        }
    }

    /// The object for programs: numbers as numbers, addresses as strings, names beside flags.
    pub fn json(&self) -> Value {
        let TraceEntry { cpu, number, cycles, record } = self.entry;
        let info = self.entry.info();
        let mut args = Map::new();
        for (field, raw) in info.into_iter().flat_map(|info| info.values(record)) {
            let value = match field.kind {
                kind if kind.none() == Some(raw) => Value::Null,
                FieldKind::Addr | FieldKind::Phys => json!(format!("{raw:#x}")),
                FieldKind::Bool => json!(raw != 0),
                FieldKind::Int => json!(raw.cast_signed()),
                FieldKind::Pfn
                | FieldKind::Pages
                | FieldKind::Bytes
                | FieldKind::Count
                | FieldKind::Order
                | FieldKind::Node
                | FieldKind::Pid => json!(raw),
                _ => json!(self.names.value(record.event, field, raw)),
            };
            args.insert(field.name.to_owned(), value);
        }
        json!({
            "event": info.map_or_else(|| format!("unknown {}", record.event), |info| info.name.to_owned()),
            "system": info.map(|info| info.system).filter(|system| !system.is_empty()),
            "group": info.map(|info| info.group.name()),
            "phase": match self.entry.phase() {
                Phase::Point => "point",
                Phase::Enter => "enter",
                Phase::Exit => "exit",
            },
            "cpu": cpu,
            "number": number,
            "cycles": cycles,
            "time_ns": self.names.nanoseconds(*cycles),
            "pid": record.pid,
            "depth": record.depth,
            "in_interrupt": self.entry.in_interrupt(),
            "args": args,
        })
    }
}

/// As perf script writes it: task, CPU, time, event.
impl fmt::Display for EventText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TraceEntry { cpu, cycles, record, .. } = self.entry;
        let task = self.names.task(record.pid);
        let irq = if self.entry.in_interrupt() { 'h' } else { '.' };
        let indent = usize::from(record.depth) * 2;
        write!(f, "{task:>8} [{cpu:03}] {irq} {}: {:indent$}{}", self.names.time(*cycles), "", self.step())
    }
}
