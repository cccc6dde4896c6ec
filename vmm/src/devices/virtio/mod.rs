//! Devices of the virtio standard (1.2) behind its PCI transport.
//!
//! [`VirtioPci`] is the transport, with one queue; [`Disk`] is a block device on it: [`backing`] is the
//! file with the faults that the machine asks for, [`block`] carries out a request, [`disk`] is the
//! thread that does so.

mod backing;
mod block;
mod disk;
mod msix;
mod transport;

pub use backing::{DiskError, SECTOR};
pub use disk::{Disk, DiskCounters, DiskStats};
pub use msix::{Msix, SignalMsi, VECTORS as MSIX_VECTORS};
pub use transport::{BAR_BYTES, VirtioPci};
