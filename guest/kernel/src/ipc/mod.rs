//! Inter-process communication of System V (Linux: ipc/). What a segment is, is guest-ipc's; here are the lock, the bytes and the
//! address spaces.

pub mod shm;
