//! The page allocators: `alloc_pages(GFP_KERNEL, order)` with zonelist, watermarks and statistics against crates that
//! allocate frames. All count in frames of one region; a block is aligned to its size where the crate can do that.

mod contest;
mod host;
mod memory;
mod mixed;
mod peers;
mod run;
mod tracing;

pub use run::run;

/// An allocator of frames, and of naturally aligned blocks of `2^order` of them.
pub trait Frames: Sized + Sync {
    /// Ready for its first allocation, over that many frames.
    fn start(frames: u64) -> Self;

    /// Does what can be put off until memory is needed.
    fn bring_all_online(&self) {}

    /// First frame of a block.
    fn alloc(&self, order: u8) -> Option<usize>;

    /// Gives a block back.
    fn free(&self, frame: usize, order: u8);

    /// Blocks of 2 MiB that can still be had; they are not given back.
    fn free_huge_blocks(&self) -> usize {
        std::iter::from_fn(|| self.alloc(9)).count()
    }
}
