use super::*;

#[test]
fn globs_match_as_a_shell_does() {
    for (glob, text, matches) in [
        ("mm_page_*", "mm_page_alloc", true),
        ("mm_page_*", "mm_page_", true),
        ("*alloc", "kmem_cache_alloc", true),
        ("*alloc", "kmem_cache_alloc_bulk", false),
        ("k?ree", "kfree", true),
        ("k?ree", "kree", false),
        ("*", "", true),
        ("", "", true),
        ("", "a", false),
        ("a*b*c", "axxbyyc", true),
        ("a*b*c", "axxbyy", false),
        ("**a", "bca", true),
    ] {
        assert_eq!(matches_glob(glob.as_bytes(), text.as_bytes()), matches, "{glob} {text}");
    }
}

fn names(patterns: &str) -> impl Iterator<Item = &'static str> {
    let mask = select_events(patterns).expect("known");
    EVENTS
        .iter()
        .filter(move |event| mask[usize::from(event.number / 64)] >> (event.number % 64) & 1 == 1)
        .map(|event| event.name)
}

#[test]
fn groups_systems_and_exclusions_select() {
    assert_eq!(names("all").count(), EVENTS.len());
    assert!(names("slab").all(|name| EVENTS.iter().any(|e| e.name == name && e.group == Group::Slab)));
    assert!(names("kmem:*").eq([
        "mm_page_alloc",
        "mm_page_alloc_zone_locked",
        "mm_page_alloc_extfrag",
        "mm_page_free",
        "mm_page_free_batched",
        "mm_page_pcpu_drain",
        "kmalloc",
        "kfree",
        "kmem_cache_alloc",
        "kmem_cache_free",
    ]));
    assert!(names("rmqueue").eq(["rmqueue", "rmqueue"]), "an enter goes with its exit");
    assert!(!names("all,!rmqueue").any(|name| name == "rmqueue"));
    assert_eq!(select_events("kmem:rmqueue"), Err("kmem:rmqueue"));
    assert_eq!(select_events(""), Ok([0; MASK_WORDS]));
}

#[test]
fn an_exit_has_the_name_and_group_of_its_enter() {
    let mut enters = 0;
    for pair in EVENTS.windows(2).filter(|pair| pair[0].phase == Phase::Enter) {
        enters += 1;
        assert_eq!((pair[0].name, pair[0].group), (pair[1].name, pair[1].group));
        let same = EVENTS.iter().filter(|event| event.name == pair[0].name).count();
        assert_eq!(same, 2, "{} names one step", pair[0].name);
    }
    assert!(enters > 20);
}

#[test]
fn arguments_are_read_where_they_lie() {
    let event = &EVENTS[EventId::MmPageAllocExtfrag as usize];
    assert!((0..6).map(|index| event.offset(index)).eq([0, 8, 9, 10, 11, 12]));
    let record = TraceRecord { args: [0x1234, 0x01_02_01_09_03, 0, 0, 0], ..TraceRecord::default() };
    let mut values = event.values(&record).map(|(_, value)| value);
    assert!(values.by_ref().eq([0x1234, 3, 9, 1, 2, 1]));
    let event = &EVENTS[EventId::MigratePage as usize];
    assert_eq!(event.offset(3), 20);
    let record = TraceRecord { args: [1, 2, 0xffff_fff4 << 32, 0, 0], ..TraceRecord::default() };
    assert_eq!(event.values(&record).last().map(|(_, value)| value as i64), Some(-12));
}
