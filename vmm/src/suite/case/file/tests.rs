use super::*;

fn problem(text: &str) -> String {
    match parse("boot", text) {
        Ok(cases) => panic!("accepted as {} cases", cases.len()),
        Err(error) => error.to_string(),
    }
}

const PLAIN: &str = r#"
[[case]]
name = "boot/plain"
description = "d"
kvm = { machine = "tiny" }
"#;

#[test]
fn embedded_cases_are_valid_and_have_all_suites() {
    let cases = load().unwrap();
    let suites: BTreeSet<&str> = cases.iter().map(Case::suite).collect();
    assert_eq!(suites, FILES.iter().map(|(suite, _)| *suite).collect(), "a file without cases");
    assert!(suites.is_superset(&BTreeSet::from(["audit", "boot", "pagetables", "topology"])));
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
}

#[test]
fn every_seeded_fault_of_the_catalog_has_a_rule_on_both_beds() {
    let cases = load().unwrap();
    for bed in [Bed::Kvm, Bed::Qemu] {
        let seeded = cases.iter().filter(|case| case.bed == bed && case.cmdline.contains("seeded="));
        let faults: BTreeSet<_> = seeded
            .inspect(|case| {
                assert_eq!(case.expect.exit, Ending::Findings);
                assert_eq!(case.expect.findings.len(), 1);
            })
            .map(|case| case.cmdline.clone())
            .collect();
        assert!(faults.len() >= 10, "{bed:?} has {} faults", faults.len());
    }
}

#[test]
fn a_plain_stanza_is_one_case_that_must_end_clean() {
    let cases = parse("boot", PLAIN).unwrap();
    assert_eq!(cases.len(), 1);
    assert_eq!(cases[0].name, "boot/plain");
    assert_eq!(cases[0].expect.exit, Ending::Clean);
    assert_eq!(cases[0].bed, Bed::Kvm);
}

#[test]
fn a_stanza_says_which_of_its_cases_are_short_or_long() {
    let lengths = |fields: &str| -> Vec<Length> {
        let text = format!(
            "[[case]]\nname = \"boot/{{machine}}\"\ndescription = \"d\"\n{fields}\n\
             kvm = {{ machine = [\"tiny\", \"default\"] }}\n"
        );
        parse("boot", &text).unwrap().iter().map(|case| case.length).collect()
    };
    assert_eq!(lengths(""), [Length::Normal, Length::Normal]);
    assert_eq!(lengths("short = true"), [Length::Short, Length::Short]);
    assert_eq!(lengths("long = true"), [Length::Long, Length::Long]);
    assert_eq!(lengths("long = true\nshort = [\"boot/tiny\"]"), [Length::Short, Length::Long]);
    assert!(problem(&PLAIN.replace("kvm", "short = [\"boot/other\"]\nkvm")).contains("'boot/other'"));
    assert!(problem(&PLAIN.replace("kvm", "short = true\nlong = true\nkvm")).contains("exclude"));
}

#[test]
fn dialogues_are_for_shells_and_their_probes_for_a_stock_linux() {
    let talks = "dialogue = [{ wait = \"/ # \", type = \"ls\" }]\nkvm";
    assert!(problem(&PLAIN.replace("kvm", talks)).contains("dialogue needs a shell"));
    let shell = PLAIN.replace("kvm", &format!("initrd = \"x.cpio\"\n{talks}"));
    assert_eq!(parse("boot", &shell).unwrap()[0].initrd.as_deref(), Some("x.cpio"));
    assert!(problem(&format!("{shell}[case.expect]\nprobes = [\"gib-pages\"]\n")).contains("not probed"));
    let probe = |name: &str| format!("{PLAIN}[case.expect]\nprobes = [\"{name}\"]\n");
    assert!(problem(&probe("linux-views")).contains("a stock Linux (kvm.linux) only"));
    let linux = |text: &str| text.replace("\"tiny\"", "\"tiny\", linux = \"bzImage\"");
    assert!(problem(&linux(&PLAIN.replace("kvm", "initrd = \"x\"\nkvm"))).contains("exclude each other"));
    assert!(problem(&linux(&probe("gib-pages"))).contains("memvisor's own kernel only"));
    assert!(problem(&linux(&probe("linux-views"))).contains("give it one"));
    let case = parse("boot", &linux(&probe("linux-views").replace("kvm", talks))).unwrap().remove(0);
    assert_eq!(case.dialogue, [Line { wait: "/ # ".to_owned(), text: "ls".to_owned() }]);
}

