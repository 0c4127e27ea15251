//! One GPU: its context, its stream, and the kernels loaded onto it.

use std::ffi::c_void;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use crate::error::OpenError;
use crate::grid::Grid;
use crate::kernel::{Kernel, Kernels};
use crate::probe;

/// A GPU that is ready to run ops. All of them go to one stream, [`Device::stream`], in order.
pub struct Device {
    stream: Arc<CudaStream>,
    kernels: Kernels,
    name: String,
    capability: (i32, i32),
    multiprocessors: u32,
    shared_bytes_max: u32,
    cluster_max: u32,
    shared_bytes_block: u32,
    /// Wait for every op.
    settles: bool,
    /// See [`Device::medium_clusters`].
    medium_clusters: OnceLock<[u32; 8]>,
}

impl Device {
    /// How many GPUs the driver shows; 0 without a driver that can be used.
    pub fn count() -> usize {
        if probe::start_driver().is_err() {
            return 0;
        }
        CudaContext::device_count().map_or(0, |count| count.max(0) as usize)
    }

    /// Opens GPU `ordinal` and loads every kernel.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(ordinal: usize) -> Result<Device, OpenError> {
        probe::start_driver()?;
        let count = Device::count();
        if ordinal >= count {
            return Err(OpenError::NoDevice { ordinal, count });
        }
        let failed = |what: &str| {
            let what = format!("{what} GPU {ordinal}");
            move |source| OpenError::Driver { what, source }
        };
        let context = CudaContext::new(ordinal).map_err(failed("open"))?;
        // SAFETY: nothing is allocated yet, and each buffer is used on one stream only, which
        // launchers check. With tracking, every buffer would get two events, and captures would break.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(failed("name"))?;
        let (major, minor) = context.compute_capability().map_err(failed("look at"))?;
        if major < 8 {
            return Err(OpenError::TooOld { ordinal, name, major, minor });
        }
        let attribute = |attribute| context.attribute(attribute).map_err(failed("look at"));
        let multiprocessors =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_bytes_max =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let kernels = Kernels::load(&context).map_err(failed("load the kernels onto"))?;
        let stream = context.new_stream().map_err(failed("make a stream on"))?;

