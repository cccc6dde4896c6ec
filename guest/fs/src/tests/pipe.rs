//! Pipes: bytes against a queue, fullness against the pipes of this machine's Linux.

use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use rustix::io::Errno as HostErrno;
use rustix::pipe::PipeFlags;

use crate::{Errno, PIPE_BUF, Pipe, PipeRead, PipeWrite, PollFlags};

fn open() -> Pipe {
    let mut pipe = Pipe::new();
    pipe.open(true, true);
    pipe
}

/// A nonblocking write, as the kernel does it: in pieces.
fn write(pipe: &mut Pipe, bytes: &[u8]) -> Result<usize, Errno> {
    let mut done = 0;
    let mut piece = pipe.first_piece(bytes.len());
    while done < bytes.len() {
        match pipe.write(bytes[done..done + piece].to_vec())? {
            PipeWrite::Done => done += piece,
            PipeWrite::Full(_) if done == 0 => return Err(Errno::Eagain),
            PipeWrite::Full(_) => break,
        }
        piece = (bytes.len() - done).min(PIPE_BUF);
    }
    Ok(done)
}

fn read(pipe: &mut Pipe, len: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; len];
    match pipe.read(&mut buffer) {
        PipeRead::Bytes(len) => buffer.truncate(len),
        PipeRead::End => buffer.clear(),
        PipeRead::Empty => return Err(Errno::Eagain),
    }
    Ok(buffer)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_pipe_takes_and_gives_what_linux_does(
        ops in prop::collection::vec((any::<bool>(), prop_oneof![0..200_usize, 3000..9000_usize, Just(4096), Just(70_000)]), 1..60),
    ) {
        let mut pipe = open();
        let mut model: VecDeque<u8> = VecDeque::new();
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
        let mut next = 0_u8;
        for (writes, len) in ops {
            if writes {
                let bytes: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(1); next }).collect();
                let linux = rustix::io::write(&writer, &bytes).map_err(HostErrno::raw_os_error);
                let ours = write(&mut pipe, &bytes).map_err(Errno::number);
                prop_assert_eq!(ours, linux, "write of {}", len);
                model.extend(&bytes[..ours.unwrap_or(0)]);
            } else {
                let mut buffer = vec![0; len];
                let linux = rustix::io::read(&reader, &mut buffer[..]).map_err(HostErrno::raw_os_error);
                let ours = read(&mut pipe, len).map_err(Errno::number);
                prop_assert_eq!(ours.as_ref().map(Vec::len).map_err(|error| *error), linux, "read of {}", len);
                if let Ok(bytes) = ours {
                    prop_assert!(bytes.iter().eq(model.drain(..bytes.len()).collect::<Vec<_>>().iter()));
                }
            }
            prop_assert_eq!(pipe.len(), model.len());
            let mut fds = [rustix::event::PollFd::new(&writer, rustix::event::PollFlags::OUT)];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll");
            let room = fds[0].revents().contains(rustix::event::PollFlags::OUT);
            prop_assert_eq!(pipe.poll(false, true).contains(PollFlags::OUT), room);
        }
    }
}

#[test]
fn a_write_of_pipe_buf_bytes_is_never_torn() {
    let mut pipe = open();
    while write(&mut pipe, &[1; 100]).is_ok() {}
    let before = pipe.len();
    assert_eq!(write(&mut pipe, &[2; PIPE_BUF]), Err(Errno::Eagain));
    assert_eq!(pipe.len(), before, "nothing of it went in");
}

#[test]
fn the_last_writer_ends_the_pipe_and_the_last_reader_breaks_it() {
    let mut pipe = Pipe::new();
    pipe.open(true, false);
    pipe.open(false, true);
    assert_eq!(write(&mut pipe, b"rest"), Ok(4));
    assert!(!pipe.close(false, true));
    assert!(pipe.poll(true, false).contains(PollFlags::HUP | PollFlags::IN));
    assert_eq!(read(&mut pipe, 9), Ok(b"rest".to_vec()));
    assert_eq!(pipe.read(&mut [0; 9]), PipeRead::End);
    pipe.open(false, true);
    assert!(!pipe.close(true, false));
    assert_eq!(write(&mut pipe, b"x"), Err(Errno::Epipe));
    assert!(pipe.poll(false, true).contains(PollFlags::ERR));
    assert!(pipe.close(false, true), "nobody has it open");
}
