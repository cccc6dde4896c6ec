//! A request of virtio-blk, from its descriptors to its status (virtio 1.2 section 5.2.6).
//!
//! Everything in a request is a guest's claim. What cannot be understood gets a status that says so; a
//! chain with no room for a status is given back without one.

use std::io::{Read, Write};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::{DescriptorChain, Reader, Writer};
use vm_memory::GuestMemoryMmap;

use super::backing::{Backing, Failure, SECTOR};
use super::disk::DiskCounters;

/// Most bytes of data in a request: a guest's mistake keeps its disk busy for so long only.
const DATA_MAX: usize = 64 << 20;
/// Bytes that are copied at a time.
const CHUNK: usize = 128 << 10;
/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;

/// Carries out requests.
#[derive(Debug)]
pub(super) struct Executor {
    pub backing: Backing,
    pub name: String,
    pub buffer: Vec<u8>,
}

/// How a request ended.
enum Status {
    Ok,
    Io,
    Unsupported,
}

impl Executor {
    pub(super) fn new(backing: Backing, name: String) -> Executor {
        Executor { backing, name, buffer: Vec::new() }
    }

    /// Carries out the request of `chain`; how many bytes were written to guest memory.
    pub(super) fn execute(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
        counters: &DiskCounters,
    ) -> u32 {
        let parts = (|| {
            let reader = chain.clone().reader(memory).ok()?;
            let mut writer = chain.writer(memory).ok()?;
            let status = writer.split_at(writer.available_bytes().checked_sub(1)?).ok()?;
            Some((reader, writer, status))
        })();
        let Some((mut reader, mut writer, mut status)) = parts else {
            counters.malformed();
            return 0;
        };
        let (code, written) = self.carry_out(&mut reader, &mut writer, counters);
        let byte = match code {
            Status::Ok => VIRTIO_BLK_S_OK,
            Status::Io => VIRTIO_BLK_S_IOERR,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        let said = status.write(&[u8::try_from(byte).unwrap_or(1)]).unwrap_or(0);
        u32::try_from(written.saturating_add(said)).unwrap_or(u32::MAX)
    }

    fn carry_out(
        &mut self,
        reader: &mut Reader<'_>,
        writer: &mut Writer<'_>,
        counters: &DiskCounters,
    ) -> (Status, usize) {
        let mut header = [0; HEADER];
        if reader.read_exact(&mut header).is_err() {
            counters.malformed();
            return (Status::Io, 0);
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let outcome = match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => self.read(sector, writer, counters),
            VIRTIO_BLK_T_OUT => self.write(sector, reader, counters).map(|()| 0),
            VIRTIO_BLK_T_FLUSH => {
                counters.flushed();
                self.backing.flush().map(|()| 0)
            }
            VIRTIO_BLK_T_GET_ID => Ok(self.identify(writer)),
            _ => return (Status::Unsupported, 0),
        };
        match outcome {
            Ok(written) => (Status::Ok, written),
            Err(failure) => {
                counters.failed(failure);
                (Status::Io, writer.bytes_written())
            }
        }
    }

    fn read(
        &mut self,
        sector: u64,
        writer: &mut Writer<'_>,
        counters: &DiskCounters,
    ) -> Result<usize, Failure> {
        let len = writer.available_bytes();
        let count = whole_sectors(len)?;
        self.backing.check_read(sector, count)?;
        let mut offset = sector * SECTOR;
        let mut left = len;
        while left > 0 {
            let chunk = left.min(CHUNK);
            self.buffer.resize(self.buffer.len().max(chunk), 0);
            let part = self.buffer.get_mut(..chunk).ok_or(Failure::Invalid)?;
            self.backing.read_at(offset, part)?;
            writer.write_all(part).map_err(|_| Failure::Invalid)?;
            offset += chunk as u64;
            left -= chunk;
        }
        counters.read(count);
        Ok(len)
    }

    fn write(
        &mut self,
        sector: u64,
        reader: &mut Reader<'_>,
        counters: &DiskCounters,
    ) -> Result<(), Failure> {
        let count = whole_sectors(reader.available_bytes())?;
        let plan = self.backing.plan_write(sector, count)?;
        let mut offset = sector * SECTOR;
        let mut left = usize::try_from(plan.keep * SECTOR).map_err(|_| Failure::Invalid)?;
        while left > 0 {
            let chunk = left.min(CHUNK);
            self.buffer.resize(self.buffer.len().max(chunk), 0);
            let part = self.buffer.get_mut(..chunk).ok_or(Failure::Invalid)?;
            reader.read_exact(part).map_err(|_| Failure::Invalid)?;
            self.backing.write_at(offset, part)?;
            offset += chunk as u64;
            left -= chunk;
        }
        if plan.torn {
            return Err(Failure::Injected);
        }
        counters.wrote(count);
        Ok(())
    }

    /// The disk's name, cut to 20 bytes and padded with zeroes.
    fn identify(&self, writer: &mut Writer<'_>) -> usize {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in id.iter_mut().zip(self.name.bytes()) {
            *to = from;
        }
        let room = writer.available_bytes().min(id.len());
        id.get(..room).and_then(|id| writer.write(id).ok()).unwrap_or(0)
    }
}

/// How many sectors `len` bytes are.
fn whole_sectors(len: usize) -> Result<u64, Failure> {
    if len > DATA_MAX || !len.is_multiple_of(512) {
        return Err(Failure::Invalid);
    }
    Ok(len as u64 / SECTOR)
}
