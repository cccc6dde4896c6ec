use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

fn parse(words: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(words.split_whitespace())
}

#[test]
fn what_is_wrong_with_a_command_line_is_one_line() {
    let line = |words: &str| one_line(&parse(words).expect_err(words).render().to_string());
    assert_eq!(
        line("memvisor run --paging 6"),
        "invalid value '6' for '--paging <PAGING>' [possible values: auto, 4, 5] (see --help)"
    );
    for (words, parts) in [
        ("memvisor run --memory x", ["--memory", "128M"]),
        ("memvisor run --backing 2m", ["--backing", "hugetlb-2m"]),
        ("memvisor run --bott linux", ["--bott", "--boot"]),
        ("memvisor check --vm a --dump b", ["--vm", "--dump"]),
        ("memvisor inspect page", ["required", "<PFN>"]),
    ] {
        let text = line(words);
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        assert!(!text.contains('\n') && !text.contains("Usage"), "{text}");
    }
}

#[test]
fn sources_may_stand_before_or_after_the_view() {
    for words in [
        "memvisor inspect zones --vm lab --json",
        "memvisor inspect --vm lab --json zones",
        "memvisor inspect translate 0xffff888000000000 --vcpu 1",
        "memvisor inspect pagetables --va 0x0..0xffff --mem a --mem b@0x1000 --cr3 0x2000 --la57",
        "memvisor inspect page 0x100 --dump f",
        "memvisor check --dump f --json",
        "memvisor dump -o f --vm lab",
        "memvisor list",
        "memvisor run numa4 --paging 5 --boot pvh --memory 1G --cpus 3 --cmdline -x --dry-run --json --hold",
        "memvisor completions zsh",
        "memvisor import - dmesg.txt -o m.toml --scale 1/64",
        "memvisor run default --scale 1/2",
    ] {
        assert!(parse(words).is_ok(), "{words}: {:?}", parse(words).err());
    }
    for words in [
        "memvisor run default --scale 64",
        "memvisor import -o m.toml",
        "memvisor inspect zones --vm a --dump b",
        "memvisor run --paging 6",
        "memvisor inspect page x",
    ] {
        assert!(parse(words).is_err(), "{words}");
    }
}

#[test]
fn errors_have_their_exit_codes() {
    assert_eq!(status_of(&RunError::NoLa57.into()), ExitStatus::BadInput);
    assert_eq!(status_of(&BadInput("x".into()).into()), ExitStatus::BadInput);
    assert_eq!(status_of(&RunError::Open(crate::vcpu::KvmOpenError::Missing).into()), ExitStatus::NoKvm);
    assert_eq!(status_of(&anyhow::anyhow!("x")), ExitStatus::Error);
    let pipe = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("print");
    assert!(is_broken_pipe(&pipe));
}

#[test]
fn an_import_that_fails_leaves_nothing_and_one_that_succeeds_one_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let files = || std::fs::read_dir(directory.path()).expect("readable").count();
    std::fs::write(path("bad"), "no log\n").expect("writable");
    let log = "BIOS-e820: [mem 0x0000000000000000-0x000000000fffffff] usable\n";
    std::fs::write(path("log"), log).expect("writable");
    let run = |input: &str, output: &str| {
        let words = ["memvisor", "import", input, "-o", output];
        dispatch(Cli::try_parse_from(words).expect("parses").command)
    };
    let (bad, log) = (path("bad").display().to_string(), path("log").display().to_string());
    let error = run(&bad, &path("m.toml").display().to_string()).expect_err("not a log");
    assert_eq!(status_of(&error), ExitStatus::BadInput, "{error:#}");
    assert_eq!(files(), 2, "nothing left behind");
    assert!(run(&log, &path("none/m.toml").display().to_string()).is_err());
    assert_eq!(files(), 2, "nothing left behind");
    let machine = path("m.toml").display().to_string();
    run(&log, &machine).expect("imports");
    assert_eq!(files(), 3, "the machine file and nothing else");
    let file = super::import::load(&machine, Some("1/2".parse().expect("a scale"))).expect("loads");
    let machine = crate::machine::resolve(file, &crate::machine::Overrides::default()).expect("resolves");
    assert!(machine.ram_bytes() < 160 << 20, "{}", machine.ram_bytes());
}
