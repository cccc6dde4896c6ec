//! Who is killed.

use mm_core::Gfp;
use proptest::prelude::*;

use crate::{
    Candidate, Chosen, Constraint, OomControl, OomSettings, PanicOnOom, Role, Verdict, constrained_alloc,
    oom_badness, out_of_memory, select_bad_process,
};

const TOTAL: u64 = 100_000;

fn process(pid: u32, rss: u64) -> Candidate {
    Candidate {
        pid,
        role: Role::Ordinary,
        oom_score_adj: 0,
        rss: Some(rss),
        swapents: 0,
        table_pages: 0,
        is_victim: false,
        is_reaped: false,
        is_eligible: true,
    }
}

fn control(constraint: Constraint) -> OomControl {
    OomControl { gfp: Gfp::KERNEL, constraint, totalpages: TOTAL }
}

fn pid(chosen: Chosen) -> Option<u32> {
    match chosen {
        Chosen::Process(process, _) => Some(process.pid),
        Chosen::Dying | Chosen::Nobody => None,
    }
}

fn select(processes: &[Candidate]) -> Chosen {
    select_bad_process(&control(Constraint::None), processes.iter().copied())
}

#[test]
fn the_one_with_the_most_pages_is_killed_wherever_they_are() {
    let swapped = Candidate { swapents: 600, ..process(2, 100) };
    let tables = Candidate { table_pages: 500, ..process(4, 100) };
    assert_eq!(pid(select(&[process(1, 400), swapped, process(3, 650), tables])), Some(2));
}

#[test]
fn an_adjustment_outweighs_size_by_thousandths_of_the_machine() {
    let spared = Candidate { oom_score_adj: -300, ..process(1, 30_000) };
    let wanted = Candidate { oom_score_adj: 10, ..process(2, 1) };
    assert_eq!(pid(select(&[process(3, 900), spared, wanted])), Some(2));
    assert_eq!(pid(select(&[process(3, 1002), spared, wanted])), Some(3));
    // Less than nothing is still the most of all.
    assert_eq!(pid(select(&[spared])), Some(1));
}

#[test]
fn init_kernel_threads_and_the_exempt_are_never_killed() {
    let init = Candidate { role: Role::Unkillable, ..process(1, 90_000) };
    let exempt = Candidate { oom_score_adj: -1000, ..process(2, 90_000) };
    let vfork = Candidate { role: Role::Vfork, ..process(3, 90_000) };
    let thread = Candidate { role: Role::Unkillable, rss: None, ..process(4, 0) };
    assert_eq!(select(&[init, exempt, vfork, thread]), Chosen::Nobody);
    assert_eq!(pid(select(&[init, exempt, process(9, 1), vfork, thread])), Some(9));
}

#[test]
fn nobody_else_dies_while_a_victim_does() {
    let dying = Candidate { is_victim: true, ..process(2, 100) };
    assert_eq!(select(&[process(1, 900), dying]), Chosen::Dying);
    let reaped = Candidate { is_reaped: true, ..dying };
    assert_eq!(pid(select(&[process(1, 900), reaped])), Some(1));
}

#[test]
fn whoever_asked_for_it_dies_first() {
    let origin = Candidate { role: Role::Origin, ..process(2, 1) };
    assert_eq!(pid(select(&[process(1, 90_000), origin, process(3, 90_000)])), Some(2));
}

#[test]
fn an_allocation_bound_to_nodes_kills_only_who_has_memory_there() {
    let elsewhere = Candidate { is_eligible: false, ..process(1, 90_000) };
    let here = process(2, 10);
    let bound = select_bad_process(&control(Constraint::MemoryPolicy), [elsewhere, here].into_iter());
    assert_eq!(pid(bound), Some(2));
    assert_eq!(pid(select(&[elsewhere, here])), Some(1));
}

#[test]
fn pages_that_count_are_those_that_could_serve() {
    let nodes = [(1000, true), (500, false)];
    let bound = constrained_alloc(Gfp::KERNEL, 30, nodes.into_iter());
    assert_eq!((bound.constraint, bound.totalpages), (Constraint::MemoryPolicy, 1030));
    let free = constrained_alloc(Gfp::KERNEL, 30, [(1000, true), (500, true)].into_iter());
    assert_eq!((free.constraint, free.totalpages), (Constraint::None, 1530));
    let this = constrained_alloc(Gfp::KERNEL | Gfp::THISNODE, 30, nodes.into_iter());
    assert_eq!((this.constraint, this.totalpages), (Constraint::None, 1530));
}

