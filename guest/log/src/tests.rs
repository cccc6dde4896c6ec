//! The ring against a queue, and the texts.

use std::collections::VecDeque;
use std::string::String;
use std::vec::Vec;

use memvisor_abi::{LOG_LINE_MAX, LogHeader};
use proptest::prelude::*;

use crate::text::{kmsg, syslog, written};
use crate::{Cursor, Line, Log, console_loglevel};

const LEN: usize = 2048;

fn all(log: &Log<LEN>, mut at: Cursor) -> Vec<(u64, u8, Vec<u8>)> {
    let mut records = Vec::new();
    while let Some((record, next)) = log.read(at) {
        assert_eq!(next.seq, record.header.seq + 1);
        records.push((record.header.seq, record.header.level, record.text().to_vec()));
        at = next;
    }
    assert_eq!(at.seq, log.state().next_seq);
    records
}

proptest! {
    #[test]
    fn the_newest_records_that_fit_are_there(
        texts in proptest::collection::vec((0_u8..8, proptest::collection::vec(any::<u8>(), 0..LOG_LINE_MAX + 20)), 0..60),
        clear in 0_usize..60,
    ) {
        let mut log = Log::<LEN>::new();
        let (mut model, mut used) = (VecDeque::new(), 0);
        let size = |text: &Vec<u8>| (LogHeader::SIZE + text.len()).next_multiple_of(8);
        for (seq, (level, text)) in texts.iter().enumerate() {
            log.push(0, *level, seq as u64, text);
            let kept = text[..text.len().min(LOG_LINE_MAX)].to_vec();
            used += size(&kept);
            model.push_back((seq as u64, *level, kept));
            while used > LEN {
                used -= size(&model.pop_front().expect("it was counted").2);
            }
            let state = log.state();
            prop_assert_eq!(state.head - state.tail, used as u64);
            prop_assert_eq!(state.first_seq, model[0].0);
            if seq == clear {
                log.clear();
            }
        }
        prop_assert_eq!(all(&log, Cursor::default()), Vec::from(model.clone()));
        let from = if clear < texts.len() { clear as u64 + 1 } else { 0 };
        model.retain(|record| record.0 >= from);
        prop_assert_eq!(all(&log, log.since_clear()), Vec::from(model));
        prop_assert!(log.read(log.end()).is_none());
        let first = log.state().first_seq;
        for seq in first.saturating_sub(2)..log.state().next_seq + 2 {
            let at = log.find(Cursor::default(), seq);
            prop_assert_eq!(at.seq, seq.clamp(first, log.state().next_seq));
            prop_assert_eq!(log.find(at, seq + 1), log.find(Cursor::default(), seq + 1));
        }
    }

    #[test]
    fn pieces_make_the_lines_that_the_whole_makes(
        text in "[a-c\n]{0,400}",
        cuts in proptest::collection::vec(0_usize..400, 0..20),
    ) {
        let text = text.replace('c', &"c".repeat(90));
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < text.len()).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let (mut line, mut lines) = (Line::new(), Vec::new());
        for pair in cuts.windows(2) {
            line.add(6, &text.as_bytes()[pair[0]..pair[1]], |_, text| lines.push(text.to_vec()));
        }
        // What is not ended is not there; what is too long is in parts.
        let ended = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
        let mut expected: Vec<Vec<u8>> = ended
            .split_terminator('\n')
            .flat_map(|line| {
                let parts: Vec<Vec<u8>> = line.as_bytes().chunks(LOG_LINE_MAX).map(<[u8]>::to_vec).collect();
                if parts.is_empty() { std::vec![Vec::new()] } else { parts }
            })
            .collect();
        let rest = &text.as_bytes()[ended.len()..];
        expected.extend(rest.chunks(LOG_LINE_MAX).take(rest.len().saturating_sub(1) / LOG_LINE_MAX).map(<[u8]>::to_vec));
        prop_assert_eq!(lines, expected);
    }
}

#[test]
fn a_reader_that_was_overtaken_goes_on_with_the_oldest() {
    let mut log = Log::<LEN>::new();
    log.push(0, 6, 1, b"first");
    let (_, second) = log.read(Cursor::default()).expect("a record");
    for _ in 0..3 {
        log.push(0, 6, 2, &[b'x'; 900]);
    }
    let (record, _) = log.read(second).expect("it goes on");
    assert_eq!(record.header.seq, log.state().first_seq);
    assert!(record.header.seq > second.seq);
}

#[test]
fn a_line_has_the_level_of_its_first_piece() {
    let (mut line, mut lines) = (Line::new(), Vec::new());
    let mut add = |level, text: &str| {
        line.add(level, text.as_bytes(), |level, text| lines.push((level, text.to_vec())))
    };
    add(4, "a");
    add(6, "b\nc\n");
    add(3, "\n");
    assert_eq!(lines, [(4, b"ab".to_vec()), (6, b"c".to_vec()), (3, Vec::new())]);
}

#[test]
fn texts_are_linuxs() {
    let mut log = Log::<LEN>::new();
    log.push(0, 6, 1_234_567_891, b"tab\tand \\");
    log.push(1, 4, 12_345_000_001_000, "gr\u{fc}n".as_bytes());
    let (first, next) = log.read(Cursor::default()).expect("a record");
    let (second, _) = log.read(next).expect("a record");
    let text = |write: &dyn Fn(&mut String)| {
        let mut text = String::new();
        write(&mut text);
        text
    };
    assert_eq!(text(&|out| syslog(&first, out).expect("a string")), "<6>[    1.234567] tab\tand \\\n");
    assert_eq!(text(&|out| kmsg(&first, out).expect("a string")), "6,0,1234567,-;tab\\x09and \\x5c\n");
    assert_eq!(text(&|out| syslog(&second, out).expect("a string")), "<12>[12345.000001] gr\u{fc}n\n");
    assert_eq!(text(&|out| kmsg(&second, out).expect("a string")), "12,1,12345000001,-;gr\\xc3\\xbcn\n");
}

#[test]
fn a_program_may_say_how_grave_it_is_but_not_that_it_is_the_kernel() {
    assert_eq!(written(b"<3>disk\n"), (1, 3, &b"disk"[..]));
    assert_eq!(written(b"<30>from 3, level 6"), (3, 6, &b"from 3, level 6"[..]));
    assert_eq!(written(b"plain\n"), (1, 4, &b"plain"[..]));
    assert_eq!(written(b"<x>odd"), (1, 4, &b"<x>odd"[..]));
    assert_eq!(written(b"<3"), (1, 4, &b"<3"[..]));
}

#[test]
fn the_last_word_about_the_console_counts() {
    let level = |line: &str| console_loglevel(line.split_ascii_whitespace());
    assert_eq!(level("console=ttyS0"), 7);
    assert_eq!(level("quiet"), 4);
    assert_eq!(level("quiet loglevel=8"), 8);
    assert_eq!(level("loglevel=8 quiet"), 4);
    assert_eq!(level("debug loglevel=many"), 10);
    assert_eq!(level("ignore_loglevel quiet"), u8::MAX);
}