#[test]
fn lists_expand_to_every_combination() {
    let text = r#"
[[case]]
name = "boot/{machine}-{boot}-{cpus}"
description = "d"
kvm = { machine = ["tiny", "default"], boot = ["linux", "pvh"], cpus = [1, 2, 4] }
"#;
    let cases = parse("boot", text).unwrap();
    assert_eq!(cases.len(), 12);
    assert_eq!(cases[0].name, "boot/tiny-linux-1");
    assert_eq!(cases[11].name, "boot/default-pvh-4");
}

#[test]
fn a_list_without_its_placeholder_is_refused() {
    let text = PLAIN.replace("\"tiny\"", "[\"tiny\", \"default\"]");
    assert!(problem(&text).contains("two cases are called 'boot/plain'"), "{}", problem(&text));
}

#[test]
fn faults_become_cases_that_name_the_rule() {
    let text = PLAIN.replace("plain", "{fault}") + "faults = { leak = \"owner.none\" }\n";
    let cases = parse("boot", &text).unwrap();
    assert_eq!(cases[0].name, "boot/leak");
    assert_eq!(cases[0].cmdline, "seeded=leak");
    assert_eq!(cases[0].expect.exit, Ending::Findings);
    assert!(cases[0].expect.findings.contains("owner.none"));
}

#[test]
fn an_unknown_field_is_refused_with_its_line() {
    let text = format!("{PLAIN}mashine = \"tiny\"\n");
    let message = problem(&text);
    assert!(message.contains("tests/cases/boot.toml") && message.contains("line 6"), "{message}");
    assert!(message.contains("mashine"), "{message}");
}

#[test]
fn an_unknown_probe_is_refused_and_the_known_ones_are_listed() {
    let text = format!("{PLAIN}expect = {{ probes = [\"guess\"] }}\n");
    let message = problem(&text);
    assert!(message.contains("guess") && message.contains("translate-agrees"), "{message}");
}

#[test]
fn a_stanza_for_no_bed_or_two_is_refused() {
    assert!(problem("[[case]]\nname = \"boot/x\"\ndescription = \"d\"\n").contains("exactly one"));
    let both = format!("{PLAIN}qemu = {{ memory_mib = 64, levels = 4 }}\n");
    assert!(problem(&both).contains("exactly one"));
}

#[test]
fn a_name_of_another_suite_is_refused() {
    assert!(problem(&PLAIN.replace("boot/", "audit/")).contains("name it 'boot/case'"));
}

#[test]
fn a_qemu_machine_must_add_up() {
    let qemu = |table: &str| {
        let text = format!("[[case]]\nname = \"boot/x\"\ndescription = \"d\"\nqemu = {table}\n");
        problem(&text)
    };
    assert!(qemu("{ memory_mib = 4096, levels = 4 }").contains("16 to 2048"));
    assert!(qemu("{ memory_mib = 34, levels = 4 }").contains("firmware"));
    assert!(qemu("{ memory_mib = 64, levels = 3 }").contains("4 or 5"));
    assert!(
        qemu("{ cpus = 2, levels = 4, nodes = [{ memory_mib = 64, cpus = [0, 0] }] }")
            .contains("each of CPUs")
    );
    assert!(
        qemu("{ levels = 4, nodes = [{ memory_mib = 64, cpus = [0] }], distances = [[10, 20]] }")
            .contains("1 rows of 1")
    );
}