fn decide(control: OomControl, settings: OomSettings, caller: (Option<Candidate>, bool)) -> Verdict {
    out_of_memory(&control, settings, caller, [process(7, 500), process(8, 100)].into_iter())
}

#[test]
fn the_caller_that_dies_anyway_is_enough() {
    let caller = (Some(process(8, 100)), true);
    assert_eq!(decide(control(Constraint::None), OomSettings::default(), caller), Verdict::CallerExits);
}

#[test]
fn an_allocation_that_cannot_ask_file_systems_kills_nobody() {
    let nofs = OomControl { gfp: Gfp::KERNEL - Gfp::FS, ..control(Constraint::None) };
    assert_eq!(decide(nofs, OomSettings::default(), (Some(process(8, 100)), false)), Verdict::Wait);
}

#[test]
fn panic_on_oom_spares_bound_allocations_unless_it_is_two() {
    let panics = |panic_on_oom, constraint| {
        let settings = OomSettings { panic_on_oom, ..OomSettings::default() };
        matches!(decide(control(constraint), settings, (None, false)), Verdict::Panic(_))
    };
    assert!(!panics(PanicOnOom::Never, Constraint::None));
    assert!(panics(PanicOnOom::Unbound, Constraint::None));
    assert!(!panics(PanicOnOom::Unbound, Constraint::MemoryPolicy));
    assert!(panics(PanicOnOom::Always, Constraint::MemoryPolicy));
}

#[test]
fn oom_kill_allocating_task_kills_the_caller_unless_it_is_exempt() {
    let settings = OomSettings { oom_kill_allocating_task: true, ..OomSettings::default() };
    let killed = |caller| match decide(control(Constraint::None), settings, (Some(caller), false)) {
        Verdict::Kill(process, _) => process.pid,
        other => panic!("{other:?}"),
    };
    assert_eq!(killed(process(8, 100)), 8);
    assert_eq!(killed(Candidate { oom_score_adj: -1000, ..process(8, 100) }), 7);
    assert_eq!(killed(Candidate { role: Role::Unkillable, ..process(1, 100) }), 7);
}

#[test]
fn a_machine_with_nobody_to_kill_is_deadlocked() {
    let settings = OomSettings::default();
    let verdict = out_of_memory(&control(Constraint::None), settings, (None, false), core::iter::empty());
    assert_eq!(verdict, Verdict::Panic("System is deadlocked on memory"));
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let role = prop_oneof![4 => Just(Role::Ordinary), 1 => Just(Role::Unkillable), 1 => Just(Role::Vfork)];
    (any::<u32>(), role, -1000..=1000i16, proptest::option::of(0..TOTAL), 0..TOTAL, any::<bool>()).prop_map(
        |(pid, role, oom_score_adj, rss, swapents, is_eligible)| Candidate {
            role,
            oom_score_adj,
            rss,
            swapents,
            is_eligible,
            ..process(pid, 0)
        },
    )
}

proptest! {
    #[test]
    fn nobody_who_may_be_killed_is_worse_than_who_is(
        processes in prop::collection::vec(candidate(), 0..20),
        bound in any::<bool>(),
    ) {
        let control = control(if bound { Constraint::MemoryPolicy } else { Constraint::None });
        let may = |process: &&Candidate| process.is_eligible || !bound;
        let most = processes.iter().filter(may).filter_map(|process| oom_badness(process, TOTAL)).max();
        match select_bad_process(&control, processes.iter().copied()) {
            Chosen::Process(process, points) => {
                prop_assert_eq!(Some(points), most);
                prop_assert!(process.role == Role::Ordinary && process.oom_score_adj > -1000);
                prop_assert!(may(&&process));
            }
            Chosen::Nobody => prop_assert_eq!(most, None),
            Chosen::Dying => prop_assert!(false, "nobody is"),
        }
    }
}
