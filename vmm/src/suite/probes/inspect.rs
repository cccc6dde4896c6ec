//! `inspect-live`: every view of `memvisor inspect` works on the live guest, says something, and its
//! `--json` parses. Of another VMM's guest there are the page-table views, through its memory files.

use anyhow::bail;
use serde_json::Value;

use super::super::command::{Finished, memvisor};
use super::{Control, Held, Outcome};

/// The views of our own kernel's state that take no argument.
const VIEWS: [&str; 28] = [
    "e820",
    "numa",
    "cpus",
    "layout",
    "memblock",
    "zones",
    "buddy",
    "pagetypes",
    "compaction",
    "slab",
    "map",
    "pagetables",
    "vmalloc",
    "stacks",
    "tasks",
    "oom",
    "log",
    "pcp",
    "zonelists",
    "numastat",
    "vmstat",
    "cache",
    "cma",
    "swap",
    "lru",
    "disks",
    "ps",
    "tlb",
];

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let Some(cpu) = held.registers.first() else { bail!("the VMM gives no registers") };
    let root_pfn = format!("{:#x}", held.root_gpa >> 12);
    let va = format!("{:#x}", cpu.rip);
    let source: Vec<String> = match &held.control {
        Control::Kvm(vm) => vec!["--vm".to_owned(), vm.name()?.to_owned()],
        Control::Qemu(_, files) => {
            let mut words = Vec::new();
            for (path, gpa) in *files {
                words.extend(["--mem".to_owned(), format!("{}@{gpa:#x}", path.display())]);
            }
            words.extend(["--cr3".to_owned(), format!("{:#x}", cpu.cr3)]);
            if cpu.levels() == Some(5) {
                words.push("--la57".to_owned());
            }
            words
        }
    };
    let mut views: Vec<Vec<&str>> = vec![vec!["translate", &va]];
    match &held.control {
        Control::Kvm(_) => {
            views.extend(VIEWS.map(|view| vec![view]));
            views.push(vec!["page", &root_pfn]);
        }
        Control::Qemu(..) => views.push(vec!["pagetables"]),
    }
    let mut problems = Vec::new();
    for view in views {
        let words: Vec<&str> =
            ["inspect"].into_iter().chain(view.clone()).chain(source.iter().map(String::as_str)).collect();
        let text = memvisor(&words)?;
        let json = memvisor(&[words.as_slice(), &["--json"]].concat())?;
        problems.extend(examine(&view.join(" "), &text, &json));
    }
    Ok(Outcome::from_problems(problems))
}

/// What is wrong with a view that ran as text and as JSON.
pub fn examine(view: &str, text: &Finished, json: &Finished) -> Vec<String> {
    let mut problems = Vec::new();
    for (form, run) in [("text", text), ("json", json)] {
        if let Err(error) = run.succeed() {
            problems.push(format!("{view} as {form}: {error:#}"));
        } else if run.output.trim().is_empty() {
            problems.push(format!("{view} as {form}: says nothing"));
        }
    }
    if json.code == Some(0) {
        match serde_json::from_str::<Value>(&json.output) {
            Ok(Value::Object(_) | Value::Array(_)) => {}
            Ok(other) => problems.push(format!("{view}: JSON is neither object nor array: {other}")),
            Err(error) => problems.push(format!("{view}: not JSON: {error}")),
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(code: i32, output: &str) -> Finished {
        Finished { code: Some(code), output: output.to_owned(), messages: "why".to_owned() }
    }

    #[test]
    fn a_view_must_succeed_say_something_and_parse() {
        assert_eq!(examine("zones", &run(0, "Normal"), &run(0, "{}")), Vec::<String>::new());
        assert!(examine("zones", &run(1, ""), &run(0, "{}"))[0].contains("why"));
        assert!(examine("zones", &run(0, ""), &run(0, "{}"))[0].contains("says nothing"));
        assert!(examine("zones", &run(0, "x"), &run(0, "{"))[0].contains("not JSON"));
        assert!(examine("zones", &run(0, "x"), &run(0, "3"))[0].contains("neither"));
    }
}
