//! ext2 against the host's own programs: images that mke2fs makes, `e2fsck -fn` clean after everything, bytes that debugfs reads.

mod host;
mod hostile;
mod model;
mod mounting;
mod populated;
mod sequences;
mod space;
mod twin;
