//! `proc-format`: what a program of the guest read in /proc has the lines of Linux, in Linux's order and form.
//!
//! The console has the files between `proc: /proc/NAME` and `proc: end`. They are compared with those of a stock Linux 6.1
//! (tests/golden/linux-6.1-proc.txt), and with the host's /proc as far as that has the same lines. A line that Linux has and the guest has not must
//! be named in docs/files.md.

use std::collections::{BTreeMap, BTreeSet};

use memvisor_inspect::{Guest, views::ProcView};

use super::proc::{differences, files};
use super::{Held, Outcome};

const GOLDEN: &str = include_str!("../../../../tests/golden/linux-6.1-proc.txt");
const DOCS: &str = include_str!("../../../../docs/files.md");

/// Files whose lines have keys, with what of them is the guest's own.
const KEYED: [(&str, &[&str]); 9] = [
    // Linux has them where it is configured with contiguous areas.
    ("meminfo", &["CmaTotal", "CmaFree"]),
    // Events of the guest's own stand behind Linux's last line.
    ("vmstat", &["pgalloc_high", "allocstall_high"]),
    ("zoneinfo", &[]),
    ("cpuinfo", &[]),
    ("stat", &[]),
    ("pagetypeinfo", &[]),
    ("self/status", &[]),
    ("self/smaps", &[]),
    ("self/smaps_rollup", &[]),
];
/// Files that are one line of numbers, or lines of one form.
const PLAIN: [&str; 9] = [
    "buddyinfo",
    "uptime",
    "loadavg",
    "swaps",
    "self/stat",
    "self/statm",
    "self/oom_score",
    "self/oom_score_adj",
    "self/limits",
];
/// Keys whose value is any text.
const TEXTS: [&str; 15] = [
    "Name",
    "State",
    "VmFlags",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "Cpus_allowed",
    "Cpus_allowed_list",
    "Mems_allowed",
    "Mems_allowed_list",
    "vendor_id",
    "model name",
    "flags",
    "bugs",
    "intr",
    "power management",
];
/// What pageblocks may be, of which a kernel has some.
const MIGRATETYPES: [&str; 6] = ["Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate"];
/// The last line of Linux's /proc/vmstat.
const LAST_EVENT: &str = "nr_unstable";

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let guest: BTreeMap<&str, Vec<&str>> = files(held.console).into_iter().collect();
    let linux: BTreeMap<&str, Vec<&str>> = files(GOLDEN).into_iter().collect();
    let mut problems = Vec::new();
    for (name, own) in KEYED {
        match (guest.get(name), linux.get(name)) {
            (Some(ours), Some(theirs)) => problems.extend(compare(name, own, ours, theirs)),
            _ => problems.push(format!("/proc/{name} was not printed")),
        }
        let host = std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
        if let Some(ours) = guest.get(name) {
            problems.extend(forms(&format!("{name} of the host"), ours, &host.lines().collect::<Vec<_>>()));
        }
    }
    for name in PLAIN {
        match (guest.get(name), linux.get(name)) {
            (Some(ours), Some(theirs)) => problems.extend(forms(name, ours, theirs)),
            _ => problems.push(format!("/proc/{name} was not printed")),
        }
    }
    problems.extend(outside(held, &guest)?);
    Ok(Outcome::from_problems(problems))
}

/// Files of a process that waits since it was read, and of the machine, that do not change meanwhile.
const STILL: [&str; 2] = ["1/maps", "iomem"];

fn outside(held: &Held<'_>, printed: &BTreeMap<&str, Vec<&str>>) -> anyhow::Result<Vec<String>> {
    let guest = Guest::attach(held.memory, held.root_gpa)?;
    let mut problems = Vec::new();
    for name in STILL {
        let view = ProcView::new(&guest, name)?;
        match (printed.get(name), view) {
            (Some(inside), Some(view)) => problems.extend(differences(name, inside, &view.text)),
            (None, _) => problems.push(format!("/proc/{name} was not printed")),
            (_, None) => problems.push(format!("/proc/{name} cannot be told from outside")),
        }
    }
    Ok(problems)
}

/// What a line is about: its words up to the first number or colon.
fn key(line: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in line.split_whitespace() {
        if let Some((word, _)) = word.split_once(':') {
            if !word.is_empty() {
                words.push(word);
            }
            break;
        }
        if word.starts_with(|letter: char| letter.is_ascii_digit() || letter == '(' || letter == '-') {
            break;
        }
        if !MIGRATETYPES.contains(&word) {
            words.push(word);
        }
    }
    let key = words.join(" ");
    // Of several CPUs each has its line.
    if key.trim_end_matches(|letter: char| letter.is_ascii_digit()) == "cpu" { "cpu".to_owned() } else { key }
}

/// The line with its numbers, zones and blanks in one form.
fn form(line: &str) -> String {
    const ZONES: [&str; 5] = ["DMA32", "DMA", "Normal", "HighMem", "Movable"];
    let key = key(line);
    if TEXTS.contains(&key.as_str()) {
        return key;
    }
    if let Some(form) = form_of_mapping(line) {
        return form;
    }
    let is_number = |word: &str| word.starts_with(|letter: char| letter.is_ascii_digit());
    let words = line.split_whitespace().map(|word| {
        if MIGRATETYPES.contains(&word) && line.contains(" type ") {
            "TYPE".to_owned()
        } else if ZONES.contains(&word.trim_end_matches(',')) {
            "ZONE".to_owned()
        } else if is_number(word) {
            let rest =
                word.trim_start_matches(|letter: char| letter.is_ascii_hexdigit() || ".:/".contains(letter));
            format!("#{rest}")
        } else {
            word.trim_end_matches(|letter: char| letter.is_ascii_digit()).to_owned()
        }
    });
    let mut words: Vec<String> = words.collect();
    // As many numbers in a row as there are zones, CPUs, users.
    words.dedup_by(|a, b| a == b && (a.starts_with('#') || a == "TYPE"));
    words.join(" ")
}

