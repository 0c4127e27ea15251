//! GPUs that work on one model: one rank each, all of them threads of one process.
//!
//! Owns: the memory that ranks read of each other, what they do together (sums over ranks, drawing tokens),
//! and which way of a sum is used for how many rows. Must never: wait for a peer without an end.
//!
//! A rank's products leave their results in a window that its peers read ([`Peers::delta`],
//! [`Peers::logits`]); a collective is then one kernel on every GPU, which meets the same kernel on the
//! others (`cu/peers`). Collectives come in the same order on all ranks. No two of them in a row use the same
//! buffer, so that meeting for one says that all have read the other. NCCL (NVIDIA) takes over for as many
//! rows as it was measured to be faster for, and everything where GPUs cannot read each other.

mod collective;
mod fault;
mod nccl;
mod sample;
mod window;

pub use crate::ops::Inboxes;
pub use collective::{NextNorm, Sum, Timed};
pub use fault::{FaultRecord, Missing};

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaSlice, CudaStream, DriverError, sys};
use half::bf16;

use self::nccl::Nccl;
use self::sample::Drawing;
use self::window::Window;
use crate::Device;
use crate::abi::{Address, MAIL_CLUSTERS, Mail, PeersArgs, RANKS_MAX as RANKS};
use crate::error::LaunchError;
use crate::library::LibraryError;

/// Ranks at most.
pub const RANKS_MAX: usize = RANKS;

/// Blocks of a collective at most.
const BLOCKS_MAX: usize = 512;

/// Rows of a sum that is pushed, at most.
const INBOX_ROWS: usize = 128;

/// Deltas of two sums that follow one another, and of the embedding, which follows any of them.
const DELTAS: usize = 3;

/// Which of them is the embedding's.
const EMBEDDING: usize = DELTAS - 1;

/// How long a GPU waits for a peer, unless it was told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(6);

/// Ranks cannot work together.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// NCCL is needed and not there.
    #[error(transparent)]
    NoNccl(#[from] LibraryError),
    /// NCCL refused.
    #[error("NCCL failed to {what}: {status}; NCCL_DEBUG=INFO has it say why")]
    Nccl {
        /// What it was asked to do.
        what: &'static str,
        /// Its answer.
        status: String,
    },
    /// The driver refused.
    #[error("the driver failed to {what}: {source}")]
    Driver {
        /// What it was asked to do.
        what: &'static str,
        /// Its answer.
        source: DriverError,
    },
    /// A collective did not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

fn driver(what: &'static str) -> impl Fn(DriverError) -> PeerError {
    move |source| PeerError::Driver { what, source }
}

/// What a group works on; the same for all ranks.
#[derive(Clone, Debug)]
pub struct PeerShape {
    /// Width of the model, a multiple of 8.
    pub hidden: usize,
    /// Rows of a sum at most.
    pub rows: usize,
    /// Rows of logits at most.
    pub logit_rows: usize,
    /// Columns of the logits that each rank has, in order and without gaps.
    pub columns: Vec<Range<usize>>,
}

impl PeerShape {
    /// From one row of a rank's logits to the next: whole vectors, also for a rank without columns.
    pub fn part_stride(&self, rank: usize) -> usize {
        self.columns[rank].len().max(1).next_multiple_of(8)
    }

    fn delta_len(&self) -> usize {
        self.rows * self.hidden
    }

    fn logits_len(&self) -> usize {
        let strides = (0..self.columns.len()).map(|rank| self.part_stride(rank));
        self.logit_rows * strides.max().unwrap_or(0)
    }
}

/// How a sum over ranks is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Every rank writes its rows to every other, which waits for them where they arrive: few rows.
    Push,
    /// Every rank reads all of every other's rows.
    OneShot,
    /// Every rank sums its share of the rows, then all read each other's sums.
    TwoShot,
    /// NCCL, then a kernel for what is fused with the sum.
    Nccl,
}

/// Which ways a group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// The best.
    All,
    /// NCCL alone.
    NcclOnly,
}

/// One rank's end of a group.
pub struct Peers {
    shape: Arc<PeerShape>,
    /// Before the windows: slices of it are of no use without.
    deltas: [ManuallyDrop<CudaSlice<bf16>>; DELTAS],
    logits: ManuallyDrop<CudaSlice<f32>>,
    /// Where NCCL puts the parts of all ranks.
    parts: Option<CudaSlice<f32>>,
    meeting: PeersArgs,
    fault: FaultRecord,
    nccl: Option<Nccl>,
    /// Rows up to which each way is used, ascending; what is beyond goes the last way.
    ways: Vec<(usize, Way)>,
    /// Which delta the next sum takes.
    next: usize,
    /// Multiprocessors of the GPU that has the fewest: all launch the same.
    multiprocessors: u32,
    /// How rows are drawn together.
    drawing: Drawing,
    windows: Arc<Vec<Window>>,
}

/// Where things lie in a window, in bytes.
struct Layout {
    arrivals: usize,
    turns: usize,
    deltas: [usize; DELTAS],
    logits: usize,
    mail: usize,
    mail_turns: usize,
    inboxes: [usize; DELTAS],
    end: usize,
}

