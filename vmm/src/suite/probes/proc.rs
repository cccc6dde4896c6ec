//! `proc-agrees`: each of /proc's memory files that the guest printed (`proc=` on its command line) is, line by line, what the
//! views make of its memory from outside.

use memvisor_inspect::{Guest, views::ProcView};

use super::{Held, Outcome};

/// Lines that differ are told up to this number a file.
const TOLD: usize = 3;

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let guest = Guest::attach(held.memory, held.root_gpa)?;
    let printed = files(held.console);
    let mut problems = Vec::new();
    for name in ProcView::NAMES {
        let Some((_, inside)) = printed.iter().find(|(file, _)| *file == name) else {
            problems.push(format!("the guest did not print /proc/{name}"));
            continue;
        };
        let outside = ProcView::new(&guest, name)?.map_or(String::new(), |view| view.text);
        problems.extend(differences(name, inside, &outside));
    }
    Ok(Outcome::from_problems(problems))
}

/// The files on a console: name and lines.
pub(super) fn files(console: &str) -> Vec<(&str, Vec<&str>)> {
    let mut files: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut open = false;
    for line in console.lines() {
        if let Some(name) = line.strip_prefix("proc: /proc/") {
            files.push((name, Vec::new()));
            open = true;
        } else if line == "proc: end" {
            open = false;
        } else if open && let Some((_, lines)) = files.last_mut() {
            lines.push(line);
        }
    }
    files
}

/// Lines of the guest that nothing outside derives: what disks did, what follows from settings that are not published, and which pages are
/// buffers.
const NOT_DERIVED: [&str; 8] = [
    "nr_dirty_threshold",
    "nr_dirty_background_threshold",
    "pgpgin",
    "pgpgout",
    "Buffers:",
    "Cached:",
    "CommitLimit:",
    "node_unreclaimable:",
];

pub(super) fn differences(name: &str, inside: &[&str], outside: &str) -> Vec<String> {
    let derived = |line: &&&str| !NOT_DERIVED.contains(&line.split_whitespace().next().unwrap_or_default());
    let mut inside: Vec<&str> = inside.iter().filter(derived).copied().collect();
    let mut outside: Vec<&str> = outside.lines().collect();
    if name == "vmallocinfo" {
        // Areas that wait for a purge stand in the order in which they came.
        inside.sort_unstable();
        outside.sort_unstable();
    }
    let mut problems: Vec<String> = inside
        .iter()
        .zip(&outside)
        .filter(|(inside, outside)| inside != outside)
        .map(|(inside, outside)| format!("/proc/{name}: the guest says {inside:?}, from outside {outside:?}"))
        .take(TOLD)
        .collect();
    if inside.len() != outside.len() {
        problems.push(format!(
            "/proc/{name}: the guest prints {} lines, from outside there are {}",
            inside.len(),
            outside.len()
        ));
    }
    if inside.is_empty() {
        problems.push(format!("/proc/{name}: the guest prints nothing"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "boot\r\nproc: /proc/buddyinfo\r\nNode 0, zone      DMA      1 \r\nproc: end\r\nmore\r\n\
        proc: /proc/vmstat\nnr_free_pages 5\npgfree 2\nproc: end\n";

    #[test]
    fn files_are_cut_out_of_the_console() {
        let files = files(CONSOLE);
        assert_eq!(
            files,
            [
                ("buddyinfo", vec!["Node 0, zone      DMA      1 "]),
                ("vmstat", vec!["nr_free_pages 5", "pgfree 2"])
            ]
        );
    }

    #[test]
    fn each_line_and_their_number_count() {
        let inside = ["nr_free_pages 5", "pgfree 2"];
        assert_eq!(differences("vmstat", &inside, "nr_free_pages 5\npgfree 2\n"), Vec::<String>::new());
        assert!(
            differences("vmstat", &inside, "nr_free_pages 6\npgfree 2\n")[0]
                .contains("outside \"nr_free_pages 6\"")
        );
        assert_eq!(differences("vmstat", &inside, "nr_free_pages 5\n").len(), 1);
        assert_eq!(differences("vmallocinfo", &["b", "a"], "a\nb\n"), Vec::<String>::new());
        assert_eq!(differences("vmstat", &[], "").len(), 1);
    }
}
