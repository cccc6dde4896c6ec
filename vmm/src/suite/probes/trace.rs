//! `trace-complete`: a guest of its own is traced while it runs, nothing is lost, and the call trees of each process and CPU
//! are whole.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::command::memvisor;
use super::{Held, Outcome};

pub fn probe(_held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let mut problems = Vec::new();
    // A run that another guest shares two CPUs with may be slow, but its ring holds all that it does.
    let traced = memvisor(&[
        "trace",
        "alloc,slab",
        "--json",
        "--buffer",
        "4M",
        "--",
        "tiny",
        "--cmdline",
        "ktest=slab",
    ])?;
    problems.extend(examine(traced.succeed()?));
    Ok(Outcome::from_problems(problems))
}

/// What is wrong with the lines of a trace.
fn examine(output: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut open: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let (mut records, mut summary) = (0, None);
    for line in output.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            problems.push(format!("not JSON: {line}"));
            continue;
        };
        if let Some(found) = event.get("summary") {
            summary = Some(found.clone());
            continue;
        }
        records += 1;
        let calls = open.entry(event["cpu"].as_u64().unwrap_or(u64::MAX)).or_default();
        let name = event["event"].as_str().unwrap_or("?").to_owned();
        match event["phase"].as_str() {
            Some("enter") => calls.push(name),
            Some("exit") if calls.pop().as_ref() != Some(&name) => {
                problems.push(format!("{name} returns without having been entered"));
            }
            _ => {}
        }
    }
    if let Some((cpu, calls)) = open.iter().find(|(_, calls)| !calls.is_empty()) {
        problems.push(format!("CPU {cpu} never returns from {}", calls.join(", ")));
    }
    let sum = |key: &str| {
        let cpus = summary.as_ref().and_then(|summary| summary["cpus"].as_array());
        cpus.map(|cpus| cpus.iter().filter_map(|cpu| cpu[key].as_u64()).sum::<u64>())
    };
    if sum("read") != Some(records) || sum("lost") != Some(0) || sum("damaged") != Some(0) || records == 0 {
        problems.push(format!("{records} records, but the summary is {summary:?}"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = r#"{"summary":{"cpus":[{"read":2,"lost":0,"damaged":0}]}}"#;

    #[test]
    fn a_whole_call_tree_passes_and_a_broken_one_does_not() {
        let enter = r#"{"cpu":0,"event":"rmqueue","phase":"enter"}"#;
        let exit = r#"{"cpu":0,"event":"rmqueue","phase":"exit"}"#;
        assert_eq!(examine(&format!("{enter}\n{exit}\n{SUMMARY}")), Vec::<String>::new());
        assert_eq!(examine(&format!("{exit}\n{enter}\n{SUMMARY}")).len(), 2);
        assert!(examine(&format!("{enter}\n{SUMMARY}"))[1].contains("1 records"));
        assert_eq!(examine(&format!("{enter}\n{exit}")).len(), 1);
    }
}