impl Layout {
    fn new(shape: &PeerShape) -> Layout {
        let mut end = 0usize;
        let mut take = |bytes: usize| {
            let at = end.next_multiple_of(256);
            end = at + bytes;
            at
        };
        let (arrivals, turns) = (take(BLOCKS_MAX * RANKS * 4), take(BLOCKS_MAX * 4));
        let deltas = std::array::from_fn(|_| take(shape.delta_len() * size_of::<bf16>()));
        let logits = take(shape.logits_len() * size_of::<f32>());
        let mail = take(MAIL_CLUSTERS * size_of::<Mail>());
        let mail_turns = take(MAIL_CLUSTERS * size_of::<u32>());
        let inbox = shape.columns.len() * INBOX_ROWS * shape.hidden * size_of::<bf16>();
        let inboxes = std::array::from_fn(|_| take(inbox));
        Layout { arrivals, turns, deltas, logits, mail, mail_turns, inboxes, end }
    }
}

/// Whether each of the GPUs can read and write the memory of each other.
pub fn reach_each_other(ordinals: &[usize]) -> Result<bool, DriverError> {
    for &from in ordinals {
        for &to in ordinals {
            let mut can = 0;
            // SAFETY: the driver was started when the GPUs were opened; it writes one integer.
            unsafe { sys::cuDeviceCanAccessPeer(&mut can, from as i32, to as i32) }.result()?;
            if from != to && can == 0 {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// How well one GPU reaches the memory of another: the driver's rank of that link, 0 the best; `None` if not at
/// all.
///
/// # Errors
/// The driver's.
pub fn link(from: usize, to: usize) -> Result<Option<u32>, DriverError> {
    if !reach_each_other(&[from, to])? {
        return Ok(None);
    }
    let attribute = sys::CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK;
    let mut rank = 0;
    // SAFETY: the driver was started; it writes one integer.
    unsafe { sys::cuDeviceGetP2PAttribute(&mut rank, attribute, from as i32, to as i32) }
        .result()?;
    Ok(Some(rank.max(0) as u32))
}

impl Peers {
    /// The ends of all ranks; rank `r` is on `devices[r]`.
    ///
    /// # Errors
    /// No memory; GPUs that do not reach each other, and no NCCL.
    pub fn open(
        devices: &[&Device],
        shape: PeerShape,
        allowed: Allowed,
        patience: Duration,
    ) -> Result<Vec<Peers>, PeerError> {
        if shape.columns.len() != devices.len() || devices.len() > RANKS_MAX {
            let what = format!(
                "{} ranks have {} parts of the columns; {RANKS_MAX} ranks at most",
                devices.len(),
                shape.columns.len()
            );
            return Err(LaunchError::Argument { op: "peers", what }.into());
        }
        let seats = devices.iter().map(|device| Seat {
            gpu: device.stream().context().ordinal(),
            name: device.name(),
            capability: device.capability(),
            has_clusters: device.has_clusters(),
        });
        alike(&seats.collect::<Vec<_>>())
            .map_err(|what| LaunchError::Argument { op: "peers", what })?;
        let streams: Vec<Arc<CudaStream>> = devices.iter().map(|d| d.stream().clone()).collect();
        let ordinals: Vec<usize> = streams.iter().map(|s| s.context().ordinal()).collect();
        let reach = reach_each_other(&ordinals).map_err(driver("look at its peers"))?;
        let direct = allowed == Allowed::All && reach;
        let mut distinct = ordinals.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let layout = Layout::new(&shape);
        let windows = streams
            .iter()
            .zip(&ordinals)
            .map(|(stream, &own)| {
                let open_to = if direct { &distinct[..] } else { &[own] };
                // An inbox is empty where all bits are set.
                Window::new(stream, (layout.inboxes[0], layout.end), open_to)
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(driver("share memory between GPUs"))?;
        let windows = Arc::new(windows);
        // Two ranks of one GPU are for tests; NCCL knows no such thing.
        let nccl = match distinct.len() == ordinals.len() {
            true => Nccl::open(&streams).map(Some),
            false => Ok(None),
        };
        let nccl: Vec<Option<Nccl>> = match nccl {
            Ok(Some(all)) => all.into_iter().map(Some).collect(),
            Err(error) if !direct => return Err(error),
            Ok(None) | Err(_) => devices.iter().map(|_| None).collect(),
        };
        let sharing = ordinals.len().div_ceil(distinct.len().max(1)) as u32;
        let drawing = Drawing::agreed(devices, &shape, sharing)
            .map_err(driver("look at how many blocks run at once"))?;
        let shape = Arc::new(shape);
        let multiprocessors = devices.iter().map(|d| d.multiprocessors()).min().unwrap_or(1);
        let mut arrivals = [0; RANKS];
        for (at, window) in arrivals.iter_mut().zip(windows.iter()) {
            *at = window.base() + layout.arrivals as Address;
        }
        let all = devices.iter().zip(nccl).enumerate().map(|(rank, (device, nccl))| {
            let (base, stream) = (windows[rank].base(), device.stream());
            let fault = FaultRecord::new(stream.context()).map_err(driver("pin memory"))?;
            let delta = |at: usize| {
                // SAFETY: the layout has room for it there, and the window outlives it.
                ManuallyDrop::new(unsafe {
                    stream.upgrade_device_ptr(base + at as Address, shape.delta_len())
                })
            };
            // SAFETY: as above.
            let logits = ManuallyDrop::new(unsafe {
                stream.upgrade_device_ptr(base + layout.logits as Address, shape.logits_len())
            });
            let parts = match direct {
                true => None,
                false => Some(
                    stream
                        .alloc_zeros(devices.len() * shape.logits_len())
                        .map_err(driver("allocate room for logits"))?,
                ),
            };
            let ways = match (direct, devices.len()) {
                (false, _) => vec![(usize::MAX, Way::Nccl)],
                (true, 2) => vec![(PUSH_ROWS, Way::Push), (usize::MAX, Way::OneShot)],
                // By what is moved: as much as fits into a microsecond or so costs no more than a meeting.
                (true, _) => vec![
                    (PUSH_ROWS, Way::Push),
                    (ONE_SHOT_BYTES / (2 * shape.hidden), Way::OneShot),
                    (usize::MAX, Way::TwoShot),
                ],
            };
            Ok(Peers {
                deltas: layout.deltas.map(delta),
                logits,
                parts,
                meeting: PeersArgs {
                    arrivals,
                    turns: base + layout.turns as Address,
                    fault: fault.address(),
                    patience_ns: patience.as_nanos() as u64,
                    rank: rank as u32,
                    ranks: devices.len() as u32,
                },
                fault,
                nccl,
                ways,
                next: 0,
                multiprocessors,
                drawing,
                windows: windows.clone(),
                shape: shape.clone(),
            })
        });
        all.collect()
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.meeting.ranks as usize
    }

    /// Whether GPUs read each other's memory; without, NCCL does everything, and logits are joined before a token is
    /// drawn from them ([`Peers::gather`], not [`Peers::sample`]).
    pub fn is_direct(&self) -> bool {
        self.parts.is_none()
    }

    /// How many rows go which way at most, ascending.
    pub fn ways(&self) -> &[(usize, Way)] {
        &self.ways
    }

    /// Has sums of every size go one way, as far as it goes. For measurements.
    pub fn only(&mut self, way: Way) {
        self.ways = match way {
            Way::Push => vec![(INBOX_ROWS, way), (usize::MAX, Way::OneShot)],
            _ => vec![(usize::MAX, way)],
        };
    }

    /// What a collective that waits in vain writes.
    pub fn fault(&self) -> FaultRecord {
        self.fault.clone()
    }

    /// The address of a rank's window.
    fn window(&self, rank: usize) -> Address {
        self.windows[rank].base()
    }
}

/// A rank's GPU, as far as its peers must know it.
struct Seat<'a> {
    gpu: usize,
    name: &'a str,
    capability: (i32, i32),
    has_clusters: bool,
}

/// Whether the GPUs run the same kernels: a rank that takes another way through a step than its peers waits for what does
/// not come.
fn alike(seats: &[Seat<'_>]) -> Result<(), String> {
    let kind = |seat: &Seat<'_>| (seat.capability, seat.has_clusters);
    let Some(first) = seats.first() else { return Ok(()) };
    match seats.iter().find(|seat| kind(seat) != kind(first)) {
        None => Ok(()),
        Some(other) => {
            let words = |seat: &Seat<'_>| {
                let (major, minor) = seat.capability;
                format!("GPU {} is {} (sm_{major}{minor})", seat.gpu, seat.name)
            };
            Err(format!(
                "{} and {}: the ranks of one model run the same kernels; choose GPUs of one kind with --gpus",
                words(first),
                words(other)
            ))
        }
    }
}

/// Up to so many rows are pushed where nothing was measured.
const PUSH_ROWS: usize = 32;

/// Up to so many bytes of a rank, more than two ranks sum in one shot.
const ONE_SHOT_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unequal_gpus_are_refused_by_name() {
        let h200 = |gpu| Seat { gpu, name: "NVIDIA H200", capability: (9, 0), has_clusters: true };
        assert_eq!(alike(&[]), Ok(()));
        assert_eq!(alike(&[h200(0), h200(3)]), Ok(()));
        // A board of another size is another name, and the same kernels.
        assert_eq!(alike(&[h200(0), Seat { name: "NVIDIA H100", ..h200(1) }]), Ok(()));
        let a100 = Seat { gpu: 5, name: "NVIDIA A100", capability: (8, 0), has_clusters: false };
        let told = alike(&[h200(2), h200(3), a100]).unwrap_err();
        for part in ["GPU 2 is NVIDIA H200 (sm_90)", "GPU 5 is NVIDIA A100 (sm_80)", "--gpus"] {
            assert!(told.contains(part), "{told}");
        }
        assert!(alike(&[h200(0), Seat { has_clusters: false, ..h200(1) }]).is_err());
    }
}