/// The first line of a mapping, whatever it maps; `None` of another line.
fn form_of_mapping(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let is_hex = |text: &str| text.len() >= 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let letters = permissions.len() == 4 && permissions.bytes().all(|letter| b"rwxsp-".contains(&letter));
    let offset = words.next().is_some_and(is_hex);
    let device = words.next().is_some_and(|device| device.split_once(':').is_some());
    let inode = words.next().is_some_and(|inode| inode.parse::<u64>().is_ok());
    // A name begins in column 73, in a line without one a blank ends it.
    let name = match words.next() {
        Some(_) => line.as_bytes().get(72) == Some(&b' ') && line.as_bytes().get(73) != Some(&b' '),
        None => line.ends_with(' '),
    };
    (is_hex(start) && is_hex(end)).then(|| format!("mapping {letters} {offset} {device} {inode} {name}"))
}

/// Keys in the order in which they come first.
fn keys(lines: &[&str]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let keys = lines.iter().map(|line| key(line)).filter(|key| !key.is_empty());
    keys.filter(|key| seen.insert(key.clone())).collect()
}

fn compare(name: &str, own: &[&str], ours: &[&str], theirs: &[&str]) -> Vec<String> {
    let (our_keys, their_keys) = (keys(ours), keys(theirs));
    let mut problems = Vec::new();
    let mut at = 0;
    for key in our_keys.iter().filter(|key| !own.contains(&key.as_str())) {
        match their_keys.iter().position(|other| other == key) {
            None if name == "vmstat" && at == their_keys.len() => {}
            None => problems.push(format!("/proc/{name}: Linux has no {key:?}")),
            Some(position) if position < at => {
                problems.push(format!("/proc/{name}: {key:?} stands earlier on Linux"));
            }
            Some(position) => at = position + 1,
        }
    }
    if name == "vmstat" && !our_keys.iter().any(|key| key == LAST_EVENT) {
        problems.push(format!("/proc/{name}: no {LAST_EVENT:?} before the guest's own events"));
    }
    for key in their_keys.iter().filter(|key| !our_keys.contains(key)) {
        if !DOCS.contains(&format!("`{key}`")) && !is_family_documented(key) {
            problems.push(format!("/proc/{name}: no {key:?}, and docs/files.md does not say why"));
        }
    }
    problems.extend(forms(name, ours, theirs));
    problems
}

/// `thp_*` in the docs stands for all of them.
fn is_family_documented(key: &str) -> bool {
    key.char_indices()
        .filter(|(_, letter)| *letter == '_')
        .any(|(at, _)| key.get(..=at).is_some_and(|family| DOCS.contains(&format!("`{family}*`"))))
}

/// Lines with a key that the other has too, and none of its forms.
fn forms(name: &str, ours: &[&str], theirs: &[&str]) -> Vec<String> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in theirs {
        known.entry(key(line)).or_default().insert(form(line));
    }
    let wrong = ours.iter().filter_map(|line| {
        let forms = known.get(&key(line))?;
        (!forms.contains(&form(line)))
            .then(|| format!("/proc/{name}: {line:?} does not read as any of {forms:?}"))
    });
    let mut told = BTreeSet::new();
    wrong.filter(|problem| told.insert(problem.clone())).take(5).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_stands_before_numbers() {
        for (line, wanted) in [
            ("MemTotal:       24684084 kB", "MemTotal"),
            ("      nr_zone_inactive_anon 0", "nr_zone_inactive_anon"),
            ("  pages free     3840", "pages free"),
            ("cpu1 5415798 418275", "cpu"),
            ("    cpu: 0", "cpu"),
            ("        protection: (0, 178)", "protection"),
            ("model name\t: AMD EPYC", "model name"),
            ("Node 0, zone      DMA", "Node"),
            ("00400000-00401000 r--p 00000000 00:02 8", ""),
        ] {
            assert_eq!(key(line), wanted, "{line}");
        }
    }

    #[test]
    fn numbers_do_not_matter_and_their_place_does() {
        assert_eq!(form("Rss:                   4 kB"), form("Rss:               12345 kB"));
        assert_ne!(form("Rss:                   4 kB"), form("Rss:                   4"));
        assert_eq!(form("protection: (0, 178, 178)"), form("protection: (0, 5, 178)"));
        assert_eq!(form("Node 0, zone      DMA"), form("Node 1, zone   Normal"));
        assert_eq!(form("Name:\tcat"), form("Name:\tsh"));
    }

    #[test]
    fn unknown_keys_and_another_order_are_found() {
        let theirs = ["MemTotal: 5 kB", "MemFree: 4 kB"];
        assert!(compare("meminfo", &[], &theirs, &theirs).is_empty());
        assert_eq!(compare("meminfo", &[], &["MemFree: 1 kB", "MemTotal: 2 kB"], &theirs).len(), 1);
        assert_eq!(
            compare("meminfo", &[], &["MemTotal: 5 kB", "MemFree: 1 kB", "Mine: 1 kB"], &theirs).len(),
            1
        );
        assert_eq!(compare("meminfo", &[], &["MemTotal: 5", "MemFree: 1 kB"], &theirs).len(), 1);
    }

    #[test]
    fn the_recorded_linux_has_every_file() {
        let linux: BTreeMap<&str, Vec<&str>> = files(GOLDEN).into_iter().collect();
        for name in KEYED.iter().map(|(name, _)| *name).chain(PLAIN) {
            assert!(linux.contains_key(name), "{name}");
        }
    }
}