        let shared_bytes_block = shared_bytes_max;
        // All that a block can have; the static part of the shared memory counts too.
        let offer = |kernel: Kernel| -> Result<i32, DriverError> {
            let function = kernels.get(kernel);
            let dynamic = shared_bytes_block - function.shared_size_bytes()?;
            function.set_attribute(
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                dynamic,
            )?;
            Ok(dynamic)
        };
        // The sampler's, which cuts rows up to fit in either.
        let samplers = [Kernel::SampleShared, Kernel::SampleRanksShared];
        let mut shared_bytes_max = i32::MAX;
        for kernel in samplers {
            let bytes = offer(kernel).map_err(failed("set up shared memory on"))?;
            shared_bytes_max = shared_bytes_max.min(bytes);
        }
        let wide = [
            "skinny_held",
            "skinny_held_e4m3",
            "skinny_stream",
            "skinny_stream_e4m3",
            "gemv",
            "medium",
            "narrow",
            "broad",
            "experts_few",
            "experts_many",
            "fp8_few",
            "fp8_many",
            "mxfp4_few",
            "mxfp4_many",
        ];
        for kernel in wide.into_iter().flat_map(Kernel::of_source) {
            offer(kernel).map_err(failed("set up shared memory on"))?;
        }
        // Only machine code for these knows clusters; the PTX for all others is older. Eight blocks always
        // fit, sixteen where enough neighbouring multiprocessors are to be had.
        let mut cluster_max = 1;
        if matches!((major, minor), (9, 0) | (10, 0)) {
            let grid = Grid { blocks: (16, 1), threads: 512, shared_bytes: 40 << 10, cluster: 16 };
            cluster_max = 16;
            for kernel in samplers {
                let wider =
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
                kernels.get(kernel).set_attribute(wider, 1).map_err(failed("allow clusters on"))?;
                if !kernels.clusters_at_once(kernel, grid).is_ok_and(|clusters| clusters > 0) {
                    cluster_max = 8;
                }
            }
        }
        Ok(Device {
            stream,
            kernels,
            name,
            capability: (major, minor),
            multiprocessors: multiprocessors.max(1) as u32,
            shared_bytes_max: shared_bytes_max.max(0) as u32,
            cluster_max,
            shared_bytes_block: shared_bytes_block.max(0) as u32,
            settles: false,
            medium_clusters: OnceLock::new(),
        })
    }

    /// Where every op goes. Buffers that ops work on must be allocated on it.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// What the driver calls the GPU.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// How many multiprocessors the GPU has.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Works as a GPU without thread block clusters does. For tests of that path.
    pub fn without_clusters(self) -> Device {
        Device { cluster_max: 1, ..self }
    }

    /// From now on every op waits until it has run, so that a fault shows in the op that made it and not in
    /// a later one. Very slow: to find a fault. What a graph holds is not waited for while it is recorded.
    pub fn settling(self) -> Device {
        Device { settles: true, ..self }
    }

    /// Whether every op waits; see [`Device::settling`].
    pub fn settles(&self) -> bool {
        self.settles
    }

    /// After an op was put onto the stream: waits for it, if ops are waited for.
    pub(crate) fn settle(&self) -> Result<(), DriverError> {
        let recording = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE;
        if !self.settles || self.stream.capture_status()? == recording {
            return Ok(());
        }
        self.synchronize()
    }

    /// Dynamic shared memory that a block of the sampler may have.
    pub(crate) fn shared_bytes_max(&self) -> u32 {
        self.shared_bytes_max
    }

    /// Whether blocks can share their memory.
    pub(crate) fn has_clusters(&self) -> bool {
        self.cluster_max > 1
    }

    /// Blocks of the largest cluster of the sampler that fits; 1 on a GPU without clusters.
    pub(crate) fn cluster_max(&self) -> u32 {
        self.cluster_max
    }

    /// Shared memory that a block may have, static and dynamic.
    pub(crate) fn shared_bytes_block(&self) -> u32 {
        self.shared_bytes_block
    }

    /// Lets a kernel be launched with so much dynamic shared memory.
    pub(crate) fn allow_shared(&self, kernel: Kernel, bytes: u32) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.kernels.get(kernel).set_attribute(attribute, bytes as i32)
    }

    /// Puts a kernel onto the stream; it may start while the one before it drains.
    ///
    /// # Safety
    /// `args` is the struct that the header names for `kernel`, and every array in it is as long as the
    /// kernel takes it to be and was allocated on this device's stream.
    pub(crate) unsafe fn launch<A: Copy>(
        &self,
        kernel: Kernel,
        grid: Grid,
        args: &A,
    ) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        let mut attributes = [
            attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            ),
            attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                sys::CUlaunchAttributeValue {
                    clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                        x: grid.cluster,
                        y: 1,
                        z: 1,
                    },
                },
            ),
        ];
        // Both attributes are Hopper's and later.
        let count = match (self.capability.0 >= 9, grid.cluster > 1) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks.0,
            gridDimY: grid.blocks.1,
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        };
        let function = self.kernels.get(kernel).cu_function();
        let mut params = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the function, the stream and the context live as long as `self`; the kernel has one
        // parameter, which the driver copies before it returns; the caller vouches for its content.
        unsafe {
            sys::cuLaunchKernelEx(&config, function, params.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()?;
        self.settle()
    }

    /// How many clusters of such a launch are on the GPU at once; of blocks alone, how many blocks.
    pub(crate) fn clusters_at_once(&self, kernel: Kernel, grid: Grid) -> Result<u32, DriverError> {
        self.stream.context().bind_to_thread()?;
        if grid.cluster == 1 {
            let (threads, shared_bytes) = (grid.threads, grid.shared_bytes as usize);
            let function = self.kernels.get(kernel);
            let each = function.occupancy_max_active_blocks_per_multiprocessor(
                threads,
                shared_bytes,
                None,
            )?;
            return Ok(each * self.multiprocessors);
        }
        self.kernels.clusters_at_once(kernel, grid)
    }

    /// How many clusters of 1 to 8 blocks of `MediumGemm` and its kin the GPU has room for at once, asked once: the driver takes
    /// its time. All of these take nearly all of a multiprocessor's shared memory, so the answer is the same for each.
    pub(crate) fn medium_clusters(
        &self,
        ask: impl Fn(usize) -> Result<u32, DriverError>,
    ) -> Result<[u32; 8], DriverError> {
        if let Some(known) = self.medium_clusters.get() {
            return Ok(*known);
        }
        let mut found = [0; 8];
        for (at, of_size) in found.iter_mut().enumerate() {
            *of_size = ask(at + 1)?;
        }
        Ok(*self.medium_clusters.get_or_init(|| found))
    }

    /// Waits until everything launched has run.
    ///
    /// # Errors
    /// The driver's: a kernel that failed shows here.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream.cu_stream()) }
    }
}

fn attribute(
    id: sys::CUlaunchAttributeID,
    value: sys::CUlaunchAttributeValue,
) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}
