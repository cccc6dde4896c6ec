//! The terminal.

use std::vec::Vec;

use crate::{PollFlags, Termios, Tty, TtyRead, TtySignal};

const ICANON_ECHO_ISIG: u32 = 0o13;

fn type_text(tty: &mut Tty, text: &[u8]) -> (Vec<u8>, Vec<TtySignal>) {
    let mut screen = Vec::new();
    let signals = text.iter().filter_map(|byte| tty.input(*byte, &mut screen)).collect();
    (screen, signals)
}

fn read(tty: &mut Tty, len: usize) -> Option<Vec<u8>> {
    let mut buffer = std::vec![0; len];
    match tty.read(&mut buffer) {
        TtyRead::Bytes(len) => {
            buffer.truncate(len);
            Some(buffer)
        }
        TtyRead::Empty => None,
    }
}

#[test]
fn a_line_is_read_once_it_is_ended_and_one_at_a_time() {
    let mut tty = Tty::new();
    let (screen, _) = type_text(&mut tty, b"ls");
    assert_eq!(screen, b"ls");
    assert_eq!(read(&mut tty, 10), None);
    assert!(!tty.poll().contains(PollFlags::IN));
    let (screen, _) = type_text(&mut tty, b" -l\rps\r");
    assert_eq!(screen, b" -l\r\nps\r\n");
    assert_eq!(tty.len(), 9);
    assert_eq!(read(&mut tty, 3), Some(b"ls ".to_vec()));
    assert_eq!(read(&mut tty, 10), Some(b"-l\n".to_vec()));
    assert_eq!(read(&mut tty, 10), Some(b"ps\n".to_vec()));
    assert_eq!(read(&mut tty, 10), None);
}

#[test]
fn the_line_can_be_edited() {
    let mut tty = Tty::new();
    let (screen, _) = type_text(&mut tty, b"ax\x7fb\x01\x7f\n");
    assert_eq!(screen, b"ax\x08 \x08b^A\x08 \x08\x08 \x08\r\n");
    assert_eq!(read(&mut tty, 10), Some(b"ab\n".to_vec()));
    let (screen, _) = type_text(&mut tty, b"one two  \x17x\x15ok\n");
    let erased = |count: usize| b"\x08 \x08".repeat(count);
    assert_eq!(screen, [b"one two  ", &erased(5)[..], b"x", &erased(5), b"ok\r\n"].concat());
    assert_eq!(read(&mut tty, 10), Some(b"ok\n".to_vec()));
    type_text(&mut tty, b"\x16\x03\n");
    assert_eq!(read(&mut tty, 10), Some(b"\x03\n".to_vec()), "^V makes ^C a byte");
}

#[test]
fn a_tab_is_erased_to_where_it_began() {
    let mut tty = Tty::new();
    type_text(&mut tty, b"abc\t");
    let (screen, _) = type_text(&mut tty, b"\x7f");
    assert_eq!(screen, b"\x08".repeat(5));
}

#[test]
fn control_characters_are_signals_and_drop_the_line() {
    let mut tty = Tty::new();
    let (screen, signals) = type_text(&mut tty, b"sleep\x03\x1a\x1c");
    assert_eq!(screen, b"sleep^C^Z^\\");
    assert_eq!(signals, [TtySignal::Interrupt, TtySignal::Suspend, TtySignal::Quit]);
    type_text(&mut tty, b"x\n");
    assert_eq!(read(&mut tty, 10), Some(b"x\n".to_vec()));
}

#[test]
fn control_d_ends_a_file_only_at_the_start_of_a_line() {
    let mut tty = Tty::new();
    type_text(&mut tty, b"ab\x04");
    assert_eq!(read(&mut tty, 10), Some(b"ab".to_vec()));
    assert_eq!(read(&mut tty, 10), None);
    type_text(&mut tty, b"\x04");
    assert!(tty.poll().contains(PollFlags::IN));
    assert_eq!(read(&mut tty, 10), Some(Vec::new()));
    assert_eq!(read(&mut tty, 10), None);
    type_text(&mut tty, b"ab\x04");
    assert_eq!(read(&mut tty, 2), Some(b"ab".to_vec()));
    assert_eq!(read(&mut tty, 2), None, "an end right behind a full buffer goes with it");
}

#[test]
fn raw_mode_gives_every_byte_at_once() {
    let mut tty = Tty::new();
    type_text(&mut tty, b"be");
    let mut raw = *tty.termios();
    raw.lflag &= !ICANON_ECHO_ISIG;
    raw.iflag = 0;
    tty.set_termios(raw);
    assert_eq!(read(&mut tty, 10), Some(b"be".to_vec()), "what was typed before");
    let (screen, signals) = type_text(&mut tty, b"\x03\r");
    assert!(screen.is_empty() && signals.is_empty());
    assert_eq!(read(&mut tty, 10), Some(b"\x03\r".to_vec()));
    assert_eq!(read(&mut tty, 10), None);
    raw.cc[6] = 0;
    tty.set_termios(raw);
    assert_eq!(read(&mut tty, 10), Some(Vec::new()), "VMIN 0 does not wait");
    raw.cc[6] = 3;
    tty.set_termios(raw);
    type_text(&mut tty, b"xy");
    assert_eq!(read(&mut tty, 10), None);
    assert_eq!(read(&mut tty, 2), Some(b"xy".to_vec()));
}

#[test]
fn output_gets_carriage_returns() {
    let mut tty = Tty::new();
    let mut screen = Vec::new();
    tty.write(b"a\nb\t.", &mut screen);
    assert_eq!(screen, b"a\r\nb\t.");
    let raw = Termios { oflag: 0, ..*tty.termios() };
    tty.set_termios(raw);
    screen.clear();
    tty.write(b"a\n", &mut screen);
    assert_eq!(screen, b"a\n");
}

#[test]
fn settings_survive_their_structure() {
    let settings = Termios { line: 7, ..Termios::INITIAL };
    assert_eq!(Termios::from_bytes(&settings.to_bytes()), settings);
    assert_eq!(Termios::INITIAL.to_bytes()[..4], [0, 5, 0, 0], "ICRNL and IXON");
}

#[test]
fn input_that_nobody_reads_is_bounded() {
    let mut tty = Tty::new();
    type_text(&mut tty, &[b'x'; 10_000]);
    type_text(&mut tty, b"\n");
    let line = read(&mut tty, 10_000).expect("a line");
    assert!(line.len() <= 4096 && line.ends_with(b"x\n"), "{} bytes", line.len());
}
