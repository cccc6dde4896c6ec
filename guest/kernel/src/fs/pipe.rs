//! Pipes that processes have open (Linux: fs/pipe.c, fs/fifo.c).

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_fs::{InodeId, OpenFlags, PIPE_BUF, Pipe, PipeRead, PipeWrite, PollFlags};
use mm_vma::Errno;

use super::Mutex;
use crate::mm::oom;
use crate::sched::{self, WaitQueue, Woken};
use crate::sync::Lock;
use crate::uaccess;

/// A pipe, and who waits for it.
#[derive(Debug)]
pub struct PipeObject {
    pipe: Lock<Pipe>,
    readers: WaitQueue,
    writers: WaitQueue,
}

/// Those that are open, by inode.
static PIPES: Mutex<BTreeMap<u32, Arc<PipeObject>>> = Mutex::new(BTreeMap::new());

/// An open pipe; closed when it is dropped.
#[derive(Debug)]
pub struct PipeEnd {
    object: Arc<PipeObject>,
    inode: InodeId,
    reads: bool,
    writes: bool,
}

impl PipeEnd {
    /// Opens an end. With `wait` it is waited for the other end, as a named pipe's open does.
    ///
    /// # Errors
    /// `ENXIO` if nobody reads and the open does not wait; `ERESTARTSYS`, `ENOMEM`.
    pub fn open(inode: InodeId, flags: OpenFlags, wait: bool) -> Result<PipeEnd, Errno> {
        let object = PIPES.with(|pipes| {
            Arc::clone(pipes.entry(inode.as_u32()).or_insert_with(|| {
                Arc::new(PipeObject {
                    pipe: Lock::new(Pipe::new()),
                    readers: WaitQueue::new(),
                    writers: WaitQueue::new(),
                })
            }))
        });
        let (reads, writes) = (flags.reads(), flags.writes());
        let nonblocking = flags.contains(OpenFlags::NONBLOCK);
        let before = {
            oom::or_wait(|| object.pipe.lock().reserve())?;
            let mut pipe = object.pipe.lock();
            if wait && writes && !reads && nonblocking && pipe.ends().0 == 0 {
                return Err(Errno::Enxio);
            }
            pipe.open(reads, writes);
            pipe.opens()
        };
        object.readers.wake_up_all();
        object.writers.wake_up_all();
        let end = PipeEnd { object, inode, reads, writes };
        if wait && !nonblocking && reads != writes {
            let queue = if reads { &end.object.readers } else { &end.object.writers };
            let woken = queue.wait_interruptible(&sched::task_context(), None, || {
                let pipe = end.object.pipe.lock();
                let ((readers, writers), after) = (pipe.ends(), pipe.opens());
                if reads { writers > 0 || after.1 != before.1 } else { readers > 0 || after.0 != before.0 }
            });
            if woken != Woken::Event {
                return Err(Errno::Erestartsys);
            }
        }
        Ok(end)
    }

    /// Reads into a program's memory.
    ///
    /// # Errors
    /// `EAGAIN`, `ERESTARTSYS`, `EFAULT`, `ENOMEM`.
    pub fn read(&self, address: u64, len: usize, nonblocking: bool) -> Result<usize, Errno> {
        // A few bytes, which most messages are, need no memory.
        let mut few = [0; 64];
        let mut many;
        let buffer = if len <= few.len() {
            &mut few[..len]
        } else {
            many = page(len)?;
            many.resize(len.min(PIPE_BUF), 0);
            &mut many[..]
        };
        let mut done = 0;
        while done < len || len == 0 {
            let want = buffer.len().min(len - done);
            let got = self.object.pipe.lock().read(&mut buffer[..want]);
            match got {
                PipeRead::Bytes(0) | PipeRead::End => break,
                PipeRead::Bytes(got) => {
                    self.object.writers.wake_up_all();
                    if let Err(error) = uaccess::write(address + done as u64, &buffer[..got]) {
                        return if done > 0 { Ok(done) } else { Err(error) };
                    }
                    done += got;
                }
                PipeRead::Empty if done > 0 => break,
                PipeRead::Empty if nonblocking => return Err(Errno::Eagain),
                PipeRead::Empty => {
                    let woken = self.object.readers.wait_interruptible(&sched::task_context(), None, || {
                        let pipe = self.object.pipe.lock();
                        !pipe.is_empty() || pipe.ends().1 == 0
                    });
                    if woken != Woken::Event {
                        return Err(Errno::Erestartsys);
                    }
                }
            }
        }
        Ok(done)
    }

    /// Writes from a program's memory. `EPIPE` is for the caller to send SIGPIPE.
    ///
    /// # Errors
    /// `EPIPE`, `EAGAIN`, `ERESTARTSYS`, `EFAULT`, `ENOMEM`.
    pub fn write(&self, address: u64, len: usize, nonblocking: bool) -> Result<usize, Errno> {
        let mut done = 0;
        let mut piece = self.object.pipe.lock().first_piece(len);
        while done < len {
            let mut bytes = page(PIPE_BUF)?;
            bytes.resize(piece, 0);
            let copied = uaccess::read(address + done as u64, &mut bytes);
            if let Err(error) = copied {
                return if done > 0 { Ok(done) } else { Err(error) };
            }
            loop {
                let written = self.object.pipe.lock().write(bytes);
                match written {
                    Ok(PipeWrite::Done) => break,
                    Err(_) if done > 0 => return Ok(done),
                    Err(error) => return Err(error),
                    Ok(PipeWrite::Full(_)) if nonblocking => {
                        return if done > 0 { Ok(done) } else { Err(Errno::Eagain) };
                    }
                    Ok(PipeWrite::Full(back)) => {
                        bytes = back;
                        let woken =
                            self.object.writers.wait_interruptible(&sched::task_context(), None, || {
                                let pipe = self.object.pipe.lock();
                                pipe.poll(false, true).intersects(PollFlags::OUT | PollFlags::ERR)
                            });
                        if woken != Woken::Event {
                            return if done > 0 { Ok(done) } else { Err(Errno::Erestartsys) };
                        }
                    }
                }
            }
            self.object.readers.wake_up_all();
            done += piece;
            piece = (len - done).min(PIPE_BUF);
        }
        Ok(done)
    }

    /// What poll reports.
    pub fn poll(&self) -> PollFlags {
        self.object.pipe.lock().poll(self.reads, self.writes)
    }

    /// Where somebody waits who wants to know when [`PipeEnd::poll`] says something else.
    pub fn queues(&self) -> [Option<&WaitQueue>; 2] {
        let object = &self.object;
        [self.reads.then_some(&object.readers), self.writes.then_some(&object.writers)]
    }

    /// Bytes to be read.
    pub fn len(&self) -> usize {
        self.object.pipe.lock().len()
    }
}

/// Room for up to a page of bytes.
fn page(len: usize) -> Result<Vec<u8>, Errno> {
    let mut page = Vec::new();
    page.try_reserve_exact(len.min(PIPE_BUF)).map_err(|_| Errno::Enomem)?;
    Ok(page)
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        PIPES.with(|pipes| {
            if self.object.pipe.lock().close(self.reads, self.writes) {
                pipes.remove(&self.inode.as_u32());
            }
        });
        self.object.readers.wake_up_all();
        self.object.writers.wake_up_all();
    }
}
