use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const TOP: u64 = (1 << 47) - PAGE;
const STACK: u64 = 8 << 20;

fn strings(args: &[&[u8]], env: &[&[u8]], path: &[u8]) -> Strings {
    let mut strings = Strings::new(STACK);
    args.iter().for_each(|text| strings.push_arg(text).unwrap());
    env.iter().for_each(|text| strings.push_env(text).unwrap());
    strings.set_path(path).unwrap();
    strings
}

/// What C's `main` is given: argv, envp, auxv.
type Given = (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<(u64, u64)>);

/// The bytes of a stack, written once each.
struct Written {
    sp: u64,
    bytes: BTreeMap<u64, u8>,
}

impl Written {
    fn of(layout: &Layout, strings: &Strings, facts: &Facts) -> Written {
        let mut bytes = BTreeMap::new();
        let written: Result<(), ()> = layout.write(strings, facts, |at, piece| {
            for (at, &byte) in (at..).zip(piece) {
                assert_eq!(bytes.insert(at, byte), None, "written twice at {at:#x}");
                assert!((layout.sp..TOP).contains(&at));
            }
            Ok(())
        });
        written.unwrap();
        Written { sp: layout.sp, bytes }
    }

    fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|index| self.bytes[&(at + index as u64)]))
    }

    fn text(&self, at: u64) -> Vec<u8> {
        (at..).map(|at| self.bytes[&at]).take_while(|&byte| byte != 0).collect()
    }

    fn read(&self) -> Given {
        let argc = self.word(self.sp);
        let mut at = self.sp + 8;
        let mut lists = [vec![], vec![]];
        for list in &mut lists {
            while self.word(at) != 0 {
                list.push(self.text(self.word(at)));
                at += 8;
            }
            at += 8;
        }
        let mut aux = vec![];
        while self.word(at) != 0 {
            aux.push((self.word(at), self.word(at + 8)));
            at += 16;
        }
        let [argv, envp] = lists;
        assert_eq!(argv.len() as u64, argc);
        (argv, envp, aux)
    }
}

#[test]
fn a_program_finds_what_it_was_given() {
    let given = strings(&[b"ls", b"-l", b""], &[b"PATH=/bin"], b"/bin/ls");
    let layout = Layout::plan(&given, TOP, 0).unwrap();
    let facts = Facts { entry: 0x40_1000, random: [7; 16], ids: [0, 0, 5, 6], ..Facts::default() };
    let stack = Written::of(&layout, &given, &facts);
    let (argv, envp, aux) = stack.read();
    assert_eq!(argv, [&b"ls"[..], b"-l", b""]);
    assert_eq!(envp, [b"PATH=/bin"]);
    let value = |key| aux.iter().find(|pair| pair.0 == key).unwrap().1;
    assert_eq!(stack.text(value(libc::AT_EXECFN)), b"/bin/ls");
    assert_eq!(stack.text(value(libc::AT_PLATFORM)), b"x86_64");
    assert_eq!((value(libc::AT_ENTRY), value(libc::AT_PAGESZ), value(libc::AT_PHENT)), (0x40_1000, 4096, 56));
    assert_eq!((value(libc::AT_EGID), value(libc::AT_SECURE)), (6, 1));
    let random = value(libc::AT_RANDOM);
    assert_eq!((random..random + 16).map(|at| stack.bytes[&at]).collect::<Vec<_>>(), [7; 16]);
    assert_eq!(value(libc::AT_EXECFN) + 8, TOP - 8, "the path ends below eight bytes of zero");
}

#[test]
fn a_program_without_arguments_gets_an_empty_one() {
    let given = strings(&[], &[], b"/init");
    let layout = Layout::plan(&given, TOP, 0).unwrap();
    let (argv, envp, _) = Written::of(&layout, &given, &Facts::default()).read();
    assert_eq!((argv, envp), (vec![vec![]], vec![]));
}

#[test]
fn a_string_of_128_kib_is_too_long() {
    let mut given = Strings::new(STACK);
    assert_eq!(given.push_arg(&vec![b'x'; MAX_ARG_STRLEN - 1]), Ok(()));
    assert_eq!(given.push_arg(&vec![b'x'; MAX_ARG_STRLEN]), Err(Errno::E2big));
    assert_eq!(given.push_arg(b"a\0b"), Err(Errno::Einval));
}

#[test]
fn a_quarter_of_the_stack_but_at_least_128_kib_may_be_used() {
    let most = |limit: u64| {
        let mut given = Strings::new(limit);
        while given.push_env(&[b'x'; 1015]).is_ok() {}
        given.envc * 1024
    };
    assert_eq!(most(8 << 20), 2 << 20);
    assert_eq!(most(4096), 128 << 10);
    assert_eq!(most(u64::MAX), 6 << 20);
}

