//! How many threads run a kernel.

/// How a kernel is spread over the GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Blocks in x and y.
    pub(crate) blocks: (u32, u32),
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: u32,
    /// Neighbouring blocks in x that share their memory.
    pub(crate) cluster: u32,
}

impl Grid {
    /// Enough blocks of 256 threads for `threads` in all.
    pub(crate) fn of_threads(threads: usize) -> Grid {
        Grid {
            blocks: (threads.div_ceil(256) as u32, 1),
            threads: 256,
            shared_bytes: 0,
            cluster: 1,
        }
    }
}
