//! Lines of the report, as Linux 6.1 prints them.

use mm_core::{Gfp, Order};

use crate::{Constraint, Invoked, TaskLine, Victim, VictimLine};

const LINE: TaskLine<'_> = TaskLine {
    pid: 4242,
    uid: 1000,
    tgid: 4242,
    total_vm: 262_500,
    rss: 120_000,
    pgtables_bytes: 1_003_520,
    swapents: 77,
    oom_score_adj: -17,
    comm: "hog",
};

#[test]
fn the_first_line_names_the_allocation() {
    let invoked = Invoked {
        comm: "sh",
        gfp: Gfp::KERNEL,
        gfp_names: "GFP_KERNEL",
        order: Order::ZERO,
        oom_score_adj: 5,
    };
    let mask = Gfp::KERNEL.bits();
    assert_eq!(
        invoked.to_string(),
        format!("sh invoked oom-killer: gfp_mask={mask:#x}(GFP_KERNEL), order=0, oom_score_adj=5")
    );
}

#[test]
fn a_task_is_a_line_of_numbers_in_linuxs_widths() {
    let line = LINE.to_string();
    assert_eq!(line, "[   4242]  1000  4242   262500   120000  1003520       77           -17 hog");
}

#[test]
fn the_summary_names_constraint_and_victim() {
    let victim = Victim { pid: 4242, comm: "hog", uid: 1000 };
    let line = VictimLine::<&str> { constraint: Constraint::None, nodes: None, victim };
    assert_eq!(
        line.to_string(),
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),global_oom,task=hog,pid=4242,uid=1000"
    );
    let line = VictimLine { constraint: Constraint::MemoryPolicy, nodes: Some("0-1"), victim };
    assert!(line.to_string().starts_with("oom-kill:constraint=CONSTRAINT_MEMORY_POLICY,nodemask=0-1,"));
}

#[test]
fn the_last_line_says_what_comes_back_in_kib() {
    let victim = Victim { pid: 4242, comm: "hog", uid: 1000 };
    let text = victim.killed("Out of memory", 262_500, [119_000, 999, 1], &LINE).to_string();
    assert_eq!(
        text,
        "Out of memory: Killed process 4242 (hog) total-vm:1050000kB, anon-rss:476000kB, file-rss:3996kB, \
         shmem-rss:4kB, UID:1000 pgtables:980kB oom_score_adj:-17"
    );
}
