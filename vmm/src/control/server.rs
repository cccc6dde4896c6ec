//! The server side, as a subscriber of the event loop.
//!
//! Reading never blocks; answers are written at once, with a time limit, because they are small or
//! go to a reader that waits for them.

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::{
    Claim,
    http::{self, HttpError},
    routes::{self, Answer},
};
use crate::run::{RunEvent, Vm};

/// Most connections at a time; further ones wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 64;
/// A reader that does not take its answer for so long is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Descriptors in one message (Linux: `SCM_MAX_FD` is 253).
pub(super) const DESCRIPTORS_MAX: usize = 250;

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
}

/// Serves one guest's control socket.
pub struct ControlServer {
    claim: Arc<Claim>,
    vm: Arc<Vm>,
    quit: Sender<RunEvent>,
    connections: HashMap<RawFd, Connection>,
}

impl fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlServer").field("socket", &self.claim.path()).finish_non_exhaustive()
    }
}

impl ControlServer {
    /// A server for `vm` on `claim`'s socket; a shutdown request is sent to `quit`.
    pub fn new(claim: Arc<Claim>, vm: Arc<Vm>, quit: Sender<RunEvent>) -> ControlServer {
        ControlServer { claim, vm, quit, connections: HashMap::new() }
    }

    fn accept(&mut self, ops: &mut EventOps) {
        while self.connections.len() < CONNECTIONS_MAX {
            let stream = match self.claim.listener().accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!("control socket: {error}");
                    return;
                }
            };
            let fd = stream.as_raw_fd();
            let ready = stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_write_timeout(Some(WRITE_TIMEOUT)))
                .is_ok()
                && ops.add(Events::new(&stream, EventSet::IN)).is_ok();
            if ready {
                self.connections.insert(fd, Connection { stream, received: Vec::new() });
            }
        }
    }

    fn close(&mut self, fd: RawFd, ops: &mut EventOps) {
        if let Some(connection) = self.connections.remove(&fd)
            && let Err(error) = ops.remove(Events::empty(&connection.stream))
        {
            tracing::warn!("control socket: {error:?}");
        }
        // Somebody may wait for the place.
        self.accept(ops);
    }
}

impl MutEventSubscriber for ControlServer {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.claim.listener().as_raw_fd() {
            return self.accept(ops);
        }
        let Some(connection) = self.connections.get_mut(&events.fd()) else { return };
        if !connection.advance(&self.vm, &self.quit) {
            self.close(events.fd(), ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self.claim.listener(), EventSet::IN)) {
            tracing::error!("control socket: {error:?}");
        }
    }
}

impl Connection {
    /// Reads what there is and answers what is complete. `false` if the connection is done.
    fn advance(&mut self, vm: &Vm, quit: &Sender<RunEvent>) -> bool {
        let mut chunk = [0; 65536];
        loop {
            match rustix::net::recv(&self.stream, &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((len, _)) => self.received.extend_from_slice(chunk.get(..len).unwrap_or(&[])),
                Err(rustix::io::Errno::WOULDBLOCK) => return true,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return false,
            }
            loop {
                let (answer, keep_alive) = match http::parse(&self.received) {
                    Ok(None) => break,
                    Ok(Some((request, used))) => {
                        self.received.drain(..used);
                        (routes::serve(vm, quit, &request), request.keep_alive)
                    }
                    Err(error) => (refuse(&error), false),
                };
                if let Err(error) = self.send(&answer, keep_alive) {
                    tracing::debug!("control socket: {error}");
                    return false;
                }
                if !keep_alive {
                    return false;
                }
            }
        }
    }

    /// Sends head and body; the descriptors travel with the first bytes, a message each
    /// [`DESCRIPTORS_MAX`].
    fn send(&self, answer: &Answer, keep_alive: bool) -> io::Result<()> {
        let head = http::response_head(answer.status, answer.content_type, answer.body.len(), keep_alive);
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&answer.body);
        let mut rest = bytes.as_slice();
        for batch in answer.descriptors.chunks(DESCRIPTORS_MAX) {
            let fds: Vec<BorrowedFd<'_>> = batch.iter().map(AsFd::as_fd).collect();
            // One byte a message is enough to carry descriptors; there are more bytes than batches.
            let Some((first, others)) = rest.split_first() else { break };
            send_with(&self.stream, std::slice::from_ref(first), &fds)?;
            rest = others;
        }
        while !rest.is_empty() {
            let sent = send_with(&self.stream, rest, &[])?;
            rest = rest.get(sent..).unwrap_or(&[]);
        }
        Ok(())
    }
}

fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    loop {
        match rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            result => return Ok(result?),
        }
    }
}

fn refuse(error: &HttpError) -> Answer {
    Answer::error(error.status(), error.to_string())
}