/// The layout of a process that this host's Linux started: the same words in the same places.
#[test]
fn linux_lays_a_stack_out_the_same() {
    let program = std::env::current_exe().unwrap();
    let name = "stack::tests::linux_prints_its_stack";
    let output = std::process::Command::new(&program)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env_clear()
        .env("STACK_OF", "this")
        .env("EMPTY", "")
        .output()
        .unwrap();
    let text = std::string::String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split("STACK ").nth(1)).expect("the child prints its stack");
    let words: Vec<u64> = line.split(' ').map(|word| u64::from_str_radix(word, 16).unwrap()).collect();
    let [arg_start, arg_end, env_start, env_end, start_stack, execfn, platform, random] = words[..] else {
        panic!("{words:x?}")
    };
    let path = program.to_str().unwrap().as_bytes();
    let args = [path, b"--exact", name.as_bytes(), b"--nocapture", b"--test-threads=1"];
    let given = strings(&args, &[b"EMPTY=", b"STACK_OF=this"], path);
    let top = (execfn + path.len() as u64 + 1) + 8;
    assert_eq!(top % PAGE, 0);
    // What Linux chose at random: below 8192, and then down to 16.
    let aligned = platform + 7;
    let layout = Layout::plan(&given, top, arg_start - aligned).unwrap();
    assert_eq!((layout.arg_start, layout.env_start, layout.env_end), (arg_start, arg_end, env_end));
    assert_eq!(env_start, arg_end);
    assert_eq!(layout.env_end, execfn);
    assert_eq!((layout.platform, layout.random), (platform, random));
    // The number of pairs differs with the kernel's version; the rounding does not.
    assert!(start_stack < random && start_stack % 16 == 0);
}

/// Not a test by itself: what the test above runs as another process.
#[test]
fn linux_prints_its_stack() {
    if std::env::var("STACK_OF").is_err() {
        return;
    }
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // proc(5): fields 28 (startstack) and 48 to 51; the first of `fields` is number 3.
    let field = |number: usize| fields[number - 3].parse::<u64>().unwrap();
    let auxv = std::fs::read("/proc/self/auxv").unwrap();
    let value = |key: u64| {
        auxv.chunks(16)
            .find(|pair| pair[..8] == key.to_le_bytes())
            .map_or(0, |pair| u64::from_le_bytes(pair[8..].try_into().unwrap()))
    };
    std::println!(
        "STACK {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x}",
        field(48),
        field(49),
        field(50),
        field(51),
        field(28),
        value(libc::AT_EXECFN),
        value(libc::AT_PLATFORM),
        value(libc::AT_RANDOM)
    );
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        args in prop::collection::vec("[a-z=/]{0,40}", 1..70),
        env in prop::collection::vec("[A-Z=/]{0,40}", 0..70),
        distance in 0..RANDOM_DISTANCE,
    ) {
        let bytes = |list: &[std::string::String]| list.iter().map(|text| text.clone().into_bytes()).collect::<Vec<_>>();
        let (args, env) = (bytes(&args), bytes(&env));
        let given = strings(
            &args.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            &env.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            b"/p",
        );
        let layout = Layout::plan(&given, TOP, distance).unwrap();
        prop_assert_eq!(layout.sp % 16, 0);
        let stack = Written::of(&layout, &given, &Facts::default());
        let (argv, envp, aux) = stack.read();
        prop_assert_eq!(argv, args);
        prop_assert_eq!(envp, env);
        prop_assert_eq!(aux.len(), AUX_PAIRS - 1);
        prop_assert_eq!(stack.word(layout.auxv), libc::AT_MINSIGSTKSZ);
    }
}

#[test]
fn a_script_becomes_an_argument_of_its_interpreter() {
    let mut strings = Strings::new(8 << 20);
    strings.set_path(b"./run").expect("there is room");
    for arg in [&b"run"[..], b"", b"two words"] {
        strings.push_arg(arg).expect("there is room");
    }
    strings.interpret(b"/bin/sh", Some(b"-e x"), b"./run").expect("there is room");
    assert_eq!(strings.args(), b"/bin/sh\0-e x\0./run\0\0two words\0");
    assert_eq!((strings.argc(), strings.path()), (5, &b"./run"[..]));
    let mut none = Strings::new(8 << 20);
    none.interpret(b"/bin/sh", None, b"x").expect("there is room");
    assert_eq!((none.args(), none.argc()), (&b"/bin/sh\0x\0"[..], 2), "a program without a name");
}
