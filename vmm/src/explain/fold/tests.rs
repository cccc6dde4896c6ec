use memvisor_abi::{EventId, TraceRecord};

use super::*;

/// Records of (process, event, first two arguments), one a line.
fn told(records: &[(u32, EventId, [u64; 2])]) -> Vec<Step> {
    let entries: Vec<TraceEntry> = (0..)
        .zip(records)
        .map(|(number, (pid, event, [first, second]))| TraceEntry {
            cpu: 0,
            number,
            cycles: number,
            record: TraceRecord {
                pid: *pid,
                event: *event as u16,
                args: [*first, *second, 0, 0, 0],
                ..TraceRecord::default()
            },
        })
        .collect();
    steps(&entries, &Names::default())
}

fn lines(steps: &[Step]) -> Vec<(u8, &str)> {
    steps.iter().map(|step| (step.depth, step.line.as_str())).collect()
}

#[test]
fn steps_of_two_tasks_are_two_trees() {
    let steps = told(&[
        (7, EventId::ShrinkNode, [0, 0]),
        (3, EventId::ExitMmap, [0, 0]),
        (7, EventId::ShrinkNodeRet, [40, 32]),
        (3, EventId::ExitMmapRet, [900, 0]),
    ]);
    let depths: Vec<(&str, u8)> = steps.iter().map(|step| (step.task.as_str(), step.depth)).collect();
    assert_eq!(depths, [("task-7", 0), ("task-7", 0), ("task-3", 0), ("task-3", 0)]);
    assert_eq!(steps[1].line, "} shrink_node = nr_scanned=40 nr_reclaimed=32");
}

#[test]
fn what_comes_again_is_one_line_with_its_sums() {
    let mut records = Vec::new();
    for round in 0..9 {
        records.push((7, EventId::ShrinkNode, [0, 0]));
        records.push((7, EventId::ShrinkNodeRet, [100 + round, 10]));
    }
    let steps = told(&records);
    assert_eq!(steps.len(), 3);
    assert_eq!(steps[2].times, 8);
    assert!(
        steps[2].line.starts_with("8 more shrink_node: nid=0")
            && steps[2].line.ends_with("nr_scanned=101..108 nr_reclaimed=10"),
        "{}",
        steps[2].line
    );
    assert!(steps[2].sentence.contains("nr_scanned=836, nr_reclaimed=80"), "{}", steps[2].sentence);
}

#[test]
fn a_step_of_a_new_kind_is_told_whole_in_between() {
    let mut records = vec![(7, EventId::MarkVictim, [1, 0]); 10];
    records.insert(8, (7, EventId::WarnAlloc, [0, 0]));
    let steps = told(&records);
    let names: Vec<(&str, u64)> = steps.iter().map(|step| (step.event.as_str(), step.times)).collect();
    // The two at the end are too few to be summed up.
    assert_eq!(
        names,
        [("mark_victim", 1), ("mark_victim", 7), ("warn_alloc", 1), ("mark_victim", 1), ("mark_victim", 1)]
    );
}

#[test]
fn calls_whose_other_end_is_missing_leave_whole_trees() {
    let steps = told(&[
        (7, EventId::ExitMmapRet, [1, 0]),
        (7, EventId::ShrinkNode, [0, 0]),
        (7, EventId::MarkVictim, [1, 0]),
    ]);
    let lines = lines(&steps);
    assert_eq!(lines.len(), 3);
    assert_eq!((lines[1].0, lines[2]), (1, (0, "} shrink_node goes on")));
}
